"""Folders of class folders, on disk or in an archive: which file has which class and split.

photos/cat/1.jpg            class cat, splits are made
photos/train/cat/1.jpg      class cat, split train
photos/cat/a/B02.tif        class cat, a band of the image a (stacks.py)
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from niwaki.bands import Stack
from niwaki.data.listing import SPLIT_NAMES, Listing, Record
from niwaki.data.samples import Problem
from niwaki.errors import DataError
from niwaki.images import printable

_HIDDEN = {"__MACOSX", "Thumbs.db", "desktop.ini"}  # what systems leave behind unseen
_DEPTH = 4  # split / class / image / file of a band
Parts = tuple[str, ...]


@dataclass
class Tree:
    """Files and folders below a root, each by its parts, hidden ones left out; and the content of bands.txt."""

    files: dict[Parts, Path | bytes | Stack] = field(default_factory=dict)
    folders: set[tuple[str, ...]] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    bands: bytes | None = None


def hidden(part: str) -> bool:
    """Whether a file or folder of this name is ignored: a leading dot, or a system's own."""
    return part.startswith(".") or part in _HIDDEN


def walk(root: Path, where: str) -> Tree:
    """The tree below `root`, four levels deep: a loop of links ends there.

    Raises:
        DataError: the root itself cannot be listed. [data-unreadable]
    """
    tree = Tree()
    pending: list[tuple[str, ...]] = [()]
    while pending:
        parts = pending.pop()
        try:
            with os.scandir(root.joinpath(*parts)) as entries:
                found = [(entry.name, _is_folder(entry)) for entry in entries]
        except OSError as error:
            if not parts:
                raise DataError(
                    f"{where}: the folder cannot be read ({error.strerror}). Check permissions.",
                    code="data-unreadable",
                ) from error
            message = f"{where}: {name_of(parts)} cannot be read ({error.strerror})."
            tree.problems.append(Problem(path=name_of(parts), code="folder-unreadable", message=message))
            continue
        for name, is_folder in found:
            if hidden(name):
                continue
            child = (*parts, name)
            if not is_folder:
                tree.files[child] = root.joinpath(*child)
                continue
            tree.folders.add(child)
            if len(child) < _DEPTH:
                pending.append(child)
    return tree


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Links are followed; one that leads to itself is no folder, and fails as a file later."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def name_of(parts: Iterable[str]) -> str:
    """A file's name in its data set: its path from the root, slashes, printable."""
    return printable("/".join(parts))


def arrange(tree: Tree, where: str) -> Listing:
    """Classes and splits of a tree.

    Raises:
        DataError: it has no class folders, or splits and classes are mixed.
            [data-empty, data-layout]
    """
    tops = {folder[0] for folder in tree.folders}
    if not tops:
        what = f"{len(tree.files)} files but no class folders" if tree.files else "nothing"
        raise DataError(
            f"{where}: holds {what}. Expected one folder for each class: cat/1.jpg, dog/1.jpg.",
            code="data-empty",
        )
    splits = _splits(tops, where)
    level = 1 if splits else 0
    found = Listing(where=where, problems=list(tree.problems), given=set(splits.values()), bands=tree.bands)
    classes = {folder[level] for folder in tree.folders if len(folder) == level + 1}
    found.classes = tuple(sorted(name_of([name]) for name in classes))
    nested: set[tuple[str, ...]] = {f for f in tree.folders if len(f) > level + 1}
    for parts, source in sorted(tree.files.items()):
        if len(parts) == level + 2:
            split = splits[parts[0]] if level else None
            label = name_of([parts[level]])
            found.records.append(Record(name=name_of(parts), source=source, label=label, split=split))
        elif parts == ("bands.txt",):
            continue
        elif len(parts) < level + 2:
            found.problems.append(_stray(parts, where))
        else:
            nested.add(parts[: level + 2])
    tops_nested = sorted({folder[: level + 2] for folder in nested})
    found.problems += [_nested(folder, where) for folder in tops_nested]
    return found


def _splits(tops: set[str], where: str) -> dict[str, str]:
    """Folder name to split, for the top folders that are splits; all of them or none must be."""
    splits = {top: SPLIT_NAMES[top] for top in tops if top in SPLIT_NAMES}
    others = sorted(tops - set(splits))
    if splits and others:
        raise DataError(
            f"{where}: {_few(sorted(splits))} are splits, but {_few(others)} beside them are not. "
            "Put all class folders into splits, or rename the class that is called like a split.",
            code="data-layout",
        )
    if "val" in splits and "valid" in splits:
        raise DataError(
            f"{where}: both val and valid are there, and mean the same split. Merge them.",
            code="data-layout",
        )
    return splits


def _stray(parts: tuple[str, ...], where: str) -> Problem:
    name = name_of(parts)
    return Problem(
        path=name,
        code="file-stray",
        message=f"{where}: {name} lies in no class folder. Move it into one, or away.",
    )


def _nested(parts: tuple[str, ...], where: str) -> Problem:
    name = name_of(parts)
    return Problem(
        path=name,
        code="folder-nested",
        message=f"{where}: {name} is a folder inside a class folder and was not read. "
        "Move its images up, or give the folder that holds the classes.",
    )


def _few(names: list[str]) -> str:
    shown = ", ".join(printable(name) for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
