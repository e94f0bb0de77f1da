"""Losses that look at each label or pixel by itself. Needs torch.

Each takes logits `[B, K, ...]` (of labels `[B, K, 1]`) and a target int64 `[B, ...]`, and gives `[B]`: the mean
over an image's entries that have a class (0 where there is none). Shape letters: B batch, K classes, P entries
of an image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

VOID = -100
"""The target of an entry that has no class."""


def cross_entropy(logits: Tensor, target: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy in nats: `[B]`.

    Args:
        smoothing: share of the target that is spread over all classes, 0..1.
    """
    each = F.cross_entropy(logits, target, ignore_index=VOID, reduction="none", label_smoothing=smoothing)
    return _mean(each, (target != VOID).float())


def focal(logits: Tensor, target: Tensor, *, gamma: float = 2.0) -> Tensor:
    """Cross-entropy times `(1 - p)^gamma`, which easy entries have little of: `[B]`.

    Source: Lin et al. 2017, "Focal loss for dense object detection", arXiv:1708.02002, eq. 4.
    """
    each = _entropy(logits, target)
    return _mean(each * (1 - (-each).exp()).clamp_min(0) ** gamma, (target != VOID).float())


def ohem(logits: Tensor, target: Tensor, *, sure: float = 0.7, least: float = 0.0625) -> Tensor:
    """Mean cross-entropy of an image's hard entries only: `[B]`.

    Args:
        sure: entries whose true class has at least this probability are left out, ...
        least: ... but this share of an image's entries is kept, the hardest.
    Source: Shrivastava et al. 2016, arXiv:1604.03540; by pixels as in Wu et al. 2016, arXiv:1605.06885, section
    4.
    """
    each = _entropy(logits, target).flatten(1)
    valid = (target != VOID).flatten(1)
    count = max(1, math.ceil(least * each.shape[1]))
    hardest = each.detach().masked_fill(~valid, -1).topk(count, dim=1).values[:, -1:]
    keep = valid & (each.detach() >= hardest.clamp_max(-math.log(sure)))
    return _mean(each, keep.float())


def ohem_images(logits: Tensor, target: Tensor, *, keep: float = 0.5) -> Tensor:
    """Cross-entropy of the batch's hardest images, the others 0, so that its mean is over those kept: `[B]`.

    Args:
        keep: share of the images, above 0.
    """
    each = cross_entropy(logits, target)
    count = max(1, round(keep * len(each)))
    hard = torch.zeros_like(each).index_fill_(0, each.detach().topk(count).indices, len(each) / count)
    return each * hard


def balanced(
    logits: Tensor, target: Tensor, *, counts: Tensor, power: float = 0.5, beta: float = 0.0
) -> Tensor:
    """Cross-entropy weighted by class, rare ones more: `[B]`, weighted means.

    Args:
        counts: entries of each class in the training split, `[K]`.
        power: weights are frequencies to the power of minus this: 0 none, 1 all classes alike.
        beta: above 0: weights `(1 - beta) / (1 - beta^n)` of the effective number instead; for counts of
            images, not of pixels, which are so many that all weights come out alike.
    Source: Cui et al. 2019, arXiv:1901.05555, eq. 4 (beta).
    """
    seen = counts.to(logits).clamp_min(1)
    weights = (1 - beta) / (1 - beta**seen) if beta else (seen / seen.sum()) ** -power
    weights = weights / (weights * seen / seen.sum()).sum()  # mean weight 1, so that lr need not change
    entry = weights[target.clamp_min(0)] * (target != VOID)
    return _mean(_entropy(logits, target), entry)


def adjusted(logits: Tensor, target: Tensor, *, counts: Tensor, tau: float = 1.0) -> Tensor:
    """Cross-entropy of logits to which `tau * log(frequency)` was added: `[B]`; trained so, rare classes need
    not outbid frequent ones.

    Args:
        counts: entries of each class in the training split, `[K]`.
    Source: Menon et al. 2021, "Long-tail learning via logit adjustment", arXiv:2007.07314, eq. 10.
    """
    seen = counts.to(logits).clamp_min(1)
    prior = (seen / seen.sum()).log().reshape(1, -1, *[1] * (logits.dim() - 2))
    return cross_entropy(logits + tau * prior, target)


def boundary(logits: Tensor, target: Tensor, *, weight: float = 4.0, width: int = 3) -> Tensor:
    """Cross-entropy in which pixels near a boundary between classes weigh more: `[B]`, weighted means.

    Args:
        weight: what is added to a weight of 1.
        width: pixels on either side that are near.
    """
    near = edges(target, width=width)
    return _mean(_entropy(logits, target), (1 + weight * near) * (target != VOID))


def edges(target: Tensor, *, width: int = 1) -> Tensor:
    """Where masks int64 `[B, H, W]` have a boundary between two classes: float 0 or 1, `[B, H, W]`.

    Args:
        width: pixels on either side.
    """
    values = target.masked_fill(target == VOID, -1).float()[:, None]
    high = F.max_pool2d(values, 2 * width + 1, 1, width)
    some = values.masked_fill(values < 0, math.inf)  # no boundary where classes end in pixels without one
    low = -F.max_pool2d(-some, 2 * width + 1, 1, width)
    return ((high != low) & (high >= 0) & low.isfinite())[:, 0].float()


def _entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each entry, 0 of those without a class."""
    return F.cross_entropy(logits, target, ignore_index=VOID, reduction="none")


def _mean(each: Tensor, weight: Tensor) -> Tensor:
    """Weighted means over everything but the batch: `[B]`; 0 where all weights are."""
    if each.dim() == 1:
        return each * (weight if weight.is_floating_point() else weight.float())
    total = (each * weight).flatten(1).sum(1)
    return total / weight.flatten(1).sum(1).clamp_min(1e-12)
