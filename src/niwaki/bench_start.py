"""What a fresh process needs to give its first answer.

`python -m niwaki.bench_start ARTIFACT RUNTIME PRECISION THREADS`

Prints one line of JSON: `start_ms`, from before the first import to the first answer (checksums of the artifact
included), and `peak_mb`, the largest resident memory of the process, Python itself included.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

STARTED = time.perf_counter()


def main(artifact: str, runtime: str, precision: str, threads: str) -> None:
    """Open, answer once, print."""
    import numpy as np

    from niwaki.artifact import Artifact

    opened = Artifact.open(artifact)
    session = opened.session(runtime, precision=precision, threads=int(threads))
    session(np.zeros((1, *opened.spec.size_hw, opened.spec.channels), np.uint8))
    taken = 1000 * (time.perf_counter() - STARTED)
    print(json.dumps({"start_ms": taken, "peak_mb": peak_bytes() / 1e6}))


def peak_bytes() -> int:
    """Largest resident memory of this process so far.

    Linux's getrusage counts the parent's memory at the fork too, so its own record is read where there is one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM")), None)
        if found:
            return 1024 * int(found.split()[1])
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main(*sys.argv[1:5])
