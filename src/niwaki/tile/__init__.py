"""Scenes of any size within a stated memory: read by window, predicted in tiles, written row by row.
No torch."""

from __future__ import annotations

from niwaki.overlays import palette
from niwaki.tile.augment import together, turned
from niwaki.tile.crops import crops
from niwaki.tile.exact import field_of, prove, receptive_field, widest
from niwaki.tile.receptive import Field
from niwaki.tile.scene import Progress, Stats, predict
from niwaki.tile.viewer import viewer

__all__ = [
    "Field",
    "Progress",
    "Stats",
    "colours",
    "crops",
    "field_of",
    "predict",
    "prove",
    "receptive_field",
    "together",
    "turned",
    "viewer",
    "widest",
]


def colours(classes: int) -> tuple[tuple[int, int, int], ...]:
    """A colour for each class, for `palette=` of `predict`; none where there are more than a palette holds."""
    if classes > 255:
        return ()
    return tuple((int(r), int(g), int(b)) for r, g, b in palette(classes))
