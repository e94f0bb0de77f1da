"""Names in an ONNX graph: what tells of the machine that exported goes, and no two tensors get one name.

int8 makes names from names: the scale of `x` is `x_scale`, its whole numbers `x_quantized`, in ONNX Runtime's
writer and in niwaki's. A model's own `x_scale` beside its `x` would be taken for it, without a word. So this is
the one place where a float graph gets its names, and none of them is another one, `_` and something.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import numpy_helper

from niwaki.runtimes.onnx import INPUT, OUTPUT

STEMS = (INPUT, OUTPUT, "pixels", "normalise", "switches")
"""Names that the graph has or gets beside those of nodes, values and weights."""
OWN = "own."
"""Put before a name that is not free."""


def strip(proto: Any, *, prefix: str = "") -> None:
    """Takes away what tells of the machine that exported, and names nodes and values by their order, in place.

    Args:
        prefix: of the names of the model's own weights, which goes; given for a graph as it was traced, whose
            weights then get names that are free and that are none of another and `_` and a word.
    """
    graph = proto.graph
    names = {INPUT: INPUT, OUTPUT: OUTPUT}
    for tensor, name in _named(graph, prefix):
        names[tensor.name] = tensor.name = name
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    for count, node in enumerate(graph.node):
        node.name, node.doc_string = f"{node.op_type}_{count}", ""
        del node.metadata_props[:]
        node.input[:] = [names.get(name, name) for name in node.input]
        for place, name in enumerate(node.output):
            names.setdefault(name, f"{node.op_type}_{count}_{place}" if name else "")
        node.output[:] = [names[name] for name in node.output]
    for value in (*graph.input, *graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    del graph.value_info[:], graph.metadata_props[:], proto.metadata_props[:]
    graph.name, graph.doc_string, proto.doc_string = "niwaki", "", ""
    proto.producer_name, proto.producer_version = "niwaki", ""
    proto.domain, proto.model_version = "", 0


def turned(proto: Any, parameters: Mapping[str, npt.NDArray[Any]]) -> None:
    """Calls a constant that is a parameter's matrix turned round like the parameter, in place.

    torch's exporter turns the weights of linear layers on more than two axes and numbers what comes out
    (`val_70`), which no reader of a sensitivity or a recipe could find in the model.

    Args:
        parameters: by the names that the graph's other weights have.
    """
    graph = proto.graph
    there = {tensor.name for tensor in graph.initializer}
    wanted: dict[str, list[str]] = {}
    for name, array in parameters.items():
        if array.ndim == 2 and name not in there:
            wanted.setdefault(_digest(array.T), []).append(name)
    names: dict[str, str] = {}
    for tensor in graph.initializer:
        if tensor.name in parameters or len(tensor.dims) != 2 or not wanted:
            continue
        if found := wanted.get(_digest(numpy_helper.to_array(tensor))):
            names[tensor.name] = found[0]
            tensor.name = found.pop(0)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def _digest(array: npt.NDArray[Any]) -> str:
    return f"{array.shape} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"


def shorten(graph: Any) -> None:
    """Calls values by their order, nodes nothing, in place: names were a tenth of a small network's file."""
    ends = {value.name for value in (*graph.input, *graph.output)}
    names: dict[str, str] = {"": ""}
    for node in graph.node:
        node.name = ""
        for value in (*node.input, *node.output):
            names.setdefault(value, value if value in ends else f"v{len(names)}")
        node.input[:] = [names[value] for value in node.input]
        node.output[:] = [names[value] for value in node.output]
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    del graph.value_info[:]


def _named(graph: Any, prefix: str) -> list[tuple[Any, str]]:
    """The weights of a graph, each with its new name; the wrapper's own come first and keep theirs."""
    tensors = sorted(graph.initializer, key=lambda tensor: tensor.name.startswith(prefix))
    wanted = [tensor.name.removeprefix(prefix) for tensor in tensors]
    taken = {*STEMS, *_made(graph)}
    stems = {*taken, *wanted} if prefix else set[str]()
    out = []
    for tensor, name in zip(tensors, wanted, strict=True):
        new = free(name, taken, stems)
        taken.add(new)
        out.append((tensor, new))
    return out


def free(wanted: str, taken: Collection[str], stems: Collection[str]) -> str:
    """`wanted`, with `own.` before it as often as it takes to be not in `taken`, nor a stem, `_` and more."""
    while wanted in taken or any(start in stems for start in _starts(wanted)):
        wanted = OWN + wanted
    return wanted


def _made(graph: Any) -> Iterable[str]:
    """The names that `strip` gives to nodes and values."""
    for count, node in enumerate(graph.node):
        yield f"{node.op_type}_{count}"
        yield from (f"{node.op_type}_{count}_{place}" for place in range(len(node.output)))


def _starts(name: str) -> Iterable[str]:
    """What stands before each `_` of a name."""
    return (name[:at] for at, letter in enumerate(name) if letter == "_")
