"""What an export is asked for, checked before anything is made: the precision and the calibration images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.errors import ModelError
from niwaki.lazy import require
from niwaki.spec import Spec


def check(
    precision: str,
    calib: npt.NDArray[np.uint8] | None,
    spec: Spec,
    *,
    precisions: Sequence[str],
    runtime: str,
    model: Any = None,
) -> bool:
    """Whether the model holds its ranges itself, once a runtime knows the precision and the images fit it.

    Args:
        calib: uint8 `[N, H, W, C]` of the Spec's size; int8 needs at least one.
        model: one that was trained with fake quantizers needs no images for int8, and is no float model.
    Raises:
        ModelError: they do not fit, or the model is a two-stage detector.
            [export-precision, export-calib, export-boxes]
    """
    if getattr(model, "two_stage", False):
        raise ModelError(
            "export: how many boxes a two-stage detector looks at depends on the image, so that no export of "
            "it can be proven. Predict with the module (niwaki.evaluate.predictor); deploy niwaki:star_unet.",
            code="export-boxes",
        )
    trained = model is not None and _trained(model)
    if trained and "int8" not in precisions:
        raise ModelError(
            "export: the model was trained with fake quantizers, so its numbers are int8, and niwaki has no "
            f"int8 for {runtime}. Use onnx, openvino, litert, tensorrt, or the model from before quantize.qat.",
            code="export-precision",
        )
    if precision not in precisions:
        raise ModelError(
            f"export: {runtime} knows no precision {precision!r}, expected one of {', '.join(precisions)}. Ask "
            "for one of them by name (on the command line: --precision).",
            code="export-precision",
        )
    if trained and precision != "int8":
        raise ModelError(
            f"export: the model was trained with fake quantizers, so its numbers are int8, not {precision}. "
            "Export it as int8; for float numbers export the model from before quantize.qat.",
            code="export-precision",
        )
    wanted = (*spec.size_hw, spec.channels)
    fits = isinstance(calib, np.ndarray) and calib.dtype == np.uint8 and calib.shape[1:] == wanted
    if (precision == "int8" and calib is None and not trained) or (
        calib is not None and not (fits and len(calib))
    ):
        got = f"{calib.dtype} {calib.shape}" if isinstance(calib, np.ndarray) else repr(calib)
        raise ModelError(
            f"export: calib is {got}, expected a numpy array uint8 [N, {', '.join(map(str, wanted))}] of "
            "at least one image; int8 takes its ranges from them (on the command line: --calib FOLDER).",
            code="export-calib",
        )
    return trained


def _trained(model: Any) -> bool:
    """Whether a graph has fake quantizers in it."""
    fake_quantize = require("niwaki.surgery.fake_quantize", extra="train")
    return bool(fake_quantize.quantizers(model))
