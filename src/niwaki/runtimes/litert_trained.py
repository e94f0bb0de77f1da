"""int8 for LiteRT of a model that was trained with fake quantizers: the graph that its converter reads, in
which each of them is torch's own pair of calls that quantize and dequantize, with the learned scale and zero.

LiteRT holds activations as s8, so a u8 grid is shifted by 128: the same steps, the same numbers. A bias stays
float here; the converter rounds it in steps of input scale times weight scale, as training did. Some of its
kernels ask for one grid before and behind, which training does not. Exact forms stand in for them: average
pooling is a convolution of ones, and values are rounded to the grid of what they are concatenated to before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.ao.quantization.fx import _decomposed as _registers  # noqa: F401  (the operators)
from torch.export import ExportedProgram

from niwaki.surgery.fake_quantize import NAME

SHIFT = 128
LEAST_WEIGHT, ENDS = -128, (-127, 127)
"""A grid that reaches lower is a bias's; LiteRT's weights are all of these."""

MOVING = (
    *(
        "max_pool2d",
        "relu",
        "pad",
        "constant_pad_nd",
        "slice",
        "reshape",
        "view",
        "flatten",
        "permute",
        "transpose",
    ),
    *("contiguous", "clone", "dropout", "channel_shuffle", "pixel_shuffle", "upsample_nearest2d"),
)
"""What gives values of its input, or zero."""


def pairs(program: ExportedProgram, image: Tensor) -> ExportedProgram:
    """The same program with a pair for every fake quantizer; weights are the floats that they are rounded to.

    Args:
        image: what it takes, for tracing it again.
    """
    module: Any = program.module()
    graph: fx.Graph = module.graph
    _pooled(module)
    for node in [n for n in graph.nodes if str(n.target) == f"{NAME}.default"]:
        value, scale, zero, axis, low, high = node.args
        with graph.inserting_before(node):
            if low < LEAST_WEIGHT:
                made = value
            elif axis >= 0:
                made = _weight(module, node)
            else:
                step = _read(module, scale).double().exp().float().item()
                grid = (step, zero - SHIFT, low - SHIFT, high - SHIFT, torch.int8)
                made = _pair(graph, _joined(module, value, grid), grid)
        node.replace_all_uses_with(made)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()
    with torch.no_grad():
        return torch.export.export(module, (image,), strict=False)


def _read(module: Any, node: fx.Node) -> Tensor:
    """The tensor that a `get_attr` call reads."""
    found = module
    for part in str(node.target).split("."):
        found = getattr(found, part)
    assert isinstance(found, Tensor)
    return found.detach()


def _pooled(module: Any) -> None:
    """Average pooling in forms whose grids may differ."""
    calls = torch.ops.aten
    for node in [n for n in module.graph.nodes if n.target is calls.adaptive_avg_pool2d.default]:
        if list(node.args[1]) == [1, 1]:
            node.target, node.args = calls.mean.dim, (node.args[0], [2, 3], True)
    pools: list[Any] = [n for n in module.graph.nodes if n.target is calls.avg_pool2d.default]
    for node in pools:
        given = list(node.args)
        value, size, stride, padding, ceil, counted, divisor = given + _DEFAULTS[len(given) - 2 :]
        sizes = list(size) * (2 // len(size))
        if ceil or divisor or (padding not in (0, [0, 0]) and not counted):
            continue
        channels, count = value.meta["val"].shape[1], sizes[0] * sizes[1]
        with module.graph.inserting_before(node):
            ones, step = torch.ones(channels, 1, *sizes), torch.full((channels,), 1 / count)
            weight = _whole(module, node.name, ones, step, 0)
            node.target = calls.conv2d.default
            node.args = (value, weight, None, stride or size, padding or [0, 0], [1, 1], channels)


_DEFAULTS: list[Any] = [[], 0, False, True, None]
"""Of average pooling: stride, padding, ceil_mode, count_include_pad, divisor_override."""


def _joined(module: Any, value: Any, grid: tuple[Any, ...]) -> Any:
    """The value; what is concatenated to it is put on its grid before, each by a convolution of ones.

    The converter takes two grids in a row for one, hence the convolution."""
    if value.target is not torch.ops.aten.cat.default or len(value.users) > 1:
        return value
    graph, parts = module.graph, []
    for place, part in enumerate(value.args[0]):
        shape = part.meta["val"].shape
        if len(shape) == 4 and (own := _grid(part)):
            with graph.inserting_before(value):
                ones = torch.ones(shape[1], 1, 1, 1), torch.ones(shape[1])
                weight = _whole(module, f"{value.name}_{place}", *ones, 0)
                before = part if part.target is _BACK else _pair(graph, part, own)
                given = (before, weight, None, [1, 1], [0, 0], [1, 1], shape[1])
                part = _pair(graph, graph.call_function(torch.ops.aten.conv2d.default, given), grid)
        parts.append(part)
    value.args = (parts, *value.args[1:])
    return value


_BACK = torch.ops.quantized_decomposed.dequantize_per_tensor.default


def _grid(node: Any) -> tuple[Any, ...] | None:
    """The grid of a value that was rounded, and at most moved since."""
    while isinstance(node, fx.Node) and node.op == "call_function":
        if node.target is _BACK:
            return node.args[1:]
        if str(node.target).split(".")[1] not in MOVING:
            return None
        node = node.args[0]
    return None


def _weight(module: Any, node: Any) -> fx.Node:
    """A weight's pair, one scale for each index of its axis."""
    value, scale, _, axis, low, high = node.args
    weight, step = _read(module, value), _read(module, scale).double().exp().float()
    steps = step.reshape([-1 if d == axis else 1 for d in range(weight.ndim)])
    return _whole(module, node.name, weight.div(steps).round().clamp(low, high), step, axis)


def _whole(module: Any, name: str, whole: Tensor, step: Tensor, axis: int) -> fx.Node:
    """The pair of a constant of whole numbers."""
    steps = step.reshape([-1 if d == axis else 1 for d in range(whole.ndim)])
    module.register_buffer(f"{name}_value", whole * steps)
    module.register_buffer(f"{name}_scale", step)
    module.register_buffer(f"{name}_zero", torch.zeros(len(step), dtype=torch.int64))
    rounded, *grid = (module.graph.get_attr(f"{name}_{part}") for part in ("value", "scale", "zero"))
    calls = torch.ops.quantized_decomposed
    given = (*grid, axis, *ENDS, torch.int8)
    whole = module.graph.call_function(calls.quantize_per_channel.default, (rounded, *given))
    found: fx.Node = module.graph.call_function(calls.dequantize_per_channel.default, (whole, *given))
    return found


def _pair(graph: fx.Graph, value: Any, grid: tuple[Any, ...]) -> fx.Node:
    calls = torch.ops.quantized_decomposed
    whole = graph.call_function(calls.quantize_per_tensor.default, (value, *grid))
    back: fx.Node = graph.call_function(_BACK, (whole, *grid))
    back.meta = dict(value.meta)
    return back
