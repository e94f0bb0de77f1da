"""Each operator rule on a net of two or three layers: half of it cut, proven, and scrambled cuts caught.

The graph is cut, not the class, so that sizes written into these nets are no matter.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki import prune, surgery

EXAMPLE = prune.drawn((8, 3, 8, 8), torch.Generator().manual_seed(0))
SIZES = torch.arange(64).view(8, 8)


class Between(nn.Module):
    """A function of channels `[B, 16, 8, 8]` between two convolutions: `weights` are its own, by name."""

    def __init__(self, function: Callable[..., Tensor], out: int = 16, **weights: nn.Module | Tensor) -> None:
        super().__init__()
        self.first, self.last, self.head = (
            nn.Conv2d(3, 16, 3, padding=1),
            nn.Conv2d(out, 12, 1),
            nn.Linear(12, 5),
        )
        self.function, self.names = function, list(weights)
        for name, weight in weights.items():
            setattr(self, name, nn.Parameter(weight) if isinstance(weight, Tensor) else weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self.first(x).tanh(), *(getattr(self, name) for name in self.names))
        return self.head(self.last(y).relu().mean((2, 3)))


def window(x: Tensor) -> Tensor:
    """Shifted windows of 4 x 4, merged into the batch and back (Swin)."""
    n, c = x.shape[:2]
    x = torch.roll(x, (-1, -1), (2, 3)).view(n, c, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(n * 4, c, 4, 4)
    x = x * x.mean((2, 3), keepdim=True)
    return x.view(n, 2, 2, c, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(n, c, 8, 8)


def written(x: Tensor) -> Tensor:
    """A range of channels written over with others."""
    y = x * 2
    y[:, :4] = x[:, 8:12].relu()
    return y


def split_attention(x: Tensor, fc: nn.Module) -> Tensor:
    """Radix 2, softmax over it (ResNeSt)."""
    n = x.shape[0]
    parts = x.reshape(n, 2, 8, 8, 8)
    gates = fc(parts.sum(1).mean((2, 3), keepdim=True)).view(n, 1, 2, 8).transpose(1, 2).softmax(1)
    return (parts * gates.reshape(n, 2, 8, 1, 1)).sum(1)


def grouped_query(x: Tensor, q: nn.Module, kv: nn.Module) -> Tensor:
    """Four query heads, two of keys and values."""
    n = x.shape[0]
    x = x.flatten(2).transpose(1, 2)
    heads = q(x).view(n, 64, 4, 6).transpose(1, 2)
    keys, values = kv(x).view(n, 64, 2, 2, 6).permute(2, 0, 3, 1, 4).unbind(0)
    keys, values = keys.repeat_interleave(2, 1), values.repeat_interleave(2, 1)
    out = F.scaled_dot_product_attention(heads, keys, values, scale=0.5)
    return out.transpose(1, 2).reshape(n, 8, 8, 24).permute(0, 3, 1, 2)


def talking_heads(x: Tensor, qkv: nn.Module, mix: nn.Module, table: Tensor) -> Tensor:
    """Heads mixed by a linear layer, with a relative position table."""
    n = x.shape[0]
    q, k, v = qkv(x.flatten(2).transpose(1, 2)).reshape(n, 64, 3, 4, 6).permute(2, 0, 3, 1, 4)
    bias = table[(SIZES.view(-1, 1) - SIZES.view(1, -1)).abs().view(-1) % 15].view(64, 64, 4).permute(2, 0, 1)
    weights = ((q @ k.transpose(-2, -1)) * 0.5 + bias).permute(0, 2, 3, 1)
    weights = mix(weights).permute(0, 3, 1, 2).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(n, 8, 8, 24).permute(0, 3, 1, 2)


def channel_attention(x: Tensor, qkv: nn.Module, temperature: Tensor) -> Tensor:
    """Attention between channels of a head (XCiT), with normalised queries and keys."""
    n = x.shape[0]
    q, k, v = qkv(x.flatten(2).transpose(1, 2)).reshape(n, 64, 3, 4, 6).permute(2, 0, 3, 4, 1)
    weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * temperature).softmax(-1)
    return (weights @ v).permute(0, 3, 1, 2).reshape(n, 8, 8, 24).permute(0, 3, 1, 2)


def tokens(x: Tensor, token: Tensor, fc: nn.Module) -> Tensor:
    """A class token before the patches, and its part in all of them."""
    n = x.shape[0]
    x = torch.cat([token.expand(n, -1, -1), x.flatten(2).transpose(1, 2)], 1)
    x = fc(x)
    return (x[:, 1:] + x[:, :1]).transpose(1, 2).reshape(n, 16, 8, 8)


def sparse(x: Tensor) -> Tensor:
    """Pixels picked by a constant table, and channels moved behind them and back."""
    picked = x.flatten(2).index_select(2, SIZES.flip(0).reshape(-1)).movedim(1, 2)
    return picked.movedim(2, 1).unflatten(2, (8, 8))


def gathered(x: Tensor) -> Tensor:
    """Neighbourhoods of pixels by unfold of two axes (halo attention)."""
    windows = F.pad(x, (1, 1, 1, 1)).unfold(2, 4, 2).unfold(3, 4, 2)
    return windows.amax((-1, -2)).repeat_interleave(2, 2).repeat_interleave(2, 3)


def columns(x: Tensor) -> Tensor:
    """im2col, a mean over the kernel's places, and pixels again (VOLO)."""
    return F.unfold(x, 3, padding=1).view(x.shape[0], 16, 9, 64).mean(2).view_as(x)


