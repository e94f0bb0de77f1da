"""A graph that runs and trains: the module that a saved graph, or a cut that no class follows, is loaded as.

    load(graph, tensors)       # an nn.Module: the parameter names, modes and outputs of the model recorded

Loading builds no code: a short interpreter looks each operator up in `OPERATORS` and calls it. What depends on
the mode asks the module that stands where the recorded model's stood: its batch norms are batch norms again,
dropout drops while that module trains. `record.py` says what a graph is made of.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.errors import ArtifactError, NiwakiError, UnsafeArtifact
from niwaki.surgery import fake_quantize

_ATEN = """
__and__ __or__ __xor__ _adaptive_avg_pool2d _fft_c2c _fft_c2r _fft_r2c _log_softmax
_native_batch_norm_legit_no_training _safe_softmax _softmax _to_copy _unsafe_view
_upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact2d _weight_norm abs acos
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
add addcdiv addcmul addmm addmv affine_grid_generator alias all alpha_dropout amax amin any arange
argmax argmin argsort asin atan atan2 avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm
bitwise_and bitwise_not bitwise_or bitwise_xor bmm broadcast_to bucketize cat cdist ceil celu
channel_shuffle chunk clamp clamp_max clamp_min clone col2im complex constant_pad_nd contiguous
conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution copy cos cosh
cosine_similarity cumprod cumsum detach diag_embed diagonal div dot dropout einsum elu embedding eq
erf erfc exp exp2 expand expand_as expm1 eye feature_alpha_dropout feature_dropout fft_fft2
fft_ifft2 fft_irfft fft_irfft2 fft_rfft fft_rfft2 fill flatten flip floor floor_divide fmod full
full_like gather ge gelu glu glu_jvp grid_sampler grid_sampler_2d group_norm gru gt hardshrink
hardsigmoid hardswish hardtanh hypot im2col imag index index_add index_put index_select
instance_norm isinf isnan layer_norm le leaky_relu lerp lift_fresh_copy linalg_norm
linalg_vector_norm linear linspace log log10 log1p log2 log_sigmoid log_softmax logical_and
logical_not logical_or logical_xor logit logsumexp lstm lt masked_fill matmul max max_pool1d
max_pool2d max_pool2d_with_indices max_pool3d maximum mean meshgrid min minimum mish mm movedim mul
mv nan_to_num narrow native_channel_shuffle native_group_norm native_layer_norm ne neg new_full
new_ones new_zeros norm numel ones ones_like outer pad permute pixel_shuffle pixel_unshuffle polar
positive pow prelu prod rad2deg real reciprocal reflection_pad1d reflection_pad2d reflection_pad3d
relu relu6 remainder renorm repeat repeat_interleave replication_pad1d replication_pad2d
replication_pad3d reshape reshape_as rms_norm rnn_relu rnn_tanh roll rsqrt rsub scalar_tensor
scaled_dot_product_attention scatter scatter_add select select_copy select_scatter selu sigmoid sign
silu sin sinh slice slice_scatter softmax softplus softshrink sort split split_with_sizes sqrt
square squeeze stack std std_mean sub sum swapaxes sym_numel sym_size t take_along_dim tan tanh
tensor_split threshold tile to topk trace transpose tril tril_indices triu triu_indices true_divide
trunc type_as unbind unflatten unfold unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze
upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
upsample_nearest3d upsample_trilinear3d var var_mean vdot view view_as view_as_complex view_as_real
where zero zeros zeros_like
"""
OPERATORS = frozenset(_ATEN.split())
"""ATen operators that a graph may call, any overload of them: arithmetic on tensors, nothing else."""

PYTHON: dict[str, Callable[..., Any]] = {
    f"operator.{f.__name__}": f
    for f in (
        *(operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv),
        *(operator.mod, operator.neg, operator.truediv, operator.eq, operator.ge, operator.le),
        *(operator.gt, operator.lt, operator.ne),
    )
} | {fake_quantize.NAME: torch.ops.niwaki.fake_quantize.default}
_CHECKS = (
    "_assert_async",
    "_assert_scalar",
    "_assert_tensor_metadata",
    "sym_constrain_range_for_size",
)
DROPPED = frozenset(f"aten.{name}" for name in _CHECKS)
_LAYOUTS = {"strided": torch.strided}
_MEMORY = {name: getattr(torch, name) for name in ("contiguous_format", "channels_last", "preserve_format")}
_MAX_DEPTH = 8
DROPS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
_FLAGS = {"batch_norm": 5, "instance_norm": 5, **dict.fromkeys(DROPS, 2)}
"""Which argument of a call is the mode, training or not."""

_LISTS = ("inputs", "outputs", "nodes", "takes", "lost", "parameters", "frozen", "unsaved")
_DICTS = ("tensors", "norms", "ties", "training")
PARTS = frozenset((*_LISTS, *_DICTS, "gives"))
"""The parts of a graph's JSON."""


