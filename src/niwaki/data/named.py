"""Data sets with a name of their own: `digits` and `cifar10`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from niwaki import images, lazy
from niwaki.data.listing import Listing, Record
from niwaki.errors import DataError

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
    folder = _folder()
    found = Listing(where="cifar10", given={"train", "test"})
    try:
        with np.load(folder / "labels.npz", allow_pickle=False) as labels:
            found.classes = tuple(labels["class_names"].tolist())
            targets = {split: labels[f"{split}_y"] for split in ("train", "test")}
    except Exception as error:
        raise DataError(f"cifar10: labels.npz is damaged ({error}).", code="data-npz") from error
    for split, target in targets.items():
        pixels = _sheets(folder, split, len(target))
        found.records += _records(split, pixels, target, found.classes, split)
    return found


def _folder() -> Path:
    root = os.environ.get("NIWAKI_DATA", "")
    folder = Path(root) / "cifar10"
    if not root or not (folder / "labels.npz").is_file():
        state = f"is {root!r} and has no cifar10/labels.npz" if root else "is not set"
        raise DataError(
            f"cifar10: NIWAKI_DATA {state}. Set it to the folder that holds cifar10/ with "
            "labels.npz, train_000.webp .. train_099.webp and test_000.webp .. test_019.webp; "
            "docs/data.md says how to make it from the published files. "
            "Or give your own .npz with x_train, y_train, x_test, y_test.",
            code="data-unset",
        )
    return folder


def _sheets(folder: Path, split: str, count: int) -> ImageU8:
    """All images u8 `[count, 32, 32, 3]` of a split: a sheet is 500, one below the other."""
    pixels = np.concatenate(
        [
            images.decode(folder / f"{split}_{i:03d}.webp", channels=3).reshape(-1, 32, 32, 3)
            for i in range(-(-count // 500))
        ]
    )
    if len(pixels) != count:
        raise DataError(
            f"cifar10: {split} has {len(pixels)} images for {count} labels. Fetch it again.",
            code="data-npz",
        )
    return pixels


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


NAMED: dict[str, Callable[[], Listing]] = {"cifar10": cifar10, "digits": digits}
