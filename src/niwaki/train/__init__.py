"""Training on labels: `train.fit`."""

from __future__ import annotations

from niwaki.train.fit import fit

__all__ = ["fit"]
