"""A recorded graph as it is read and rewritten here: who reads what, shapes, other outputs, batch norms folded.

The graph is the JSON of `surgery.record`; its tensors are a dict by name. Nothing here knows of quantization.
Shape letters: N images, C channels, H W pixels.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.surgery import program

Json = dict[str, Any]
Tensors = dict[str, Tensor]
CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")


@dataclass(frozen=True)
class Folded:
    """A float model's graph without batch norms, its tensors by name, and how many axes each value has."""

    graph: Json
    tensors: Tensors
    ranks: dict[str, int]

    def with_weights(self, model: nn.Module) -> Folded:
        """The same graph with the weights of a model that was trained with quantizers in it."""
        held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        newer = {name: held[name].detach().clone() for name in self.tensors}
        return Folded(self.graph, newer, self.ranks)


def base(node: Json) -> str:
    """`conv2d` of a node that calls `aten.conv2d.default`; other calls by their whole name."""
    op = str(node["op"])
    return op.split(".")[1] if op.startswith("aten.") else op


def names(value: Any) -> Iterator[str]:
    """The values that an argument, or a list of them, reads."""
    if isinstance(value, list):
        for one in value:
            yield from names(one)
    elif isinstance(value, dict) and "node" in value:
        yield value["node"]


def inputs(node: Json) -> list[str]:
    """The values that a call reads, in order."""
    return [*names(node["args"]), *names(list(node["kwargs"].values()))]


def readers(graph: Json) -> dict[str, list[Json]]:
    """The calls that read each value, once for each time they do."""
    out: dict[str, list[Json]] = defaultdict(list)
    for node in graph["nodes"]:
        for name in inputs(node):
            out[name].append(node)
    return out


def argument(node: Json, place: int, default: Any = None) -> Any:
    """A positional argument, or its default where the call leaves it out."""
    return node["args"][place] if len(node["args"]) > place else default


def replaced(value: Any, new: Mapping[str, str]) -> Any:
    """An argument that reads other values."""
    if isinstance(value, list):
        return [replaced(one, new) for one in value]
    if isinstance(value, dict) and "node" in value:
        return {"node": new.get(value["node"], value["node"])}
    return value


def tapped(graph: Json, tensors: Tensors, values: list[str]) -> program.Program:
    """A module that gives the named values of a graph, as a list, in eval mode."""
    other = {**copy.deepcopy(graph), "outputs": [{"node": name} for name in values]}
    other["gives"] = {"list": ["*"] * len(values)}
    return program.load(other, dict(tensors)).eval()


def shapes(graph: Json, tensors: Tensors, example: Tensor) -> dict[str, tuple[int, ...]]:
    """The shape of each value that is one tensor, for that example."""
    found: dict[str, tuple[int, ...]] = {
        node: tuple(tensors[name].shape) for node, name in graph["tensors"].items()
    }
    found[graph["inputs"][0]] = tuple(example.shape)
    several = {names_of[0] for names_of in (inputs(n) for n in graph["nodes"] if n["op"] == "operator.getitem")}
    values = [str(node["name"]) for node in graph["nodes"] if node["name"] not in several]
    with torch.no_grad():
        outputs = tapped(graph, tensors, values)(example)
    return found | {n: tuple(o.shape) for n, o in zip(values, outputs, strict=True) if isinstance(o, Tensor)}


def folded(graph: Json, tensors: Tensors, example: Tensor) -> tuple[Json, Tensors]:
    """The same function in eval mode without batch norms: folded into the convolution or linear layer before.

    One that follows neither becomes a convolution of one weight a channel, where it norms images; what else is
    left learns no statistics any more. Both inputs stay as they are.
    """
    graph, tensors = copy.deepcopy(graph), dict(tensors)
    known = shapes(graph, tensors, example)
    read, makers = readers(graph), {node["name"]: node for node in graph["nodes"]}
    gone: dict[str, str] = {}
    for node in graph["nodes"]:
        if base(node) != "batch_norm":
            continue
        before = makers.get(node["args"][0]["node"])
        scale, shift = _affine(node, graph, tensors, known[node["name"]][1])
        if before is not None and _foldable(before, graph, read):
            _fold(before, scale, shift, graph, tensors)
            gone[node["name"]] = before["name"]
        elif len(known[node["name"]]) == 4:
            _as_convolution(node, scale, shift, graph, tensors)
    graph["nodes"] = [node for node in graph["nodes"] if node["name"] not in gone]
    for node in graph["nodes"]:
        node["args"] = replaced(node["args"], gone)
        node["kwargs"] = {key: replaced(value, gone) for key, value in node["kwargs"].items()}
    graph["outputs"] = replaced(graph["outputs"], gone)
    return _pruned(graph, tensors)


