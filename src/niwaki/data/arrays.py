"""NumPy archives: images and labels as arrays in an .npz file, without pickle."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.data.listing import SPLIT_NAMES, Listing, Record
from niwaki.errors import DataError
from niwaki.images import printable

MAX_UNPACKED = 16 * 2**30
"""Bytes that an .npz file's arrays may have together."""

Pixels = npt.NDArray[Any]
Array = npt.NDArray[np.generic]


def listing(path: Path, where: str) -> Listing:
    """The images of an .npz: arrays `x`, `y` (or `images`, `labels`), for each split where given.

    Names of a split's arrays: `x_train`, `y_train` or `train_images`, `train_labels`, and so for
    val, valid, test. `classes` (texts) names the labels 0, 1, ...; without it they are their own
    names.

    Raises:
        DataError: damaged, or the arrays are not images with labels. [data-npz]
    """
    arrays = _load(path, where)
    names = _names(arrays, where)
    found = Listing(where=where)
    labels: set[int | str] = set()
    for split, (x, y) in _pairs(arrays, where).items():
        pixels, values = _images(arrays[x], x, where), _labels(arrays[y], y, where)
        if len(pixels) != len(values):
            raise _error(where, f"{x} has {len(pixels)} images, {y} has {len(values)} labels")
        labels |= set(values)
        found.given |= {split} - {""}
        digits = len(str(max(1, len(pixels) - 1)))
        found.records += [
            Record(
                name=f"{x}/{i:0{digits}d}",
                source=pixels[i],
                label=_class_name(value, names, y, where),
                split=split or None,
            )
            for i, value in enumerate(values)
        ]
    found.classes = names or tuple(dict.fromkeys(map(_text, sorted(labels, key=_order))))
    return found


def _load(path: Path, where: str) -> dict[str, Array]:
    """All arrays, once each header was held against the bytes there are: it may claim more."""
    try:
        _check_headers(path)
        with np.load(path, allow_pickle=False) as archive:
            return {name: np.asarray(archive[name]) for name in archive.files}
    # zipfile and numpy's header parser raise whatever damage leads them to.
    except Exception as error:
        raise _error(where, f"it cannot be read ({printable(str(error))[:200]})") from error


def _check_headers(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sum(info.file_size for info in entries) > MAX_UNPACKED:
            raise ValueError(f"it unpacks to more than {MAX_UNPACKED} bytes")
        for info in entries:
            with archive.open(info) as file:
                version = np.lib.format.read_magic(file)
                if version == (1, 0):
                    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                else:
                    shape, _, dtype = np.lib.format.read_array_header_2_0(file)
            if dtype.hasobject:
                raise ValueError(f"{info.filename} holds Python objects, which are not loaded")
            if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > info.file_size:
                raise ValueError(f"{info.filename} claims shape {shape}, and has not the bytes")


def _pairs(arrays: Mapping[str, Array], where: str) -> dict[str, tuple[str, str]]:
    """Split ('' where none is given) to the names of its arrays."""
    pairs: dict[str, tuple[str, str]] = {}
    for x, y in (("x", "y"), ("images", "labels")):
        candidates = [("", x, y)]
        for word, split in SPLIT_NAMES.items():
            candidates += [
                (split, f"{x}_{word}", f"{y}_{word}"),
                (split, f"{word}_{x}", f"{word}_{y}"),
            ]
        for split, images, labels in candidates:
            if images not in arrays:
                continue
            if labels not in arrays:
                raise _error(where, f"{images} is there but {labels} is not")
            if split in pairs:
                raise _error(where, f"{images} and {pairs[split][0]} mean the same split")
            pairs[split] = (images, labels)
    if not pairs:
        raise _error(where, f"its arrays are {sorted(map(printable, arrays))[:9]}, expected x and y")
    if "" in pairs and len(pairs) > 1:
        raise _error(where, f"{pairs[''][0]} stands beside arrays of splits; name it one of them")
    return pairs


def _images(array: Array, name: str, where: str) -> Pixels:
    """`[N, H, W, C]` of what is there, or an error that says what it is: uint8, or bands of whole numbers or
    floats."""
    pixels = array[..., None] if array.ndim == 3 else array
    if array.dtype.kind not in "uif" or (array.dtype.kind == "f" and pixels.shape[-1] in (1, 3, 4)):
        raise _error(where, f"{name} is {array.dtype}, expected uint8 (0 black, 255 white)")
    first = pixels.ndim == 4 and pixels.shape[1] * 4 < min(pixels.shape[2:])  # channels first
    if pixels.ndim != 4 or first or 0 in pixels.shape[1:]:
        hint = ", channels last" if array.ndim == 4 else ""
        raise _error(where, f"{name} has shape {array.shape}, expected [N,H,W] or [N,H,W,C]{hint}")
    return np.asarray(pixels)


def _labels(array: Array, name: str, where: str) -> list[int | str]:
    flat = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.ndim != 1 or flat.dtype.kind not in "iuU":
        raise _error(
            where,
            f"{name} is {array.dtype} of shape {array.shape}, expected whole numbers or texts [N]",
        )
    values: list[int | str] = flat.tolist()
    return values


def _names(arrays: Mapping[str, Array], where: str) -> tuple[str, ...] | None:
    if "classes" not in arrays:
        return None
    classes = arrays["classes"]
    if classes.ndim != 1 or classes.dtype.kind != "U" or len(set(classes.tolist())) != len(classes):
        raise _error(where, "classes must be different texts [K]")
    return tuple(printable(text) for text in classes.tolist())


def _class_name(value: int | str, names: tuple[str, ...] | None, y: str, where: str) -> str:
    if names is None:
        return _text(value)
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    if isinstance(value, str) and printable(value) in names:
        return printable(value)
    raise _error(where, f"{y} has the label {value!r}, which is none of the {len(names)} classes")


def _text(value: int | str) -> str:
    return printable(str(value))


def _order(value: int | str) -> tuple[int, int | str]:
    return (0, value) if isinstance(value, int) else (1, value)


def _error(where: str, what: str) -> DataError:
    return DataError(f"{where}: {what}.", code="data-npz")
