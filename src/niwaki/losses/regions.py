"""Losses of whole regions, close to what overlap scores measure. Needs torch.

Shape letters: B batch, K classes, P entries of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from niwaki.losses.terms import VOID


def dice(logits: Tensor, target: Tensor, *, smooth: float = 1.0) -> Tensor:
    """`1 - (2 sum(p g) + s) / (sum(p) + sum(g) + s)` of each class in an image, its mean over all classes:
    `[B]`.

    Classes that are not there count too, so that an image of background alone still has a gradient.

    Args:
        smooth: the `s`, in pixels.
    Source: Milletari et al. 2016, V-Net, arXiv:1606.04797, section 3, without squares.
    """
    probabilities, truth = _flat(logits, target)
    both = (probabilities * truth).sum(2)
    return (1 - (2 * both + smooth) / (probabilities.sum(2) + truth.sum(2) + smooth)).mean(1)


def lovasz(logits: Tensor, target: Tensor) -> Tensor:
    """The Lovasz extension of 1 - IoU, its mean over the classes that an image has: `[B]`.

    Source: Berman et al. 2018, "The Lovasz-Softmax loss", arXiv:1705.08790, eq. 9 to 11 and algorithm 1.
    """
    probabilities, truth = _flat(logits, target)
    errors, order = (truth - probabilities).abs().sort(dim=2, descending=True)
    true = truth.gather(2, order)
    total = true.sum(2, keepdim=True)
    seen = true.cumsum(2)
    # pixels without a class have error 0, so they come last and add nothing
    jaccard = 1 - (total - seen) / (total + (1 - true).cumsum(2))
    steps = torch.cat([jaccard[..., :1], jaccard[..., 1:] - jaccard[..., :-1]], 2)
    there = (total[..., 0] > 0).to(errors)
    return ((errors * steps).sum(2) * there).sum(1) / there.sum(1).clamp_min(1)


def _flat(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and truth, float `[B, K, P]`; both 0 where there is no class."""
    valid = (target != VOID).flatten(1)[:, None].to(logits)
    truth = F.one_hot(target.clamp_min(0).flatten(1), logits.shape[1]).transpose(1, 2).to(logits)
    return logits.softmax(1).flatten(2) * valid, truth * valid
