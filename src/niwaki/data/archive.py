"""A zip of a folder of class folders, read in memory: nothing is ever unpacked to disk."""

from __future__ import annotations

import zipfile
from pathlib import Path

from niwaki.data.folder import Tree, arrange, hidden, name_of
from niwaki.data.listing import SPLIT_NAMES, Listing
from niwaki.data.mask_layouts import Pairs, pairs
from niwaki.data.samples import Problem
from niwaki.data.stacks import prepared
from niwaki.errors import DataError
from niwaki.images import MAX_BYTES, printable

MAX_UNPACKED = 4 * 2**30
"""Bytes that an archive's entries may have together."""

MAX_ENTRIES = 1_000_000
MAX_RATIO = 200
"""Unpacked over packed bytes of the archive, above 64 MiB: images do not shrink like that."""


def listing(path: Path, where: str) -> Listing | Pairs:
    """The images of a zip, by the folder rules, with masks or without; one folder around everything is looked
    through.

    Raises:
        DataError: it is damaged, encrypted, or would unpack to too much.
            [data-zip, data-empty, data-layout]
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [info for info in archive.infolist() if not _ignored(info)]
            _check_size(entries, path.stat().st_size, where)
            tree = _tree(archive, entries, where)
    except DataError:
        raise
    # A damaged directory leads zipfile to BadZipFile, struct.error, NotImplementedError, ...
    except Exception as error:
        raise DataError(
            f"{where}: the zip archive is damaged ({printable(str(error))[:200]}). Make it again.",
            code="data-zip",
        ) from error
    inner = prepared(_below(tree), where)
    tree = prepared(tree, where)
    masks = pairs(tree, where) or pairs(inner, where)
    return masks or arrange(prepared(_look_through(tree), where), where)


def _ignored(info: zipfile.ZipInfo) -> bool:
    return any(hidden(part) for part in info.filename.split("/") if part not in ("", ".", ".."))


def _check_size(entries: list[zipfile.ZipInfo], packed: int, where: str) -> None:
    """Refuse before the first byte is unpacked."""
    total = sum(info.file_size for info in entries)
    bomb = total > 64 * 2**20 and total > MAX_RATIO * packed
    if total > MAX_UNPACKED or len(entries) > MAX_ENTRIES or bomb:
        raise DataError(
            f"{where}: {len(entries)} entries would unpack from {packed} to {total} bytes; at most "
            f"{MAX_UNPACKED} bytes, {MAX_ENTRIES} entries and {MAX_RATIO}-fold are read. Unpack it "
            "yourself and give the folder.",
            code="data-zip",
        )
    locked = [info.filename for info in entries if info.flag_bits & 1]
    if locked and len(locked) == sum(not info.is_dir() for info in entries):
        raise DataError(
            f"{where}: the zip archive is encrypted. Unpack it yourself and give the folder.",
            code="data-zip",
        )


def _tree(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], where: str) -> Tree:
    tree = Tree()
    for info in entries:
        parts = tuple(part for part in info.filename.split("/") if part not in ("", "."))
        name = name_of(parts)
        if info.filename.startswith("/") or ".." in parts or "\\" in info.filename:
            tree.problems.append(_problem(name, where, "its path is absolute or leaves the archive"))
            continue
        if not parts:
            if not info.is_dir():
                tree.problems.append(_problem(printable(info.filename), where, "it has no name"))
            continue
        for depth in range(1, len(parts)):
            tree.folders.add(parts[:depth])
        if info.is_dir():
            tree.folders.add(parts)
        elif parts in tree.files:
            tree.problems.append(
                Problem(path=name, code="file-repeated", message=f"{where}: {name} is there twice.")
            )
        else:
            content = _read(archive, info)
            if isinstance(content, bytes):
                tree.files[parts] = content
            else:
                tree.problems.append(_problem(name, where, content))
    return tree


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes | str:
    """An entry's bytes, or why there are none."""
    if info.flag_bits & 1:
        return "it is encrypted"
    try:
        with archive.open(info) as file:
            return file.read(MAX_BYTES + 1)
    # BadZipFile (checksum, overlap), zlib.error, lzma errors, NotImplementedError, EOFError, ...
    except Exception as error:
        return f"it cannot be unpacked ({printable(str(error))[:200]})"


def _problem(name: str, where: str, why: str) -> Problem:
    return Problem(path=name, code="zip-entry", message=f"{where}: {name} was left out: {why}.")


def _look_through(tree: Tree) -> Tree:
    """The tree below the one folder that many archivers put around everything."""
    tops = {parts[0] for parts in (*tree.files, *tree.folders)}
    deep = any(len(parts) > 2 for parts in tree.files)
    shallow = any(len(parts) <= 2 for parts in tree.files)
    return tree if tops & set(SPLIT_NAMES) or not deep or shallow else _below(tree)


def _below(tree: Tree) -> Tree:
    """The tree below its only top folder; the same tree where there is more at the top."""
    tops = {parts[0] for parts in (*tree.files, *tree.folders)}
    if len(tops) != 1 or any(len(parts) == 1 for parts in tree.files):
        return tree
    return Tree(
        files={parts[1:]: content for parts, content in tree.files.items()},
        folders={parts[1:] for parts in tree.folders if len(parts) > 1},
        problems=tree.problems,
    )
