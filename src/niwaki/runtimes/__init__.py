"""Runtimes: each turns a model into a file and runs that file. One module a runtime; `NAMES` is
the list.

A runtime is a module with two functions:

    export(model, spec, path, *, task, precision="float32", calib=None) -> Path     (may import
    torch) open(path, *, threads=1) -> Predictor                                           (imports
    no torch)

A Predictor takes uint8 images `[N, H, W, C]` and returns float32 `[N, K]`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.errors import RuntimeFailed

NAMES = ("onnx",)

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
