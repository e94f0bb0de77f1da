"""LEDNet: an asymmetric network of split-shuffle units with an attention pyramid behind them.

Source: Wang et al. 2019, "LEDNet: A Lightweight Encoder-Decoder Network for Real-Time Semantic Segmentation",
arXiv:1905.02423, table 1, figures 1 and 2. Shape letters: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.nets.blocks import ConvNorm, resize


class LEDNet(nn.Module):
    """Encoder to 1/8, then the attention pyramid network as decoder. Logits come at an eighth of the image's
    size."""

    auxiliary = ("encoder.5",)

    def __init__(self, *, classes: int, channels: int = 3) -> None:
        super().__init__()
        dilations = (1, 2, 5, 9, 2, 5, 9, 17)
        self.encoder = nn.Sequential(
            Downsample(channels, 32), *(SplitShuffle(32, 1) for _ in range(3)),
            Downsample(32, 64), *(SplitShuffle(64, 1) for _ in range(2)),
            Downsample(64, 128), *(SplitShuffle(128, d) for d in dilations),
        )  # fmt: skip
        self.decoder = AttentionPyramid(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images float `[B, C, H, W]` to logits `[B, K, H / 8, W / 8]`."""
        logits: Tensor = self.decoder(self.encoder(x))
        return logits


class Downsample(nn.Module):
    """Half the size by a 3x3 convolution beside a max pooling, which keeps the input's channels."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after - before, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, before, H, W]` to `[B, after, H / 2, W / 2]`."""
        pooled = F.max_pool2d(x, 2, stride=2, ceil_mode=True)
        return F.relu(self.norm(torch.cat([self.conv(x), pooled], 1)))


class SplitShuffle(nn.Module):
    """Two halves of the channels through factorised 3x1 and 1x3 convolutions, joined, added, shuffled
    (SS-nbt)."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.middle = channels // 2
        self.left = nn.Sequential(*_factorised(self.middle, (3, 1), (1, 3), dilation))
        self.right = nn.Sequential(*_factorised(self.middle, (1, 3), (3, 1), dilation))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]`, as it came."""
        joined = torch.cat([self.left(x[:, : self.middle]), self.right(x[:, self.middle :])], 1)
        return F.channel_shuffle(F.relu(x + joined), 2)


def _factorised(
    channels: int, first: tuple[int, int], second: tuple[int, int], dilation: int
) -> list[nn.Module]:
    """Four convolutions in turn across and along; the last two dilated, the last one without ReLU."""
    far_first, far_second = _spread(first, dilation), _spread(second, dilation)
    return [
        nn.Conv2d(channels, channels, first, padding=_same(first, (1, 1))),
        nn.ReLU(),
        ConvNorm(channels, channels, second, bias=True),
        nn.Conv2d(channels, channels, first, padding=_same(first, far_first), dilation=far_first),
        nn.ReLU(),
        ConvNorm(channels, channels, second, dilation=far_second, act=None, bias=True),
    ]


def _spread(kernel: tuple[int, int], dilation: int) -> tuple[int, int]:
    """The dilation, along the kernel only."""
    return (dilation if kernel[0] > 1 else 1, dilation if kernel[1] > 1 else 1)


def _same(kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int]:
    return (dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2)


class AttentionPyramid(nn.Module):
    """Class scores weighed pixel by pixel by a small pyramid, plus the image's mean (APN, figure 1)."""

    def __init__(self, before: int, classes: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            [ConvNorm(before, 1, 7, stride=2), ConvNorm(1, 1, 5, stride=2), ConvNorm(1, 1, 3, stride=2)]
        )
        self.side = nn.ModuleList([ConvNorm(1, 1, 7), ConvNorm(1, 1, 5), ConvNorm(1, 1, 3)])
        self.scores = ConvNorm(before, classes, 1)
        self.mean = ConvNorm(before, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, before, H, W]` to `[B, K, H, W]`."""
        sizes = [x]
        for down in self.down:
            sizes.append(down(sizes[-1]))
        weight = self.side[2](sizes[3])
        weight = self.side[1](sizes[2]) + resize(weight, sizes[2])
        weight = self.side[0](sizes[1]) + resize(weight, sizes[1])
        weight = resize(weight, x)
        mean = self.mean(F.adaptive_avg_pool2d(x, 1))
        out: Tensor = self.scores(x) * weight + mean
        return out


def lednet(*, classes: int, channels: int = 3) -> nn.Module:
    """LEDNet: 0.92 M parameters with 20 classes (the paper says 0.94 M)."""
    return LEDNet(classes=classes, channels=channels)
