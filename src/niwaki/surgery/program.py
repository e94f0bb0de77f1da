"""A model's graph as JSON over allow-listed operators: how a model without a builder is saved
without its code.

    graph, tensors = save(model, example)      # JSON and tensors by name
    load(graph, tensors)                       # an nn.Module that computes the same, in eval mode

The graph is that of torch.export, calls to ATen operators in order. Loading builds no code: a
short interpreter looks each operator up in `OPERATORS` and calls it. Arguments are JSON, or one
of: {"node": name}, {"dtype": name}, {"device": "cpu"}, {"layout": name}, {"memory": name},
    {"float": "inf"}.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.errors import ArtifactError, ModelError, NiwakiError, UnsafeArtifact

_ATEN = """
_log_softmax _native_batch_norm_legit_no_training _safe_softmax _softmax _to_copy _unsafe_view
_upsample_bicubic2d_aa _upsample_bilinear2d_aa abs adaptive_avg_pool1d adaptive_avg_pool2d
adaptive_max_pool2d add addmm alias amax amin arange argmax avg_pool1d avg_pool2d baddbmm
batch_norm bmm cat ceil celu channel_shuffle chunk clamp clamp_max clamp_min clone constant_pad_nd
contiguous conv1d conv2d conv3d conv_transpose1d conv_transpose2d copy cos cumsum detach div
dropout einsum elu embedding eq exp expand expand_as feature_dropout flatten flip floor
floor_divide full full_like gather ge gelu glu group_norm gt hardsigmoid hardswish hardtanh im2col
index index_put index_select instance_norm layer_norm le leaky_relu lift_fresh_copy
linalg_vector_norm linear log log1p log_softmax logical_and logical_not logical_or lt masked_fill
matmul max max_pool1d max_pool2d maximum mean min minimum mish mm movedim mul narrow
native_group_norm native_layer_norm ne neg new_full new_ones new_zeros norm numel ones ones_like
pad permute pixel_shuffle pixel_unshuffle pow prelu prod reciprocal reflection_pad2d relu relu6
remainder repeat repeat_interleave replication_pad2d reshape rms_norm roll rsqrt rsub
scaled_dot_product_attention scatter select select_scatter selu sigmoid silu sin slice
slice_scatter softmax softplus split split_with_sizes sqrt square squeeze stack std sub sum
swapaxes sym_numel sym_size t tanh tile to topk transpose tril triu unbind unflatten unfold
unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze upsample_bicubic2d upsample_bilinear2d
upsample_nearest2d var var_mean view view_as where zeros zeros_like
"""
OPERATORS = frozenset(_ATEN.split())
"""ATen operators that a graph may call, any overload of them: arithmetic on tensors, nothing
else."""

_PYTHON: dict[str, Callable[..., Any]] = {
    f"operator.{f.__name__}": f
    for f in (
        *(operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv),
        *(operator.mod, operator.neg, operator.truediv, operator.eq, operator.ge, operator.le),
        *(operator.gt, operator.lt, operator.ne),
    )
}
_CHECKS = (
    "_assert_async",
    "_assert_scalar",
    "_assert_tensor_metadata",
    "sym_constrain_range_for_size",
)
_DROPPED = frozenset(f"aten.{name}" for name in _CHECKS)
_LAYOUTS = {"strided": torch.strided}
_MEMORY = {name: getattr(torch, name) for name in ("contiguous_format", "channels_last", "preserve_format")}
_MAX_DEPTH = 8

Names = Mapping[str, str]


def save(model: nn.Module, example: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(graph as JSON, tensors by the model's own names) of a model in eval mode; the model is
    untouched.

    Args:
        example: float `[B, C, H, W]` with B of at least 2, so that the batch stays free.
    Raises:
        ModelError: torch.export refuses it, or an operator is not in the list.
            [program-export, program-operator]
    """
    exported = _exported(model, example)
    signature = exported.graph_signature
    names: dict[str, str] = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    values = {**exported.state_dict, **exported.constants}
    tensors = {name: values[name].detach() for name in dict.fromkeys(names.values())}
    graph: dict[str, Any] = {"tensors": {}, "inputs": [], "nodes": [], "outputs": []}
    for node in exported.graph_module.graph.nodes:
        _save_node(node, graph, names)
    graph["parameters"] = sorted(set(signature.inputs_to_parameters.values()))
    return graph, tensors


