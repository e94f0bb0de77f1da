"""Images whose bands or dates lie in several files, put together before anything else looks at the folder.

    images/scene_1/B02.tif B03.tif B08.tif      a folder an image, a file a band (Sentinel-2, Landsat)
    cat/scene_1/x_B02.tif x_B03.tif             the same where folders are classes (BigEarthNet's patches)
    images_t1/1.tif  images_t2/1.tif            a folder a date (or a band), equal names
    A/1.png  B/1.png  label/1.png               two dates, as sets of change detection have them

The bands' order is that of their names, B2 before B11, or that of `bands.txt`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from niwaki import images
from niwaki.bands import ARRAYS, TIFFS, Stack
from niwaki.data.banding import FILE, names_of
from niwaki.data.folder import Parts, Tree, name_of
from niwaki.data.listing import SPLIT_NAMES
from niwaki.data.samples import Problem

MASKS = ("masks", "SegmentationClass", "labels", "label", "annotations", "instances")
"""Folders that hold masks."""
IMAGES = ("images", "JPEGImages")
"""Folders that hold images."""
_PART = re.compile(r"images?[_-](.+)")
_ENDINGS = TIFFS | ARRAYS | {".jp2"}
Scene = dict[str, Parts]
"""Name of a band to the path of its file."""


def prepared(tree: Tree, where: str) -> Tree:
    """The tree with images of several files put together, as its bands.txt says where it has one.

    Raises:
        DataError: bands.txt cannot be read as one. [bands-file, image-*]
    """
    tree.bands = next((images.load(plain(tree.files[at])) for at in [(FILE,)] if at in tree.files), None)
    named = names_of(tree.bands, where)
    return merged(tree, where, () if named is None else named.names)


def merged(tree: Tree, where: str, names: Sequence[str] = ()) -> Tree:
    """The tree in which an image of several files is one file, a Stack; the same tree where there is none.

    Args:
        names: bands that are taken, in their order, of a folder of bands; all in the order of their names
            unless given.
    """
    tree = _dates(tree, where)
    inside: dict[Parts, list[Parts]] = {}
    for parts in tree.files:
        inside.setdefault(parts[:-1], []).append(parts)
    above = {parts[:-1] for parts in tree.folders}
    places = [folder for folder in tree.folders if folder not in above and _may_be_scene(folder)]
    scenes = {folder: found for folder in places if len(found := _bands(inside.get(folder, ()))) > 1}
    wanted = tuple(names) or _common(scenes.values())
    if not wanted:
        return tree
    out = _copied(tree)
    out.folders -= set(scenes)
    for folder, scene in scenes.items():
        for parts in inside[folder]:
            del out.files[parts]
        fitting = _named(scene, wanted)
        if fitting is None:
            lacking = [name for name in wanted if name.lower() not in {band.lower() for band in scene}]
            out.problems.append(_missing(where, folder, f"band {', '.join(lacking)}"))
            continue
        out.files[folder] = _stack([tree.files[parts] for parts in fitting], wanted)
    return out


def _copied(tree: Tree) -> Tree:
    return Tree(
        files=dict(tree.files), folders=set(tree.folders), problems=list(tree.problems), bands=tree.bands
    )


def _stack(sources: Sequence[Path | bytes | Stack], names: Sequence[str]) -> Stack:
    """Files as one image; of those that are several dates already each is a band of its own, `B02.t1`."""
    files: list[Path | bytes] = []
    told: list[str] = []
    for source, name in zip(sources, names, strict=True):
        if isinstance(source, Stack):
            files += source.files
            told += [f"{name}.{date}" for date in source.names]
        else:
            files.append(source)
            told.append(name)
    return Stack(files=tuple(files), names=tuple(told))


def of_folder(folder: Path, names: Sequence[str]) -> Stack | None:
    """The bands of one image in a folder on the disk; None where they are not all there.

    Args:
        names: of the bands, in order; all that are there, in the order of their names, unless given.
    """
    found = _bands((entry.name,) for entry in sorted(folder.iterdir()))
    wanted = tuple(names) or _sorted(found)
    fitting = _named(found, wanted)
    if not fitting:
        return None
    return Stack(files=tuple(folder.joinpath(*parts) for parts in fitting), names=wanted)


def _dates(tree: Tree, where: str) -> Tree:
    """Folders of dates as one folder `images`."""
    out = _copied(tree)
    tops: list[Parts] = [(), *((name,) for name in SPLIT_NAMES if (name,) in tree.folders)]
    for top in tops:
        beside = {parts[-1] for parts in tree.folders if parts[:-1] == top}
        dates = _date_folders(beside)
        if not dates:
            continue
        for date in dates:
            at = (*top, date)
            out.folders = {parts for parts in out.folders if parts[: len(at)] != at}
            out.files = {parts: source for parts, source in out.files.items() if parts[: len(at)] != at}
        out.folders.add((*top, "images"))
        _join(tree, out, top, dates, where)
    return out


def _date_folders(names: set[str]) -> dict[str, str]:
    """Folder to the name of its date: `images_t1`, `images_t2`, or A and B beside masks."""
    found = {name: kind[1] for name in names if (kind := _PART.fullmatch(name))}
    if len(found) < 2:
        found = {"A": "A", "B": "B"} if {"A", "B"} <= names and names & set(MASKS) else {}
    return {name: found[name] for name in sorted(found, key=_natural)}


def _join(tree: Tree, out: Tree, top: Parts, dates: dict[str, str], where: str) -> None:
    """Files of equal names below the dates' folders into `images` of `out`."""
    images: dict[Parts, dict[str, Parts]] = {}
    for parts in tree.files:
        rest = parts[len(top) :]
        if parts[: len(top)] == top and len(rest) > 1 and rest[0] in dates:
            images.setdefault((*rest[1:-1], Path(rest[-1]).stem), {})[rest[0]] = parts
    for rest, found in sorted(images.items()):
        lacking = [name for name in dates if name not in found]
        if lacking:
            here = next(iter(found.values()))
            out.problems.append(_missing(where, here, f"file of that name in {', '.join(lacking)}"))
            continue
        ending = Path(found[next(iter(dates))][-1]).suffix
        at = (*top, "images", *rest[:-1], rest[-1] + ending)
        out.files[at] = _stack([tree.files[found[name]] for name in dates], tuple(dates.values()))
        out.folders |= {at[:k] for k in range(len(top) + 1, len(at))}