def sequences(x: Tensor, lstm: nn.Module) -> Tensor:
    """Rows and columns through a bidirectional LSTM of two layers (Sequencer)."""
    rows, _ = lstm(x.permute(0, 2, 3, 1).reshape(-1, 8, 16))
    return rows.view(x.shape[0], 8, 8, -1).permute(0, 3, 1, 2)


def standardised(x: Tensor, weight: Tensor, gain: Tensor) -> Tensor:
    """A convolution whose weights are standardised by a batch norm (NFNet)."""
    flat = F.batch_norm(weight.reshape(1, 20, -1), None, None, weight=gain, training=True, momentum=0.0)
    return F.conv2d(x, flat.reshape_as(weight), padding=1)


def norms(x: Tensor, scale: Tensor) -> Tensor:
    """An RMS norm by hand, a global response norm, and a norm of order 1."""
    x = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-5) * scale.view(-1, 1, 1)
    response = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
    return x * response / (response.mean(1, keepdim=True) + 1e-3) + x.norm(p=1, dim=1, keepdim=True)


def silenced(x: Tensor, qkv: nn.Linear) -> Tensor:
    """A bias whose middle third is set to zero in place, as swin v2's keys have it."""
    bias = qkv.bias.clone()
    bias[16:32].zero_()
    a, b, c = F.linear(x.permute(0, 2, 3, 1), qkv.weight, bias).split(16, -1)
    return (a * b + c).permute(0, 3, 1, 2)


