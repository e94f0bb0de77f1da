"""The main job: a folder of images, a model and a budget in; a smaller, proven, deployable model out.

`fit` is a list of stages over one run folder. Every stage keeps its result there and is skipped
when it is done; what was measured is journaled before it is acted on; so after a crash the same
call goes on where it was.

    folder.py    whose run it is, what is done, the lock
    work.py      arguments, data, model and plan
    walk.py      the stages in order
    baseline.py  the uncompressed model: trained, saved, exported, timed
    widths.py    the budget turned into widths
    points.py    a compressed network: pruned, proven, recovered, exported, judged
    measure.py   scores and interleaved latencies
    record.py    the result, and the report's record
    ledger.py    what compression changed beside accuracy

`explore` (explore.py, tries.py) is the job of a search: settings or widths tried on one data set.
"""

from __future__ import annotations

from niwaki.job.explore import explore
from niwaki.job.run import fit

__all__ = ["explore", "fit"]
