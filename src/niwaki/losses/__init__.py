"""Losses: what a training makes small, `(logits, target) -> [B]`, one number an image, and mixes of them by
text.

terms.py       losses of single pixels or labels: cross-entropy, focal, OHEM, balanced, adjusted, boundary
regions.py     losses of whole regions: Dice, Lovasz-softmax
mix.py         `mix("2*ohem + dice", task=...)`: a text that a Plan can record, as a function
auxiliary.py   heads that only a training has, on modules inside a network: class maps and edges
points.py      what a network with PointRend learns

All take logits `[B, K, ...]` and targets int64 `[B, ...]`, so they work for labels and for masks; targets of
`VOID` count nowhere.
"""

from niwaki.losses.auxiliary import Heads
from niwaki.losses.mix import NAMES, Loss, mix
from niwaki.losses.points import point_loss
from niwaki.losses.regions import dice, lovasz
from niwaki.losses.terms import adjusted, balanced, boundary, cross_entropy, focal, ohem, ohem_images

__all__ = [
    "NAMES",
    "Heads",
    "Loss",
    "adjusted",
    "balanced",
    "boundary",
    "cross_entropy",
    "dice",
    "focal",
    "lovasz",
    "mix",
    "ohem",
    "ohem_images",
    "point_loss",
]