def _may_be_scene(folder: Parts) -> bool:
    """Whether a folder without folders in it may hold the bands of one image: below images, or in a class."""
    above = folder[:-1]
    level = 2 if folder[0] in SPLIT_NAMES else 1
    in_images = bool(set(above) & set(IMAGES)) and folder[-1] not in SPLIT_NAMES
    return in_images or (len(above) == level and not set(folder) & {*MASKS, *IMAGES})


def _bands(files: Iterable[Parts]) -> Scene:
    """Names of the bands among files, which is what their names do not share up to a separator."""
    held = [parts for parts in files if Path(parts[-1]).suffix.lower() in _ENDINGS]
    stems = [Path(parts[-1]).stem for parts in held]
    first, last = (min(stems), max(stems)) if len(stems) > 1 else ("", "")
    same = next(
        (k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last))
    )
    cut = max(first[:same].rfind(mark) + 1 for mark in "_-. ")
    return {stem[cut:]: parts for stem, parts in zip(stems, held, strict=True)}


def _common(scenes: Iterable[Scene]) -> tuple[str, ...]:
    """The bands that most scenes have; none where hardly two are alike, so that they are no scenes."""
    counts = Counter(_sorted(scene) for scene in scenes)
    if not counts:
        return ()
    names, times = max(counts.items(), key=lambda item: (item[1], item[0]))
    return names if 2 * times >= counts.total() else ()


def _sorted(scene: Scene) -> tuple[str, ...]:
    return tuple(sorted(scene, key=_natural))


def _named(scene: Scene, names: Sequence[str]) -> list[Parts] | None:
    """The files of these bands, in their order, capitals or not; None where one is not there."""
    low = {name.lower(): parts for name, parts in scene.items()}
    found = [low[name.lower()] for name in names if name.lower() in low]
    return found if len(found) == len(names) else None


def _natural(name: str) -> list[tuple[int, str]]:
    """A key by which B2 comes before B11, and B8A behind B8."""
    return [
        (int(word), "") if word.isdecimal() else (-1, word.lower()) for word in re.findall(r"\d+|\D+", name)
    ]


def plain(source: Path | bytes | Stack) -> Path | bytes:
    """A file that is one: a mask, a list, a band; images of several files are no such thing."""
    assert not isinstance(source, Stack)
    return source


def _missing(where: str, parts: Parts, what: str) -> Problem:
    name = name_of(parts)
    message = f"{where}: {name} has no {what}. Add it, or take this one out."
    return Problem(path=name, code="bands-missing", message=message)
