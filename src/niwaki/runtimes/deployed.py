"""What every runtime exports: a model between raw pixels and probabilities, as one torch module.

Scaling, normalisation and the task's head are inside the file, so no program that runs it has to repeat them.
Shape letters: B batch, H W pixels, C channels, K classes.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from niwaki.errors import ModelError
from niwaki.runtimes.equivalent import Inside
from niwaki.spec import Spec
from niwaki.surgery.trace import quiet
from niwaki.tasks import Task


class Deployed(nn.Module):
    """A model between raw pixels and probabilities: uint8 `[B, H, W, C]` to float32 `[B, K]` or `[B, K, H, W]`.

    Args:
        planes: take the pixels' values 0..255 as float32 `[B, C, H, W]` instead.
        as_convolution: normalise by a diagonal 1x1 convolution instead of a product and a sum,
            which int8 runs on whole numbers.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, model: nn.Module, spec: Spec, task: Task, *, as_convolution: bool = False, planes: bool = False
    ) -> None:
        super().__init__()
        self.model, self.task, self.size_hw = model, task, spec.size_hw
        self.as_convolution, self.planes = as_convolution, planes
        mean, std = (np.array(v, np.float64) for v in (spec.mean, spec.std))
        scale, shift = (torch.tensor(v, dtype=torch.float32) for v in (1 / (255 * std), -mean / std))
        if as_convolution:
            self.register_buffer("scale", torch.diag(scale)[:, :, None, None])
            self.register_buffer("shift", shift)
        else:
            self.register_buffer("scale", scale[:, None, None])
            self.register_buffer("shift", shift[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        """Probabilities of raw pixels."""
        # made contiguous: else torch thinks of channels-last memory, and exports strides nobody
        # needs
        x = image if self.planes else image.permute(0, 3, 1, 2).contiguous().float()
        if self.as_convolution:
            x = nn.functional.conv2d(x, self.scale, self.shift)
        else:
            x = x * self.scale + self.shift
        return self.task.head(self.model(x), size_hw=self.size_hw)


def wrap(
    model: nn.Module, spec: Spec, task: Task, *, as_convolution: bool = False, planes: bool = False
) -> Deployed:
    """A copy of the model, in eval mode on the CPU, as what is exported."""
    own = copy.deepcopy(model).cpu().float()
    return Deployed(own, spec, task, as_convolution=as_convolution, planes=planes).eval()


def example(spec: Spec, *, batch: int = 1, planes: bool = False) -> Tensor:
    """Black images: uint8 `[B, H, W, C]`, or float32 `[B, C, H, W]` as planes."""
    (height, width), channels = spec.size_hw, spec.channels
    if planes:
        return torch.zeros(batch, channels, height, width)
    return torch.zeros(batch, height, width, channels, dtype=torch.uint8)


def program(module: nn.Module, image: Tensor, *, runtime: str) -> ExportedProgram:
    """The graph of a deployed model for batches of exactly the example's size.

    Raises:
        ModelError: torch cannot export it. [export-failed]
    """
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(Inside(module, runtime).eval(), (image,), strict=False)
    except Exception as error:  # torch.export raises whatever the forward trips over
        raise failed(module, runtime, error) from error


def failed(module: nn.Module, runtime: str, error: Exception | str) -> ModelError:
    """The error of a model that a runtime cannot take. [export-failed]"""
    inner = module.model if isinstance(module, Deployed) else module
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return ModelError(
        f"export: {type(inner).__name__} cannot be exported for {runtime}: "
        f"{lines[0][:300] if lines else type(error).__name__}. Replace that part of the model, or use "
        "another runtime (docs/runtimes.md).",
        code="export-failed",
    )
