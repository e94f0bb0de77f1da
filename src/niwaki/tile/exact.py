"""Exact tiles: what a network sees, computed from its ONNX graph, and the probe that confirms it.

A pixel's answer depends on the pixels around it, as far as its convolutions and resizings reach. Tiles that
overlap by twice that, begin at multiples of the network's stride and are cut in the middle of what they share,
give what the
whole image would: at an inner edge a pixel that a tile's padding has touched is never kept. Networks that see
the whole image are refused, the operator named. Shape letters: N images, H W pixels, C channels, K classes.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from niwaki.errors import ModelError, ParityError
from niwaki.lazy import require
from niwaki.tile.reach import RULES, Node, Reach, Span
from niwaki.tile.receptive import Field

if TYPE_CHECKING:
    from torch import nn

    from niwaki.spec import Spec
    from niwaki.tasks import Task

TOLERANCE = 1e-4
"""Largest difference of a probability between a tile and the whole that rounding explains."""


def receptive_field(path: str | Path) -> Field:
    """What a pixel of an exported network sees, from its ONNX graph. Needs onnx, not torch.

    Raises:
        ModelError: it sees the whole image, or has an operator whose reach is not known; both named.
            [tile-exact]
    """
    onnx = require("onnx", extra="train")
    proto = onnx.load(str(path))
    graph = proto.graph
    if not graph.input[0].type.tensor_type.shape.dim[0].dim_value:
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    for dim in graph.input[0].type.tensor_type.shape.dim[1:3]:
        if not dim.dim_value:  # open: any size will do for the ratios
            dim.dim_value = 512
    del graph.output[0].type.tensor_type.shape.dim[:]
    proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    reaches, steps = _walk(onnx, proto.graph)
    found = reaches.get(proto.graph.output[0].name)
    name = Path(path).name
    if found is None or any(span.step != 1 for span in found.spans):
        raise ModelError(f"exact: {name}: gives no map of the image's own size.", code="tile-exact")
    low = max(math.ceil(-span.low) for span in found.spans)
    high = max(math.ceil(span.high) for span in found.spans)
    return Field(max(0, low), max(0, high), math.lcm(*(step.numerator for step in steps)))


def field_of(model: nn.Module, *, spec: Spec, task: Task) -> Field:
    """What a pixel of a module sees, by way of its ONNX graph. Needs niwaki[train].

    Raises:
        ModelError: see receptive_field. [tile-exact, export-failed]
    """
    made = require("niwaki.runtimes.onnx_export", extra="train")
    with tempfile.TemporaryDirectory() as folder:
        file = made.export(model, spec, Path(folder) / "model.onnx", task=task, prove=False)
        return receptive_field(file)


def widest(fields: Sequence[Field]) -> Field:
    """What several networks together see."""
    return Field(
        max(field.before for field in fields),
        max(field.after for field in fields),
        math.lcm(*(field.period for field in fields)),
    )


def prove(predictor: Any, field: Field, *, channels: int, tile: int | None = None, seed: int = 0) -> float:
    """The largest difference between two tiles that are shifted by one period, where both are right.

    A tile of random pixels and its shifted neighbour have other pixels and other padding around what they
    share; what lies further than the field's reach from all inner edges must be the same.

    Args:
        tile: side in pixels; the predictor's own unless given.
    Raises:
        ModelError: the tile is too small for the reach. [tile-exact]
        ParityError: the tiles differ. [tile-inexact]
    """
    high, wide = (tile, tile) if tile else (getattr(predictor, "size_hw", None) or (512, 512))
    high, wide = high or 512, wide or 512
    shift, halo = field.period, field.halo
    if min(high, wide) - shift - 2 * halo < 1:
        raise ModelError(
            f"exact: the network sees {field.before} pixels to the upper left and {field.after} to the lower "
            f"right, tiles of {high} x {wide} leave nothing of that. Export it for at least "
            f"{2 * halo + 2 * shift} pixels, or leave out --exact.",
            code="tile-exact",
        )
    draw = np.random.default_rng(seed)
    scene = draw.integers(0, 256, (high + shift, wide + shift, channels)).astype(np.uint8)
    one = predictor(np.ascontiguousarray(scene[None, :high, :wide]))[0]
    other = predictor(np.ascontiguousarray(scene[None, shift:, shift:]))[0]
    core = slice(shift + halo, high - halo), slice(shift + halo, wide - halo)
    moved = slice(halo, high - halo - shift), slice(halo, wide - halo - shift)
    error = float(np.abs(one[:, *core] - other[:, *moved]).max())
    if not error <= TOLERANCE:
        raise ParityError(
            f"exact: two tiles differ by {error:.2g} where they should be equal, at most {TOLERANCE:g} is "
            f"rounding: the network sees further than {halo} pixels. Leave out --exact.",
            code="tile-inexact",
        )
    return error


def _walk(onnx: Any, graph: Any) -> tuple[dict[str, Reach | None], set[Any]]:
    """Reaches of all tensors by name, and the steps between their elements."""
    shapes = {value.name: _shape(value) for value in (*graph.value_info, *graph.input, *graph.output)}
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    shapes |= {name: array.shape for name, array in constants.items()}
    reaches: dict[str, Reach | None] = {graph.input[0].name: Reach((1, 2), (Span(), Span()))}
    steps = {Span().step}
    for proto in graph.node:
        knobs = {knob.name: onnx.helper.get_attribute_value(knob) for knob in proto.attribute}
        if proto.op_type == "Constant" and "value" in knobs:
            constants[proto.output[0]] = onnx.numpy_helper.to_array(knobs["value"])
            shapes[proto.output[0]] = constants[proto.output[0]].shape
        inputs = [reaches.get(name) for name in proto.input]
        found: Reach | None = None
        if any(reach is not None for reach in inputs) and proto.op_type not in ("Shape", "Size"):
            node = Node(
                proto.name,
                proto.op_type,
                knobs,
                inputs,
                [shapes.get(name) for name in proto.input],
                [constants.get(name) for name in proto.input],
                shapes.get(proto.output[0]),
            )
            rule = RULES.get(proto.op_type)
            if rule is None or proto.domain not in ("", "ai.onnx"):
                raise node.refuse("has a reach that is not known")
            found = rule(node)
            steps |= {span.step for span in found.spans}
        reaches |= dict.fromkeys(proto.output, found)
    return reaches, steps


def _shape(value: Any) -> tuple[int, ...] | None:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value for dim in dims) if dims and all(dim.dim_value for dim in dims) else None
