"""From a record to the two files of a report: check it, make it JSON, draw the page, write both."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from niwaki import files
from niwaki.errors import RunError
from niwaki.report.page import draw
from niwaki.report.pictures import SIDE, WIDE, uri

Record = dict[str, Any]


def build(record: Mapping[str, Any], folder: str | Path) -> Path:
    """Write `report.html` and `report.json` into `folder`; the page's path.

    Args:
        record: what `niwaki.report` describes; pictures may be arrays or data URIs.
    Raises:
        RunError: it lacks a required part, or a part has another shape. [report-record]
    """
    try:
        plain: Record = _plain(record)
        for part, side in (("wrong", SIDE), ("maps", WIDE)):
            pairs = zip(plain.get(part) or [], record.get(part) or [], strict=True)
            plain[part] = [{**one, "image": uri(raw["image"], side=side)} for one, raw in pairs]
        page = draw(plain)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise RunError(
            f"report: the record does not fit: {type(error).__name__}: {error}. It needs "
            "'name' and 'stages', and each part as niwaki.report describes it.",
            code="report-record",
        ) from error
    folder = Path(folder)
    # not files.write_json: it sorts keys, and the order of `histories` is part of the page
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)
    files.write_bytes(folder / "report.json", (text + "\n").encode())
    files.write_bytes(folder / "report.html", page.encode())
    return folder / "report.html"


def rebuild(folder: str | Path) -> Path:
    """Draw `report.html` again from `folder/report.json`; the page's path.

    Raises:
        RunError: there is no record, or it is damaged. [report-missing, report-record]
    """
    path = Path(folder) / "report.json"
    if not path.is_file():
        raise RunError(
            f"report: {path} is not there. Give a folder that niwaki fit wrote and finished.",
            code="report-missing",
        )
    try:
        record = json.loads(path.read_bytes())
    except ValueError as error:
        raise RunError(f"report: {path} is not JSON: {error}.", code="report-record") from error
    if not isinstance(record, dict):
        raise RunError(f"report: {path} holds no record.", code="report-record")
    return build(record, folder)


def _plain(value: Any) -> Any:
    """JSON of anything in a record: numpy numbers become Python's, NaN null, pictures stay out."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if key != "image"}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
