"""A model with a gate on every atom of its groups: what `prune.gates` trains, and how gates are folded away."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.errors import ModelError, NiwakiError
from niwaki.prune import hard_concrete
from niwaki.prune.expected import placed, positions
from niwaki.prune.proof import redrawn
from niwaki.prune.sites import Site, sites
from niwaki.prune.step import varied
from niwaki.surgery import Axes, Group, Keep, shrink
from niwaki.surgery.trace import quiet

START = 2.0
"""log_alpha of every gate at first: open with probability 0.97."""
LIMIT = 6.0
"""log_alpha stays within this: beyond it a gate hardly changes, and hardly comes back."""
TOLERANCE = 1e-4


class Gated(nn.Module):
    """A model run with its reading weights multiplied by gates: noisy in training, settled in eval mode.

    Args:
        net: the model, whose own forward is called.
        axes: its analysis.
        groups: the groups whose atoms get a gate.
        speed: log_alpha is `START + speed * theta`, so that gates may learn faster than weights do.
    """

    speed: Tensor

    def __init__(self, net: nn.Module, axes: Axes, groups: Sequence[Group], *, speed: float = 1.0) -> None:
        super().__init__()
        self.net = net
        self.groups = tuple(groups)
        atoms = positions(groups)
        device = next(net.parameters()).device
        self.theta = nn.Parameter(torch.zeros(len(atoms), device=device))
        self.register_buffer("speed", torch.tensor(speed, device=device))
        self._sites: list[tuple[str, int]] = []
        for i, site in enumerate(sites(axes, groups)[0]):
            self._sites.append((site.name, site.axis))
            index = torch.from_numpy(_index(site, atoms)).to(device)
            self.register_buffer(f"site{i}", index, persistent=False)

    @property
    def log_alpha(self) -> Tensor:
        """The gates' parameter `[atoms]`, group after group."""
        # the value of speed * theta with the gradient of theta: Adam, whose steps are relative, goes `speed`
        # times as far, and the gradient's norm, which is clipped together with the weights', stays as it is
        return START + self.theta + (self.speed - 1) * self.theta.detach()

    def open_probability(self) -> Tensor:
        """Each gate's probability not to be zero `[atoms]`."""
        return hard_concrete.open_probability(self.log_alpha)

    def settled(self) -> Tensor:
        """Each gate without noise `[atoms]`, 0..1."""
        return hard_concrete.settled(self.log_alpha)

    def forward(self, *inputs: Any) -> Any:
        """The model's outputs under drawn gates (one draw a call), or settled ones in eval mode."""
        if self.training:
            with torch.no_grad():
                self.theta.clamp_((-LIMIT - START) / self.speed, (LIMIT - START) / self.speed)
            log_alpha = self.log_alpha
            return self.through(hard_concrete.drawn(log_alpha, torch.rand_like(log_alpha)), *inputs)
        return self.through(self.settled(), *inputs)

    def through(self, gates: Tensor, *inputs: Any) -> Any:
        """The model's outputs under given gates `[atoms]`."""
        return torch.func.functional_call(self.net, self.weights(gates), inputs)

    def weights(self, gates: Tensor) -> dict[str, Tensor]:
        """The parameters that gates multiply, multiplied."""
        extended = torch.cat([gates, gates.new_ones(1)])
        held = dict(self.net.named_parameters(remove_duplicate=False))
        out: dict[str, Tensor] = {}
        for i, (name, axis) in enumerate(self._sites):
            tensor = out.get(name, held[name])
            factor = extended[getattr(self, f"site{i}")].prod(1)
            out[name] = tensor * factor.view([-1 if d == axis else 1 for d in range(tensor.dim())])
        return out

    def hard(self, keep: Keep) -> Tensor:
        """The settled gates with those of the dropped atoms at zero `[atoms]`."""
        gates, start = self.settled().detach().clone(), 0
        for group in self.groups:
            stays = torch.zeros(group.size, dtype=torch.bool, device=gates.device)
            stays[list(keep.get(group.name, range(group.size)))] = True
            gates[start : start + group.size][~stays] = 0
            start += group.size
        return gates

    def ranks(self) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
        """Each group's log_alpha, by which its atoms are ranked."""
        parts = torch.split(self.log_alpha.detach().double().cpu(), [group.size for group in self.groups])
        return {group.name: part.numpy() for group, part in zip(self.groups, parts, strict=True)}


def _index(site: Site, atoms: Mapping[int, int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return placed(site.elements, atoms)


def folded(gated: Gated, keep: Keep) -> nn.Module:
    """A copy of the model with the gates multiplied into its weights, those of dropped atoms as zeros."""
    net = copy.deepcopy(gated.net)
    with torch.no_grad():
        for name, tensor in gated.weights(gated.hard(keep)).items():
            net.get_parameter(name).copy_(tensor)
    return net


def gateable(model: nn.Module, axes: Axes, groups: Sequence[Group], example: Any) -> dict[str, str]:
    """Groups whose atoms a gate of zero does not take out exactly, each with the reason.

    Half of each group's gates are closed on a copy with redrawn norms, and the outputs are held against those
    of the really smaller model; when all groups together differ, each is tried alone.
    """
    missed = sites(axes, groups)[1]
    left = {g.name: missed[a] for g in groups for a in g.atoms if a in missed}
    rest = [group for group in groups if group.name not in left]
    images = varied(example)
    drawn = redrawn(model, images)
    if rest and _mismatch(drawn, axes, rest, images):
        for group in rest:
            reason = _mismatch(drawn, axes, [group], images)
            if reason:
                left[group.name] = reason
    return left


def _mismatch(model: nn.Module, axes: Axes, groups: Sequence[Group], images: Any) -> str:
    """Why closed gates are not the same as the cut; empty when they are."""
    gated = Gated(model, axes, groups).eval()
    keep = {group.name: list(range(0, group.size, 2)) for group in groups}
    try:
        small = shrink(folded(gated, {}), axes, keep, example=images)
        error = difference(gated, gated.hard(keep), small, images)
    except (ModelError, RuntimeError, ValueError) as problem:
        text = str(problem) if isinstance(problem, NiwakiError) else f"{type(problem).__name__}: {problem}"
        return text.splitlines()[0]
    return "" if error <= TOLERANCE else f"a closed gate is not a cut here (error {error:.1e})"


def difference(gated: Gated, gates: Tensor, small: nn.Module, example: Any) -> float:
    """Largest difference of the smaller model's outputs to the gated one's, over their standard deviation."""
    inputs = example if isinstance(example, tuple) else (example,)
    gated.eval()
    small.eval()
    with torch.no_grad(), quiet():
        wanted, got = gated.through(gates, *inputs), small(*inputs)
    pairs = zip(*(_leaves(out) for out in (wanted, got)), strict=True)
    worst = [float((w - g).abs().max() / w.double().std().clamp_min(1e-12)) for w, g in pairs]
    return max((x if x == x else float("inf") for x in worst), default=float("inf"))


def _leaves(out: Any) -> list[Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, Tensor)]
