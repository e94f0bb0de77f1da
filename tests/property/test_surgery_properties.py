"""Random small networks from the operator set: every cut is proven on the graph, whatever was drawn."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki import prune, surgery

EXAMPLE = prune.drawn((6, 3, 8, 8), torch.Generator().manual_seed(0))


class Block(nn.Module):
    """Layers for one kind of block, from `[B, channels, 8, 8]` to the same shape."""

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.kind, self.c = kind, channels
        c = channels
        self.norm = nn.GroupNorm(1, c) if kind == "attention" else nn.BatchNorm2d(c)
        self.up, self.down = nn.Conv2d(c, 2 * c, 1), nn.Conv2d(c if kind == "glu" else 2 * c, c, 1)
        self.spatial = nn.Conv2d(c, c, 3, padding=1, groups={"depthwise": c, "groups": 4}.get(kind, 1))
        self.qkv = nn.Linear(c, 3 * c)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(self.norm(x)) if self.kind != "cat" else self.body(self.norm(x))

    def body(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        if self.kind == "hidden":
            return self.down(F.gelu(self.up(x)))
        if self.kind == "glu":
            value, gate = self.up(x).chunk(2, 1)
            return self.down(value * gate.sigmoid())
        if self.kind == "gate":
            return self.spatial(x) * self.down(self.up(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        if self.kind == "shuffle":
            return self.spatial(x).view(n, 4, c // 4, 8, 8).transpose(1, 2).reshape(n, c, 8, 8)
        if self.kind == "cat":
            return self.down(torch.cat([self.spatial(x).relu(), x], 1))
        if self.kind == "parts":
            first, second = self.up(x).split([c // 2, c + c // 2], 1)
            return self.down(torch.cat([second.relu(), first], 1))
        if self.kind == "attention":
            rows = self.qkv(x.flatten(2).transpose(1, 2)).reshape(n, 64, 3, 4, c // 4)
            q, k, v = rows.permute(2, 0, 3, 1, 4).unbind(0)
            return ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(2, 3).reshape(n, c, 8, 8)
        return self.spatial(x).relu()  # depthwise, groups, plain


KINDS = ("plain", "hidden", "glu", "gate", "shuffle", "cat", "parts", "attention", "depthwise", "groups")


class Net(nn.Module):
    """A stem, the blocks drawn, some of them skipped over by a second path, and a head."""

    def __init__(self, kinds: list[str], channels: int, skip: bool) -> None:
        super().__init__()
        self.stem, self.skip = nn.Conv2d(3, channels, 3, padding=1), skip
        self.blocks = nn.ModuleList(Block(kind, channels) for kind in kinds)
        self.head = nn.Linear(2 * channels if skip else channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = x.mean((2, 3))
        return self.head(torch.cat([x, first.amax((2, 3))], 1) if self.skip else x)


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=2, max_size=4),
    channels=st.sampled_from((16, 24)),
    skip=st.booleans(),
    ratio=st.sampled_from((0.25, 0.5, 0.7)),
)
def test_any_network_of_these_blocks_is_cut_right(
    kinds: list[str], channels: int, skip: bool, ratio: float
) -> None:
    torch.manual_seed(0)
    net = prune.redrawn(Net(kinds, channels, skip).eval(), EXAMPLE)
    axes = surgery.analyse(net, EXAMPLE)
    assert not axes.unprunable
    keep = prune.choose(axes, prune.score(net, axes), ratio=ratio)
    assert keep
    small, kept = surgery.rewrite(net, axes, keep), axes.kept_indices(keep)
    proof = prune.compare(axes.traced, net, small, kept, EXAMPLE)
    assert proof.ok, proof
    assert axes.cost(keep).params == sum(p.numel() for p in small.parameters())
    with torch.no_grad():
        small.head.weight.copy_(small.head.weight.flip(1))
    assert prune.compare(axes.traced, net, small, kept, EXAMPLE).error > 1e-3
