"""`read` of images with masks: what a layout lists, checked, coded, split into a DataSet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from niwaki.data import banding
from niwaki.data.class_names import CAMVID, Coding, coded, from_file, of_values
from niwaki.data.mask_layouts import Pair, Pairs
from niwaki.data.masks import Mask, Outlines, Readable, Values, unknown_values, values
from niwaki.data.samples import DataSet, Problem, Samples, in_threads
from niwaki.data.splits import divide
from niwaki.errors import DataError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A pair that was looked through: how often each value is there, a hash of its bytes, and whether
    some of its pixels hold no data."""

    pair: Pair
    found: dict[int, int]
    digest: str
    void: bool = False


def assemble(
    found: Pairs, where: str, *, seed: int, val: float, test: float, stored: Mapping[str, Any] | None
) -> DataSet:
    """From pairs of images and masks to what is learned from; every one is decoded once.

    Raises:
        DataError: nothing is usable, a class has no pixel to learn from, there are too many, or a split is
            empty. [data-empty, data-few-classes, data-class-empty, mask-many, data-few-images, data-changed]
    """
    coding = _known_coding(found, where)
    colours = coding is not None and coding.colours
    how, told = banding_of(found, where)
    looked = in_threads(lambda pair: _look(pair, colours, how), found.pairs)
    seen = [one for one in looked if isinstance(one, Seen)]
    problems = [*found.problems, *(one for one in looked if isinstance(one, Problem))]
    if coding is None:
        coding = of_values({value for one in seen for value in one.found}, where)
    seen, wrong = _coded(seen, coding)
    problems += wrong
    _check_any(seen, coding, where, problems)
    split = split_of(seen, found, where, seed=seed, val=val, test=test, stored=stored)
    counts = np.array([coding.counts(one.found) for one in seen], np.int64)
    check_splits(found, where, split, counts, coding, problems, asked={"val": val, "test": test})

    voids = {one.pair.name for one in seen if one.void}

    def mask(pair: Pair) -> Readable:
        one = Mask(source=pair.mask, name=pair.mask_name, coding=coding.places, colours=coding.colours)
        return banding.Hidden(mask=one, image=pair.image, name=pair.name) if pair.name in voids else one

    parts = {name: samples_of(name, seen, split, counts, mask) for name in SPLITS}
    measured = None if how is None else banding.measured(parts["train"], how)
    return DataSet(
        classes=coding.classes,
        **parts,
        problems=tuple(problems),
        warnings=(*told, *warnings(seen, split, counts, coding)),
        fingerprint=banding.marked(fingerprint(seen, split, coding), measured),
        flip=True,
        bands=measured,
    )


def _known_coding(found: Pairs, where: str) -> Coding | None:
    """How masks are coded, where it is told; None where it must be seen in the masks."""
    if isinstance(found.classes, tuple):
        return coded(found.classes, where)
    if found.classes is not None:
        return from_file(found.classes, where)
    return CAMVID if found.camvid else None


def banding_of(found: Pairs, where: str) -> tuple[banding.Banding | None, list[str]]:
    """How the images are read as bands, None where they are photographs; and warnings.

    Raises:
        DataError: bands.txt is no list of bands. [bands-file]
    """
    named = banding.names_of(found.bands, where)
    return banding.found([(pair.name, pair.image) for pair in found.pairs], named)


def _look(pair: Pair, colours: bool, how: banding.Banding | None) -> Seen | Problem:
    """An image and its mask decoded once, and let go again."""
    try:
        content, (height, width), void = banding.looked(pair.image, pair.name, how)
        stored = values(pair.mask, pair.mask_name, colours=colours)
    except DataError as error:
        return Problem(path=pair.name, code=error.code, message=str(error))
    if stored.shape != (height, width):
        return wrong_size(pair, stored.shape, (height, width))
    digest = hashlib.sha256(content)
    digest.update(repr((stored.shape, str(stored.dtype))).encode() + stored.tobytes())
    known = stored if void is None else stored[~void]
    return Seen(pair=pair, found=_histogram(known), digest=digest.hexdigest(), void=void is not None)


def wrong_size(pair: Pair, mask: tuple[int, ...], image: tuple[int, int]) -> Problem:
    """The problem of a mask that is not of its image's size. [mask-size]"""
    message = (
        f"{pair.mask_name}: the mask is {mask[1]} x {mask[0]} pixels, its image {pair.name} is "
        f"{image[1]} x {image[0]}. Make them equal."
    )
    return Problem(path=pair.mask_name, code="mask-size", message=message)


def _histogram(stored: Values) -> dict[int, int]:
    """How many pixels have each value."""
    if stored.dtype.itemsize <= 2:  # ids: counting them is ten times faster than sorting them
        times = np.bincount(stored.ravel())
        return {int(kind): int(times[kind]) for kind in np.flatnonzero(times)}
    kinds, counts = np.unique(stored, return_counts=True)
    return dict(zip(kinds.tolist(), counts.tolist(), strict=True))


def _coded(seen: Sequence[Seen], coding: Coding) -> tuple[list[Seen], list[Problem]]:
    """Pairs whose masks hold only values that are coded, and a Problem for each other."""
    good, problems = [], []
    for one in seen:
        unknown = sorted(set(one.found) - set(coding.places))
        if not unknown:
            good.append(one)
            continue
        name = one.pair.mask_name
        error = unknown_values(name, unknown, colours=coding.colours)
        problems.append(Problem(path=name, code=error.code, message=str(error)))
    return good, problems


