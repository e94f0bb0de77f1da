"""From a split of images to the batches of a training: order, share of each process, tensors.

Everything is a function of (seed, epoch, sample): no state, so any step can be made again after a
crash.
Shape letters: B batch, H W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from niwaki import parallel
from niwaki.data import augment, augment_masks, cutmix
from niwaki.evaluate import ImagesU8, Readable
from niwaki.spec import Spec

Ints = npt.NDArray[np.int64]
Targets = npt.NDArray[np.integer]
Change = Callable[[ImagesU8, Targets, Ints], tuple[ImagesU8, Targets]]
T = TypeVar("T")

HARD = 0.5
"""Share of an epoch's draws that goes by loss where sampling is by hard examples."""
_DRAW = 0x636C617373  # another stream than the order's and the augmentation's


@dataclass(frozen=True)
class Batch:
    """What an objective sees.

    Args:
        images: normalised float32 `[B, C, H, W]`.
        target: labels int64 `[B]`, or masks uint8 `[B, H, W]`.
        weight: float32 `[B]`; the loop multiplies each sample's loss by it.
        index: each sample's place in the split, int64 `[B]`.
    """

    images: Tensor
    target: Tensor
    weight: Tensor
    index: Tensor


@dataclass(frozen=True)
class Share:
    """One process's part of a global batch: raw images and what goes with them.

    Args:
        total: the weights' sum over the global batch, which every process knows without asking.
    """

    images: ImagesU8
    target: Targets
    weight: npt.NDArray[np.float32]
    index: Ints
    total: float


