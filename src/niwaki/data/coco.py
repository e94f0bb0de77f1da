"""COCO annotation files: the outlines of each image's objects, and the names of their categories."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from niwaki.data.masks import Outlines
from niwaki.errors import DataError

CROWD = 2**16
"""The value painted for a crowd, whose pixels have no class."""


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """Classes with `background` first, and the outlines of each file."""

    classes: tuple[str, ...]
    outlines: dict[str, Outlines]


def outlines(content: bytes, where: str) -> Annotated:
    """What a COCO file says of each image; the pixels of no object are `background`.

    Large objects are painted first, so that small ones stay visible; a crowd has no class.

    Raises:
        DataError: it is no COCO file. [mask-outlines]
    Source: COCO data format, https://cocodataset.org/#format-data.
    """
    try:
        whole = json.loads(content)
        names = {int(one["id"]): str(one["name"]) for one in whole["categories"]}
        value = {number: place for place, number in enumerate(sorted(names), start=1)}
        items: dict[int, list[tuple[float, int, Any]]] = {int(one["id"]): [] for one in whole["images"]}
        for one in whole["annotations"]:
            if one.get("segmentation"):
                kind = CROWD if one.get("iscrowd") else value[int(one["category_id"])]
                items[int(one["image_id"])].append((-float(one.get("area", 0)), kind, one["segmentation"]))
        files = {
            str(one["file_name"]): Outlines(
                size_hw=(int(one["height"]), int(one["width"])),
                items=tuple((k, s) for _, k, s in sorted(items[int(one["id"])], key=lambda item: item[0])),
            )
            for one in whole["images"]
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{where}: is no COCO file of images, annotations and categories ({type(error).__name__}: "
            f"{str(error)[:120]}).",
            code="mask-outlines",
        ) from error
    return Annotated(classes=("background", *(names[number] for number in sorted(names))), outlines=files)
