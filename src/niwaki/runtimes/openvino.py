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
            _has_bfloat16(core)
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
    ov = require("openvino", extra="openvino")
    parity = require("niwaki.runtimes.parity", extra="train")
    onnx = require("niwaki.runtimes.onnx", extra="train")
    path, core = Path(path), ov.Core()
    if precision == "bfloat16":
        _has_bfloat16(core)
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
        graph = core.read_model(str(file))
        graph.set_rt_info(precision, _MARK)
        ov.save_model(graph, str(Path(folder) / "x.xml"), compress_to_fp16=precision == "float16")
        path.parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".xml", ".bin"):
            shutil.move(Path(folder) / f"x{suffix}", path.with_suffix(suffix))
    if prove:
        parity.prove(model, path, spec, task=task, precision=precision, calib=calib, runtime="openvino")
    return path


def _settings(precision: str, threads: int) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # pinned threads of several runtimes would share one core
    }


def _has_bfloat16(core: Any) -> None:
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
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