def load(graph: Mapping[str, Any], tensors: dict[str, Tensor]) -> Program:
    """A module that computes a recorded graph; its parameters carry the names they had in the model.

    Raises:
        UnsafeArtifact: the graph calls an operator that is not in the list. [program-operator]
        ArtifactError: it is no graph, or does not fit the tensors. [program-graph]
    """
    try:
        names = [str(name) for name, _ in graph["takes"]]
        return _called_with(names)(graph, tensors)
    except NiwakiError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, IndexError) as error:
        raise _broken(f"{type(error).__name__}: {str(error)[:120]}") from error


class Program(nn.Module):
    """A graph that runs, with the parameters, buffers and modes of the model it was recorded from."""

    def __init__(self, graph: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
        super().__init__()
        if set(graph) != PARTS:
            raise ValueError("not the parts of a graph")
        for kind, keys in ((list, _LISTS), (dict, _DICTS)):
            if not all(isinstance(graph[key], kind) for key in keys):
                raise ValueError(f"a part of the graph is no {kind.__name__}")
        self._graph = copy.deepcopy(dict(graph))
        self._tensors: dict[str, str] = dict(graph["tensors"])
        self._inputs: list[str] = list(graph["inputs"])
        self._outputs, self._takes, self._gives = graph["outputs"], list(graph["takes"]), graph["gives"]
        self._check_sizes(tensors)
        self._hold(tensors)
        self._nodes = [
            (str(n["name"]), _operator(n["op"]), list(n["args"]), dict(n["kwargs"]), _mode(n))
            for n in graph["nodes"]
        ]
        self._last = self._check_order()
        self._place_modes()

    def _check_sizes(self, tensors: dict[str, Tensor]) -> None:
        if not set(self._tensors.values()) <= tensors.keys():
            raise ValueError("tensors are not those of the weights")
        if sum(_leaves(layout) for _, layout in self._takes) != len(self._inputs):
            raise ValueError("takes and inputs differ")
        if _leaves(self._gives) != len(self._outputs):
            raise ValueError("gives and outputs differ")
        if not tensors.keys() >= {*self._graph["parameters"], *self._graph["ties"].values()}:
            raise ValueError("a parameter that the weights have not")

    def _hold(self, tensors: dict[str, Tensor]) -> None:
        graph = self._graph
        for name in dict.fromkeys([*graph["parameters"], *tensors]):
            value = tensors[name]
            if name in graph["parameters"]:
                trains = value.is_floating_point() and name not in graph["frozen"]
                self._register(name, nn.Parameter(value, requires_grad=trains))
            else:
                self._register(name, value, saved=name not in graph["unsaved"])
        for alias, name in graph["ties"].items():
            owner, _, last = name.rpartition(".")
            self._register(alias, getattr(self.get_submodule(owner), last))

    def _register(self, name: str, value: Tensor, *, saved: bool = True) -> None:
        """Puts a tensor where its dotted name says."""
        path, _, last = name.rpartition(".")
        if not last.isidentifier() and not last.isdigit():
            raise ValueError(f"the tensor name {name[:60]!r}")
        module = self._place(path)
        if isinstance(value, nn.Parameter):
            module.register_parameter(last, value)
        else:
            module.register_buffer(last, value, persistent=saved)

    def _place(self, path: str) -> nn.Module:
        """The module at a dotted path, made on the way: a batch norm where the graph has one, else empty."""
        module: nn.Module = self
        whole = ""
        for part in path.split(".") if path else []:
            whole = f"{whole}.{part}" if whole else part
            if not isinstance(module._modules.get(part), nn.Module):
                norm = self._graph["norms"].get(whole)
                new = nn.Module() if norm is None else Norm(float(norm["eps"]), norm["momentum"])
                module.add_module(part, new)
            module = module.get_submodule(part)
        return module

    def _place_modes(self) -> None:
        for path in dict.fromkeys(mode for *_, mode in self._nodes if mode):
            self._place(path)
        self.eval()
        modules = dict(self.named_modules())
        if {path for path, module in modules.items() if isinstance(module, Norm)} != set(self._graph["norms"]):
            raise ValueError("a batch norm that holds nothing")
        for path, mode in self._graph["training"].items():
            if type(mode) is not bool:
                raise ValueError(f"the mode {mode!r:.20}")
            if path in modules:
                modules[path].training = mode

    def _check_order(self) -> list[list[str]]:
        """For each call the values that nothing reads after it; raises where one is read before it is there."""
        known = {*self._tensors, *self._inputs}
        reads = []
        for name, _, args, kwargs, _ in self._nodes:
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

    @property
    def lost(self) -> tuple[str, ...]:
        """What the recorded model does in training mode and this graph does not."""
        return tuple(str(one) for one in self._graph["lost"])

    def graph(self) -> dict[str, Any]:
        """The JSON that `load` makes this module from, modes and frozen parameters as they are now."""
        frozen = [name for name, p in self.named_parameters() if not p.requires_grad]
        training = {name: m.training for name, m in self.named_modules() if m.training or not name}
        return {**copy.deepcopy(self._graph), "frozen": frozen, "training": training}

    def compute(self, values: Mapping[str, Any]) -> Any:
        """What the recorded model gives for its inputs, by name."""
        leaves = [leaf for name, layout in self._takes for leaf in _opened(values[name], layout)]
        env: dict[str, Any] = dict(zip(self._inputs, leaves, strict=True))
        env[_DEVICE] = next((x.device for x in leaves if isinstance(x, Tensor)), torch.device("cpu"))
        for node, name in self._tensors.items():
            owner, _, last = name.rpartition(".")
            env[node] = getattr(self.get_submodule(owner), last)
        for (name, function, args, kwargs, mode), done in zip(self._nodes, self._last, strict=True):
            given, named = _value(args, env), {key: _value(value, env) for key, value in kwargs.items()}
            if mode is None:
                env[name] = function(*given, **named)
            else:
                env[name] = self._by_mode(function, given, named, self.get_submodule(mode))
            for finished in done:  # memory is given back as early as the model itself would
                env.pop(finished, None)
        return _nested(iter(_value(self._outputs, env)), self._gives)

    def _by_mode(self, function: Any, args: list[Any], kwargs: dict[str, Any], module: nn.Module) -> Any:
        """A call that computes something else while `module` trains."""
        if isinstance(module, Norm):
            return module(args[0])
        name = _base(str(function))
        if name == "scaled_dot_product_attention":
            return function(*args, **{**kwargs, "dropout_p": kwargs["dropout_p"] if module.training else 0.0})
        args[_FLAGS[name]] = module.training
        return function(*args, **kwargs)


_DEVICE = " device"  # no node's name has a space


class Norm(nn.modules.batchnorm._BatchNorm):
    """A batch norm for inputs of any number of axes; it learns its statistics while it trains."""

    def __init__(self, eps: float, momentum: float | None) -> None:
        if momentum is not None and not isinstance(momentum, (int, float)):
            raise ValueError(f"the momentum {momentum!r:.20}")
        super().__init__(1, eps=eps, momentum=momentum, affine=False)

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def extra_repr(self) -> str:
        """As torch shows it."""
        return f"{len(self.running_mean)}, eps={self.eps}, momentum={self.momentum}"  # type: ignore[arg-type]


def _called_with(names: list[str]) -> type[Program]:
    """Program with the parameters of the recorded forward, by place or by name; exporters read them."""

    def forward(self: Program, *args: Any, **kwargs: Any) -> Any:
        return self.compute(signature.bind(self, *args, **kwargs).arguments)

    both = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, both) for name in ("self", *names)])
    forward.__signature__ = signature  # type: ignore[attr-defined]
    return type("Program", (Program,), {"forward": forward, "__doc__": Program.__doc__, "__module__": __name__})


