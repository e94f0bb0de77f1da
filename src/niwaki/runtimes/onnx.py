"""ONNX Runtime: run an exported file with numpy and onnxruntime alone. The torch side is
onnx_export.py.

What is opened must be what niwaki exports: one input `image` uint8 `[N, H, W, C]`, one output
`probabilities` float32 `[N, K]` (or `[N, K, H, W]`, of a task with an answer for each pixel), all
weights inside the file. A file that keeps tensors in other files is refused before ONNX Runtime
sees it, so opening a file reads no other. It is no sandbox: a file made to take long or much memory
will.
Shape letters: N images, H W pixels, C channels, K classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from niwaki import timing
from niwaki.errors import RuntimeFailed
from niwaki.qdq import processors
from niwaki.runtimes import wire
from niwaki.runtimes.session import Session, of_answer, read, refused

if TYPE_CHECKING:
    from torch import nn

    from niwaki.qdq.recipe import Recipe
    from niwaki.spec import Spec
    from niwaki.tasks import Task

SUFFIX, PARTS = "onnx", ()
INPUT, OUTPUT = "image", "probabilities"
RECIPES = True
"""int8 takes a recipe."""
PRECISIONS = ("float32", "int8")

ort.disable_telemetry_events()
ort.set_default_logger_severity(4)  # errors arrive as exceptions; its log would only repeat them


def open(path: str | Path, *, threads: int = 1, exact: bool | None = None) -> Session:
    """A predictor that runs an exported file on the CPU; no torch needed.

    Args:
        threads: cores ONNX Runtime may use for one call.
        exact: int8 products are added in kernels that never saturate, which take up to twice the time. None:
            on an x86 CPU without VNNI alone, as others add exactly anyway (docs/instruction-sets.md).
    Raises:
        RuntimeFailed: it cannot be read, ONNX Runtime refuses it, or its inputs and outputs are
            not those that niwaki exports. [runtime-missing, runtime-refused, runtime-signature]
    """
    path = Path(path)
    wire.refuse_external(read(path), path)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    exact = processors.kind(timing.isa()) == "pairs" if exact is None else exact
    options.add_session_config_entry("session.x64quantprecision", "1" if exact else "0")
    # Threads that spin on after a call take the cores of whatever runs next: two files timed in turns with two
    # threads on two cores were up to 4 times slower than each alone.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
        raise refused(path, "ONNX Runtime", error) from error
    _check_signature(session, path)
    _, *shape = (n if isinstance(n, int) else None for n in session.get_inputs()[0].shape)

    def run(images: npt.NDArray[np.uint8]) -> Any:
        return session.run([OUTPUT], {INPUT: images})[0]

    return Session(run, shape=shape, **of_answer(session.get_outputs()[0].shape[1:]), name="ONNX Runtime")


def facts(path: Path, *, precision: str, images: npt.NDArray[np.uint8] | None) -> dict[str, Any]:
    """What a manifest says of a file beside its size: which CPUs an int8 one is safe for. Needs onnx.

    Args:
        images: uint8 `[N, H, W, C]` on which saturation is emulated where the weights do not rule it out.
    """
    if precision != "int8":
        return {}
    import onnx

    from niwaki.qdq import saturate

    return {"instruction_sets": saturate.safe_for(onnx.load(path), images)}


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
    """The path of the ONNX file written; see onnx_export.export, which does it. Needs
    niwaki[train]."""
    from niwaki.lazy import require

    onnx_export = require("niwaki.runtimes.onnx_export", extra="train")
    made = onnx_export.export(
        model, spec, path, task=task, precision=precision, calib=calib, recipe=recipe, prove=prove
    )
    return Path(made)


def _check_signature(session: Any, path: Path) -> None:
    got = [
        [(v.name, v.type, len(v.shape)) for v in side] for side in (session.get_inputs(), session.get_outputs())
    ]
    takes = [(INPUT, "tensor(uint8)", 4)]
    if got not in ([takes, [(OUTPUT, "tensor(float)", rank)]] for rank in (2, 4)):
        raise RuntimeFailed(
            f"{path.name}: takes and gives {got}, expected {INPUT} uint8 [N, H, W, C] and {OUTPUT} float32 "
            "[N, K] or [N, K, H, W]. It was not exported by niwaki.",
            code="runtime-signature",
        )
