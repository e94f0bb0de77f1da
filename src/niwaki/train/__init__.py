"""Training on labels, `train.fit`; batch norm statistics taken anew, `train.statistics`."""

from __future__ import annotations

from niwaki.train.fit import fit
from niwaki.train.statistics import statistics

__all__ = ["fit", "statistics"]
