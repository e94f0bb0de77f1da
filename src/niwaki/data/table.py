"""Manifests: a CSV or JSONL file with `path`, `label` and perhaps `split` for each image.

A path may be a folder that holds an image's bands; a bands.txt beside the manifest names them.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from niwaki.bands import Stack
from niwaki.data import stacks
from niwaki.data.banding import FILE, names_of
from niwaki.data.listing import SPLIT_NAMES, Listing, Record
from niwaki.data.samples import Problem
from niwaki.errors import DataError
from niwaki.images import load, printable

MAX_BYTES = 2**30
"""Bytes that a manifest may have."""


def listing(path: Path, where: str) -> Listing:
    """The images that a manifest names. Paths are relative to the manifest's folder, or absolute.

    A row without a split belongs to train when other rows have one; else splits are made.

    Raises:
        DataError: it cannot be parsed, or lacks a column. [data-manifest, data-unreadable]
    """
    beside = path.parent / FILE
    found = Listing(where=where, bands=load(beside) if beside.is_file() else None)
    named = names_of(found.bands, where)
    names = () if named is None else named.names
    seen: set[str] = set()
    for line, row in _rows(path, where):
        entry = _entry(row)
        if isinstance(entry, str):
            found.problems.append(_bad(where, line, "row-bad", entry))
            continue
        name, label, split = entry
        if name in seen:
            found.problems.append(_bad(where, line, "file-repeated", f"{name!r} is listed before"))
            continue
        seen.add(name)
        if split:
            found.given.add(split)
        source = _source(path.parent / str(row["path"]).strip(), names)
        found.records.append(Record(name=name, source=source, label=label, split=split))
    return found


def _source(path: Path, names: Sequence[str]) -> Path | Stack:
    """A file, or the files of an image's bands where it is a folder of them."""
    try:
        return (stacks.of_folder(path, names) if path.is_dir() else None) or path
    except OSError:  # a name too long, a folder that cannot be listed: reading it will say so
        return path


def _bad(where: str, line: int, code: str, why: str) -> Problem:
    place = f"{where}:{line}"
    return Problem(path=place, code=code, message=f"{place}: {printable(why)}. The row was left out.")


def _entry(row: Mapping[Any, Any]) -> tuple[str, str, str | None] | str:
    """Name, label and split of a row, or what is wrong with it."""
    path, label, split = row.get("path"), row.get("label"), row.get("split")
    if None in row:
        return "the row has more fields than the header"
    if not isinstance(path, str) or not path.strip():
        return "the row has no path"
    if not isinstance(label, str | int) or isinstance(label, bool) or not str(label).strip():
        return "the row has no label (a text or a whole number)"
    if split not in (None, "") and (not isinstance(split, str) or split not in SPLIT_NAMES):
        return f"split {split!r} is none of {', '.join(SPLIT_NAMES)}"
    return (
        printable(path.strip()),
        printable(str(label).strip()),
        SPLIT_NAMES[split] if split else None,
    )


def _rows(path: Path, where: str) -> Iterator[tuple[int, Mapping[Any, Any]]]:
    text = _text(path, where)
    try:
        yield from (_csv if path.suffix.lower() == ".csv" else _jsonl)(text)
    except (csv.Error, ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: the manifest cannot be parsed ({printable(str(error))[:200]}). Expected "
            "CSV with a header path,label[,split], or one JSON object a line.",
            code="data-manifest",
        ) from error


def _csv(text: str) -> Iterator[tuple[int, Mapping[Any, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    fields = [field.strip() for field in reader.fieldnames or []]
    if len(set(fields)) != len(fields) or not {"path", "label"} <= set(fields):
        raise ValueError(f"its columns are {fields}")
    reader.fieldnames = fields
    for row in reader:
        yield reader.line_num, row


def _jsonl(text: str) -> Iterator[tuple[int, Mapping[Any, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is no object")
        yield number, row


def _text(path: Path, where: str) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(
            f"{where}: the manifest cannot be read ({error.strerror}).", code="data-unreadable"
        ) from error
    except ValueError as error:
        raise DataError(
            f"{where}: the manifest is no UTF-8 text ({printable(str(error))[:200]}).",
            code="data-manifest",
        ) from error
