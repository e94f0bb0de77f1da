"""What every source is turned into before it is checked: a Listing of named, labelled images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from niwaki.bands import Stack
from niwaki.data.samples import Problem

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "test": "test"}
"""Names that mean a split, exactly so written, and the split meant."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One image as its source lists it. `split` is None where none is given."""

    name: str
    source: Path | bytes | Stack | npt.NDArray[Any]
    label: str
    split: str | None = None


@dataclass(kw_only=True)
class Listing:
    """All that a source lists, before anything is decoded.

    Args:
        where: how messages name the source.
        classes: names in label order; None: the labels found, sorted.
        given: the splits that the source has.
        bands: content of bands.txt.
    """

    where: str
    records: list[Record] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    classes: tuple[str, ...] | None = None
    given: set[str] = field(default_factory=set)
    flip: bool = True
    bands: bytes | None = None
