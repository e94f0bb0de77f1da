"""OpenVINO: the ONNX graph as its own two files, run on the CPU without torch.

    float32   weights and sums in float32 (said to OpenVINO, which else takes bfloat16 where the CPU has it)
    bfloat16  the same file, run in bfloat16; only on a CPU that has it
    float16   weights stored in 16 bits, sums in float32: half the file
    int8      the scales and zero points of the ONNX file's int8, a trained model's own among them

The precision is written into the file, so `open` runs what was proven. Only `Core.read_model` and
`save_model` are called: the parts of the package that report usage are never loaded.
Shape letters: N images, H W pixels, C channels, K classes.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from niwaki.errors import RuntimeFailed
from niwaki.lazy import require
from niwaki.runtimes import request
from niwaki.runtimes.session import Session, of_answer, read, refused

if TYPE_CHECKING:
    from torch import nn

    from niwaki.qdq.recipe import Recipe
    from niwaki.spec import Spec
    from niwaki.tasks import Task

SUFFIX, PARTS = "xml", ("bin",)
RECIPES = True
"""int8 takes a recipe."""
PRECISIONS = ("float32", "bfloat16", "float16", "int8")
_MARK = ["niwaki", "precision"]
SAFE_WEIGHT = 64
"""2 x 255 x 64 fits into 16 bits."""


def open(path: str | Path, *, threads: int = 1) -> Session:
    """A predictor that runs an exported file on the CPU, in the precision that it was exported for.

    Args:
        threads: cores OpenVINO may use for one call.
    Raises:
        MissingExtra: openvino is not installed. [extra-missing]
        RuntimeFailed: it cannot be read, OpenVINO refuses it, it is not niwaki's, or the CPU has no
            bfloat16. [runtime-missing, runtime-refused, runtime-signature, runtime-device]
    """
    ov = require("openvino", extra="openvino")
    path = Path(path)
    graph, weights = read(path), read(path.with_suffix(".bin"))
    core = ov.Core()
    try:
        model = core.read_model(graph, ov.Tensor(np.frombuffer(weights, np.uint8)))
        precision = _checked(model, path)
        if precision == "bfloat16":
            _check_bfloat16()
        compiled = core.compile_model(model, "CPU", _settings(precision, threads))
    except RuntimeFailed:
        raise
    except Exception as error:  # OpenVINO raises RuntimeError and its own kinds
        raise refused(path, "OpenVINO", error) from error
    call = compiled.create_infer_request()
    sizes = [int(d.get_length()) for d in list(model.inputs[0].partial_shape)[1:]]
    answer = [int(d.get_length()) for d in list(model.outputs[0].partial_shape)[1:]]

    def run(images: npt.NDArray[np.uint8]) -> Any:
        return call.infer({0: images})[0]

    return Session(run, shape=sizes, **of_answer(answer), name="OpenVINO")


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
    """The path of the .xml file written; its weights lie beside it as .bin. Needs niwaki[train].

    Args:
        calib: uint8 `[N, H, W, C]`, needed by int8.
        recipe: how int8 is made; None is plain min-max.
    Raises:
        ModelError: it cannot be exported, or `precision` and `calib` do not fit.
            [export-failed, export-precision, export-calib]
        RuntimeFailed: bfloat16 on a CPU without it. [runtime-device]
        ParityError: the file computes something else. [parity]
    """
    request.check(precision, calib, spec, precisions=PRECISIONS, runtime="openvino", model=model)
    require("openvino", extra="openvino")
    parity = require("niwaki.runtimes.parity", extra="train")
    onnx = require("niwaki.runtimes.onnx", extra="train")
    path = Path(path)
    if precision == "bfloat16":
        _check_bfloat16()
    inner = "int8" if precision == "int8" else "float32"
    with tempfile.TemporaryDirectory() as folder:
        file = onnx.export(
            model,
            spec,
            Path(folder) / "x.onnx",
            task=task,
            precision=inner,
            calib=calib,
            recipe=recipe,
            prove=False,
        )
        of_onnx(file, path, precision=precision)
    if prove:
        parity.prove(model, path, spec, task=task, precision=precision, calib=calib, runtime="openvino")
    return path


def of_onnx(source: Path, path: Path, *, precision: str) -> Path:
    """The path of the .xml file of an ONNX file that niwaki exported, its .bin beside it. Needs no torch."""
    ov = require("openvino", extra="openvino")
    graph = ov.Core().read_model(str(source))
    graph.set_rt_info(precision, _MARK)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        ov.save_model(graph, str(Path(folder) / "x.xml"), compress_to_fp16=precision == "float16")
        for suffix in (".xml", ".bin"):
            shutil.move(Path(folder) / f"x{suffix}", path.with_suffix(suffix))
    return path


def _settings(precision: str, threads: int) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # pinned threads of several runtimes would share one core
    }


def has_bfloat16() -> bool:
    """Whether OpenVINO can compute in bfloat16 on this CPU. Needs openvino."""
    core = require("openvino", extra="openvino").Core()
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def facts(path: Path, *, precision: str, images: npt.NDArray[np.uint8] | None) -> dict[str, Any]:
    """What a manifest says of a file beside its size: which CPUs an int8 one is safe for, by its weights alone.

    Without VNNI its kernels add two products of u8 and s8 in 16 bits, in an order of their own: only weights of
    up to 64 (or pairs of up to 128) cannot saturate then.

    Args:
        images: not used; niwaki does not emulate these kernels.
    Source: oneDNN, developer guide, "Nuances of int8 computations".
    """
    if precision != "int8":
        return {}
    graph = require("openvino", extra="openvino").Core().read_model(str(path))
    held = [node for node in graph.get_ops() if node.get_type_name() == "Constant"]
    whole = [node.data for node in held if node.get_element_type().get_type_name() == "i8"]
    small = all(_largest_pair(array) <= 2 * SAFE_WEIGHT for array in whole)
    safe_for = ["vnni", "arm", *(["pairs"] if small else [])]
    return {"instruction_sets": {"safe_for": safe_for, "decided_by": "weights"}}


def _largest_pair(weights: npt.NDArray[np.int8]) -> int:
    """The largest sum of the sizes of two weights of one output of a convolution, else of any two."""
    rows = np.abs(weights.astype(np.int16)).reshape(len(weights) if weights.ndim == 4 else 1, -1)
    return int(np.sort(rows, axis=1)[:, -2:].sum(1).max(initial=0))


def _check_bfloat16() -> None:
    if not has_bfloat16():
        raise RuntimeFailed(
            "openvino: this CPU has no bfloat16, so OpenVINO would compute in float32. Use float32 or int8.",
            code="runtime-device",
        )


def _checked(model: Any, path: Path) -> str:
    """The precision a file was exported for, after its input and output were found to be niwaki's."""
    sides = [
        [(v.get_element_type().get_type_name(), len(v.partial_shape)) for v in side]
        for side in (model.inputs, model.outputs)
    ]
    marked = model.has_rt_info(_MARK) and str(model.get_rt_info(_MARK).value)
    if sides not in ([[("u8", 4)], [("f32", rank)]] for rank in (2, 4)) or marked not in PRECISIONS:
        raise RuntimeFailed(
            f"{path.name}: takes and gives {sides}, expected uint8 [N, H, W, C] and float32 [N, K] or [N, K, "
            "H, W]. It was not exported by niwaki.",
            code="runtime-signature",
        )
    return str(marked)