def _mode(node: Mapping[str, Any]) -> str | None:
    """The module whose mode a call follows."""
    path = node.get("module")
    if path is None:
        return None
    if not isinstance(path, str) or _base(str(node["op"])) not in (*_FLAGS, "scaled_dot_product_attention"):
        raise ValueError(f"the call {node['name']!r:.40} follows no mode")
    place = _FLAGS.get(_base(node["op"]))
    if place is not None and (len(node["args"]) <= place or node["kwargs"]):
        raise ValueError(f"the call {node['name']!r:.40} has no mode")
    if place is None and "dropout_p" not in node["kwargs"]:
        raise ValueError(f"the call {node['name']!r:.40} has no dropout_p")
    return path


def _leaves(layout: Any) -> int:
    """How many tensors a layout holds; raises where it is none."""
    if layout == "*":
        return 1
    ((kind, inner),) = layout.items()
    if kind == "dict":
        return sum(_leaves(one) for _, one in inner)
    if kind not in ("list", "tuple"):
        raise ValueError(f"the layout {kind!r:.20}")
    return sum(map(_leaves, inner))


def _opened(value: Any, layout: Any) -> list[Any]:
    """The tensors of a nested input, in the order of its layout."""
    if layout == "*":
        return [value]
    ((kind, inner),) = layout.items()
    if kind == "dict":
        return [leaf for name, one in inner for leaf in _opened(value[name], one)]
    return [leaf for part, one in zip(value, inner, strict=True) for leaf in _opened(part, one)]


