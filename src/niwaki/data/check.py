"""Checking what is listed: every image is decoded once and hashed; what fails is a Problem."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from niwaki.data.banding import Banding, looked
from niwaki.data.listing import Record
from niwaki.data.samples import Problem, in_threads
from niwaki.errors import DataError


def digest_or_problem(record: Record, banding: Banding | None = None) -> str | Problem:
    """Hex sha256 of an image's bytes if it decodes, else why it does not."""
    source = record.source
    if isinstance(source, np.ndarray):  # pixels already; shapes count too: 2 x 8 is not 4 x 4
        if banding is not None and (wrong := banding.problem(record.name, source)):
            return wrong
        return hashlib.sha256(repr(source.shape).encode() + source.tobytes()).hexdigest()
    try:
        content, _, _ = looked(source, record.name, banding)
    except DataError as error:
        return Problem(path=record.name, code=error.code, message=str(error))
    return hashlib.sha256(content).hexdigest()


def check(
    records: Sequence[Record], banding: Banding | None = None
) -> tuple[list[Record], list[str], list[Problem]]:
    """The usable records, the hash of each one's bytes, and a Problem for each other."""
    results = in_threads(lambda record: digest_or_problem(record, banding), records)
    kept = [(r, d) for r, d in zip(records, results, strict=True) if isinstance(d, str)]
    problems = [result for result in results if isinstance(result, Problem)]
    return [record for record, _ in kept], [digest for _, digest in kept], problems


def duplicates(records: Sequence[Record], digests: Sequence[str], split: Sequence[str]) -> list[str]:
    """Warnings about byte-equal images: with different labels, across splits, or simply there."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, digest in enumerate(digests):
        groups[digest].append(i)
    torn, leaked, copied = [], [], []
    for group in groups.values():
        if len(group) < 2:
            continue
        if len({records[i].label for i in group}) > 1:
            torn.append(group)
        if len({split[i] for i in group}) > 1:
            leaked.append(group)
        else:
            copied.append(group)
    told = [
        (torn, "duplicates with different labels: {} images are there under several classes"),
        (leaked, "duplicates across splits: {} images are in more than one, so scores flatter"),
        (copied, "duplicates: {} images are there more than once (kept, in one split)"),
    ]
    return [f"{text.format(len(found))}: {_few(found, records)}" for found, text in told if found]


def _few(groups: list[list[int]], records: Sequence[Record]) -> str:
    shown = "; ".join(" = ".join(records[i].name for i in group[:3]) for group in groups[:3])
    return shown + ("; ..." if len(groups) > 3 else "")
