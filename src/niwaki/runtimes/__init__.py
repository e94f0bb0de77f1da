"""Runtimes: each turns a model into a file and runs that file. One module a runtime; `NAMES` is
the list.

A runtime is a module with two functions and three constants:

    export(model, spec, path, *, task, precision="float32", calib=None, prove=True) -> Path
                                                                        (may import torch)
    open(path, *, threads=1) -> Session       (imports no torch; torch's own and ExecuTorch's do)
    SUFFIX, PARTS       the file's ending, and those of files that lie beside it
    PRECISIONS          what `export` takes
    RECIPES             True where `export` takes `recipe=`, which says how int8 is made

A Session is a Predictor: it takes uint8 images `[N, H, W, C]` and returns float32 `[N, K]`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.errors import RuntimeFailed

_TRAIN = ("torch", "onnx", "onnxscript")
_NEEDS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    # name: (extra, packages to run, packages to export)
    "onnx": ("train", ("onnxruntime",), ("onnxruntime", *_TRAIN)),
    "openvino": ("openvino", ("openvino",), ("openvino", *_TRAIN)),
    "torch": ("train", ("torch",), ("torch",)),
    "litert": ("litert", ("ai_edge_litert",), ("ai_edge_litert", "torch")),
    "ncnn": ("ncnn", ("ncnn",), ("ncnn", "pnnx", "torch")),
    "executorch": ("executorch", ("executorch", "torch"), ("executorch", "torch")),
    "tensorrt": ("tensorrt", ("tensorrt", "cuda"), _TRAIN),
}
NAMES = tuple(_NEEDS)

Predictor = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]


def load(name: str) -> Any:
    """The runtime of that name: a module with `export` and `open`.

    Raises:
        RuntimeFailed: niwaki has no runtime of that name. [runtime-unknown]
    """
    if name not in NAMES:
        raise RuntimeFailed(
            f"runtime: got {name!r}, expected one of {', '.join(NAMES)}.", code="runtime-unknown"
        )
    return importlib.import_module(f"niwaki.runtimes.{name}")


def support(name: str) -> dict[str, Any]:
    """What of a runtime works here: `run`, `export` (bool), `missing` (packages), `install` (the line
    that brings them, None where nothing is missing), `precisions`. Imports none of the packages."""
    extra, run, export = _NEEDS[name]
    missing = [package for package in dict.fromkeys((*run, *export)) if not _there(package)]
    runs, works = set(run).isdisjoint(missing), set(export).isdisjoint(missing)
    extras = [
        one for one in ("train", extra) if any((package in _TRAIN) == (one == "train") for package in missing)
    ]
    line = f"pip install 'niwaki[{','.join(dict.fromkeys(extras))}]'" if missing else None
    module = load(name)
    if works and hasattr(module, "export_needs"):  # more than packages: a converter
        line = module.export_needs()
        works = line is None
    return {
        "run": runs,
        "export": works,
        "missing": missing,
        "install": line,
        "precisions": list(module.PRECISIONS),
    }


def _there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # a package that is kept from being imported
        return False
