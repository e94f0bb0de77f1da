"""A model as the flat graph of `torch.export`: functional ATen calls, with parameters by their own names."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from niwaki.errors import ModelError
from niwaki.surgery.inputs import arguments, evaluating, leaves, mapped

Call = Any
"""An `fx.Node`, whose arguments torch types so widely that nothing can be read from them."""


@dataclass(frozen=True)
class Traced:
    """An exported model.

    Args:
        program: functional, not decomposed, batch dynamic where the model allows it.
        tensors: the tensor behind each placeholder that is a parameter, buffer or constant.
        names: that placeholder's name in the model (`layer1.0.conv1.weight`).
        batch: images in the traced example (what a dynamic batch counts as).
        source: the same before it was made functional, in which dropout is still to be seen.
    """

    program: ExportedProgram
    tensors: dict[str, Tensor]
    names: dict[str, str]
    batch: int
    dynamic: bool
    inputs: tuple[str, ...] = field(default=())
    source: ExportedProgram | None = None

    @property
    def graph(self) -> fx.Graph:
        """The calls in order."""
        graph: fx.Graph = self.program.graph
        return graph


def trace(model: nn.Module, example: Any) -> Traced:
    """The graph of `model` in eval mode. The model is left as it was.

    Args:
        example: an input `[B, ...]`, a tuple of inputs, or a dict of inputs by name. A single image is
            doubled, so that the batch can stay dynamic.
    Raises:
        ModelError: torch.export cannot follow the forward. [model-export]
    """
    example = mapped(example, _doubled)
    with evaluating(model), _marked(model):
        source, program, dynamic = _export(model, example)
    return replace(_traced(program, leaves(example), dynamic), source=source)


def _doubled(x: Any) -> Any:
    return torch.cat([x, x]) if isinstance(x, Tensor) and x.ndim and x.shape[0] == 1 else x


def drop_rate(module: nn.Module) -> float | None:
    """How often a stochastic-depth layer drops a whole image's branch in training; None for any other."""
    if type(module).__name__ not in ("DropPath", "StochasticDepth"):
        return None
    rate = getattr(module, "drop_prob", getattr(module, "p", None))
    return float(rate) if isinstance(rate, (int, float)) else None


@contextlib.contextmanager
def _marked(model: nn.Module) -> Any:
    """Stochastic depth does nothing in eval mode and would leave no trace: each marks its place by a dropout
    call that does nothing either."""
    hooks = [
        module.register_forward_hook(lambda _, args, out: torch.dropout(out, 0.0, False))
        for module in model.modules()
        if drop_rate(module)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _export(model: nn.Module, example: Any) -> tuple[ExportedProgram, ExportedProgram, bool]:
    failures: list[Exception] = []
    args, kwargs = arguments(example)
    free = mapped(example, lambda x: {0: Dim.DYNAMIC} if isinstance(x, Tensor) and x.ndim else None)
    for shapes in (free, None):
        try:
            with quiet():
                program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
                return program, program.run_decompositions({}), shapes is not None
        except Exception as error:  # torch.export raises whatever the forward trips over
            failures.append(error)
    lines = str(failures[-1]).strip().splitlines() or [type(failures[-1]).__name__]
    raise ModelError(
        f"{type(model).__name__}: torch.export cannot follow its forward: {lines[0]}. "
        "Make the forward free of data-dependent Python control flow, or prune a part of it.",
        code="model-export",
    ) from failures[-1]


@contextlib.contextmanager
def quiet() -> Any:
    """No warnings, log lines or prints from torch's exporter inside the block."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _traced(program: ExportedProgram, inputs: list[Any], dynamic: bool) -> Traced:
    signature = program.graph_signature
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    held = {**dict(program.state_dict), **program.constants}
    tensors = {node: held[name] for node, name in names.items() if isinstance(held.get(name), Tensor)}
    batch = next((x.shape[0] for x in inputs if isinstance(x, Tensor) and x.ndim), 1)
    return Traced(program, tensors, names, batch, dynamic, tuple(signature.user_inputs))


def with_weights(traced: Traced, model: nn.Module) -> Traced:
    """The same graph with another model's parameters and buffers behind it; its structure must be the same."""
    state = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    tensors = {node: state.get(traced.names[node], held) for node, held in traced.tensors.items()}
    return replace(traced, tensors=tensors)


def shape_of(value: Any) -> tuple[int, ...]:
    """A traced tensor's shape with dynamic sizes at their example value."""
    return tuple(int(getattr(getattr(s, "node", None), "hint", None) or s) for s in value.shape)


def source_of(node: fx.Node) -> str:
    """`file.py:12` of the model's line that made this call, or its module's path."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    if frames:
        path, line = frames[-1]
        return f"{'/'.join(path.split('/')[-2:])}:{line}"
    return owner_of(node) or node.name


def owner_of(node: fx.Node) -> str:
    """Dotted path of the innermost module whose forward made this call ('' for the root)."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return str(paths[-1]) if paths else ""
