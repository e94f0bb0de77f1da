"""What a star-convex network learns from a label map: probabilities and distances at every point, and the loss.

Needs torch. Label maps hold an object's number, 0 for background, and below 0 where nothing is known, which is
neither learned from nor scored. Shape letters: B batch, H W pixels, h w points, R rays, P points on objects.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from niwaki.instances.stars import DX, DY, RAYS

UNIT = 8.0
"""Pixels that 1 of a network's output stands for: distances and logits are then of one size, as int8 needs."""
DISTANCES = 0.2
"""Weight of the mean absolute error of distances in pixels, beside the cross-entropy, as in StarDist's code."""


def loss(output: Tensor, ids: Tensor, *, stride: int) -> Tensor:
    """Cross-entropy of the probability plus the weighted error of the distances: `[B]`, one number an image.

    Args:
        output: `[B, 1 + R, h, w]`: a logit, and distances in units of `UNIT` pixels.
        ids: label maps `[B, H, W]`; points are every `stride`-th pixel.
    Source: Schmidt et al. 2018, arXiv:1806.03535, section 2 (distances weighted by the true probability).
    """
    grid = ids[:, ::stride, ::stride][:, : output.shape[2], : output.shape[3]]
    image, row, column = torch.nonzero(grid > 0, as_tuple=True)
    true = distances(ids, image, row * stride, column * stride)
    sure = probabilities(true, image, grid[image, row, column])
    dense = torch.zeros(grid.shape, device=output.device)
    dense[image, row, column] = sure
    known = (grid >= 0).float()
    logits = output[:, 0, : grid.shape[1], : grid.shape[2]]
    each = F.binary_cross_entropy_with_logits(logits, dense, reduction="none") * known
    found = each.sum((1, 2)) / known.sum((1, 2)).clamp_min(1)
    off = (output.permute(0, 2, 3, 1)[image, row, column, 1:] * UNIT - true).abs().mean(1)
    summed = torch.zeros(2, len(output), device=output.device)
    summed = summed.index_add(1, image, torch.stack((off * sure, sure)))
    return found + DISTANCES * summed[0] / summed[1].clamp_min(1e-6)


def apart(student: Tensor, teacher: Tensor) -> Tensor:
    """How far two networks' outputs `[B, 1 + R, h, w]` are apart: `[B]`, the terms of `loss` with the teacher
    as the truth; least, though not 0, where they are equal."""
    sure = teacher[:, 0].float().sigmoid()
    found = F.binary_cross_entropy_with_logits(student[:, 0].float(), sure, reduction="none").mean((1, 2))
    off = (student[:, 1:].float() - teacher[:, 1:].float()).abs().mean(1) * UNIT * sure
    return found + DISTANCES * off.sum((1, 2)) / sure.sum((1, 2)).clamp_min(1e-6)


def distances(ids: Tensor, image: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Distances `[P, R]` in pixels from pixels on objects to the border; `stars.outline` of many at once."""
    _, height, width = ids.shape
    most = max(height, width)
    flat = F.pad(ids, (most,) * 4).reshape(-1)  # beyond the border is no object, so no ray passes it
    high, wide = height + 2 * most, width + 2 * most
    start = (image * high + row + most) * wide + column + most
    own = flat[start]
    if len(flat) < 2**31:
        start = start.int()  # half the memory to walk through
    steps = torch.zeros((RAYS, len(start)), dtype=torch.int32, device=ids.device)
    for k in range(RAYS):
        alive = torch.ones(len(start), dtype=torch.bool, device=ids.device)
        for step in range(1, most + 1):
            offset = round(step * float(DY[k])) * wide + round(step * float(DX[k]))
            alive &= flat.index_select(0, start + offset) == own
            steps[k] += alive
            if step % 4 == 0 and not alive.any():
                break
    return steps.T + 0.5


def probabilities(true: Tensor, image: Tensor, ids: Tensor) -> Tensor:
    """Nearest border over the object's farthest such distance, `[P]`, 0..1: high in the middle of an object.

    The paper takes the Euclidean distance transform; the shortest ray is that, to a fraction of a pixel.
    """
    nearest = true.min(1).values if len(true) else true.sum(1)
    key = torch.stack((image, ids.long()), 1)
    _, place = torch.unique(key, dim=0, return_inverse=True)
    most = torch.zeros(int(place.max()) + 1 if len(place) else 0, device=true.device)
    most = most.scatter_reduce(0, place, nearest, "amax", include_self=True)
    return nearest / most[place]
