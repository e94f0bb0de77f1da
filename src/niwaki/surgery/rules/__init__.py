"""What each ATen operator does to the axes of its tensors: one small function a kind of operator.

A rule gets the walk (whose `atoms` it ties) and the node, and returns the axes of the output. Rules are per
operator, never per model. An operator without a rule keeps every axis it touches, and is named by the report.
A new operator is one function in the file of its kind and one line in `RULES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from niwaki.surgery import operators
from niwaki.surgery.rules.calls import Rows, operator_of, sizes_of, unknown
from niwaki.surgery.rules.parts import (
    embedding,
    gated,
    grid_sample,
    index,
    pad,
    pieces,
    scatter,
    select,
    slice_,
    slice_scatter,
    take,
    topk,
    unbind,
    windows,
)
from niwaki.surgery.rules.pointwise import (
    channel_norm,
    elementwise,
    group_norm,
    last_norm,
    pool,
    positional,
    reduce,
    same,
)
from niwaki.surgery.rules.products import addmm, attention, convolution, einsum, linear, matmul
from niwaki.surgery.rules.recurrent import GATES, recurrent
from niwaki.surgery.rules.shapes import (
    cat,
    channel_shuffle,
    expand,
    flip,
    movedim,
    permute,
    pixel_shuffle,
    pixel_unshuffle,
    repeat,
    repeat_interleave,
    roll,
    stack,
    transpose,
    unfold,
    view,
)
from niwaki.surgery.trace import Call

if TYPE_CHECKING:
    from niwaki.surgery.axes import Walk

Rule = Callable[["Walk", Call], Any]
__all__ = ["RULES", "operator_of", "rule_of"]


def constant(walk: Walk, node: Call) -> Rows:
    """A new tensor that depends on no channel (arange, zeros, ...)."""
    return [None] * len(sizes_of(node))


def getitem(walk: Walk, node: Call) -> Rows:
    """One output of an operator with several."""
    axes: Rows = list(walk.axes[node.args[0]][node.args[1]])
    return axes


RULES: dict[str, Rule] = {
    **dict.fromkeys(operators.SAME, same),
    **dict.fromkeys(operators.ELEMENTWISE, elementwise),
    **dict.fromkeys(operators.REDUCE, reduce),
    **dict.fromkeys(operators.POOL, pool),
    **dict.fromkeys(operators.VIEW, view),
    **dict.fromkeys(operators.CONSTANT, constant),
    **dict.fromkeys(operators.CONV, convolution),
    **dict.fromkeys(("linear",), linear),
    **dict.fromkeys(("matmul", "mm", "bmm"), matmul),
    **dict.fromkeys(("addmm", "baddbmm"), addmm),
    **dict.fromkeys(("chunk", "unsafe_chunk", "split", "split_with_sizes", "tensor_split"), pieces),
    **dict.fromkeys(("slice", "narrow"), slice_),
    **dict.fromkeys(("constant_pad_nd", "pad", "reflection_pad2d", "replication_pad2d"), pad),
    **dict.fromkeys(("transpose", "t", "swapaxes"), transpose),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), expand),
    **dict.fromkeys(("layer_norm", "rms_norm"), last_norm),
    **dict.fromkeys(operators.BATCH_NORM, channel_norm),
    "scaled_dot_product_attention": attention,
    "group_norm": group_norm,
    **dict.fromkeys(operators.POSITIONAL, positional),
    **dict.fromkeys(operators.TAKE, take),
    **dict.fromkeys(GATES, recurrent),
    **dict.fromkeys(("grid_sampler", "grid_sampler_2d"), grid_sample),
    "topk": topk,
    "scatter": scatter,
    "unbind": unbind,
    "slice_scatter": slice_scatter,
    "unfold": windows,
    "glu": gated,
    "roll": roll,
    "movedim": movedim,
    "tile": repeat,
    "repeat_interleave": repeat_interleave,
    "permute": permute,
    "repeat": repeat,
    "cat": cat,
    "stack": stack,
    "select": select,
    "flip": flip,
    "im2col": unfold,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "channel_shuffle": channel_shuffle,
    "native_channel_shuffle": channel_shuffle,
    "embedding": embedding,
    "index": index,
    "einsum": einsum,
}


def rule_of(node: Call) -> Rule:
    """The rule of a call: by the operator's name without overload, or `unknown`."""
    if getattr(node.target, "__name__", "") == "getitem":
        return getitem
    return RULES.get(operator_of(node), unknown)
