"""`read`: any source to a DataSet. It lists, checks, splits, and says all that it left out."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from niwaki.data import (
    archive,
    arrays,
    banding,
    check,
    folder,
    mask_layouts,
    named,
    objects,
    read_masks,
    stacks,
    table,
)
from niwaki.data.listing import Listing, Record
from niwaki.data.mask_layouts import Pairs
from niwaki.data.samples import DataSet, Problem, Samples
from niwaki.data.splits import divide
from niwaki.errors import DataError
from niwaki.images import printable

_SPLITS = ("train", "val", "test")
_FILES: dict[str, Callable[[Path, str], Listing | Pairs]] = {
    ".csv": table.listing,
    ".jsonl": table.listing,
    ".npz": arrays.listing,
    ".zip": archive.listing,
}


def read(
    path: str | Path,
    *,
    seed: int = 0,
    val: float = 0.15,
    test: float = 0.15,
    splits: Mapping[str, Any] | None = None,
    instances: bool = False,
) -> DataSet:
    """A data set: every image decoded once, split into train, val and test, its faults listed.

    Args:
        path: a folder of class folders (or of the splits train, val, test), a .zip of one, an .npz,
            a .csv or .jsonl manifest, or the word "digits", "cifar10", "camvid" or "dsb2018"; or a folder (or
            .zip) of images with masks.
        seed: of the splits that are made; given ones are kept.
        val, test: share of each class's images, 0..1, where that split is not given.
        instances: masks hold a number for each object, not classes; a folder `instances/` always does.
        splits: what an earlier `DataSet.splits_json()` returned, to have the same splits again.
    Raises:
        DataError: it cannot be used as a whole. [data-*]
        MissingExtra: "digits" without scikit-learn. [extra-missing]
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise DataError(
            f"read: val={val} and test={test} must be shares in 0..1 that leave some for train.",
            code="data-shares",
        )
    listing = _listing(path)
    if isinstance(listing, Pairs):
        where = printable(str(path))
        assemble = objects.assemble if instances or listing.objects else read_masks.assemble
        return assemble(listing, where, seed=seed, val=val, test=test, stored=splits)
    if instances:
        raise DataError(f"{printable(str(path))}: has no masks, expected one for each image.", code="mask-none")
    return _assemble(listing, seed=seed, val=val, test=test, stored=splits)


def _listing(path: str | Path) -> Listing | Pairs:
    if isinstance(path, str) and path in named.NAMED:
        return named.NAMED[path]()
    where, place = printable(str(path)), Path(path)
    try:
        is_folder, is_file = place.is_dir(), place.is_file()
        there = is_folder or is_file or place.exists()
    except (OSError, ValueError) as error:  # a loop of links, a name too long, a zero byte
        raise DataError(f"{where}: cannot be opened ({error}).", code="data-unreadable") from error
    if is_folder and str(path):  # Path("") would be the current folder
        tree = stacks.prepared(folder.walk(place, where), where)
        return mask_layouts.pairs(tree, where) or folder.arrange(tree, where)
    if is_file and place.suffix.lower() in _FILES:
        return _FILES[place.suffix.lower()](place, where)
    if there and str(path):
        raise DataError(
            f"{where}: is neither a folder nor a file ending in {', '.join(_FILES)}.",
            code="data-format",
        )
    raise DataError(
        f"{where}: there is nothing. Expected a folder of class folders, a file ending in "
        f"{', '.join(_FILES)}, or one of {', '.join(named.NAMED)}.",
        code="data-missing",
    )


def _assemble(
    listing: Listing, *, seed: int, val: float, test: float, stored: Mapping[str, Any] | None
) -> DataSet:
    """From what is listed to what is learned from."""
    listed = sorted(listing.records, key=lambda record: record.name)
    named = banding.names_of(listing.bands, listing.where)
    how, told = banding.found([(record.name, record.source) for record in listed], named)
    records, digests, faults = check.check(listed, how)
    problems = (*listing.problems, *faults)
    classes = listing.classes or tuple(sorted({record.label for record in listing.records}))
    _check_classes(listing.where, classes, records, problems)
    if stored is not None:
        split = _restored(listing.where, records, stored)
    else:
        split = _split(listing, records, digests, seed=seed, val=val, test=test)
    _check_splits(listing, classes, records, split, problems, asked={"val": val, "test": test})
    warnings = [*told, *_thin(classes, records, split), *check.duplicates(records, digests, split)]
    parts = {name: _samples(name, classes, records, split) for name in _SPLITS}
    measured = None if how is None else banding.measured(parts["train"], how)
    return DataSet(
        classes=classes,
        **parts,
        problems=problems,
        warnings=tuple(warnings),
        fingerprint=banding.marked(_fingerprint(classes, records, digests, split), measured),
        flip=listing.flip,
        bands=measured,
    )


