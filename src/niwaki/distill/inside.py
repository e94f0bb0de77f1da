"""A look inside networks while they run: outputs of named modules, on trial images, and what can go wrong."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from niwaki import batches, parallel
from niwaki.errors import PlanError
from niwaki.evaluate import Readable
from niwaki.spec import Spec


@contextlib.contextmanager
def outputs(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What the named modules give while the block runs; of several calls the last."""
    found: dict[str, Any] = {}
    modules = dict(model.named_modules())
    missing = [name for name in names if name not in modules or not name]
    if missing:
        some = ", ".join(list(modules)[1:9])
        raise incomparable(f"{type(model).__name__} has no module {missing[0]!r}; it has {some}, …")

    def hook(name: str) -> Callable[..., None]:
        return lambda module, given, out: found.__setitem__(name, out)

    handles = [modules[name].register_forward_hook(hook(name)) for name in dict.fromkeys(names)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def tried(net: nn.Module, train: Readable, spec: Spec, call: Callable[..., tuple[Any, list[Any]]]) -> list[Any]:
    """What `call` finds on two images, the network in eval mode and left as it was."""
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.no_grad():
            images = train.batch(range(min(2, len(train))), spec)
            return call(net, batches.normalise(images, spec, device=device))[1]
    finally:
        for module, training in modes:
            module.training = training


def ready(teacher: nn.Module) -> nn.Module:
    """A copy of the teacher in eval mode, where the training runs."""
    wise = copy.deepcopy(teacher).eval()
    wise.to(device=parallel.device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return wise


def shapes(found: list[Any]) -> str:
    """Shapes in words, for messages."""
    listed = (str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in found)
    return ", ".join(listed) or "none"


def check(name: str, beta: float, ok: bool, expected: str, got: object) -> None:
    """Nothing, when the knobs are in range.

    Raises:
        PlanError: one is not. [train-knob]
    """
    if not ok or not 0 < beta < math.inf:
        raise PlanError(
            f"distill.{name}: expected {expected} and beta above 0, got {got!r} and {beta}.",
            code="train-knob",
        )


def incomparable(what: str) -> PlanError:
    """The error for insides that cannot be compared. [distill-layers]"""
    return PlanError(f"distill: {what}. Name others, or distill.logits.", code="distill-layers")