def _check_any(seen: Sequence[Seen], coding: Coding, where: str, problems: Sequence[Problem]) -> None:
    reasons = "; ".join(f"{p.path}: {p.code}" for p in problems[:3])
    if not seen:
        raise DataError(
            f"{where}: not one image with a mask is usable. Left out: {reasons or 'nothing'}.",
            code="data-empty",
        )
    if len(coding.classes) < 2:
        raise DataError(
            f"{where}: the masks hold one class only, {', '.join(coding.classes)}; at least two are needed "
            "(background counts).",
            code="data-few-classes",
        )


def split_of(
    seen: Sequence[Seen],
    found: Pairs,
    where: str,
    *,
    seed: int,
    val: float,
    test: float,
    stored: Mapping[str, Any] | None,
) -> list[str]:
    """The split of each pair: the stored one, the given one, or one made by the hash of its bytes."""
    if stored is not None:
        return _restored(seen, where, stored)
    if found.given and "train" not in found.given and all(one.pair.split for one in seen):
        raise DataError(
            f"{where}: {', '.join(sorted(found.given))} is given, but no train.", code="data-no-train"
        )
    pool = [i for i, one in enumerate(seen) if one.pair.split in (None, "train")]
    made = divide(
        [""] * len(pool),
        [seen[i].digest for i in pool],
        seed=seed,
        val=0 if "val" in found.given else val,
        test=0 if "test" in found.given else test,
    )
    split = [one.pair.split or "train" for one in seen]
    for i, name in zip(pool, made, strict=True):
        split[i] = name
    return split


def _restored(seen: Sequence[Seen], where: str, stored: Mapping[str, Any]) -> list[str]:
    by_name = {str(name): split for split in SPLITS for name in stored.get(split, ())}
    here = {one.pair.name for one in seen}
    if set(by_name) != here:
        gone, new = sorted(set(by_name) - here), sorted(here - set(by_name))
        raise DataError(
            f"{where}: the stored splits do not fit: {len(gone)} of their images are gone or no longer usable "
            f"({', '.join(gone[:3])}), {len(new)} are new ({', '.join(new[:3])}).",
            code="data-changed",
        )
    return [by_name[one.pair.name] for one in seen]


def check_splits(
    found: Pairs,
    where: str,
    split: Sequence[str],
    counts: np.ndarray[Any, np.dtype[np.int64]],
    coding: Coding,
    problems: Sequence[Problem],
    *,
    asked: Mapping[str, float],
) -> None:
    """Every class has pixels to learn from; no split is empty that was given or asked for."""
    learned = counts[np.array([name == "train" for name in split], bool)].sum(0)
    empty = [name for name, pixels in zip(coding.classes, learned, strict=True) if not pixels]
    if empty:
        raise DataError(
            f"{where}: class {empty[0]!r} has no pixel in a usable mask of train. Take it out of the classes "
            f"file, or mend its masks; {len(problems)} were left out.",
            code="data-class-empty",
        )
    for name in ("val", "test"):
        if name not in split and (asked[name] or name in found.given):
            raise DataError(
                f"{where}: {name} has no image: too few to split, or none of it is usable ({len(problems)} "
                "were left out).",
                code="data-few-images",
            )


def samples_of(
    part: str,
    seen: Sequence[Seen],
    split: Sequence[str],
    counts: np.ndarray[Any, np.dtype[np.int64]],
    mask: Callable[[Pair], Any],
    *,
    objects: bool = False,
) -> Samples:
    """One split's images, their masks (`mask` makes one of a pair) and how many pixels each class has there."""
    rows = [i for i, name in enumerate(split) if name == part]
    pairs = [seen[i].pair for i in rows]
    return Samples(
        sources=[pair.image for pair in pairs],
        names=tuple(pair.name for pair in pairs),
        labels=np.zeros(len(rows), np.int64),
        masks=[mask(pair) for pair in pairs],
        counts=counts[rows].reshape(len(rows), counts.shape[1]),
        objects=objects,
    )


def warnings(
    seen: Sequence[Seen], split: Sequence[str], counts: np.ndarray[Any, np.dtype[np.int64]], coding: Coding
) -> list[str]:
    """What should be known of the set: copies across splits, and classes that a split lacks."""
    out = []
    parts: dict[str, set[str]] = {}
    for one, name in zip(seen, split, strict=True):
        parts.setdefault(one.digest, set()).add(name)
    if torn := sum(len(names) > 1 for names in parts.values()):
        out.append(f"duplicates across splits: {torn} images are in more than one, so scores flatter")
    for part in ("val", "test"):
        there = counts[np.array([name == part for name in split], bool)].sum(0)
        lacking = [name for name, pixels in zip(coding.classes, there, strict=True) if not pixels]
        if part in split and lacking:
            out.append(f"{part} has no pixel of: {', '.join(lacking[:5])}")
    outlines = sum(isinstance(one.pair.mask, Outlines) for one in seen)
    if outlines:
        out.append(f"{outlines} masks were painted from outlines: larger objects first, smaller ones over them")
    return out


def fingerprint(seen: Sequence[Seen], split: Sequence[str], coding: Coding) -> str:
    """Hex sha256 over classes, coding, names, bytes' hashes and splits."""
    whole = hashlib.sha256(json.dumps([list(coding.classes), sorted(coding.places.items())]).encode())
    for one, name in zip(seen, split, strict=True):
        whole.update(json.dumps([one.pair.name, one.digest, name]).encode() + b"\n")
    return whole.hexdigest()
