"""Thin inner convolutions of an int8 ONNX graph, widened by channels of zeros to what its kernels work in.

ONNX Runtime's fast integer convolution wants at least 16 output channels and inputs in fours: on a CPU with
VNNI a pair of 16-to-8-to-16 convolutions takes longer than 16-to-16-to-16. The added channels have zero
weights on both sides, so they change nothing that leaves the pair; `tests/parity/test_widen.py` holds the
outputs equal to the bit.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import numpy_helper

LEAST, STEP = 16, 4
"""Output channels are widened to at least `LEAST`, and to a multiple of `STEP`."""
KEEP_ZERO = {"Relu", "Clip", "LeakyRelu", "HardSwish", "MaxPool", "AveragePool", "GlobalAveragePool"}
"""Operators that work on each channel alone and make nothing of one that is zero."""

Readers = dict[str, list[tuple[Any, int]]]


def thin(graph: Any, *, whole: str = "") -> int:
    """The number of convolutions widened, in place; only those whose outputs all end in other convolutions.

    Args:
        whole: name of one that is left as it is (the normalisation of the pixels).
    """
    weights = {tensor.name: tensor for tensor in graph.initializer}
    readers: Readers = defaultdict(list)
    for node in graph.node:
        for place, name in enumerate(node.input):
            readers[name].append((node, place))
    outputs = {output.name for output in graph.output}
    count = 0
    for conv in graph.node:
        if conv.name == whole or not _own_weights(conv, weights, readers):
            continue
        ends = _ends(conv.output[0], weights, readers, outputs)
        width = weights[conv.input[1]].dims[0]
        added = max(LEAST, -(-width // STEP) * STEP) - width
        if added and ends:
            _widen(conv, ends, weights, added)
            count += 1
    if count:
        del graph.value_info[:]
    return count


def _own_weights(node: Any, weights: dict[str, Any], readers: Readers) -> bool:
    """Whether this is an ungrouped convolution whose weights and bias nobody else reads."""
    grouped = any(a.name == "group" and a.i != 1 for a in node.attribute)
    if node.op_type != "Conv" or grouped:
        return False
    return all(name in weights and len(readers[name]) == 1 for name in node.input[1:] if name)


def _ends(value: str, weights: dict[str, Any], readers: Readers, outputs: set[str]) -> list[Any] | None:
    """The convolutions that a value ends in, through operators that keep zeros; None if it goes elsewhere."""
    if value in outputs:
        return None
    found: list[Any] = []
    for node, place in readers[value]:
        if place == 0 and _own_weights(node, weights, readers):
            found.append(node)
        elif place == 0 and node.op_type in KEEP_ZERO and _passes_zero(node, weights):
            behind = _ends(node.output[0], weights, readers, outputs)
            if behind is None:
                return None
            found += behind
        else:
            return None
    return found


def _passes_zero(node: Any, weights: dict[str, Any]) -> bool:
    """A clip passes zero when zero lies between its bounds."""
    if node.op_type != "Clip":
        return True
    bounds = [numpy_helper.to_array(weights[n]) if n in weights else None for n in node.input[1:]]
    low, high = [*bounds, None, None][:2]
    return (low is None or bool(low <= 0)) and (high is None or bool(high >= 0))


def _widen(conv: Any, ends: list[Any], weights: dict[str, Any], added: int) -> None:
    for name in filter(None, conv.input[1:]):
        _pad(weights[name], axis=0, added=added)
    for end in ends:
        _pad(weights[end.input[1]], axis=1, added=added)


def _pad(tensor: Any, *, axis: int, added: int) -> None:
    array: npt.NDArray[Any] = numpy_helper.to_array(tensor)
    pads = [(0, added if d == axis else 0) for d in range(array.ndim)]
    tensor.CopyFrom(numpy_helper.from_array(np.pad(array, pads), tensor.name))
