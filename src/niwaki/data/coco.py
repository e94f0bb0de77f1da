"""COCO annotation files: the outlines of each image's objects, and the names of their categories."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from niwaki.data.masks import Outlines
from niwaki.errors import DataError

CROWD = 2**16
"""The value painted for a crowd, whose pixels have no class."""

BACKGROUND = "background"


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """Classes with `background` first, and the outlines of each image, for each of the files that were read."""

    classes: tuple[str, ...]
    outlines: tuple[dict[str, Outlines], ...]


def outlines(files: Sequence[tuple[bytes, str]]) -> Annotated:
    """What COCO files say of each image; the pixels of no object are `background`.

    Categories are told apart by their names, over all files: one that a file lacks keeps its place. Large
    objects are painted first, so that small ones stay visible; a crowd has no class.

    Args:
        files: content of each, and what messages call it.
    Raises:
        DataError: one is no COCO file, or files have one id for two names. [mask-outlines]
    Source: COCO data format, https://cocodataset.org/#format-data.
    """
    wholes = [_parsed(content, where) for content, where in files]
    named: dict[int, tuple[str, str]] = {}
    for whole, (_, where) in zip(wholes, files, strict=True):
        with _told(where):
            for one in whole["categories"]:
                _name(named, int(one["id"]), str(one["name"]), where)
    names = [name for _, (name, _) in sorted(named.items()) if name != BACKGROUND]
    place = {BACKGROUND: 0} | {name: k for k, name in enumerate(dict.fromkeys(names), start=1)}
    value = {number: place[name] for number, (name, _) in named.items()}
    found = []
    for whole, (_, where) in zip(wholes, files, strict=True):
        with _told(where):
            found.append(_outlined(whole, value))
    return Annotated(classes=tuple(place), outlines=tuple(found))


def _parsed(content: bytes, where: str) -> Any:
    with _told(where):
        return json.loads(content)


def _name(named: dict[int, tuple[str, str]], number: int, name: str, where: str) -> None:
    """Writes down the name of an id, which must have no other."""
    held, place = named.setdefault(number, (name, where))
    if held != name:
        raise DataError(
            f"{where}: category {number} is {name!r}, and {held!r} in {place}. Give each name one id of its "
            "own in all files.",
            code="mask-outlines",
        )


def _outlined(whole: Any, value: Mapping[int, int]) -> dict[str, Outlines]:
    """The outlines of each image of a file; `value` is painted for each category."""
    items: dict[int, list[tuple[float, int, Any]]] = {int(one["id"]): [] for one in whole["images"]}
    for one in whole["annotations"]:
        if one.get("segmentation"):
            kind = CROWD if one.get("iscrowd") else value[int(one["category_id"])]
            items[int(one["image_id"])].append((-float(one.get("area", 0)), kind, one["segmentation"]))
    return {
        str(one["file_name"]): Outlines(
            size_hw=(int(one["height"]), int(one["width"])),
            items=tuple((k, s) for _, k, s in sorted(items[int(one["id"])], key=lambda item: item[0])),
        )
        for one in whole["images"]
    }


@contextmanager
def _told(where: str) -> Iterator[None]:
    """What goes wrong inside is the fault of a file that is no COCO file."""
    try:
        yield
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{where}: is no COCO file of images, annotations and categories ({type(error).__name__}: "
            f"{str(error)[:120]}).",
            code="mask-outlines",
        ) from error
