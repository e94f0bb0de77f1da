"""Training on a big scene: crops read straight from its file, and splits whose crops share no pixel.

The scene is cut into square blocks, each block belongs to one split, and a crop lies inside one block, so that
neighbours of different splits have at least `gap` pixels between them. Nothing is copied: a crop is read when
a batch asks for it. Shape letters: H W pixels of the scene, T of a crop, C channels, K classes, N crops.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from niwaki import files
from niwaki.data.banding import Banding, marked, measured
from niwaki.data.masks import pixel_counts
from niwaki.data.samples import Bands, DataSet, Samples
from niwaki.errors import DataError
from niwaki.rasters.raster import Raster, Windows
from niwaki.tile import pixels
from niwaki.tile.readers import Source, class_map, open_source

Place = tuple[int, int]
"""First row and column of a crop."""


def crops(
    scene: Source,
    mask: Source,
    *,
    classes: Sequence[str],
    crop: int,
    block: int | None = None,
    gap: int = 0,
    val: float = 0.15,
    test: float = 0.15,
    draws: int | None = None,
    labelled: float = 0.5,
    scale: pixels.Scale = None,
    memory_mb: float = 256,
    seed: int = 0,
) -> DataSet:
    """A DataSet of crops `[T, T, C]` and their masks, for `train.fit` and whatever takes a DataSet.

    Train has overlapping crops (half a crop apart), val and test crops side by side.

    Args:
        scene: what `tile.predict` reads.
        mask: its classes, `[H, W]` whole numbers, 255 for none; as a file or array.
        classes: names of the classes 0, 1, ...
        crop: side in pixels.
        block: side of the blocks that are dealt to the splits; four crops unless given.
        gap: pixels that crops of different splits are apart at least.
        val, test: shares of the blocks.
        draws: crops in train, drawn so that each class is met about as often: a class in turn, then a crop by
            how many of its pixels it has. None takes each crop once.
        labelled: least share of a crop's pixels that have a class.
        scale: as in `tile.predict`; None: pixels that are not 8 bits stay as they are, and `DataSet.bands` has
            a range for each band, measured on train.
    Raises:
        DataError: sizes differ, or no crop of a split has labels enough. [tile-format, data-few-images]
    """
    below = open_source(scene, memory=int(memory_mb * (1 << 20) / 2))
    above = class_map(mask)
    side = 4 * crop if block is None else block
    _check(below.shape, above, crop=crop, side=side, gap=gap)
    dealt = _dealt(below.shape, side, val=val, test=test, seed=seed)
    scaled = pixels.scaler(below.dtype, scale)
    made: dict[str, Samples] = {}
    reader = Windows(above, keep=int(memory_mb * (1 << 20) / 4))
    for name, blocks in dealt.items():
        step = max(1, crop // 2) if name == "train" else crop
        places, counts = _counted(reader, blocks, gap, crop, step, len(classes), labelled)
        if not places:
            raise DataError(
                f"crops: no crop of {name} has classes on {labelled:.0%} of its pixels. Make crops or blocks "
                "smaller, or ask for less.",
                code="data-few-images",
            )
        if name == "train" and draws is not None:
            chosen = drawn(counts, draws, seed=seed)
            places, counts = [places[k] for k in chosen], counts[chosen]
        made[name] = Samples(
            sources=_Images(below, scaled, places, crop),
            names=tuple(f"{name}/{k}:{y},{x}" for k, (y, x) in enumerate(places)),
            labels=np.zeros(len(places), np.int64),
            masks=[_Mask(above, place, crop, len(classes)) for place in places],
            counts=counts,
        )
    said = [below.identity, above.identity, list(classes), crop, {k: s.names for k, s in made.items()}]
    mark = hashlib.sha256(files.dump_json(said)).hexdigest()
    bands = _bands(made["train"], below, scale)
    return DataSet(
        classes=tuple(classes),
        train=made["train"],
        val=made["val"],
        test=made["test"],
        problems=(),
        warnings=(),
        fingerprint=marked(mark, bands),
        flip=True,
        bands=bands,
    )


def _bands(train: Samples, scene: Raster, scale: pixels.Scale) -> Bands | None:
    """What a Spec must say of the crops; None where they are photographs.

    A range that was given is the Spec's as well, so that a scene is predicted as the crops were learned.
    """
    channels, eight = scene.shape[2], scene.dtype == np.uint8
    if channels in (1, 3) and (scale == "bits" or (scale is None and eight)):
        return None
    if scale is None:
        return measured(train, Banding(channels=channels, wide=not eight), nodata=scene.nodata)
    found = measured(train, Banding(channels=channels, wide=False))  # the crops are in 8 bits already
    if scale == "bits":
        return replace(found, scale=((0.0, 255.0 if eight else 65535.0),) * channels)
    ends = pixels.pairs(scale)
    return replace(found, scale=ends * channels if len(ends) == 1 else ends)


def _check(scene: Sequence[int], mask: Any, *, crop: int, side: int, gap: int) -> None:
    if mask.shape != (*scene[:2], 1) or mask.dtype.kind not in "iu" or not 0 < crop <= side - gap:
        raise DataError(
            f"crops: the scene has {list(scene)}, the mask {mask.dtype} {list(mask.shape)}, crop={crop}, "
            f"block={side}, gap={gap}; expected a mask of whole numbers [H, W] of the scene's size, and blocks "
            "that hold a crop and the gap.",
            code="tile-format",
        )


def drawn(counts: npt.NDArray[np.int64], draws: int, *, seed: int) -> npt.NDArray[np.int64]:
    """Positions of `draws` crops, in which each class that occurs is met in turn.

    Args:
        counts: pixels of each class in each crop, `[N, K]`.
    """
    random = np.random.default_rng(seed)
    held = np.flatnonzero(counts.sum(0))
    chosen = np.empty(draws, np.int64)
    for k in range(draws):
        share = counts[:, held[k % len(held)]].astype(np.float64)
        chosen[k] = random.choice(len(counts), p=share / share.sum())
    return chosen


def _dealt(shape: tuple[int, ...], side: int, *, val: float, test: float, seed: int) -> dict[str, list[Any]]:
    """The blocks (first row and column, end) of each split."""
    corners = [(y, x) for y in range(0, shape[0], side) for x in range(0, shape[1], side)]
    order = np.random.default_rng(seed).permutation(len(corners))
    many = {"val": max(1, round(val * len(corners))), "test": max(1, round(test * len(corners)))}
    ends = {"test": many["test"], "val": many["test"] + many["val"], "train": len(corners)}
    dealt, start = {}, 0
    for name, end in ends.items():
        dealt[name] = [
            (*corners[k], min(corners[k][0] + side, shape[0]), min(corners[k][1] + side, shape[1]))
            for k in sorted(order[start:end])
        ]
        start = end
    return {name: dealt[name] for name in ("train", "val", "test")}


def _places(block: Any, gap: int, crop: int, step: int) -> Iterator[Place]:
    """Crops inside a block, half the gap from its edges."""
    y0, x0, y1, x1 = block
    first, last = gap - gap // 2, gap // 2
    for y in range(y0 + first, y1 - last - crop + 1, step):
        for x in range(x0 + first, x1 - last - crop + 1, step):
            yield y, x


def _counted(
    reader: Windows, blocks: list[Any], gap: int, crop: int, step: int, classes: int, labelled: float
) -> tuple[list[Place], npt.NDArray[np.int64]]:
    """Crops of the blocks that have labels enough, and the pixels of each class in them."""
    places, counts = [], []
    for block in blocks:
        for y, x in _places(block, gap, crop, step):
            found = pixel_counts(_eight(reader.read(y, x, crop, crop)[..., 0], classes), classes)
            if found.sum() >= max(1, labelled * crop * crop):
                places.append((y, x))
                counts.append(found)
    return places, np.array(counts, np.int64).reshape(-1, classes)


def _eight(numbers: Any, classes: int) -> npt.NDArray[np.uint8]:
    """Classes uint8, 255 for whatever is none."""
    return np.where((numbers >= 0) & (numbers < classes), numbers, 255).astype(np.uint8)


class _Images(Sequence[npt.NDArray[Any]]):
    """Crops of a scene, each read when it is asked for."""

    def __init__(self, raster: Raster, scaled: Any, places: list[Place], crop: int) -> None:
        self._reader, self._scaled = Windows(raster, keep=0), scaled
        self._places, self._crop = places, crop

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> npt.NDArray[Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[npt.NDArray[Any]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        y, x = self._places[index]
        return self._scaled(self._reader.read(y, x, self._crop, self._crop))


@dataclass(frozen=True)
class _Mask:
    """The mask of one crop."""

    raster: Raster
    place: Place
    crop: int
    classes: int

    def read(self) -> npt.NDArray[np.uint8]:
        """Its classes uint8 `[T, T]`."""
        y, x = self.place
        numbers = Windows(self.raster, keep=0).read(y, x, self.crop, self.crop)[..., 0]
        return _eight(numbers, self.classes)
