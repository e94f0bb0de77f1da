"""Heads that only a training has, on modules inside a network: they pull early layers the same way. Needs
torch.

They are no part of the network, so what is pruned, exported and counted is what runs; they are dropped at the
end. Shape letters: B batch, C channels, h w pixels of a feature map, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.dense_metrics import IGNORE
from niwaki.errors import PlanError
from niwaki.losses import terms
from niwaki.losses.mix import Loss
from niwaki.spec import Spec
from niwaki.tasks import Segment

Whole = Callable[[nn.Module, Tensor, Tensor], Tensor]

WIDTH = 64
"""Channels inside a head."""


class Heads(nn.Module):
    """A network with heads on modules of it; calls go to the network alone.

    Args:
        classes: names of modules whose features `[B, C, h, w]` are to give the class map as well.
        edges: names of modules whose features are to give where classes meet.
    Raises:
        PlanError: a module is not there, or gives no feature map. [loss-auxiliary]
    """

    def __init__(
        self, network: nn.Module, *, task: Segment, spec: Spec, classes: Sequence[str], edges: Sequence[str]
    ) -> None:
        super().__init__()
        self.network, self.places, self.of_edges = network, (*classes, *edges), len(edges)
        self._seen: dict[str, Tensor] = {}
        widths = self._widths(spec)
        outputs = [*[len(task.classes)] * len(classes), *[1] * len(edges)]
        with torch.random.fork_rng(devices=[]):  # the same heads each time, whatever was drawn before
            torch.manual_seed(0)
            self.heads = nn.ModuleList(_head(c, out) for c, out in zip(widths, outputs, strict=True))

    def forward(self, images: Tensor) -> Any:
        """The network's outputs."""
        return self.network(images)

    def losses(
        self, images: Tensor, target: Tensor, loss: Loss, *, whole: Whole | None = None, width: int = 1
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The losses `[B]` of the network's own output, of the class heads' mean, and of the edge heads' mean.

        Args:
            target: masks `[B, H, W]`.
            whole: the loss of the network's own output, if it is another than `loss`.
            width: pixels on either side of a boundary that are edge.
        """
        with self._watching():
            own = whole(self.network, images, target) if whole else loss(self.network(images), target)
            given = [head(self._seen[name]) for head, name in zip(self.heads, self.places, strict=True)]
        self._seen.clear()
        count = len(given) - self.of_edges
        aux = [loss(one, target) for one in given[:count]]
        edge = [_edge_loss(one, target, width) for one in given[count:]]
        zero = torch.zeros_like(own)
        return own, sum(aux, zero) / max(1, len(aux)), sum(edge, zero) / max(1, len(edge))

    def _widths(self, spec: Spec) -> list[int]:
        """Channels of the places' features, from one image."""
        modules = dict(self.network.named_modules())
        if missing := [name for name in self.places if not name or name not in modules]:
            raise _unusable(f"{type(self.network).__name__} has no module {missing[0]!r}")
        modes = [(module, module.training) for module in self.network.modules()]
        device = next((p.device for p in self.network.parameters()), torch.device("cpu"))
        try:
            with torch.no_grad(), self._watching():
                self.network.eval()(torch.from_numpy(spec.example(1)).to(device))
        finally:
            for module, training in modes:
                module.training = training
        for name in self.places:
            seen = self._seen.get(name)
            if not isinstance(seen, Tensor) or seen.dim() != 4:
                raise _unusable(f"module {name!r} gives no feature map [B, C, h, w]")
        return [int(self._seen[name].shape[1]) for name in self.places]

    def _watching(self) -> _Hooks:
        return _Hooks(dict(self.network.named_modules()), self.places, self._seen)


class _Hooks:
    """While it is open, outputs of modules are put where they can be found."""

    def __init__(self, modules: dict[str, nn.Module], places: Sequence[str], seen: dict[str, Tensor]) -> None:
        self.modules, self.places, self.seen = modules, places, seen

    def __enter__(self) -> None:
        def hook(name: str) -> Any:
            return lambda module, given, out: self.seen.__setitem__(name, out)

        self.handles = [self.modules[n].register_forward_hook(hook(n)) for n in dict.fromkeys(self.places)]

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def _head(before: int, after: int) -> nn.Module:
    """A 3x3 convolution and a classifier, as the papers of real-time networks have them."""
    return nn.Sequential(
        nn.Conv2d(before, WIDTH, 3, padding=1, bias=False),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Conv2d(WIDTH, after, 1),
    )


def _edge_loss(logits: Tensor, target: Tensor, width: int) -> Tensor:
    """Binary cross-entropy of edges `[B, 1, h, w]`, both sides weighing the same: `[B]`."""
    void = target.long() == IGNORE
    true = terms.edges(target.long().masked_fill(void, terms.VOID), width=width)
    given = F.interpolate(logits.float(), size=true.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    each = F.binary_cross_entropy_with_logits(given, true, reduction="none")
    sides = [true * ~void, (1 - true) * ~void]
    means = [(each * side).flatten(1).sum(1) / side.flatten(1).sum(1).clamp_min(1) for side in sides]
    return (means[0] + means[1]) / 2


def _unusable(what: str) -> PlanError:
    return PlanError(
        f"training: {what}, so it can have no auxiliary head. `dict(model.named_modules())` lists them; "
        "niwaki's own segmentation networks name good ones in `auxiliary`.",
        code="loss-auxiliary",
    )