def order(
    count: int, *, batch: int, seed: int, epoch: int, chances: npt.NDArray[np.float64] | None = None
) -> list[Ints]:
    """An epoch's global batches: every sample once, sizes equal to one, none above `batch`.

    Args:
        chances: of each sample, `[count]`, summing to 1: as many samples are drawn by them, with replacement.
    """
    shuffled = augment.order(count, seed=seed, epoch=epoch)
    if chances is not None:
        draws = augment.uniforms(np.arange(count), seed=seed ^ _DRAW, epoch=epoch, count=1)[:, 0]
        shuffled = np.searchsorted(np.cumsum(chances)[:-1], draws, side="right").astype(np.int64)
    return np.array_split(shuffled, -(-count // batch))


def by_class(train: Readable) -> npt.NDArray[np.float64]:
    """Chances `[N]` of samples by which every class is met alike often: a sample's are the sum of `1 / n` over
    its classes, where `n` is how many samples a class is in."""
    there = np.eye(int(train.labels.max()) + 1)[train.labels] if train.counts is None else train.counts > 0
    chances = (there / np.maximum(1, there.sum(0))).sum(1)
    return np.asarray(chances / chances.sum(), np.float64)


class Changes(Protocol):
    """The knobs of a training that change images; `loop.Knobs` explains them."""

    @property
    def augment(self) -> str:
        """Which."""

    @property
    def flip(self) -> bool:
        """Whether images are mirrored."""

    @property
    def seed(self) -> int:
        """Of all draws."""

    @property
    def cutmix(self) -> float:
        """Share of images with a rectangle of another."""

    @property
    def negatives(self) -> float:
        """Share of rectangles of negative images."""


def mixed(
    train: Readable, spec: Spec, knobs: Changes, images: ImagesU8, target: Targets, index: Ints, *, epoch: int
) -> tuple[ImagesU8, Targets]:
    """Images and targets augmented, and where the knobs say so with rectangles of others, augmented as well."""
    images, target = augmented(knobs, images, target, index, seed=knobs.seed, epoch=epoch)
    if not knobs.cutmix or train.counts is None:
        return images, target
    seed = knobs.seed ^ cutmix.STREAM
    draws = augment.uniforms(index, seed=seed, epoch=epoch, count=cutmix.DRAWS)
    empty = cutmix.negatives(train.counts)
    others = cutmix.partners(draws, len(train), empty=empty, share=knobs.negatives)
    given = train.batch(others.tolist(), spec), train.targets(others.tolist(), spec)
    theirs, classes = augmented(knobs, *given, others, seed=seed, epoch=epoch)
    mask, their_mask = np.asarray(target, np.uint8), np.asarray(classes, np.uint8)
    return cutmix.pasted(images, mask, theirs, their_mask, draws, share=knobs.cutmix)


def augmented(
    knobs: Changes, images: ImagesU8, target: Targets, index: Ints, *, seed: int, epoch: int
) -> tuple[ImagesU8, Targets]:
    """Images changed as the knobs say, and masks with them; labels stay."""
    if knobs.augment == "none":
        return images, target
    draws: dict[str, Any] = {"seed": seed, "epoch": epoch, "flip": knobs.flip}
    if target.ndim == 3:
        alike = augment_masks.strong if knobs.augment == "strong" else augment_masks.weak
        return alike(images, target, index, **draws)
    change = augment.strong if knobs.augment == "strong" else augment.weak
    return change(images, index, **draws), target


class Hardness:
    """How much loss each sample had, epoch by epoch, and the chances of the next epochs.

    Chances of an epoch come from losses up to the end of the last but one: batches are made one ahead of the
    step in hand. Kept in a checkpoint, so that a training goes on to the same bits.

    Source: sampling in proportion to the loss, as Schaul et al. 2016, arXiv:1511.05952, section 3.3, do.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.ends: dict[int, npt.NDArray[np.float64]] = {}
        self._clear()

    def _clear(self) -> None:
        self.sums, self.fresh = np.zeros((2, self.count)), np.zeros((2, self.count))

    def add(self, index: Tensor, each: Tensor) -> None:
        """Count the losses `[B]` of samples of the step in hand."""
        places = index.cpu().numpy()
        np.add.at(self.fresh[0], places, each.detach().double().cpu().numpy())
        np.add.at(self.fresh[1], places, 1.0)

    def step(self) -> None:
        """End a step: what all processes saw in it counts."""
        both = torch.from_numpy(self.fresh).to(parallel.device())
        parallel.sum_([both])
        self.sums += both.cpu().numpy()
        self.fresh = np.zeros_like(self.fresh)

    def close(self, epoch: int) -> None:
        """End an epoch, counted from 0; samples that it did not meet keep their loss."""
        sums, seen = self.sums
        before = self.ends.get(epoch - 1, np.full(self.count, np.nan))
        self.ends[epoch] = np.where(seen > 0, sums / np.maximum(1, seen), before)
        self.ends.pop(epoch - 3, None)
        self._clear()

    def chances(self, epoch: int) -> npt.NDArray[np.float64] | None:
        """Of each sample in that epoch, `[N]`: half of it alike, half by loss; None: every sample once."""
        known = self.ends.get(epoch - 2)
        if known is None or not np.isfinite(known).any():
            return None
        losses = np.maximum(0, np.where(np.isfinite(known), known, np.nanmean(known)))
        total = losses.sum()
        if total <= 0:
            return None
        return np.asarray((1 - HARD) / self.count + HARD * losses / total, np.float64)

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint holds; null is no loss yet."""
        ends = {str(k): [None if np.isnan(x) else x for x in v.tolist()] for k, v in self.ends.items()}
        return {"ends": ends, "sums": self.sums.tolist()}

    def take(self, value: dict[str, Any]) -> None:
        """Go on from what `to_json` gave."""
        self.ends = {int(k): np.array(v, np.float64) for k, v in value["ends"].items()}
        self.sums = np.array(value["sums"], np.float64)


def normalise(images: ImagesU8, spec: Spec, *, device: torch.device) -> Tensor:
    """`Spec.normalise` on a device: float32 `[B, C, H, W]`, channels last in memory."""
    mean = torch.tensor(spec.mean, device=device)
    std = torch.tensor(spec.std, device=device)
    scaled = torch.from_numpy(images).to(device).float().div_(255).sub_(mean).div_(std)
    return scaled.permute(0, 3, 1, 2)


def tensors(share: Share, spec: Spec, *, parts: int, device: torch.device) -> Iterator[Batch]:
    """The share as at most `parts` batches on a device, empty ones left out."""
    for where in np.array_split(np.arange(len(share.index)), parts):
        if len(where):
            yield Batch(
                images=normalise(share.images[where], spec, device=device),
                target=torch.from_numpy(share.target[where]).to(device),
                weight=torch.from_numpy(share.weight[where]).to(device),
                index=torch.from_numpy(share.index[where]).to(device),
            )


def share(
    train: Readable,
    chosen: Ints,
    spec: Spec,
    *,
    rank: int,
    world: int,
    class_weights: tuple[float, ...] | None,
    change: Change,
) -> Share:
    """This process's slice of the global batch `chosen`, read and augmented, masks alike."""
    weights = np.ones(len(chosen), np.float32)
    if class_weights is not None:
        weights = np.asarray(class_weights, np.float32)[train.labels[chosen]]
    mine = np.array_split(np.arange(len(chosen)), world)[rank]
    index = chosen[mine]
    images, target = _nothing(spec), train.targets(index.tolist(), spec)
    if len(index):
        images, target = change(train.batch(index.tolist(), spec), target, index)
    return Share(images, target, weights[mine], index, float(weights.sum()))


def _nothing(spec: Spec) -> ImagesU8:
    return np.zeros((0, *spec.size_hw, spec.channels), np.uint8)


def ahead(make: Callable[[int], T], start: int, stop: int) -> Generator[T, None, None]:
    """`make(start)` ... `make(stop - 1)`, each made in a thread while the one before is in use."""
    if start >= stop:
        return
    with ThreadPoolExecutor(1, thread_name_prefix="niwaki-batch") as pool:
        waiting = pool.submit(make, start)
        for step in range(start, stop):
            ready = waiting.result()
            if step + 1 < stop:
                waiting = pool.submit(make, step + 1)
            yield ready