def nets() -> dict[str, nn.Module]:
    """A net for each operator, with the weights of one seed."""
    torch.manual_seed(0)
    lin, conv = nn.Linear, nn.Conv2d
    made: dict[str, nn.Module] = {
        "roll and window partition": Between(window),
        "slice_scatter": Between(written),
        "a bias zeroed in part": Between(silenced, qkv=lin(16, 48)),
        "split attention": Between(split_attention, 8, fc=conv(8, 16, 1)),
        "grouped queries": Between(grouped_query, 24, q=lin(16, 24), kv=lin(16, 24)),
        "talking heads": Between(talking_heads, 24, qkv=lin(16, 72), mix=lin(4, 4), table=torch.randn(15, 4)),
        "channel attention": Between(channel_attention, 24, qkv=lin(16, 72), temperature=torch.randn(4, 1, 1)),
        "class token": Between(tokens, token=torch.randn(1, 1, 16), fc=lin(16, 16)),
        "index_select and movedim": Between(sparse),
        "unfold": Between(gathered),
        "im2col": Between(columns),
        "lstm": Between(sequences, 20, lstm=nn.LSTM(16, 10, 2, bidirectional=True, batch_first=True)),
        "gru": Between(sequences, 10, gru=nn.GRU(16, 10, batch_first=True)),
        "standardised weights": Between(
            standardised, 20, weight=torch.randn(20, 16, 3, 3), gain=torch.rand(20)
        ),
        "norms by hand": Between(norms, scale=torch.rand(16)),
        "glu": Between(lambda x: F.glu(x, 1), 8),
        "cumsum over pixels": Between(lambda x: x.cumsum(2) / 4),
        "flip": Between(lambda x: x.flip(1) + x.flip(2)),
        "tile": Between(lambda x: x.repeat(1, 2, 1, 1), 32),
        "repeat_interleave of channels": Between(lambda x: x.repeat_interleave(2, 1), 32),
        "einsum": Between(lambda x, w: torch.einsum("bchw,dc->bdhw", x, w), 20, w=torch.randn(20, 16)),
        "interpolate": Between(lambda x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")),
        "space to depth": Between(lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2)),
        "a padded and pooled grid": Between(lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 2, 1)),
        "triangle": Between(lambda x: x.tril()),
        "grid_sample": Between(
            lambda x, grid: F.grid_sample(x, grid.expand(x.shape[0], -1, -1, -1), align_corners=False),
            grid=2 * torch.rand(1, 8, 8, 2) - 1,
        ),
        "topk over pixels": Between(lambda x: x.flatten(2).topk(64, dim=2).values.view_as(x)),
    }
    return {name: net.eval() for name, net in made.items()}


NETS = nets()


@pytest.mark.parametrize("name", NETS)
def test_half_is_proven_and_a_scramble_is_caught(name: str) -> None:
    net = prune.redrawn(NETS[name], EXAMPLE)
    axes = surgery.analyse(net, EXAMPLE)
    assert not axes.unprunable
    keep = prune.choose(axes, prune.score(net, axes), ratio=0.5)
    assert axes.cost(keep).macs < 0.75 * axes.cost({}).macs
    small = surgery.rewrite(net, axes, keep)
    kept = axes.kept_indices(keep)
    proof = prune.compare(axes.traced, net, small, kept, EXAMPLE)
    assert proof.ok, proof
    weight = {n: by_axis for n, by_axis in kept.items() if n == "last.weight"}
    with torch.no_grad():
        order = list(range(len(weight["last.weight"][1])))
        random.Random(1).shuffle(order)
        small.last.weight.copy_(small.last.weight[:, order])
    assert prune.compare(axes.traced, net, small, kept, EXAMPLE).error > 1e-3


ORDERED = {
    "argmax": lambda x: x * x.argmax(1, keepdim=True),
    "cumsum": lambda x: x.cumsum(1),
    "roll": lambda x: x.roll(1, 1),
    "topk": lambda x: x * x.topk(3, dim=1).values.mean(1, keepdim=True),
    "scatter": lambda x: x.scatter(1, torch.zeros(x.shape[0], 1, 8, 8, dtype=torch.long), x[:, -1:]),
    "gather": lambda x: x.gather(1, torch.arange(15, -1, -1).view(1, 16, 1, 1).expand(x.shape[0], -1, 8, 8)),
    "convolution along channels": lambda x: (
        x * F.conv1d(x.mean((2, 3)).unsqueeze(1), torch.ones(1, 1, 3), padding=1).view(-1, 16, 1, 1)
    ),
}


@pytest.mark.parametrize("name", ORDERED)
def test_channels_whose_places_count_stay(name: str) -> None:
    net = Between(ORDERED[name]).eval()
    axes = surgery.analyse(net, EXAMPLE)
    assert not any(("first.weight", 0) in group.members for group in axes.groups)
    assert any(("last.weight", 0) in group.members for group in axes.groups)
