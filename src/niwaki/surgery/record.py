"""A model's graph as JSON over allow-listed operators: how a model is saved without its code, and what a cut
that its class does not follow is made of.

    graph, tensors = save(model, example)      # JSON and tensors by name; program.load brings it back

The graph is that of torch.export, calls to ATen operators in order, as eval mode computes; what training does
otherwise is kept beside it: batch norms that learn their statistics, dropout in its places, stochastic depth,
dropout inside of attention. Arguments are JSON, or one of: {"node": name}, {"dtype": name}, {"device": "cpu"}
(the inputs' device), {"layout": name}, {"memory": name}, {"float": "inf"}.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from niwaki.errors import ModelError
from niwaki.surgery import resize
from niwaki.surgery.axes import Axes, Keep, Kept
from niwaki.surgery.inputs import arguments, few
from niwaki.surgery.program import DROPPED, DROPS, PYTHON, Program, listed
from niwaki.surgery.trace import Call, Traced, drop_rate, owner_of, quiet, source_of, trace

Json = dict[str, Any]
_RANDOM = ("bernoulli_", "bernoulli", "rand", "rand_like", "randn", "randn_like", "uniform_", "normal_")


def save(model: nn.Module, example: Any) -> tuple[Json, dict[str, Tensor]]:
    """(graph as JSON, tensors by the model's own names) of a model; the model is untouched.

    Args:
        example: an input float `[B, C, H, W]`, or a tuple or dict of inputs.
    Raises:
        ModelError: torch.export refuses it, its batch is not free, or an operator is not in the list.
            [program-export, program-operator]
    """
    if isinstance(model, Program):
        return model.graph(), {name: tensor.detach() for name, tensor in _held(model).items()}
    own = copy.deepcopy(model).cpu()
    try:
        traced = trace(own, example)
    except ModelError as error:
        raise _refused(model, str(error)) from error
    return record(own, traced, example=example), tensors(own, traced, {})


def record(
    model: nn.Module, traced: Traced, *, axes: Axes | None = None, keep: Keep | None = None, example: Any = None
) -> Json:
    """The JSON of a traced graph, as it is or with all sizes as after a cut.

    Args:
        model: what was traced.
        axes, keep: the analysis and the atoms that stay, for a cut.
        example: inputs; with them, what training does inside of attention is found out.
    Raises:
        ModelError: see `save`; or a size cannot be changed. [prune-unmendable]
    """
    if not traced.dynamic:
        raise _refused(model, "its forward fixes the number of images")
    training = _Training.watch(model, example) if example is not None else None
    return _Recorder(model, traced, axes, keep or {}, training).written()


def tensors(model: nn.Module, traced: Traced, kept: Kept) -> dict[str, Tensor]:
    """Every parameter and buffer of a (cut) model by its first name, and the constants of its graph.

    Args:
        kept: kept indices, which the constants are cut to; the model's own tensors are cut already.
    """
    from niwaki.surgery.shrink import sliced

    out = {name: tensor.detach() for name, tensor in _held(model).items()}
    known = {*out, *_aliases(model)}
    for node, tensor in traced.tensors.items():
        name = traced.names[node]
        if name not in known:
            out[name] = sliced(tensor.detach(), kept.get(name, {}))
    return out


def _held(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _aliases(model: nn.Module) -> dict[str, str]:
    """The further names of shared tensors, each with the first name."""
    first = {id(tensor): name for name, tensor in _held(model).items()}
    every = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {name: first[id(tensor)] for name, tensor in every if first[id(tensor)] != name}


class _Training(TorchFunctionMode):
    """What a forward pass in training mode draws at random, call by call."""

    def __init__(self) -> None:
        super().__init__()
        self.attention: list[float] = []
        self.draws = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}

        def given(key: str, place: int, default: Any) -> Any:
            return kwargs.get(key, args[place] if len(args) > place else default)

        if name == "scaled_dot_product_attention":
            self._attends(float(given("dropout_p", 4, 0.0)))
        elif name == "multi_head_attention_forward":  # calls attention where this does not see it
            p = float(given("dropout_p", 10, 0.0)) if given("training", 13, True) else 0.0
            if given("need_weights", 15, True):
                self.draws += p > 0
            else:
                self._attends(p)
        elif "dropout" in name:
            trains = kwargs.get("train", given("training", 2, True))
            self.draws += given("p", 1, 0.5) > 0 and bool(trains)
        elif name in _RANDOM:
            self.draws += 1
        return func(*args, **kwargs)

    def _attends(self, p: float) -> None:
        self.attention.append(p)
        self.draws += p > 0

    @classmethod
    def watch(cls, model: nn.Module, example: Any) -> _Training | None:
        """One pass over the first images by a copy; None where that fails."""
        args, kwargs = arguments(few(example))
        mode = cls()
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad(), quiet():
                own = copy.deepcopy(model).train()
                with mode:
                    own(*args, **kwargs)
        except Exception:  # whatever the user's forward does in training mode
            return None
        return mode


class _Recorder:
    """The writing of one graph."""

    def __init__(
        self, model: nn.Module, traced: Traced, axes: Axes | None, keep: Keep, training: _Training | None
    ) -> None:
        self.model, self.traced, self.axes = model, traced, axes
        self.alive = axes.alive(keep) if axes is not None else None
        self.training = training
        self.alias = _aliases(model)
        self.modules = dict(model.named_modules())
        self.nodes: list[Json] = []
        self.norms: Json = {}
        self.renamed: dict[str, str] = {}
        self.drops, self.unplaced = _drops(traced, self.modules)
        self.emitted: dict[str, str] = {}
        self.attentions = 0

    def written(self) -> Json:
        """The whole graph."""
        inputs, held = [], {}
        outputs: Any = []
        for node in self.traced.graph.nodes:
            if node.op == "placeholder" and node.name in self.traced.names:
                name = self.traced.names[node.name]
                held[node.name] = self.alias.get(name, name)
            elif node.op == "placeholder":
                inputs.append(node.name)
            elif node.op == "output":
                outputs = self._json(list(node.args[0]), self._dropped(node))
            else:
                self._write(node)
        state = self._state(set(held.values()))
        takes, inputs, gives = _calls(self.model, self.traced, inputs)
        return {
            "tensors": held,
            "inputs": inputs,
            "nodes": self.nodes,
            "outputs": outputs,
            "norms": self.norms,
            "takes": takes,
            "gives": gives,
            "lost": self._lost(),
            **state,
        }

    def _state(self, used: set[str]) -> Json:
        model = self.model
        held = _held(model)
        unsaved = {
            f"{path}.{name}" if path else name
            for path, module in model.named_modules()
            for name in module._non_persistent_buffers_set
        }
        return {
            "parameters": [name for name, _ in model.named_parameters()],
            "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
            "unsaved": sorted((unsaved & held.keys()) | (used - held.keys())),
            "ties": self.alias,
            "training": {name: m.training for name, m in model.named_modules() if m.training or not name},
        }

    def _lost(self) -> list[str]:
        """What training draws at random and this graph does not."""
        if self.training is None:
            return []
        drops = sum(d in n["op"] for n in self.nodes for d in DROPS if "module" in n)
        inside = sum(p > 0 for p in self.training.attention)
        missing = self.training.draws - drops - (inside if self._follows() else 0)
        return [f"{missing} random calls of training mode"] if missing > 0 else []

    def _follows(self) -> bool:
        """Whether training mode calls attention as often as the graph does, so that they can be paired."""
        calls = sum("scaled_dot_product_attention" in n["op"] for n in self.nodes)
        return self.training is not None and len(self.training.attention) == calls

    def _write(self, node: Call) -> None:
        name = operator_name(node)
        if name.rpartition(".")[0] in DROPPED:
            return
        renamed = self._dropped(node)
        if "_native_batch_norm_legit" in name:
            self._write_norm(node, renamed)
            return
        if name == "operator.getitem" and node.args[0].name in self.renamed:
            self.renamed[node.name] = self.renamed[node.args[0].name]
            return
        target, args, kwargs = None, list(node.args), dict(node.kwargs)
        if self.axes is not None:
            target, args, kwargs = resize.call(node, self.axes, self.alive)
        entry = {
            "name": node.name,
            "op": target or name,
            "args": self._json(args, renamed),
            "kwargs": {key: self._json(value, renamed) for key, value in kwargs.items()},
        }
        if name.startswith("aten.instance_norm") and len(args) > 3 and args[3] is not None:
            entry["module"] = owner_of(node)
        if name.startswith("aten.scaled_dot_product_attention"):
            self._write_attention(node, entry)
        self.nodes.append(entry)

    def _write_attention(self, node: Call, entry: Json) -> None:
        calls = self.training.attention if self.training is not None else []
        count = sum("scaled_dot_product_attention" in str(n.target) for n in self.traced.graph.nodes)
        if len(calls) == count and calls[self.attentions] > 0:
            entry["kwargs"]["dropout_p"] = calls[self.attentions]
            entry["module"] = owner_of(node)
            entry["args"] = entry["args"][:4]
        self.attentions += 1

    def _write_norm(self, node: Call, renamed: dict[str, str]) -> None:
        """A batch norm in its trainable form, which gives one tensor where the graph's gives three."""
        args = list(node.args)
        if "no_stats" in str(node.target):
            x, weight, bias, _, momentum, eps = args
            mean = var = None
        else:
            x, weight, bias, mean, var, momentum, eps = args[:7]
        path = owner_of(node)
        if mean is not None and (held := self._norm_module([weight, bias, mean, var])) is not None:
            path = held
            own = self.modules.get(path)
            momentum = getattr(own, "momentum", momentum)
            self.norms[path] = {"eps": float(eps), "momentum": momentum}
        args = [x, weight, bias, mean, var, mean is None, momentum or 0.0, eps, False]
        entry: Json = {
            "name": node.name,
            "op": "aten.batch_norm.default",
            "args": self._json(args, renamed),
            "kwargs": {},
        }
        if mean is not None:
            entry["module"] = path
        self.nodes.append(entry)
        self.renamed[node.name] = node.name

    def _norm_module(self, parts: list[Any]) -> str | None:
        """The module that holds a norm's four tensors under their usual names."""
        usual = ("weight", "bias", "running_mean", "running_var")
        paths = set()
        for part, last in zip(parts, usual, strict=True):
            if part is None:
                continue
            name = self.traced.names.get(part.name, "")
            if name.rpartition(".")[2] != last or name in self.alias:
                return None
            paths.add(name.rpartition(".")[0])
        path = paths.pop() if len(paths) == 1 else ""
        return path or None

    def _dropped(self, node: Call) -> dict[str, str]:
        """Values that reach a call through dropout: emits the dropout, and says what the call reads instead."""
        out: dict[str, str] = {}
        for base, marks in self.drops.get(node.name, []):
            value = self.renamed.get(base, base)
            for mark in marks:
                if mark.name not in self.emitted:
                    self.emitted[mark.name] = self._emit_drop(mark, value)
                value = self.emitted[mark.name]
            out[base] = value
        return out

    def _emit_drop(self, mark: Call, value: str) -> str:
        path = owner_of(mark)
        rate = drop_rate(self.modules.get(path, self.model))
        steps: list[tuple[str, list[Any]]]
        if rate:  # one draw for an image: that of a channel, of which the image is made the only one
            steps = [("aten.unsqueeze.default", [1]), ("aten.feature_dropout.default", [rate, False])]
            steps.append(("aten.squeeze.dim", [1]))
        else:
            steps = [(str(mark.target), [float(mark.args[1]), False])]
        for op, rest in steps:
            name = f"{mark.name}__{len(self.nodes)}"
            given: list[Any] = [{"node": value}, *rest]
            entry: Json = {"name": name, "op": op, "args": given, "kwargs": {}}
            if "dropout" in op:
                entry["module"] = path
            self.nodes.append(entry)
            value = name
        return value

    def _json(self, value: Any, renamed: dict[str, str]) -> Any:
        """An argument of a call as JSON."""
        if isinstance(value, fx.Node):
            return {"node": renamed.get(value.name, self.renamed.get(value.name, value.name))}
        if isinstance(value, (list, tuple)):
            return [self._json(v, renamed) for v in value]
        return plain(value)


def plain(value: Any) -> Any:
    """An argument that is no node, as JSON."""
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
        "the model with a builder.",
        code="program-operator",
    )