def _nested(leaves: Any, layout: Any) -> Any:
    """Tensors nested as a layout says."""
    if layout == "*":
        return next(leaves)
    ((kind, inner),) = layout.items()
    if kind == "dict":
        return {name: _nested(leaves, one) for name, one in inner}
    parts = [_nested(leaves, one) for one in inner]
    return tuple(parts) if kind == "tuple" else parts


def listed(name: str) -> bool:
    """Whether a graph may call an operator of this full name, `aten.conv2d.default`."""
    return _base(name) in OPERATORS


def _base(name: str) -> str:
    return name.split(".")[1] if name.count(".") == 2 else ""


def _operator(name: Any) -> Callable[..., Any]:
    """The function that a saved name stands for; never one outside the list."""
    if isinstance(name, str) and name in PYTHON:
        return PYTHON[name]
    if isinstance(name, str) and name.startswith("aten.") and listed(name):
        # a view was traced on the strides of a fake run; reshape is the view wherever there is one
        _, base, overload = name.replace("aten.view.default", "aten.reshape.default").split(".")
        found = getattr(getattr(torch.ops.aten, base), overload, None)
        if isinstance(found, torch._ops.OpOverload) and not found._schema.is_mutable:
            return found
    raise UnsafeArtifact(
        f"the graph calls {str(name)[:80]!r}, which is not in the list of operators a file may call.",
        code="program-operator",
    )


def _named(value: Any, depth: int = 0) -> set[str]:
    """Names of the nodes that an argument reads; raises ValueError at what `_value` would not take."""
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
    """An argument as the call takes it; the reverse of `record.plain`."""
    if isinstance(value, list):
        return [_value(v, env) for v in value]
    if not isinstance(value, dict):
        return value
    ((key, inner),) = value.items()
    if key == "node":
        return env[inner]
    return env[_DEVICE] if key == "device" else _SPECIAL[key](inner)


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is no dtype")
    return found


_SPECIAL: dict[str, Callable[[str], Any]] = {
    "dtype": _dtype,
    "device": lambda name: torch.device("cpu"),  # where it runs is that of the inputs
    "layout": _LAYOUTS.__getitem__,
    "memory": _MEMORY.__getitem__,
    "float": float,
}


def _broken(what: str) -> ArtifactError:
    return ArtifactError(
        f"graph.json: is not the graph of these weights ({what}). Fetch or make the artifact again.",
        code="program-graph",
    )
