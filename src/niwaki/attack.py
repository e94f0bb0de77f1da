"""White-box attacks on a torch module, in pixels: images that look the same and are chosen to be misread.

Both work within `eps` grey levels of 255 at each pixel and channel (L-infinity) and give uint8 images, the
only ones a deployed file can be shown: rounding stays within the bound, which is a whole number of levels.
The module runs in eval mode and is left as it was. Shape letters: B images, H W pixels, C channels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from niwaki.data import augment
from niwaki.evaluate import ImagesU8
from niwaki.spec import Spec
from niwaki.tasks import Task

Targets = npt.NDArray[np.integer]

EPS, STEP, STEPS = 8, 2, 10
"""The usual bound and steps for natural images, in grey levels of 255."""
BATCH = 64


def fgsm(
    model: nn.Module, images: ImagesU8, labels: Targets, *, task: Task, spec: Spec, eps: int = EPS
) -> ImagesU8:
    """The images uint8 `[B, H, W, C]` after one step of `eps` levels up the loss's gradient.

    Args:
        labels: int64 `[B]`, the true ones; or masks `[B, H, W]`.
        eps: grey levels of 255 that each value may move, a whole number.
    Source: Goodfellow et al. 2015, arXiv:1412.6572, section 4: `x + eps * sign(grad L)`.
    """
    out = [images[:0]]
    with _attacked(model):
        for part in _parts(len(images)):
            clean = _pixels(images[part], model)
            lose = _loss(model, labels[part], task, spec)
            _, slope = _slope(lose, clean)
            out.append(_images(_bounded(clean + eps * slope.sign(), clean, eps)))
    return np.concatenate(out)


def pgd(
    model: nn.Module,
    images: ImagesU8,
    labels: Targets,
    *,
    task: Task,
    spec: Spec,
    eps: int = EPS,
    step: float = STEP,
    steps: int = STEPS,
    seed: int = 0,
) -> ImagesU8:
    """The worst images uint8 `[B, H, W, C]` found by `steps` projected steps from a random start.

    Of all rounded iterates, FGSM's among them, each image's one of the greatest loss: never weaker than FGSM.

    Args:
        labels: int64 `[B]`, the true ones; or masks `[B, H, W]`.
        eps, step: grey levels of 255: the bound, and the length of a step.
        seed: of the start, drawn for each image by its place.
    Source: Madry et al. 2018, arXiv:1706.06083, section 2.1.
    """
    out = [images[:0]]
    start = fgsm(model, images, labels, task=task, spec=spec, eps=eps)
    with _attacked(model):
        for part in _parts(len(images)):
            clean = _pixels(images[part], model)
            lose = _loss(model, labels[part], task, spec)
            worst = _Worst(lose, _pixels(start[part], model))
            now = _bounded(clean + eps * _draws(part, clean, seed), clean, eps)
            for _ in range(steps):
                _, slope = _slope(lose, now)
                now = _bounded(now + step * slope.sign(), clean, eps)
                worst.consider(now.round())
            out.append(_images(worst.images))
    return np.concatenate(out)


class _Worst:
    """For each image of a batch the candidate of the greatest loss so far."""

    def __init__(self, lose: Any, first: Tensor) -> None:
        self.lose, self.images = lose, first
        with torch.no_grad():
            self.losses: Tensor = lose(first)

    def consider(self, images: Tensor) -> None:
        """Take those of the candidates that are worse."""
        with torch.no_grad():
            losses = self.lose(images)
        worse = losses > self.losses
        self.losses = torch.where(worse, losses, self.losses)
        self.images = torch.where(worse[:, None, None, None], images, self.images)


def _loss(model: nn.Module, labels: Targets, task: Task, spec: Spec) -> Any:
    """Pixels `[B, C, H, W]` in 0..255 to losses `[B]`; normalisation is part of what is attacked."""
    device = _device(model)
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (spec.mean, spec.std))
    target = torch.from_numpy(np.asarray(labels, np.int64)).to(device)

    def lose(pixels: Tensor) -> Tensor:
        return task.loss(model((pixels / 255 - mean) / std).float(), target)

    return lose


def _slope(lose: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Losses `[B]` and their gradient by the pixels."""
    with torch.enable_grad():
        leaf = pixels.detach().clone().requires_grad_(True)
        losses: Tensor = lose(leaf)
        (slope,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), slope


def _bounded(pixels: Tensor, clean: Tensor, eps: int) -> Tensor:
    return torch.minimum(torch.maximum(pixels, clean - eps), clean + eps).clamp(0, 255)


def _draws(part: slice, clean: Tensor, seed: int) -> Tensor:
    """Uniform in -1..1 for every value, of the seed and each image's place."""
    index = np.arange(part.start, part.start + len(clean))
    drawn = augment.uniforms(index, seed=seed, epoch=0, count=clean[0].numel())
    return torch.from_numpy((2 * drawn - 1).astype(np.float32)).to(clean.device).reshape(clean.shape)


def _pixels(images: ImagesU8, model: nn.Module) -> Tensor:
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32)
    return torch.from_numpy(planes).to(_device(model))


def _images(pixels: Tensor) -> ImagesU8:
    planes = pixels.round().to(torch.uint8).cpu().numpy()
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, min(start + BATCH, count)) for start in range(0, count, BATCH))


@contextlib.contextmanager
def _attacked(model: nn.Module) -> Iterator[None]:
    """The module in eval mode, its parameters without gradients, inside; as it was, after."""
    modes = [(module, module.training) for module in model.modules()]
    learning = [(p, p.requires_grad) for p in model.parameters()]
    model.eval()
    for parameter, _ in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, before in learning:
            parameter.requires_grad_(before)
