"""Which output channels of a layer end in a value further on, found by a gradient through the calls between."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from niwaki.surgery.rules import operator_of
from niwaki.surgery.trace import Call, shape_of

_CHANNELS_LAST = ("linear", "layer_norm", "rms_norm")


def reaching(source: Call, path: list[Call]) -> Tensor:
    """Which of a layer's output channels end in the last call of a path: bool `[channels]`.

    Args:
        source: the layer's call; a linear layer, an affine norm or a convolution.
        path: the calls from it to the value, in order; empty where the value is the layer's own output.
    """
    leaf = torch.rand(shape_of(source.meta["val"]), generator=torch.Generator().manual_seed(0))
    leaf.requires_grad_()
    values: dict[Call, Any] = {source: leaf}

    def value(x: Call) -> Any:
        if x in values:
            return values[x]
        meta = x.meta["val"]
        return torch.ones(shape_of(meta)) if isinstance(meta, Tensor) else int(meta.node.hint)

    with torch.enable_grad():  # the caller may have switched gradients off
        for node in path:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
            call = torch.ops.aten.reshape.default if operator_of(node) == "view" else node.target
            values[node] = call(*args, **kwargs)  # type: ignore[operator]
        end = values[path[-1]] if path else leaf
        (gradient,) = torch.autograd.grad(end.sum(), leaf)
    channel = leaf.dim() - 1 if operator_of(source) in _CHANNELS_LAST else 1
    return gradient.abs().movedim(channel, 0).flatten(1).sum(1) > 0
