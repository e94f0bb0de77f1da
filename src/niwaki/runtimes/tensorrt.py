"""TensorRT, on NVIDIA GPUs: an ONNX file that TensorRT is sure to take, built into an engine when it is opened.

    float32, float16   the float graph; 16 bits are TensorRT's choice, layer by layer
    int8               the int8 ONNX file with symmetric scales, which is all that TensorRT takes

An engine fits one kind of GPU and one version of TensorRT, so what is kept is the graph. Exporting needs no
GPU: the graph is checked against what TensorRT documents (`faults`), and proven on ONNX Runtime, which runs
the same file. Opening needs a GPU and says so by name where there is none.
Shape letters: N images, H W pixels, C channels, K classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from niwaki import files
from niwaki.errors import ModelError, RuntimeFailed
from niwaki.lazy import require
from niwaki.runtimes import request, wire
from niwaki.runtimes.session import Session, of_answer, read, refused

if TYPE_CHECKING:
    from torch import nn

    from niwaki.qdq.recipe import Recipe
    from niwaki.spec import Spec
    from niwaki.tasks import Task

SUFFIX, PARTS = "onnx", ()
RECIPES = True
"""int8 takes a recipe."""
PRECISIONS = ("float32", "float16", "int8")
PROVED_BY = "onnx"
"""The runtime that an export is proven on; TensorRT itself needs a GPU."""
MARK = "niwaki.precision"
"""The property of the file that says which numbers an engine is built for; its name says nothing."""
BATCHES = (1, 1, 64)
"""Smallest, usual and largest batch that an engine is built for."""


def open(path: str | Path, *, threads: int = 1) -> Session:
    """A predictor on the first GPU; building its engine takes from seconds to minutes.

    Args:
        threads: not used; a GPU has its own.
    Raises:
        MissingExtra: tensorrt is not installed. [extra-missing]
        RuntimeFailed: there is no GPU, it cannot be read, or TensorRT refuses it.
            [runtime-device, runtime-missing, runtime-refused, runtime-signature]
    """
    path = Path(path)
    data = read(path)
    wire.refuse_external(data, path)
    trt = require("tensorrt", extra="tensorrt")
    cuda = require("cuda.bindings.runtime", extra="tensorrt")
    if _gpus(cuda) == 0:
        raise RuntimeFailed("tensorrt: there is no NVIDIA GPU here.", code="runtime-device")
    from niwaki.runtimes import tensorrt_engine

    half = marked(data, path) == "float16"
    try:
        engine, sizes, answer = tensorrt_engine.build(trt, data, half=half, batches=BATCHES)
        run = tensorrt_engine.runner(trt, cuda, engine, answer)
    except RuntimeError as error:
        raise refused(path, "TensorRT", error) from error
    return Session(run, shape=sizes, **of_answer(answer), at_most=BATCHES[2], name="TensorRT")


def export(
    model: nn.Module,
    spec: Spec,
    path: str | Path,
    *,
    task: Task,
    precision: str = "float32",
    calib: npt.NDArray[np.uint8] | None = None,
    recipe: Recipe | None = None,
    prove: bool = True,
) -> Path:
    """The path of the ONNX file written. Needs niwaki[train], no GPU and no TensorRT.

    Raises:
        ModelError: it cannot be exported, TensorRT would not take the graph, or `precision` and `calib` do
            not fit. [export-failed, export-precision, export-calib]
        ParityError: the file computes something else. [parity]
    """
    request.check(precision, calib, spec, precisions=PRECISIONS, runtime="tensorrt", model=model)
    onnx_export = require("niwaki.runtimes.onnx_export", extra="train")
    parity = require("niwaki.runtimes.parity", extra="train")
    path = Path(path)
    inner = "int8" if precision == "int8" else "float32"
    onnx_export.export(model, spec, path, task=task, precision=inner, calib=calib, recipe=recipe, prove=False)
    try:
        of_onnx(path, path, precision=precision)
    except ModelError:
        path.unlink()
        raise
    if prove:
        parity.prove(model, path, spec, task=task, precision=inner, calib=calib, runtime="tensorrt")
    return path


def of_onnx(source: Path, path: Path, *, precision: str) -> Path:
    """The path of the file that TensorRT takes, made of an ONNX file that niwaki exported. Needs no torch.

    Raises:
        ModelError: TensorRT would not take the graph. [export-failed]
    """
    import onnx

    from niwaki.runtimes import tensorrt_graph

    proto = onnx.load(source)
    if precision == "int8":
        tensorrt_graph.symmetric(proto)
    tensorrt_graph.cast_first(proto)
    if found := tensorrt_graph.faults(proto):
        raise ModelError(
            f"export: TensorRT would not take the model: {found[0]}"
            f"{f' (and {len(found) - 1} more)' if len(found) > 1 else ''}. Use another runtime or precision.",
            code="export-failed",
        )
    onnx.helper.set_model_props(proto, {MARK: precision})
    files.write_bytes(path, proto.SerializeToString(deterministic=True))
    return path


def marked(data: bytes, path: Path) -> str:
    """The precision that an exported file says it is for.

    Raises:
        RuntimeFailed: it says none. [runtime-signature]
    """
    found = wire.properties(data).get(MARK, "")
    if found not in PRECISIONS:
        raise RuntimeFailed(
            f"{path.name}: says no precision ({found!r} under {MARK}), expected one of "
            f"{', '.join(PRECISIONS)}. Export it again: niwaki export --runtime tensorrt.",
            code="runtime-signature",
        )
    return found


def _gpus(cuda: Any) -> int:
    failed, count = cuda.cudaGetDeviceCount()
    return 0 if int(failed) else int(count)