def operator_name(node: Call) -> str:
    """`aten.conv2d.default` or `operator.add`, when it is one of the list."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        name = str(target)
        if target.namespace == "aten" and (listed(name) or name.rpartition(".")[0] in DROPPED):
            return name
        if "_native_batch_norm_legit" in name:
            return name
    else:
        name = f"operator.{getattr(target, '__name__', target)}"
        if PYTHON.get(name) is target:
            return name
    raise ModelError(
        f"the graph has the operator {name} ({source_of(node)}), which cannot be saved. "
        "Save the model with a builder.",
        code="program-operator",
    )


def _drops(
    traced: Traced, modules: Mapping[str, nn.Module]
) -> tuple[dict[str, list[tuple[str, list[Call]]]], int]:
    """Where dropout stands: {call: [(value it reads, the dropout calls it reads it through)]}, and how many
    places were not found again.

    Dropout does nothing in eval mode and is gone from the functional graph; its source still has it.
    """
    if traced.source is None:
        return {}, 0
    made, read = _origins(traced)
    out: dict[str, list[tuple[str, list[Call]]]] = {}
    unplaced = 0
    for mark in traced.source.graph.nodes:
        if not _is_drop(mark, modules):
            continue
        base, marks = mark.args[0], [mark]
        while _is_drop(base, modules):
            base, marks = base.args[0], [base, *marks]
        value = made.get(_key(base))
        places = [c for user in mark.users for c in read.get(user.name, []) if value in c.all_input_nodes]
        for place in places:
            out.setdefault(place.name, []).append((value.name, marks))  # type: ignore[union-attr]
        unplaced += not places and not any(_is_drop(user, modules) for user in mark.users)
    return out, unplaced


def _is_drop(node: Call, modules: Mapping[str, nn.Module]) -> bool:
    name = str(getattr(getattr(node.target, "overloadpacket", None), "__name__", ""))
    if node.op != "call_function" or name not in DROPS:
        return False
    if node.args[1] > 0:
        return True
    return drop_rate(modules.get(owner_of(node), modules[""])) is not None


def _key(node: Call) -> Any:
    """A value of the source graph; one output of several goes by the call and its place."""
    if getattr(node.target, "__name__", "") == "getitem":
        return node.args[0].name, node.args[1]
    return node.name


def _origins(traced: Traced) -> tuple[dict[Any, Call], dict[str, list[Call]]]:
    """Of each call of the source graph: the value that it makes in the functional one, and its calls there."""
    made: dict[Any, Call] = {}
    read: dict[str, list[Call]] = {}
    for node in traced.graph.nodes:
        if node.op in ("placeholder", "output"):
            made[node.name] = node
            read.setdefault("output" if node.op == "output" else node.name, []).append(node)
            continue
        origin = node.meta.get("from_node") or []
        name = origin[-1].name if origin else node.name
        made[name] = node
        read.setdefault(name, []).append(node)
        if getattr(node.target, "__name__", "") == "getitem":
            made[name, node.args[1]] = node
    return made, read


def _calls(model: nn.Module, traced: Traced, inputs: list[str]) -> tuple[list[Any], list[str], Any]:
    """([[name, layout of the input]], names of its tensors, layout of the output): how the model is called."""
    spec = traced.program.call_spec
    positional, named = spec.in_spec.children()
    values: list[Any] = list(positional.children())
    order = list(inspect.signature(model.forward).parameters)
    try:
        names = list(inspect.signature(model.forward).bind_partial(*values).arguments)
    except TypeError:
        names = []
    if len(names) != len(values):  # forward(*inputs)
        names = [f"input{place}" for place in range(len(values))]
    leaves = iter(inputs)
    takes = []
    for name, value in zip([*names, *named.context], [*values, *named.children()], strict=True):
        takes.append((name, _layout(value), [next(leaves) for _ in range(value.num_leaves)]))
    takes.sort(key=lambda one: order.index(one[0]) if one[0] in order else 0)
    flat = [leaf for *_, held in takes for leaf in held]
    return [[name, layout] for name, layout, _ in takes], flat, _layout(spec.out_spec)


def _layout(spec: Any) -> Any:
    """How tensors are nested: "*" for one, {"tuple": [...]}, {"list": [...]}, {"dict": [[name, ...]]}."""
    if spec.is_leaf():
        return "*"
    inner = [_layout(child) for child in spec.children()]
    if spec.type in (list, tuple):
        return {spec.type.__name__: inner}
    if spec.type in (dict, OrderedDict) and all(isinstance(key, str) for key in spec.context):
        return {"dict": [[name, one] for name, one in zip(spec.context, inner, strict=True)]}
    raise ModelError(
        f"its inputs or outputs are nested in a {getattr(spec.type, '__name__', spec.type)}; a graph can take "
        "and give tensors, lists, tuples and dicts.",
        code="program-export",
    )


def _refused(model: nn.Module, reason: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__} cannot be saved as a graph: {reason.splitlines()[0][:200]}. Save it with a "
        "builder.",
        code="program-export",
    )
