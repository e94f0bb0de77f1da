"""What each operator of an ONNX graph does to the reach of its pixels. One function a kind of operator.

A Span says for one axis which input pixels the element i of a tensor depends on: `step * i + low` to
`step * i + high`, in pixels of the image. What is not known to be local is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from niwaki.errors import ModelError


@dataclass(frozen=True)
class Span:
    """Input pixels `step * i + low` to `step * i + high` of an element i."""

    step: Fraction = Fraction(1)
    low: Fraction = Fraction(0)
    high: Fraction = Fraction(0)

    def through(self, step: Fraction, low: Fraction, high: Fraction) -> Span:
        """Of a tensor whose element i reads elements `step * i + low` to `step * i + high` of this one."""
        return Span(self.step * step, self.low + self.step * low, self.high + self.step * high)

    def joined(self, other: Span) -> Span:
        """Of a tensor that reads both at the same place."""
        return Span(self.step, min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True)
class Reach:
    """The axes of a tensor that are rows and columns of the image, and their spans."""

    axes: tuple[int, int]
    spans: tuple[Span, Span]


@dataclass(frozen=True)
class Node:
    """A node as the rules see it: reaches of its inputs (None where a tensor has no place), shapes,
    constants."""

    name: str
    kind: str
    knobs: dict[str, Any]
    inputs: list[Reach | None]
    shapes: list[tuple[int, ...] | None]
    constants: list[Any]
    out: tuple[int, ...] | None

    def refuse(self, why: str) -> ModelError:
        """The error of an operator that exact tiles cannot be had with. [tile-exact]"""
        return ModelError(
            f"exact: {self.kind} ({self.name}) {why}. Tiles cannot give what the whole image gives: leave "
            "out --exact.",
            code="tile-exact",
        )

    @property
    def only(self) -> Reach:
        """The reach of the first input, the only one that may have one."""
        if self.inputs[0] is None or any(reach is not None for reach in self.inputs[1:]):
            raise self.refuse("joins places in a way that is not known")
        return self.inputs[0]


def elementwise(node: Node) -> Reach:
    """All inputs at the same place; constants must be the same everywhere."""
    held = [(reach, shape) for reach, shape in zip(node.inputs, node.shapes, strict=True) if reach is not None]
    ranks = [len(shape) for _, shape in held if shape is not None]
    rank = len(node.out) if node.out is not None else max(ranks, default=4)
    whole: Reach | None = None
    for reach, shape in held:
        shift = rank - (len(shape) if shape is not None else rank)
        here = Reach((reach.axes[0] + shift, reach.axes[1] + shift), reach.spans)
        if whole is None:
            whole = here
        elif whole.axes != here.axes or any(
            a.step != b.step for a, b in zip(whole.spans, here.spans, strict=True)
        ):
            raise node.refuse("joins maps of different sizes or order")
        else:
            one, other = (a.joined(b) for a, b in zip(whole.spans, here.spans, strict=True))
            whole = replace(whole, spans=(one, other))
    assert whole is not None
    for given, shape in zip(node.inputs, node.shapes, strict=True):
        places = [axis - rank for axis in whole.axes]
        if given is None and shape and any(-p <= len(shape) and shape[p] != 1 for p in places):
            raise node.refuse("uses a constant that differs from place to place")
    return whole


def by_channel(node: Node) -> Reach:
    """Numbers for each entry of one axis, which is no place: batch norms and scales of quantization."""
    reach = node.only
    rank = len(node.shapes[0] or ()) or 4
    axis = int(node.knobs.get("axis", 1)) % rank
    if axis in reach.axes and any(shape and math.prod(shape) > 1 for shape in node.shapes[1:]):
        raise node.refuse("uses a constant that differs from place to place")
    return reach


def window(node: Node) -> Reach:
    """Convolutions and pools: `stride * i - pad` to that plus the dilated kernel."""
    kernel = node.knobs.get("kernel_shape") or list((node.shapes[1] or ())[2:])
    strides = node.knobs.get("strides") or [1, 1]
    dilations = node.knobs.get("dilations") or [1, 1]
    begins = [_begin(node, k, strides[k], dilations[k], kernel[k]) for k in (0, 1)]
    spans = []
    for k, span in enumerate(node.only.spans):
        wide = dilations[k] * (kernel[k] - 1)
        spans.append(span.through(Fraction(strides[k]), Fraction(-begins[k]), Fraction(wide - begins[k])))
    return Reach(_map(node), (spans[0], spans[1]))


def _begin(node: Node, k: int, stride: int, dilation: int, kernel: int) -> int:
    """Padding before the first element along an axis."""
    how = node.knobs.get("auto_pad", b"NOTSET").decode()
    wide = dilation * (kernel - 1)
    if how == "SAME_UPPER" and stride == 1:
        return int(wide // 2)
    if how == "SAME_LOWER" and stride == 1:
        return int(wide - wide // 2)
    if how in ("SAME_UPPER", "SAME_LOWER"):
        raise node.refuse("is padded by the image's size")
    return int((node.knobs.get("pads") or [0, 0, 0, 0])[k])


def _map(node: Node) -> tuple[int, int]:
    """Axes 2 and 3, where operators on maps have rows and columns."""
    if node.only.axes != (2, 3):
        raise node.refuse("runs over other axes than rows and columns")
    return (2, 3)


def transposed(node: Node) -> Reach:
    """Transposed convolutions: element o reads i with `o = stride * i - pad + dilation * k`."""
    kernel = node.knobs.get("kernel_shape") or list((node.shapes[1] or ())[2:])
    strides = node.knobs.get("strides") or [1, 1]
    dilations = node.knobs.get("dilations") or [1, 1]
    pads = node.knobs.get("pads") or [0, 0, 0, 0]
    if "output_shape" in node.knobs or node.knobs.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise node.refuse("is padded by the image's size")
    spans = []
    for k, span in enumerate(node.only.spans):
        wide = dilations[k] * (kernel[k] - 1)
        one = Fraction(1, strides[k])
        spans.append(span.through(one, (pads[k] - wide) * one, pads[k] * one))
    return Reach(_map(node), (spans[0], spans[1]))


def resize(node: Node) -> Reach:
    """Resizing by a ratio that is the same everywhere."""
    reach, before, after = node.only, node.shapes[0], node.out
    mode = node.knobs.get("coordinate_transformation_mode", b"half_pixel").decode()
    if mode not in ("half_pixel", "pytorch_half_pixel", "asymmetric"):
        raise node.refuse(f"places pixels by the image's size ({mode})")
    if before is None or after is None:
        raise node.refuse("has a size that is not known")
    kind = node.knobs.get("mode", b"nearest").decode()
    spans = []
    for axis, span in zip(reach.axes, reach.spans, strict=True):
        ratio = Fraction(after[axis], before[axis])
        offset = Fraction(0) if mode == "asymmetric" else 1 / (2 * ratio) - Fraction(1, 2)
        wide = Fraction(2 if kind == "cubic" else 1)
        if node.knobs.get("antialias") and ratio < 1:
            wide /= ratio
        if ratio == 1:
            wide = Fraction(0)
        spans.append(span.through(1 / ratio, offset - wide, offset + wide))
    return Reach(reach.axes, (spans[0], spans[1]))


def over_axes(node: Node) -> Reach:
    """Softmax, reductions and norms over axes that are not places."""
    reach = node.only
    rank = len(node.shapes[0] or ()) or 4
    given: Any = node.knobs.get("axes", node.knobs.get("axis"))
    reduces = node.kind.startswith("Reduce")
    if given is None and reduces and len(node.constants) > 1 and node.constants[1] is not None:
        given = [int(axis) for axis in node.constants[1].ravel()]
    if given is None:
        given = list(range(rank)) if reduces else -1
    if node.kind == "LayerNormalization":
        given = list(range(int(given) % rank, rank))
    axes = {int(axis) % rank for axis in (given if isinstance(given, Sequence) else [given])}
    if axes & set(reach.axes):
        raise node.refuse("runs over the whole image")
    if node.kind.startswith(("Reduce", "Arg")) and not node.knobs.get("keepdims", 1):
        one, other = (axis - sum(gone < axis for gone in axes) for axis in reach.axes)
        return Reach((one, other), reach.spans)
    return reach


def joined(node: Node) -> Reach:
    """Concatenation and splitting along an axis that is no place."""
    rank = len(next((shape for shape in node.shapes if shape), (0,) * 4))
    reach = elementwise(replace(node, out=None))
    if node.knobs.get("axis", 0) % rank in reach.axes:
        raise node.refuse("joins places along rows or columns")
    return reach


def permuted(node: Node) -> Reach:
    """Transposition."""
    order = list(node.knobs["perm"])
    one, other = (order.index(axis) for axis in node.only.axes)
    return Reach((one, other), node.only.spans)


def padded(node: Node) -> Reach:
    """Padding, or cropping by numbers that are known."""
    reach, shape = node.only, node.shapes[0]
    pads = node.constants[1]
    if pads is None or shape is None or (len(node.constants) > 3 and node.constants[3] is not None):
        raise node.refuse("pads by numbers that are not known")
    begins = [Fraction(-int(pads.ravel()[axis])) for axis in reach.axes]
    one, other = (span.through(Fraction(1), b, b) for span, b in zip(reach.spans, begins, strict=True))
    return Reach(reach.axes, (one, other))


def sliced(node: Node) -> Reach:
    """Slices that begin at a place counted from the start."""
    reach, shape = node.only, node.shapes[0]
    starts, axes = node.constants[1], node.constants[3] if len(node.constants) > 3 else None
    steps = node.constants[4] if len(node.constants) > 4 else None
    if starts is None or shape is None:
        raise node.refuse("begins at a place that is not known")
    which = list(range(starts.size)) if axes is None else [int(a) % len(shape) for a in axes.ravel()]
    spans = list(reach.spans)
    for k, axis in enumerate(which):
        if axis not in reach.axes:
            continue
        start, step = int(starts.ravel()[k]), 1 if steps is None else int(steps.ravel()[k])
        if start < 0 or step < 1:
            raise node.refuse("is counted from the end of the image")
        place = reach.axes.index(axis)
        spans[place] = spans[place].through(Fraction(step), Fraction(start), Fraction(start))
    return Reach(reach.axes, (spans[0], spans[1]))


def blocks(node: Node) -> Reach:
    """Depth to space and back."""
    size = int(node.knobs["blocksize"])
    spread = Fraction(size - 1)
    if node.kind == "SpaceToDepth":
        one, other = (span.through(Fraction(size), Fraction(0), spread) for span in node.only.spans)
    else:
        one, other = (span.through(Fraction(1, size), -spread / size, Fraction(0)) for span in node.only.spans)
    return Reach(_map(node), (one, other))


def reshaped(node: Node) -> Reach:
    """Other axes split or merged, rows and columns staying whole and side by side."""
    reach, before, after = node.only, node.shapes[0], node.out
    if before is not None and after is not None and reach.axes[1] == reach.axes[0] + 1:
        row = reach.axes[0]
        lead = math.prod(before[:row])
        for place in range(len(after) - 1):
            if math.prod(after[:place]) == lead and after[place : place + 2] == before[row : row + 2]:
                return Reach((place, place + 1), reach.spans)
    raise node.refuse("mixes places with other axes")


def gathered(node: Node) -> Reach:
    """Entries of an axis that is no place, by constant numbers."""
    reach, shape = node.only, node.shapes[0]
    rank = len(shape or ()) or 4
    axis = int(node.knobs.get("axis", 0)) % rank
    if axis in reach.axes or node.constants[1] is None:
        raise node.refuse("picks places")
    shift = node.constants[1].ndim - 1
    one, other = (a + shift * (a > axis) for a in reach.axes)
    return Reach((one, other), reach.spans)


def product(node: Node) -> Reach:
    """A product with a constant matrix over an axis that is no place."""
    first, second = node.inputs[:2]
    rank = len(node.out or ()) or 4
    if first is not None and second is None and rank - 1 not in first.axes and len(node.shapes[1] or ()) == 2:
        return first
    if second is not None and first is None and rank - 2 not in second.axes and len(node.shapes[0] or ()) == 2:
        return second
    raise node.refuse("multiplies places with each other")


def everywhere(node: Node) -> Reach:
    """What sees the whole image."""
    raise node.refuse("sees the whole image")


_ELEMENTWISE = """Abs Add And Cast CastLike Ceil Celu Clip Div Dropout Elu
Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity LeakyRelu Less LessOrEqual Log
Max Mean Min Mish Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Sigmoid Sign Softplus
Softsign Sqrt Sub Sum Swish Tanh ThresholdedRelu Where Expand"""

RULES: dict[str, Callable[[Node], Reach]] = {
    **dict.fromkeys(_ELEMENTWISE.split(), elementwise),
    **dict.fromkeys(("BatchNormalization", "QuantizeLinear", "DequantizeLinear"), by_channel),
    **dict.fromkeys(("Conv", "ConvInteger", "MaxPool", "AveragePool", "LpPool"), window),
    **dict.fromkeys(("Softmax", "LogSoftmax", "LpNormalization", "LayerNormalization"), over_axes),
    **dict.fromkeys(
        ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ArgMax", "ArgMin"), over_axes
    ),
    **dict.fromkeys(("Concat", "Split"), joined),
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze", "Flatten"), reshaped),
    **dict.fromkeys(("SpaceToDepth", "DepthToSpace"), blocks),
    **dict.fromkeys(("MatMul", "Gemm"), product),
    **dict.fromkeys(
        ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "InstanceNormalization"), everywhere
    ),
    **dict.fromkeys(("GroupNormalization", "Attention", "MultiHeadAttention"), everywhere),
    "ConvTranspose": transposed,
    "Resize": resize,
    "Transpose": permuted,
    "Pad": padded,
    "Slice": sliced,
    "Gather": gathered,
}
"""Operator: its rule. What is not here is refused."""
