"""The one operator of quantization in a graph: values rounded to a grid of whole numbers, in float.

    fake_quantize(x, log_scale, zero, axis, low, high) = (clip(round(x / s) + zero, low, high) - zero) * s
    with s = exp(log_scale)

It is an operator of its own so that training, saving (`program.py`) and export see one call: an export writes
it as QuantizeLinear and DequantizeLinear with the same scale and zero point. Rounding is half to even, as in
ONNX. The scale is learned (LSQ) and held as its logarithm: it stays positive, and an optimiser that takes steps
of one size changes scales of all sizes by the same share.

Source: Esser et al. 2020 (LSQ), arXiv:1902.08153, equations 1-3 and section 2.2 (the gradient's scale); the
logarithm as in Jain et al. 2020 (TQT), arXiv:1903.08066, section 3.2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

NAME = "niwaki.fake_quantize"
"""How a graph's JSON names it."""


@torch.library.custom_op("niwaki::fake_quantize", mutates_args=())
def fake_quantize(x: Tensor, log_scale: Tensor, zero: int, axis: int, low: int, high: int) -> Tensor:
    """`x` float, rounded to the grid, of the same shape.

    Args:
        log_scale: natural logarithm of the grid's step: `[]`, or `[C]` with one for each index of `axis`.
        zero: the whole number that stands for 0.0.
        axis: of the channels; -1 where there is one scale.
        low, high: smallest and largest whole number.
    """
    scale = _step(log_scale, x, axis)
    return x.div(scale).round_().add_(zero).clamp_(low, high).sub_(zero).mul_(scale).to(x.dtype)


@fake_quantize.register_fake
def _(x: Tensor, log_scale: Tensor, zero: int, axis: int, low: int, high: int) -> Tensor:
    return torch.empty_like(x)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, log_scale, *ctx.grid = inputs
    ctx.save_for_backward(x, log_scale, output)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """LSQ: straight through between the ends; the step's gradient is the rounding's error, or the end."""
    x, log_scale, output = ctx.saved_tensors
    zero, axis, low, high = ctx.grid
    scale = _step(log_scale, x, axis)
    inside = (x >= (low - zero) * scale) & (x <= (high - zero) * scale)
    passed = grad * inside
    # d out / d log s: out - x between the ends (s times the error), out itself beyond them
    slope = (grad * output).sub_(passed * x)
    count = x.numel() / (log_scale.numel() if axis >= 0 else x.shape[0])
    size = 1 / math.sqrt(count * high)
    rest = [d for d in range(x.ndim) if d != axis]  # an empty list would sum over all
    total = slope.sum(rest) if rest else slope
    return passed, total.mul_(size).reshape(log_scale.shape), None, None, None, None


fake_quantize.register_autograd(_gradient, setup_context=_keep)


def _step(log_scale: Tensor, x: Tensor, axis: int) -> Tensor:
    """The grid's step, shaped so that it is broadcast over `x`; no coarser than float32 where `x` is half.

    Computed in float64, so that an export that does the same gets the same float32."""
    scale = log_scale.double().exp().to(torch.promote_types(x.dtype, torch.float32))
    if axis < 0:  # of one axis at least: a number without axes would be computed with in the precision of `x`
        return scale.reshape([1] * max(x.ndim, 1))
    return scale.reshape([-1 if d == axis else 1 for d in range(x.ndim)])


def quantizers(model: nn.Module) -> list[dict[str, Any]]:
    """The fake-quantizing calls of a graph that is a model, as its JSON has them; [] for any other model."""
    from niwaki.surgery.program import Program

    if not isinstance(model, Program):
        return []
    return [node for node in model.graph()["nodes"] if node["op"] == NAME]
