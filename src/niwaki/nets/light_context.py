"""A light network with context aggregation: depthwise-separable encoder, coordinate attention, weighted heads.

niwaki's own combination of published parts: inverted residuals (Sandler et al. 2018, arXiv:1801.04381),
coordinate attention (Hou, Zhou, Feng 2021, arXiv:2103.02907, figure 2c), dilated branches with a global mean
(Chen et al. 2017, arXiv:1706.05587, figure 5) made separable. There is no paper whose counts it could be held
against. Shape letters: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.nets.blocks import Bottleneck, ConvNorm, Separable, resize

REDUCTION, LEAST = 32, 8


class LightContext(nn.Module):
    """Encoder to 1/16, context aggregation, a decoder that adds the features at 1/8.

    Logits come at an eighth of the image's size. `auxiliary` names where a training's weighted heads belong.
    """

    auxiliary = ("shallow", "deep")

    def __init__(self, *, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvNorm(channels, 16, stride=2, act=nn.Hardswish), Bottleneck(16, 24, expand=4, stride=2)
        )
        self.shallow = nn.Sequential(
            Bottleneck(24, 40, expand=4, stride=2), Bottleneck(40, 40, expand=4), CoordinateAttention(40)
        )
        self.deep = nn.Sequential(
            Bottleneck(40, 80, expand=4, stride=2),
            Bottleneck(80, 80, expand=4), CoordinateAttention(80),
            Bottleneck(80, 80, expand=4), CoordinateAttention(80),
        )  # fmt: skip
        self.context = ContextAggregation(80, 96, dilations=(1, 3, 6))
        self.low = ConvNorm(40, 96, 1, act=None)
        self.fuse = nn.Sequential(Separable(96, 96), CoordinateAttention(96))
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Conv2d(96, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Images float `[B, C, H, W]` to logits `[B, K, H / 8, W / 8]`."""
        shallow = self.shallow(self.stem(x))
        context = self.context(self.deep(shallow))
        fused = self.fuse(F.relu(self.low(shallow) + resize(context, shallow)))
        logits: Tensor = self.classifier(fused)
        return logits


class CoordinateAttention(nn.Module):
    """Channels weighed by row and by column: `y = x * a_h * a_w`.

    Source: Hou, Zhou, Feng 2021, arXiv:2103.02907, eq. 4 to 7.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(LEAST, channels // REDUCTION)
        self.shared = ConvNorm(channels, inner, 1, act=nn.Hardswish)
        self.rows = nn.Conv2d(inner, channels, 1)
        self.columns = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]`, as it came."""
        height, width = x.shape[2], x.shape[3]
        along_h, along_w = x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)
        both = self.shared(torch.cat([along_h, along_w], 2))
        rows = self.rows(both[:, :, :height]).sigmoid()
        columns = self.columns(both[:, :, height : height + width].transpose(2, 3)).sigmoid()
        out: Tensor = x * rows * columns
        return out


class ContextAggregation(nn.Module):
    """Separable convolutions of several dilations and the image's mean, side by side, then joined."""

    def __init__(self, before: int, after: int, *, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(ConvNorm(before, before, groups=before, dilation=d), ConvNorm(before, after, 1))
            for d in dilations
        )
        self.mean = ConvNorm(before, after, 1)
        self.join = ConvNorm(after * (len(dilations) + 1), after, 1, act=None)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, before, H, W]` to `[B, after, H, W]`."""
        mean = self.mean(F.adaptive_avg_pool2d(x, 1)).expand(-1, -1, x.shape[2], x.shape[3])
        out: Tensor = self.join(torch.cat([*(branch(x) for branch in self.branches), mean], 1))
        return out


def light_context(*, classes: int, channels: int = 3) -> nn.Module:
    """The light context network: 0.24 M parameters with 19 classes."""
    return LightContext(classes=classes, channels=channels)
