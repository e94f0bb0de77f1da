"""`read` of masks that tell objects apart: maps of numbers, colours or outlines, for the instances task.

    images/1.png  instances/1.png     a number (or colour) an object, 0 for background; any values, with gaps
    images/1.png  masks/1.tif         the same, with data.read(..., instances=True)
    images/1.png  annotations.json    the same; COCO: an annotation an object, crowds not known

Objects come as 1..N in the order of their values (of a COCO file: as listed, small ones over large ones), -1 is
what is not known. Shape letters: h w pixels of a mask as it is stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki import images
from niwaki.data import banding, read_masks
from niwaki.data.class_names import Coding
from niwaki.data.coco import CROWD
from niwaki.data.mask_layouts import Pair, Pairs
from niwaki.data.masks import Outlines, painted
from niwaki.data.read_masks import Seen
from niwaki.data.samples import DataSet, Problem, in_threads
from niwaki.errors import DataError

Ids = npt.NDArray[np.int32]
UNKNOWN = -1
_CODING = Coding(classes=("object",), places={})


@dataclass(frozen=True, kw_only=True)
class ObjectMask:
    """One image's objects: a file's path or bytes, or outlines; and what messages call it."""

    source: Path | bytes | Outlines
    name: str

    def read(self) -> Ids:
        """Numbers int32 `[h, w]`: objects 1..N, 0 background, -1 not known.

        Raises:
            DataError: it is no image. [image-*]
        """
        if isinstance(self.source, Outlines):
            return _numbered(_outlined(self.source))
        stored = images.stored(self.source, name=self.name)
        if stored.ndim == 3:
            red, green, blue = (stored[..., i].astype(np.int64) for i in range(3))
            stored = red << 16 | green << 8 | blue
        return _numbered(stored)


def _outlined(outlines: Outlines) -> npt.NDArray[np.integer[Any]]:
    """An object a number of its own, crowds -1."""
    items = [(UNKNOWN if kind == CROWD else k, what) for k, (kind, what) in enumerate(outlines.items, 1)]
    return painted(replace(outlines, items=tuple(items)))


def _numbered(stored: npt.NDArray[np.integer[Any]]) -> Ids:
    """Values above 0 as 1..N in rising order."""
    values, place = np.unique(stored, return_inverse=True)
    below = int((values <= 0).sum())
    new = np.arange(len(values)) - below + 1
    new[:below] = np.where(values[:below] < 0, UNKNOWN, 0)
    return new.astype(np.int32)[place].reshape(stored.shape)


def assemble(
    found: Pairs, where: str, *, seed: int, val: float, test: float, stored: Mapping[str, Any] | None
) -> DataSet:
    """From pairs of images and masks to objects that are learned from; every one is decoded once.

    Raises:
        DataError: nothing is usable, no object is there to learn from, or a split is empty.
            [data-empty, data-class-empty, data-few-images, data-changed]
    """
    how, told = read_masks.banding_of(found, where)
    looked = in_threads(lambda pair: _look(pair, how), found.pairs)
    seen = [one for one in looked if isinstance(one, Seen)]
    problems = [*found.problems, *(one for one in looked if isinstance(one, Problem))]
    if not seen:
        reasons = "; ".join(f"{p.path}: {p.code}" for p in problems[:3])
        raise DataError(
            f"{where}: not one image with a mask is usable. Left out: {reasons or 'nothing'}.",
            code="data-empty",
        )
    split = read_masks.split_of(seen, found, where, seed=seed, val=val, test=test, stored=stored)
    counts = np.array([[one.found[1]] for one in seen], np.int64)
    read_masks.check_splits(found, where, split, counts, _CODING, problems, asked={"val": val, "test": test})
    parts = {
        part: read_masks.samples_of(part, seen, split, counts, _mask, objects=True)
        for part in read_masks.SPLITS
    }
    measured = None if how is None else banding.measured(parts["train"], how)
    return DataSet(
        classes=_CODING.classes,
        **parts,
        problems=tuple(problems),
        warnings=(*told, *read_masks.warnings(seen, split, counts, _CODING)),
        fingerprint=banding.marked(read_masks.fingerprint(seen, split, _CODING), measured),
        flip=True,
        bands=measured,
    )


def _mask(pair: Pair) -> ObjectMask:
    return ObjectMask(source=pair.mask, name=pair.mask_name)


def _look(pair: Pair, how: banding.Banding | None) -> Seen | Problem:
    """An image and its objects decoded once, and let go again; `found` is how many pixels they have."""
    try:
        content, (height, width), _ = banding.looked(pair.image, pair.name, how)
        ids = _mask(pair).read()
    except DataError as error:
        return Problem(path=pair.name, code=error.code, message=str(error))
    if ids.shape != (height, width):
        return read_masks.wrong_size(pair, ids.shape, (height, width))
    digest = hashlib.sha256(content)
    digest.update(repr(ids.shape).encode() + ids.tobytes())
    return Seen(pair=pair, found={1: int((ids > 0).sum())}, digest=digest.hexdigest())
