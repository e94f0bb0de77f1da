"""Classes of masks: their names and which pixel value means which, from a classes file or from the masks.

    road                    a line is a class, its id the line's number from 0
    3 road                  an id and a name
    road 128 64 128         a name and a colour (or the colour first); commas and tabs divide as well

`void`, `ignore`, `unlabelled`, `unlabeled` and `unlabeled area` name what has no class.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from niwaki.data.coco import CROWD
from niwaki.dense_metrics import IGNORE
from niwaki.errors import DataError

VOID = {"void", "ignore", "unlabelled", "unlabeled", "unlabeled area"}


@dataclass(frozen=True, kw_only=True)
class Coding:
    """Names of classes, and the place among them of each value of a mask's pixel: 255 for none."""

    classes: tuple[str, ...]
    places: Mapping[int, int]
    colours: bool = False

    def counts(self, found: Mapping[int, int]) -> list[int]:
        """Pixels of each class, from how often each value is there."""
        out = [0] * len(self.classes)
        for value, times in found.items():
            if (place := self.places[value]) != IGNORE:
                out[place] += times
        return out


CAMVID = Coding(
    classes=(
        *("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian"),
        "Bicyclist",
    ),
    places={**{place: place for place in range(11)}, 11: IGNORE, IGNORE: IGNORE},
)
"""CamVid's eleven classes as SegNet numbered them; 11 is unlabelled."""


def coded(names: Sequence[str], where: str) -> Coding:
    """Values 0..K-1 for classes in order, as outlines are painted.

    Raises:
        DataError: there are more than 255. [mask-many]
    """
    if len(names) > IGNORE:
        raise DataError(
            f"{where}: there are {len(names)} categories, at most {IGNORE} classes are told apart (255 is "
            "none). Join categories or take some out; where objects are meant, read them so: instances=True.",
            code="mask-many",
        )
    places = {place: place for place in range(len(names))}
    return Coding(classes=tuple(names), places={**places, CROWD: IGNORE})


def of_values(found: Iterable[int], where: str = "masks") -> Coding:
    """Classes named by the values that the masks hold; 255 is no class, but for masks of 0 and 255 only.

    Raises:
        DataError: there are more than 255. [mask-many]
    """
    held = sorted(found)
    if held != [0, IGNORE]:
        held = [value for value in held if value != IGNORE]
    if len(held) > IGNORE:
        raise DataError(
            f"{where}: the masks hold {len(held)} values ({held[0]} to {held[-1]}), at most {IGNORE} classes "
            "are told apart. Where a value is an object, name the folder instances/ instead of masks/ (in "
            "Python instances=True); where it is a class, list those to learn in classes.txt, a line `id name` "
            "each, and `id void` for the rest; where values come from JPEG, save masks as PNG.",
            code="mask-many",
        )
    places = {value: place for place, value in enumerate(held)}
    return Coding(classes=tuple(map(str, held)), places={IGNORE: IGNORE, **places})


def from_file(content: bytes, where: str) -> Coding:
    """The coding that a classes file describes; in a coding by ids 255 is always no class.

    Raises:
        DataError: it cannot be read as one. [mask-classes]
    """
    try:
        rows = [_row(line) for line in content.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise _unreadable(where, "it is no UTF-8 text") from error
    rows = [row for row in rows if not _is_head(row)]
    colours = bool(rows) and all(len(numbers) == 3 for _, numbers in rows)
    if not rows or (not colours and any(len(numbers) == 3 for _, numbers in rows)):
        raise _unreadable(where, "some lines have a colour and some have none" if rows else "it names no class")
    places: dict[int, int] = {} if colours else {IGNORE: IGNORE}
    classes: list[str] = []
    for line, (name, numbers) in enumerate(rows):
        value = _value(numbers, line)
        if not name or (value in places and value != IGNORE):
            raise _unreadable(where, f"line {line + 1} has no name, or the value of another line")
        if name.lower() in VOID:
            places[value] = IGNORE
        elif value == IGNORE and not colours:
            raise _unreadable(where, f"{name} has the id 255, which is kept for no class")
        else:
            places[value] = len(classes)
            classes.append(name)
    if len(set(classes)) != len(classes) or len(classes) > IGNORE:
        raise _unreadable(where, "a name is there twice, or there are more than 255 classes")
    return Coding(classes=tuple(classes), places=places, colours=colours)


def _row(line: str) -> tuple[str, list[int]]:
    """A line's name and its numbers: an id in front, or a colour at either end."""
    words = [word for word in re.split(r"[,;\t ]+", line.strip()) if word]
    numeric = [word.isdecimal() for word in words]
    if len(words) > 3 and all(numeric[-3:]):
        return " ".join(words[:-3]), [int(word) for word in words[-3:]]
    if len(words) > 3 and all(numeric[:3]):
        return " ".join(words[3:]), [int(word) for word in words[:3]]
    if len(words) > 1 and numeric[0]:
        return " ".join(words[1:]), [int(words[0])]
    return " ".join(words), []


def _value(numbers: Sequence[int], line: int) -> int:
    if len(numbers) == 3:
        return numbers[0] << 16 | numbers[1] << 8 | numbers[2]
    return numbers[0] if numbers else line


def _is_head(row: tuple[str, list[int]]) -> bool:
    """The heading of a table: `name,r,g,b`."""
    return not row[1] and row[0].lower().replace(" ", "") in {"namergb", "idname", "rgbname", "classrgb"}


def _unreadable(where: str, why: str) -> DataError:
    return DataError(
        f"{where}: the classes file cannot be used: {why}. Expected a line `name`, `id name` or `name r g b` "
        "for each class.",
        code="mask-classes",
    )