def _split(
    listing: Listing,
    records: Sequence[Record],
    digests: Sequence[str],
    *,
    seed: int,
    val: float,
    test: float,
) -> list[str]:
    """The split of each record: the given one, or one made of those in train or in none."""
    if listing.given and "train" not in listing.given and all(r.split for r in records):
        raise DataError(
            f"{listing.where}: {', '.join(sorted(listing.given))} is given, but no train.",
            code="data-no-train",
        )
    pool = [i for i, record in enumerate(records) if record.split in (None, "train")]
    made = divide(
        [records[i].label for i in pool],
        [digests[i] for i in pool],
        seed=seed,
        val=0 if "val" in listing.given else val,
        test=0 if "test" in listing.given else test,
    )
    split = [record.split or "train" for record in records]
    for i, name in zip(pool, made, strict=True):
        split[i] = name
    return split


def _restored(where: str, records: Sequence[Record], stored: Mapping[str, Any]) -> list[str]:
    """The split of each record as `splits_json` has it; the names must be the same."""
    if not all(isinstance(stored.get(split), list | tuple) for split in _SPLITS):
        raise DataError(
            f"{where}: the stored splits are not lists of names under {', '.join(_SPLITS)}, as "
            "DataSet.splits_json() gives them.",
            code="data-changed",
        )
    by_name = {str(name): split for split in _SPLITS for name in stored[split]}
    here = {record.name for record in records}
    gone, new = sorted(set(by_name) - here), sorted(here - set(by_name))
    if gone or new:
        raise DataError(
            f"{where}: the stored splits do not fit: {len(gone)} of their images are gone or no "
            f"longer usable ({', '.join(gone[:3])}), {len(new)} are new ({', '.join(new[:3])}).",
            code="data-changed",
        )
    return [by_name[record.name] for record in records]


def _check_classes(
    where: str, classes: Sequence[str], records: Sequence[Record], problems: Sequence[Problem]
) -> None:
    counts = Counter(record.label for record in records)
    if not counts:
        raise DataError(f"{where}: not one image is usable.{_reasons(problems)}", code="data-empty")
    empty = [name for name in classes if not counts[name]]
    if len(classes) < 2:
        raise DataError(
            f"{where}: only one class was found, {classes[0]!r}; at least two are needed, each a "
            f"folder of images.{_reasons(problems)}",
            code="data-few-classes",
        )
    if empty:
        raise DataError(
            f"{where}: {len(empty)} of {len(classes)} classes have no usable image: "
            f"{', '.join(empty[:3])}. Mend or delete them.{_reasons(problems)}",
            code="data-class-empty",
        )


def _check_splits(
    listing: Listing,
    classes: Sequence[str],
    records: Sequence[Record],
    split: Sequence[str],
    problems: Sequence[Problem],
    *,
    asked: Mapping[str, float],
) -> None:
    """No class without training images; no split empty that was given or asked for."""
    learned = {r.label for r, name in zip(records, split, strict=True) if name == "train"}
    for name in classes:
        if name not in learned:
            raise DataError(
                f"{listing.where}: class {name!r} has no usable image in train, only in other "
                f"splits.{_reasons(problems)}",
                code="data-class-empty",
            )
    for name in ("val", "test"):
        if name in split or (not asked[name] and name not in listing.given):
            continue
        given = name in listing.given
        what = "is given but has no usable image" if given else "has no image: too few to split"
        raise DataError(
            f"{listing.where}: {name} {what}. A class needs 3 images to be in every split.{_reasons(problems)}",
            code="data-few-images",
        )


def _reasons(problems: Sequence[Problem]) -> str:
    if not problems:
        return ""
    shown = "; ".join(f"{p.path}: {p.code}" for p in problems[:3])
    return f" Left out: {shown}" + (f" and {len(problems) - 3} more." if len(problems) > 3 else ".")


def _thin(classes: Sequence[str], records: Sequence[Record], split: Sequence[str]) -> list[str]:
    """Warnings about classes with one image and splits that lack a class."""
    sizes = Counter(record.label for record in records)
    single = [name for name in classes if sizes[name] == 1]
    warnings = []
    if single:
        warnings.append(f"classes with one image, which goes to train: {_names(single)}")
    for part in ("val", "test"):
        have = {r.label for r, name in zip(records, split, strict=True) if name == part}
        lacking = [name for name in classes if name not in have and sizes[name] > 1]
        if have and lacking:
            warnings.append(f"{part} has no image of: {_names(lacking)}")
    return warnings


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _samples(part: str, classes: Sequence[str], records: Sequence[Record], split: Sequence[str]) -> Samples:
    chosen = [record for record, name in zip(records, split, strict=True) if name == part]
    position = {name: i for i, name in enumerate(classes)}
    pixels = [record.source for record in chosen if isinstance(record.source, np.ndarray)]
    alike = len(pixels) == len(chosen) > 0 and len({(image.shape, image.dtype) for image in pixels}) == 1
    return Samples(
        sources=np.stack(pixels) if alike else [record.source for record in chosen],
        names=tuple(record.name for record in chosen),
        labels=np.array([position[record.label] for record in chosen], dtype=np.int64),
    )


def _fingerprint(
    classes: Sequence[str], records: Sequence[Record], digests: Sequence[str], split: Sequence[str]
) -> str:
    """Hex sha256 over classes, names, bytes' hashes, labels and splits."""
    whole = hashlib.sha256(json.dumps(list(classes)).encode())
    for record, digest, name in zip(records, digests, split, strict=True):
        whole.update(json.dumps([record.name, digest, record.label, name]).encode() + b"\n")
    return whole.hexdigest()
