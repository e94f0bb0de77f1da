"""A model as a graph with fake quantizers in it: what `qat` and `stages` train and `runtimes.onnx` exports."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch

from niwaki.errors import PlanError
from niwaki.evaluate import Readable
from niwaki.quantize import graphs, grids, places
from niwaki.quantize.graphs import Folded, Json, Tensors
from niwaki.quantize.grids import Grid
from niwaki.spec import Spec
from niwaki.surgery import fake_quantize, program, record

BIAS = 2**31 - 1
"""Largest whole number of a bias; the smallest is its negative."""


def folded(model: torch.nn.Module, spec: Spec) -> Folded:
    """The graph that quantization starts from; the model is untouched.

    Raises:
        PlanError: it is quantized already, or has no layer that can be. [quantize-model]
        ModelError: it is no graph that can be kept. [program-export, program-operator]
    """
    if fake_quantize.quantizers(model):
        raise PlanError(
            "quantize: the model holds fake quantizers already. Start from the float model; a second step of "
            "quantization is no part of a plan.",
            code="quantize-model",
        )
    example = torch.from_numpy(spec.example(2))
    held = copy.deepcopy(model).cpu().float().eval()
    graph, tensors = graphs.folded(*record.save(held, example), example)
    if not places.layers(graph):
        raise PlanError(
            f"quantize: {type(model).__name__} has no convolution and no linear layer, so there is nothing to "
            "quantize.",
            code="quantize-model",
        )
    ranks = {name: len(shape) for name, shape in graphs.shapes(graph, tensors, example).items()}
    return Folded(graph, tensors, ranks)


def quantized(
    base: Folded,
    bits: Mapping[str, int],
    *,
    activations: bool = True,
    samples: Readable,
    spec: Spec,
    known: Mapping[str, Grid] | None = None,
) -> program.Program:
    """The graph with fake quantizers around the layers of `bits`.

    Args:
        bits: bits of each quantized weight, by the weight's name.
        activations: quantize these layers' inputs and outputs, too.
        samples: images that the first scales of activations are taken from.
        known: grids that were learned already, as `learned` gives them; the others are made.
    """
    found = places.find(base.graph, set(bits), base.ranks)
    graph, tensors, known = copy.deepcopy(base.graph), dict(base.tensors), known or {}
    source = graph["inputs"][0]
    values = found.values if activations else ()
    new = [v for v in values if v != source and scale_of(v) not in known]
    made = {scale_of(v): g for v, g in grids.of_values(base, new, samples=samples, spec=spec).items()}
    made[scale_of(source)], own = grids.of_pixels(spec)
    graph["frozen"] += [scale_of(source)] if own and source in values else []
    names = {node: name for node, name in graph["tensors"].items() if name in found.weights}
    first = []
    for node, weight in names.items():
        scale = f"{weight}_quantizer.log_scale"
        grid = known.get(scale) or grids.of_weight(tensors[weight], found.weights[weight], bits[weight])
        first.append(_call(graph, tensors, node, scale, grid))
    calls = {v: _call(graph, tensors, v, scale_of(v), (made | {**known})[scale_of(v)]) for v in values}
    if activations:
        first += _biases(
            graph, {call["args"][0]["node"]: call for call in (*first, *calls.values())}, found.sources
        )
    _place(graph, first, calls)
    return program.load(graph, tensors)


def learned(model: torch.nn.Module) -> dict[str, Grid]:
    """The grids of a quantized model, by the names of their scales; {} of any other."""
    held = dict(model.named_parameters())
    graph = model.graph() if isinstance(model, program.Program) else {}
    out = {}
    for node in fake_quantize.quantizers(model):
        _, scale, *grid = node["args"]
        if grid[-1] == BIAS:  # its scale is the product of two others
            continue
        name = graph["tensors"][scale["node"]]
        out[name] = Grid(held[name].detach().clone(), *grid)
    return out


def scale_of(value: str) -> str:
    """Name of the tensor that holds a value's scale."""
    return f"quantizers.{value}.log_scale"


def _call(graph: Json, tensors: Tensors, value: str, name: str, grid: Grid) -> Json:
    """The call that rounds a value."""
    scale = graphs.hold(graph, tensors, name, grid.log_scale)
    args = [{"node": value}, {"node": scale}, grid.zero, grid.axis, grid.low, grid.high]
    return {"name": f"{value}_rounded", "op": fake_quantize.NAME, "args": args, "kwargs": {}}


def _biases(graph: Json, calls: Mapping[str, Json], sources: Mapping[str, str]) -> list[Json]:
    """Calls that round each layer's bias to what integer kernels add: steps of input times weight scale."""
    out: list[Json] = []
    for node in graph["nodes"]:
        bias = graphs.argument(node, 2)
        if node["name"] not in sources or not bias or bias["node"] not in graph["tensors"]:
            continue
        scales = [calls[name]["args"][1] for name in (sources[node["name"]], node["args"][1]["node"])]
        name = f"{node['name']}_bias"
        out.append({"name": f"{name}_scale", "op": "aten.add.Tensor", "args": scales, "kwargs": {}})
        args = [bias, {"node": f"{name}_scale"}, 0, 0, -BIAS, BIAS]
        out.append({"name": name, "op": fake_quantize.NAME, "args": args, "kwargs": {}})
        node["args"] = [*node["args"][:2], {"node": name}, *node["args"][3:]]
    return out


def _place(graph: Json, first: list[Json], calls: Mapping[str, Json]) -> None:
    """Every call behind the value that it rounds; all who read the value read what is rounded."""
    rounds = [call for call in (*first, *calls.values()) if call["args"][-1] != BIAS]
    rename = {call["args"][0]["node"]: call["name"] for call in rounds}
    nodes = [*first, *(calls[name] for name in graph["inputs"] if name in calls)]
    for node in graph["nodes"]:
        node["args"] = graphs.replaced(node["args"], rename)
        node["kwargs"] = {key: graphs.replaced(value, rename) for key, value in node["kwargs"].items()}
        nodes.append(node)
        if node["name"] in calls:
            nodes.append(calls[node["name"]])
    graph["nodes"] = nodes
    graph["outputs"] = graphs.replaced(graph["outputs"], rename)
