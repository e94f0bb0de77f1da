"""ONNX Runtime: run an exported file with numpy and onnxruntime alone. The torch side is
onnx_export.py.

What is opened must be what niwaki exports: one input `image` uint8 `[N, H, W, C]`, one output
`probabilities` float32 `[N, K]`, all weights inside the file. A file that keeps tensors in other
files is refused before ONNX Runtime sees it, so opening a file reads no other. It is no sandbox: a
file made to take long or much memory will.
Shape letters: N images, H W pixels, C channels, K classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from niwaki.errors import RuntimeFailed, SpecError
from niwaki.runtimes import wire

if TYPE_CHECKING:
    from torch import nn

    from niwaki.spec import Spec
    from niwaki.tasks import Task

SUFFIX = "onnx"
INPUT, OUTPUT = "image", "probabilities"
PRECISIONS = ("float32", "int8")
MAX_BYTES = 2**31 - 1  # protobuf's own limit

ort.disable_telemetry_events()
ort.set_default_logger_severity(4)  # errors arrive as exceptions; its log would only repeat them


class Session:
    """An opened ONNX file; calling it with uint8 `[N, H, W, C]` returns float32 `[N, K]`.

    `size_hw`, `channels` and `classes` are those of the file, None where it leaves them open.
    """

    def __init__(self, session: Any) -> None:
        self._run = session.run
        _, *self._image_shape = session.get_inputs()[0].shape
        height, width, channels = (n if isinstance(n, int) else None for n in self._image_shape)
        self.size_hw = (height, width)
        self.channels = channels
        classes = session.get_outputs()[0].shape[1]
        self.classes = classes if isinstance(classes, int) else None

    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Probabilities float32 `[N, K]` of uint8 images `[N, H, W, C]`.

        Raises:
            SpecError: the images are of another shape or type. [runtime-input]
            RuntimeFailed: ONNX Runtime failed while it ran. [runtime-failed]
        """
        self._check(images)
        try:
            (probabilities,) = self._run([OUTPUT], {INPUT: np.ascontiguousarray(images)})
        except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
            raise RuntimeFailed(f"ONNX Runtime failed: {_first_line(error)}", code="runtime-failed") from error
        return np.asarray(probabilities, dtype=np.float32)

    def _check(self, images: npt.NDArray[np.uint8]) -> None:
        wanted = [self.size_hw[0], self.size_hw[1], self.channels]
        shape, kind = (
            getattr(images, "shape", None),
            getattr(images, "dtype", type(images).__name__),
        )
        fits = (
            isinstance(images, np.ndarray)
            and images.dtype == np.uint8
            and images.ndim == 4
            and len(images) > 0
            and all(w in (None, n) for w, n in zip(wanted, images.shape[1:], strict=True))
        )
        if not fits:
            size = ", ".join("any" if w is None else str(w) for w in wanted)
            raise SpecError(
                f"images: got {kind} {shape}, expected a numpy array uint8 [N, {size}] with N of "
                "at least 1. "
                "Spec.read gives one image of that kind; numpy.stack makes them a batch.",
                code="runtime-input",
            )


def open(path: str | Path, *, threads: int = 1) -> Session:
    """A predictor that runs an exported file on the CPU; no torch needed.

    Args:
        threads: cores ONNX Runtime may use for one call.
    Raises:
        RuntimeFailed: it cannot be read, ONNX Runtime refuses it, or its inputs and outputs are
            not those that niwaki exports. [runtime-missing, runtime-refused, runtime-signature]
    """
    path = Path(path)
    wire.refuse_external(_read(path), path)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
        raise RuntimeFailed(
            f"{path.name}: ONNX Runtime refused it: {_first_line(error)}. Export it again.",
            code="runtime-refused",
        ) from error
    _check_signature(session, path)
    return Session(session)


def export(
    model: nn.Module,
    spec: Spec,
    path: str | Path,
    *,
    task: Task,
    precision: str = "float32",
    calib: npt.NDArray[np.uint8] | None = None,
    prove: bool = True,
) -> Path:
    """The path of the ONNX file written; see onnx_export.export, which does it. Needs
    niwaki[train]."""
    from niwaki.lazy import require

    onnx_export = require("niwaki.runtimes.onnx_export", extra="train")
    return Path(onnx_export.export(model, spec, path, task=task, precision=precision, calib=calib, prove=prove))


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size <= MAX_BYTES:
            return path.read_bytes()
    except OSError as error:
        raise RuntimeFailed(
            f"{path}: cannot be read ({error.strerror}). Export it first.", code="runtime-missing"
        ) from error
    raise RuntimeFailed(
        f"{path.name}: {size} bytes, and an ONNX file holds at most {MAX_BYTES}.",
        code="runtime-refused",
    )


def _check_signature(session: Any, path: Path) -> None:
    got = [
        [(v.name, v.type, len(v.shape)) for v in side] for side in (session.get_inputs(), session.get_outputs())
    ]
    if got != [[(INPUT, "tensor(uint8)", 4)], [(OUTPUT, "tensor(float)", 2)]]:
        raise RuntimeFailed(
            f"{path.name}: takes and gives {got}, expected {INPUT} uint8 [N, H, W, C] and "
            f"{OUTPUT} float32 "
            "[N, K]. It was not exported by niwaki.",
            code="runtime-signature",
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
