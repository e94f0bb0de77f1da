"""BiSeNetV2: a wide shallow branch for detail, a narrow deep one for meaning, and their guided aggregation.

Source: Yu et al. 2020, "BiSeNet V2: Bilateral Network with Guided Aggregation", arXiv:2004.02147, table 1,
figures 4 to 6. Shape letters: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.nets.blocks import ConvNorm, resize


class BiSeNetV2(nn.Module):
    """Detail branch at 1/8, semantic branch down to 1/32, aggregation, head.

    Logits come at an eighth of the image's size. `auxiliary` names the semantic stages whose heads boost the
    training in the paper; they are no part of the network that runs.
    """

    auxiliary = ("semantic.stem", "semantic.stage3", "semantic.stage4", "semantic.stage5")

    def __init__(self, *, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.detail = nn.Sequential(
            ConvNorm(channels, 64, stride=2), ConvNorm(64, 64),
            ConvNorm(64, 64, stride=2), ConvNorm(64, 64), ConvNorm(64, 64),
            ConvNorm(64, 128, stride=2), ConvNorm(128, 128), ConvNorm(128, 128),
        )  # fmt: skip
        self.semantic = Semantic(channels)
        self.aggregation = Aggregation(128)
        self.head = nn.Sequential(ConvNorm(128, 1024), nn.Dropout(0.1), nn.Conv2d(1024, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Images float `[B, C, H, W]` to logits `[B, K, H / 8, W / 8]`."""
        logits: Tensor = self.head(self.aggregation(self.detail(x), self.semantic(x)))
        return logits


class Semantic(nn.Module):
    """The semantic branch, its channels a quarter of the detail branch's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = Stem(channels, 16)
        self.stage3 = nn.Sequential(GatherExpand(16, 32, stride=2), GatherExpand(32, 32))
        self.stage4 = nn.Sequential(GatherExpand(32, 64, stride=2), GatherExpand(64, 64))
        rest = [GatherExpand(128, 128) for _ in range(3)]
        self.stage5 = nn.Sequential(GatherExpand(64, 128, stride=2), *rest)
        self.context = ContextEmbedding(128)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, 128, H / 32, W / 32]`."""
        out: Tensor = self.context(self.stage5(self.stage4(self.stage3(self.stem(x)))))
        return out


class Stem(nn.Module):
    """A quarter of the size at once, by convolution and by pooling (figure 4a)."""

    def __init__(self, channels: int, after: int) -> None:
        super().__init__()
        self.first = ConvNorm(channels, after, stride=2)
        self.left = nn.Sequential(ConvNorm(after, after // 2, 1), ConvNorm(after // 2, after, stride=2))
        self.join = ConvNorm(2 * after, after)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, after, H / 4, W / 4]`."""
        x = self.first(x)
        out: Tensor = self.join(torch.cat([self.left(x), F.max_pool2d(x, 3, 2, 1)], 1))
        return out


class GatherExpand(nn.Module):
    """Gather by a 3x3 convolution, expand sixfold in a depthwise one, project back (figure 5)."""

    def __init__(self, before: int, after: int, *, stride: int = 1) -> None:
        super().__init__()
        wide = 6 * before
        expand = [ConvNorm(before, wide, groups=before, stride=stride, act=None if stride > 1 else nn.ReLU)]
        if stride > 1:
            expand.append(ConvNorm(wide, wide, groups=wide))
        self.body = nn.Sequential(ConvNorm(before, before), *expand, ConvNorm(wide, after, 1, act=None))
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(
                ConvNorm(before, before, groups=before, stride=stride, act=None),
                ConvNorm(before, after, 1, act=None),
            )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, before, H, W]` to `[B, after, H / stride, W / stride]`."""
        return F.relu(self.body(x) + self.shortcut(x))


class ContextEmbedding(nn.Module):
    """The mean over the image added to every place (figure 4b)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.mean = ConvNorm(channels, channels, 1)
        self.last = ConvNorm(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]`, as it came."""
        mean = self.mean(self.norm(F.adaptive_avg_pool2d(x, 1)))
        out: Tensor = self.last(x + mean)
        return out


class Aggregation(nn.Module):
    """Each branch weighs the other, at its own size (figure 6)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.detail_keep = _depthwise_plain(channels)
        self.detail_down = nn.Sequential(
            ConvNorm(channels, channels, stride=2, act=None), nn.AvgPool2d(3, stride=2, padding=1)
        )
        self.meaning_up = ConvNorm(channels, channels, act=None)
        self.meaning_keep = _depthwise_plain(channels)
        self.join = ConvNorm(channels, channels, act=None)

    def forward(self, detail: Tensor, meaning: Tensor) -> Tensor:
        """`[B, C, H, W]` and `[B, C, H / 4, W / 4]` to `[B, C, H, W]`."""
        fine = self.detail_keep(detail) * resize(self.meaning_up(meaning), detail).sigmoid()
        small = resize(self.detail_down(detail), meaning)
        coarse = small * self.meaning_keep(meaning).sigmoid()
        out: Tensor = self.join(fine + resize(coarse, detail))
        return out


def _depthwise_plain(channels: int) -> nn.Sequential:
    return nn.Sequential(
        ConvNorm(channels, channels, groups=channels, act=None), nn.Conv2d(channels, channels, 1)
    )


def bisenet_v2(*, classes: int, channels: int = 3) -> nn.Module:
    """BiSeNetV2 of base size; the paper gives 21.15 GFLOPs at 512 x 1024."""
    return BiSeNetV2(classes=classes, channels=channels)
