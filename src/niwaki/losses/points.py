"""What a network with PointRend learns: its own map, and single points where that map is least sure.

Needs torch. Shape letters: B batch, C channels, H W pixels, K classes, P points.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from niwaki.losses import terms
from niwaki.nets.point_rend import PointRend, uncertain

Loss = Callable[[Tensor, Tensor], Tensor]
Valid = Callable[[Tensor], Tensor]


def point_loss(network: PointRend, images: Tensor, target: Tensor, *, own: Loss, weight: float) -> Tensor:
    """`own` of the coarse map and target, plus `weight` times the cross-entropy of single points: `[B]`.

    Args:
        images: float `[B, C, H, W]`.
        target: masks `[B, H, W]`; `terms.VOID`, or 255, has no class.
        own: the loss of logits `[B, K, h, w]` and the target.
    Source: arXiv:1912.08193, section 3.2; as many points as the last step of inference takes.
    """
    coarse, fine = network.seen(images)
    height, width = target.shape[1], target.shape[2]
    with torch.no_grad():
        where = uncertain(coarse.float(), max(1, math.ceil(network.share * height * width)))
    logits = network.at(coarse, fine, where)
    return own(coarse.float(), target) + weight * terms.cross_entropy(logits.float(), nearest(target, where))


def nearest(target: Tensor, where: Tensor) -> Tensor:
    """The class at places `[B, P, 2]` of masks `[B, H, W]`, int64 `[B, P, 1]`, `terms.VOID` for none."""
    values = F.grid_sample(
        target[:, None].float(), where[:, :, None], mode="nearest", padding_mode="border", align_corners=False
    )
    found = values[:, 0].round().long()
    return found.masked_fill(found == 255, terms.VOID)
