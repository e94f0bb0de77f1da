"""Running statistics of batch norms, taken anew: what a pruned or edited network needs before anything else."""

from __future__ import annotations

import copy

import torch
from torch import nn

from niwaki import batches
from niwaki.data import augment
from niwaki.errors import PlanError
from niwaki.evaluate import Readable
from niwaki.spec import Spec


def statistics(
    model: nn.Module, *, spec: Spec, train: Readable, images: int = 1024, batch: int = 64, seed: int = 0
) -> nn.Module:
    """A copy in eval mode whose batch norms hold the plain average of means and variances over training images.

    No weight changes. Each norm sees batches as in training, normalised by their own statistics; the averages
    over batches replace what it held (precise BN).

    Args:
        train: images without augmentation; their labels are not used.
        images: how many of them, drawn by `seed`.
        batch: images a batch, at least 2. The running averages carry its size: too small ones blur them.
    Raises:
        PlanError: the model has no batch norm with running statistics, or a knob is out of range.
            [train-no-statistics, train-knob]
    Source: Wu & Johnson 2021, arXiv:2105.07576, section 3; for pruned networks Li et al. 2020 (EagleEye),
        arXiv:2007.02491, section 3.3.
    """
    if images < 2 or batch < 2:
        raise PlanError(
            f"train.statistics: images and batch must be at least 2, got {images} and {batch}.",
            code="train-knob",
        )
    fresh = copy.deepcopy(model).eval()
    kind = nn.modules.batchnorm._BatchNorm
    norms = [m for m in fresh.modules() if isinstance(m, kind) and m.running_mean is not None]
    if not norms:
        raise PlanError(
            f"train.statistics: {type(model).__name__} has no batch norm with running statistics, so there is "
            "nothing to take anew. Take the step out of the plan.",
            code="train-no-statistics",
        )
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's name for a cumulative average
        norm.train()
    _run(fresh, spec, train, images=images, batch=batch, seed=seed)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return fresh.eval()


@torch.no_grad()
def _run(model: nn.Module, spec: Spec, train: Readable, *, images: int, batch: int, seed: int) -> None:
    """Batches in a drawn order, all of one size: in the average each counts the same."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    order = augment.order(len(train), seed=seed, epoch=0)[:images].tolist()
    size = min(batch, len(order))
    for start in range(0, len(order) - size + 1, size):
        pixels = train.batch(order[start : start + size], spec)
        model(batches.normalise(pixels, spec, device=device))
