"""Scenes of any size within a stated memory: read by window, predicted in tiles, written row by row. No
torch."""

from __future__ import annotations

from niwaki.tile.receptive import Field
from niwaki.tile.scene import Progress, Stats, predict

__all__ = ["Field", "Progress", "Stats", "predict"]
