"""The manifest of an artifact, niwaki.json: read strictly, since it may come from anywhere. No
torch."""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Set
from importlib import metadata
from pathlib import Path
from typing import Any

from niwaki import files
from niwaki._version import __version__
from niwaki.errors import ArtifactError, NiwakiError
from niwaki.spec import Spec
from niwaki.tasks import TASKS, Task

FORMAT = 1
MAX_JSON_BYTES = 64_000_000
MAX_SIDE_PX = 16_384
MANIFEST, WEIGHTS, GRAPH = "niwaki.json", "weights.safetensors", "graph.json"
ALLOWED = re.compile(
    "|".join(map(re.escape, (MANIFEST, WEIGHTS, GRAPH))) + r"|exports/[a-z0-9]+/[a-z0-9]+\.[a-z0-9]+"
)
"""Names that files of an artifact may have."""
OWN = ("format", "spec", "task", "builder", "structure", "exports", "versions")
"""Fields that only niwaki sets."""


def parse_json(path: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file: UTF-8, finite numbers, no name twice, of a bounded size and depth.

    Raises:
        ArtifactError: it is anything else. [artifact-json]
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"more than {MAX_JSON_BYTES} bytes")
        value = json.loads(
            path.read_bytes().decode("utf-8"),
            object_pairs_hook=_once,
            parse_constant=_finite,
            parse_float=_finite,
        )
        if not isinstance(value, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{name}: is not the JSON that niwaki writes ({str(error)[:120]}).",
            code="artifact-json",
        ) from error
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name twice in one object")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]}")
    return value


def fields(given: dict[str, Any]) -> dict[str, Any]:
    """Fields for a manifest, copied as JSON.

    Raises:
        ArtifactError: one is niwaki's own, or no JSON. [artifact-field]
    """
    if own := sorted(given.keys() & set(OWN)):
        raise ArtifactError(
            f"manifest: {own[0]!r} is niwaki's own field and is not set from outside.",
            code="artifact-field",
        )
    try:
        copied: dict[str, Any] = json.loads(files.dump_json(given))
    except (TypeError, ValueError) as error:
        raise ArtifactError(
            f"manifest: {sorted(given)} is no JSON ({error}). Use numbers, texts, lists and dicts.",
            code="artifact-field",
        ) from error
    return copied


def versions() -> dict[str, str]:
    """Versions of what had a part in saving."""
    out = {"niwaki": __version__, "python": platform.python_version()}
    for name in ("torch", "timm", "onnx", "onnxruntime", "numpy"):
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


def described(path: Path, manifest: dict[str, Any], present: Set[str]) -> tuple[Spec, Task]:
    """Spec and task of a manifest, after all that niwaki reads from it was found of the right kind.

    Args:
        path: the artifact's folder, for messages.
        present: names of the files in it.
    Raises:
        ArtifactError: another version, or not what niwaki writes. [artifact-version,
            artifact-manifest]
    """
    if manifest.get("format") != FORMAT or type(manifest["format"]) is not int:
        raise ArtifactError(
            f"{path.name}: its format is {str(manifest.get('format'))[:40]!r}, this niwaki "
            f"({__version__}) reads {FORMAT}. Use the version that wrote it.",
            code="artifact-version",
        )
    try:
        _check_fields(manifest, set(present))
        spec = Spec.from_json(manifest["spec"])
        task = TASKS[manifest["task"]["kind"]].from_json(manifest["task"])
        if max(spec.size_hw) > MAX_SIDE_PX or not task.classes:
            raise ValueError("a size or list of classes that cannot be")
    except NiwakiError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ArtifactError(
            f"{path.name}/{MANIFEST}: {type(error).__name__}: {str(error)[:120]}. It is not what "
            "niwaki writes.",
            code="artifact-manifest",
        ) from error
    return spec, task


def _check_fields(manifest: dict[str, Any], present: set[str]) -> None:
    """Raises ValueError or TypeError at the first field of another kind than niwaki writes."""
    kinds = {"spec": dict, "task": dict, "exports": dict, "versions": dict}
    for key, kind in kinds.items():
        if not isinstance(manifest[key], kind):
            raise TypeError(f"{key} is no {kind.__name__}")
    builder, structure = manifest["builder"], manifest["structure"]
    if not isinstance(builder, str | None) or not isinstance(structure, dict | None):
        raise TypeError("builder or structure of another kind")
    if (builder is None) != (structure is None) or (builder is None) != (GRAPH in present):
        raise ValueError("builder, structure and graph do not belong together")
    if not isinstance(manifest.get("default", ""), str):
        raise TypeError("default is no text")
    splits = manifest.get("splits", {})
    seed, val = (splits.get("seed", 0), splits.get("val", 0.15)) if isinstance(splits, dict) else (None, None)
    if type(seed) is not int or seed < 0 or not isinstance(val, int | float) or not 0 <= val < 1:
        raise TypeError("splits are no seed and share of val")
    classes = manifest["task"].get("classes")
    if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
        raise TypeError("classes are no list of texts")
    held = [e for entries in manifest["exports"].values() for e in entries.values()]
    if not all(type(e["bytes"]) is int and e["bytes"] > 0 and isinstance(e["parity"], dict) for e in held):
        raise TypeError("an export's bytes or parity are of another kind")
    listed = {
        name
        for runtime, entries in manifest["exports"].items()
        for precision, entry in entries.items()
        for name in (entry["file"], *entry.get("parts", ()))
        if name.startswith(f"exports/{runtime}/{precision}.")
    }
    if listed != {name for name in present if name.startswith("exports/")}:
        raise ValueError("exports names other files than there are")
