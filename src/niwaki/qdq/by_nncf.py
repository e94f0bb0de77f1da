"""int8 of a float ONNX graph by NNCF with its defaults, OpenVINO's own quantizer: another opinion than ours.

NNCF reports its use to its makers unless it is told not to; here the package that does so is never loaded
(`silent`). It is an extra: `niwaki[nncf]`.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.lazy import require


def quantize(proto: Any, calib: npt.NDArray[np.uint8]) -> Any:
    """The QDQ ModelProto of a float one that takes `image`, by `nncf.quantize` on all of `calib`.

    A graph with attention in it is announced as a transformer, as NNCF's documentation asks.

    Args:
        calib: uint8 `[N, H, W, C]`.
    Raises:
        MissingExtra: nncf is not installed. [extra-missing]
    """
    with silent(), redirect_stdout(io.StringIO()):  # it draws its progress there
        nncf = require("nncf", extra="nncf")
        data = nncf.Dataset([{"image": image[None]} for image in calib])
        kind = {"model_type": nncf.ModelType.TRANSFORMER} if attends(proto) else {}
        return nncf.quantize(proto, data, subset_size=len(calib), **kind)


def attends(proto: Any) -> bool:
    """Whether a graph has a softmax that products read: attention, and not only the one of its head."""
    soft = {node.output[0] for node in proto.graph.node if node.op_type == "Softmax"}
    return any(node.op_type == "MatMul" and soft.intersection(node.input) for node in proto.graph.node)


@contextmanager
def silent() -> Iterator[None]:
    """Inside this block NNCF is loaded without the package that reports its use, and without its log."""
    name, variable = "openvino_telemetry", "NNCF_CI"
    loaded, set_before, level = sys.modules.get(name), os.environ.get(variable), logging.root.manager.disable
    os.environ[variable] = "1"
    if loaded is None:
        sys.modules[name] = None  # type: ignore[assignment]
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
        if loaded is None:
            sys.modules.pop(name, None)
        os.environ.pop(variable) if set_before is None else os.environ.update({variable: set_before})