def hold(graph: Json, tensors: Tensors, name: str, value: Tensor, *, learns: bool = True) -> str:
    """Adds a tensor to a graph under a dotted name, in place: the value by which calls read it."""
    node = f"p_{name.replace('.', '_')}"
    while node in graph["tensors"] or any(n["name"] == node for n in graph["nodes"]):
        node += "_"
    graph["tensors"][node] = name
    if learns:
        graph["parameters"].append(name)
    tensors[name] = value
    return node


def _foldable(before: Json, graph: Json, read: Mapping[str, list[Json]]) -> bool:
    if base(before) not in (*CONVOLUTIONS, "linear") or len(read[before["name"]]) != 1:
        return False
    if any(before["name"] == name for name in names(graph["outputs"])):
        return False
    weights = [arg["node"] for arg in (before["args"][1], argument(before, 2)) if arg]
    return all(len(read[name]) == 1 and name in graph["tensors"] for name in weights)


def _affine(node: Json, graph: Json, tensors: Tensors, channels: int) -> tuple[Tensor, Tensor]:
    """A batch norm in eval mode as a factor and a sum for each channel, float64 `[C]`."""
    held = [tensors[graph["tensors"][a["node"]]].double() if a else None for a in node["args"][1:5]]
    weight, bias, mean, var = held
    assert mean is not None and var is not None, "a norm of a recorded graph in eval mode has statistics"
    scale = torch.rsqrt(var + node["args"][7])
    scale = scale if weight is None else scale * weight
    return scale, (torch.zeros(channels).double() if bias is None else bias) - mean * scale


def _fold(layer: Json, scale: Tensor, shift: Tensor, graph: Json, tensors: Tensors) -> None:
    name = graph["tensors"][layer["args"][1]["node"]]
    weight = tensors[name]
    tensors[name] = (weight.double() * scale.reshape(-1, *[1] * (weight.ndim - 1))).to(weight.dtype)
    held = argument(layer, 2)
    if held:
        own = graph["tensors"][held["node"]]
        tensors[own] = (tensors[own].double() * scale + shift).to(weight.dtype)
        return
    node = hold(graph, tensors, f"{name.rpartition('.')[0]}.bias".lstrip("."), shift.to(weight.dtype))
    layer["args"] = [*layer["args"][:2], {"node": node}, *layer["args"][3:]]


def _as_convolution(node: Json, scale: Tensor, shift: Tensor, graph: Json, tensors: Tensors) -> None:
    path = node.get("module") or node["name"]
    kind = torch.float32
    weight = hold(graph, tensors, f"{path}.folded.weight", scale.to(kind)[:, None, None, None])
    bias = hold(graph, tensors, f"{path}.folded.bias", shift.to(kind))
    groups = len(scale)
    node["op"] = "aten.conv2d.default"
    node["args"] = [node["args"][0], {"node": weight}, {"node": bias}, [1, 1], [0, 0], [1, 1], groups]
    node.pop("module", None)


def _pruned(graph: Json, tensors: Tensors) -> tuple[Json, Tensors]:
    """Without the tensors that nothing reads, and the modules that only held them."""
    read = {name for node in graph["nodes"] for name in inputs(node)} | set(names(graph["outputs"]))
    graph["tensors"] = {node: name for node, name in graph["tensors"].items() if node in read}
    used = set(graph["tensors"].values())
    norms = {node.get("module") for node in graph["nodes"] if base(node) == "batch_norm"}
    graph["norms"] = {path: norm for path, norm in graph["norms"].items() if path in norms}
    for part in ("parameters", "frozen", "unsaved"):
        graph[part] = [name for name in graph[part] if name in used]
    graph["ties"] = {alias: name for alias, name in graph["ties"].items() if name in used}
    graph["training"] = {"": False}
    kept = {name: value for name, value in tensors.items() if name in used or _of(name, graph["norms"])}
    return graph, kept


def _of(name: str, norms: Mapping[str, Any]) -> bool:
    """Whether a tensor is one of a batch norm that is left."""
    return name.rpartition(".")[0] in norms
