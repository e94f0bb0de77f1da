"""What a model is called with: a tensor, a tuple of inputs in order, or a dict of inputs by name.

Every function that takes an `example` takes all three; an input may itself be a list, tuple or dict of tensors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

Example = Tensor | tuple[Any, ...] | Mapping[str, Any]


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(positional, by name): how `model(...)` is called with an example."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}


def leaves(example: Any) -> list[Any]:
    """Every input of an example, nested ones opened, in the order of the call."""
    return list(tree_leaves(arguments(example)))


def mapped(example: Any, change: Callable[[Any], Any]) -> Any:
    """The same example with every input changed; what is no tensor passes through `change` too."""
    if isinstance(example, Mapping):
        return {name: tree_map(change, value) for name, value in example.items()}
    return tuple(tree_map(change, value) for value in arguments(example)[0])


def few(example: Any, *, images: int = 2) -> Any:
    """The first images of an example whose inputs all have the same first axis; else the example."""
    counts = {len(x) for x in leaves(example) if isinstance(x, Tensor) and x.dim()}
    if len(counts) != 1:
        return example
    return mapped(example, lambda x: x[:images] if isinstance(x, Tensor) and x.dim() else x)


def outputs(model: nn.Module, example: Any) -> list[Tensor]:
    """Every tensor that a model gives for an example in eval mode, without gradients."""
    args, kwargs = arguments(example)
    with evaluating(model), torch.no_grad():
        out = model(*args, **kwargs)
    return [x for x in tree_leaves(out) if isinstance(x, Tensor)]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A model in eval mode inside the block, every module in its own mode again after it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