def load(graph: Mapping[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """A module that computes a saved graph; its parameters carry the names they had in the model.

    Raises:
        UnsafeArtifact: the graph calls an operator that is not in the list. [program-operator]
        ArtifactError: it is no graph, or does not fit the tensors. [program-graph]
    """
    try:
        return Program(graph, tensors)
    except NiwakiError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _broken(f"{type(error).__name__}: {str(error)[:120]}") from error


class Program(nn.Module):
    """A graph that runs: image batches float `[B, C, H, W]` to the model's outputs, always as in
    eval mode."""

    def __init__(self, graph: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
        super().__init__()
        if set(graph) != {"tensors", "inputs", "nodes", "outputs", "parameters"}:
            raise ValueError("not the parts of a graph")
        if not all(isinstance(graph[key], list) for key in ("inputs", "outputs", "nodes")):
            raise ValueError("inputs, outputs or nodes are no list")
        self._tensors: dict[str, str] = dict(graph["tensors"])
        self._inputs: list[str] = list(graph["inputs"])
        self._outputs = graph["outputs"]
        if set(self._tensors.values()) != tensors.keys() or len(self._inputs) != 1:
            raise ValueError("inputs or tensors are not those of the weights")
        for name, value in tensors.items():
            _register(self, name, value, name in graph["parameters"])
        self._nodes = [
            (str(n["name"]), _operator(n["op"]), list(n["args"]), dict(n["kwargs"])) for n in graph["nodes"]
        ]
        self._last = self._check_order()
        self.eval()

    def _check_order(self) -> list[list[str]]:
        """For each call the values that nothing reads after it; raises where one is read before it
        is there."""
        known = {*self._tensors, *self._inputs}
        reads = []
        for name, _, args, kwargs in self._nodes:
            reads.append(_named([args, *kwargs.values()]))
            if missing := reads[-1] - known:
                raise ValueError(f"{name} reads {sorted(missing)[0]!r} before it is there")
            if name in known:
                raise ValueError(f"{name} is computed twice")
            known.add(name)
        later = _named(self._outputs)
        if not later <= known:
            raise ValueError("outputs that nothing computes")
        last = []
        for names in reversed(reads):
            last.append(sorted(names - later))
            later |= names
        return last[::-1]

    def train(self, mode: bool = True) -> Program:
        """Stays as it is: the graph was taken in eval mode and has no other."""
        return super().train(False)

    def forward(self, image: Tensor) -> Any:
        """What the saved model computed."""
        env: dict[str, Any] = {self._inputs[0]: image}
        for node, name in self._tensors.items():
            owner, _, last = name.rpartition(".")
            env[node] = getattr(self.get_submodule(owner), last)
        for (name, function, args, kwargs), done in zip(self._nodes, self._last, strict=True):
            named = {key: _value(value, env) for key, value in kwargs.items()}
            env[name] = function(*_value(args, env), **named)
            for finished in done:  # memory is given back as early as the model itself would
                del env[finished]
        outputs = _value(self._outputs, env)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _exported(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    own = copy.deepcopy(model).cpu().eval()
    try:
        batch = torch.export.Dim("batch", min=1)
        exported = torch.export.export(own, (example,), dynamic_shapes=({0: batch},), strict=False)
        functional: torch.export.ExportedProgram = exported.run_decompositions({})
    except Exception as error:  # torch.export raises whatever the forward trips over
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(
            f"{type(model).__name__} cannot be saved as a graph: {reason}. Save it with a builder.",
            code="program-export",
        ) from error
    return functional


def _save_node(node: Any, graph: dict[str, Any], names: Names) -> None:
    if node.op == "placeholder":
        if node.name in names:
            graph["tensors"][node.name] = names[node.name]
        else:
            graph["inputs"].append(node.name)
    elif node.op == "output":
        graph["outputs"] = _json(list(node.args[0]))
    else:
        name = _operator_name(node)
        if name.rpartition(".")[0] in _DROPPED:
            return
        graph["nodes"].append(
            {
                "name": node.name,
                "op": name,
                "args": _json(list(node.args)),
                "kwargs": {key: _json(value) for key, value in node.kwargs.items()},
            }
        )


def _operator_name(node: Any) -> str:
    """`aten.conv2d.default` or `operator.add`, when it is one of the list."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        name = str(target)
        if target.namespace == "aten" and (_base(name) in OPERATORS or name.rpartition(".")[0] in _DROPPED):
            return name
    else:
        name = f"operator.{getattr(target, '__name__', target)}"
        if _PYTHON.get(name) is target:
            return name
    trace = (node.meta.get("stack_trace") or "").strip().splitlines()
    raise ModelError(
        f"the graph has the operator {name}, which cannot be saved"
        f"{' (' + trace[-1].strip()[:100] + ')' if trace else ''}. Save the model with a builder.",
        code="program-operator",
    )


def _base(name: str) -> str:
    return name.split(".")[1] if name.count(".") == 2 else ""


def _operator(name: Any) -> Callable[..., Any]:
    """The function that a saved name stands for; never one outside the list."""
    if isinstance(name, str) and name in _PYTHON:
        return _PYTHON[name]
    if isinstance(name, str) and name.startswith("aten.") and _base(name) in OPERATORS:
        # a view was traced on the strides of a fake run; reshape is the view wherever there is one
        _, base, overload = name.replace("aten.view.default", "aten.reshape.default").split(".")
        found = getattr(getattr(torch.ops.aten, base), overload, None)
        if isinstance(found, torch._ops.OpOverload) and not found._schema.is_mutable:
            return found
    raise UnsafeArtifact(
        f"the graph calls {str(name)[:80]!r}, which is not in the list of operators a file may call.",
        code="program-operator",
    )


def _register(root: nn.Module, name: str, value: Tensor, parameter: bool) -> None:
    """Puts a tensor where its dotted name says, making empty modules on the way."""
    *path, last = name.split(".")
    if not last.isidentifier() and not last.isdigit():
        raise ValueError(f"the tensor name {name[:60]!r}")
    module = root
    for part in path:
        if not isinstance(module._modules.get(part), nn.Module):
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    if parameter:
        module.register_parameter(last, nn.Parameter(value, requires_grad=value.is_floating_point()))
    else:
        module.register_buffer(last, value)


def _json(value: Any) -> Any:
    """An argument of a call as JSON."""
    if isinstance(value, torch.fx.Node):
        return {"node": value.name}
    if isinstance(value, (list, tuple)):
        return [_json(v) for v in value]
    if isinstance(value, torch.device):
        return {"device": "cpu"}
    kinds = ((torch.dtype, "dtype"), (torch.layout, "layout"), (torch.memory_format, "memory"))
    for kind, key in kinds:
        if isinstance(value, kind):
            return {key: str(value).removeprefix("torch.")}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ModelError(
        f"the graph has an argument of kind {type(value).__name__}, which cannot be saved. Save "
        "the model "
        "with a builder.",
        code="program-operator",
    )


def _named(value: Any, depth: int = 0) -> set[str]:
    """Names of the nodes that an argument reads; raises ValueError at what `_value` would not
    take."""
    if depth > _MAX_DEPTH:
        raise ValueError("arguments nested too deeply")
    if isinstance(value, list):
        return set().union(*(_named(v, depth + 1) for v in value))
    if not isinstance(value, dict):
        return set()
    ((key, inner),) = value.items()
    if not isinstance(inner, str):
        raise ValueError(f"the argument {value!r:.60}")
    if key == "node":
        return {inner}
    _SPECIAL[key](inner)
    return set()


def _value(value: Any, env: Mapping[str, Any]) -> Any:
    """An argument as the call takes it; the reverse of `_json`."""
    if isinstance(value, list):
        return [_value(v, env) for v in value]
    if not isinstance(value, dict):
        return value
    ((key, inner),) = value.items()
    return env[inner] if key == "node" else _SPECIAL[key](inner)


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is no dtype")
    return found


_SPECIAL: dict[str, Callable[[str], Any]] = {
    "dtype": _dtype,
    "device": lambda name: torch.device("cpu"),
    "layout": _LAYOUTS.__getitem__,
    "memory": _MEMORY.__getitem__,
    "float": float,
}


def _broken(what: str) -> ArtifactError:
    return ArtifactError(
        f"graph.json: is not the graph of these weights ({what}). Fetch or make the artifact again.",
        code="program-graph",
    )
