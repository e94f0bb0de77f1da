"""Parity: does an exported file compute what the model computes? On the same images, or it is an
error.

For float32 the file must give the
model's probabilities; int8 is another function on purpose, so its limit only catches a file that
is broken, and what it costs is measured as accuracy on the validation split. A model that was trained
with fake quantizers is that function itself, so its file must agree with it.
Shape letters: N images, H W pixels, C channels, K classes.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from niwaki import runtimes
from niwaki.errors import ParityError
from niwaki.runtimes.limits import LIMITS, TRAINED, Parity, compare
from niwaki.runtimes.limits import Limits as Limits
from niwaki.spec import Spec
from niwaki.surgery import fake_quantize
from niwaki.tasks import Task

IMAGES = 16
"""Images that an export is compared on: enough to show a wrong file, few enough to cost no time."""


def check(
    model: nn.Module,
    path: Path,
    spec: Spec,
    *,
    task: Task,
    images: npt.NDArray[np.uint8],
    precision: str = "float32",
    runtime: str = "onnx",
) -> Parity:
    """How close an exported file comes to its model, on uint8 images `[N, H, W, C]`.

    Raises:
        ParityError: it is further off than `LIMITS[precision]` allows. [parity]
    """
    wanted = reference(model, spec, task, images)
    got = runtimes.load(runtime).open(path)(images)
    found = compare(wanted, got, precision, threshold=getattr(task, "threshold", None))
    limits = LIMITS[precision]
    # written so that a NaN fails too
    within = found.error <= limits.error and found.moved <= limits.moved
    if not (within and found.agreement >= limits.agreement):
        raise ParityError(
            f"{path.name}: differs from the model on {found.images} images: largest probability error "
            f"{found.error:.3g} (allowed {limits.error:.3g}), agreement {found.agreement:.4f} (at least "
            f"{limits.agreement}), mass moved {found.moved:.3g} (allowed {limits.moved:.3g}). The "
            "file must not be used; export it again, or use float32.",
            code="parity",
        )
    return found


def prove(
    model: nn.Module,
    path: Path,
    spec: Spec,
    *,
    task: Task,
    precision: str,
    calib: npt.NDArray[np.uint8] | None,
    runtime: str,
) -> Parity:
    """`check` on up to 16 images, the calibration's, else random ones, on the runtime that can run it here."""
    proved_by = getattr(runtimes.load(runtime), "PROVED_BY", runtime)
    if precision == "int8" and proved_by == runtime and fake_quantize.quantizers(model):
        precision = TRAINED  # its scales are kept; those of TensorRT are others, which no other runtime proves
    images = noise(spec, IMAGES) if calib is None else calib[:IMAGES]
    if len(images) < IMAGES and precision != "int8":  # one unsure image of one would be no agreement at all
        images = np.concatenate([images, noise(spec, IMAGES - len(images))])
    return check(model, path, spec, task=task, images=images[:IMAGES], precision=precision, runtime=proved_by)


def reference(
    model: nn.Module, spec: Spec, task: Task, images: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float32]:
    """The model's own probabilities float32 `[N, K]` or `[N, K, H, W]`, in eval mode on the CPU; the model is
    untouched."""
    own = copy.deepcopy(model).cpu().float().eval()
    with torch.no_grad():
        output = own(torch.from_numpy(spec.normalise(images)))
        return np.asarray(task.head(output, size_hw=spec.size_hw).numpy(), np.float32)


def noise(spec: Spec, count: int, *, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Random images uint8 `[count, H, W, C]`: coarse patches, so that they are not all alike to a
    model."""
    draw = np.random.default_rng(seed)
    height, width = spec.size_hw
    coarse = draw.integers(0, 256, (count, -(-height // 4), -(-width // 4), spec.channels), np.uint8)
    return np.ascontiguousarray(coarse.repeat(4, 1).repeat(4, 2)[:, :height, :width])
