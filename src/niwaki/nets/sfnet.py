"""SFNet: a feature pyramid whose upsampling follows a learned flow. The lightest of the paper, on ResNet-18.

Source: Li et al. 2020, "Semantic Flow for Fast and Accurate Scene Parsing", arXiv:2002.10120, figure 3, section
3. The backbone is torchvision's ResNet-18 with the deep stem (three 3x3 convolutions) of the authors' code.
Shape letters: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.nets.blocks import ConvNorm, PyramidPooling, resize

WIDTH = 128


class SFNet(nn.Module):
    """ResNet-18, pyramid pooling, three flow-aligned steps up, all levels joined at 1/4.

    Logits come at a quarter of the image's size. `auxiliary` names the levels whose heads the paper's deep
    supervision trains.
    """

    auxiliary = ("levels.0", "levels.1", "levels.2")

    def __init__(self, *, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvNorm(channels, 64, stride=2), ConvNorm(64, 64), ConvNorm(64, 128), nn.MaxPool2d(3, 2, 1)
        )
        widths = (64, 128, 256, 512)
        self.stages = nn.ModuleList(
            nn.Sequential(Residual(before, after, stride), Residual(after, after, 1))
            for before, after, stride in zip((128, *widths), widths, (1, 2, 2, 2), strict=False)
        )
        self.context = PyramidPooling(512, WIDTH, bins=(1, 2, 3, 6))
        self.sides = nn.ModuleList(ConvNorm(width, WIDTH, 1) for width in widths[:3])
        self.align = nn.ModuleList(FlowAlignment(WIDTH) for _ in range(3))
        self.levels = nn.ModuleList(ConvNorm(WIDTH, WIDTH) for _ in range(3))
        self.join = ConvNorm(4 * WIDTH, WIDTH)
        self.classifier = nn.Conv2d(WIDTH, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images float `[B, C, H, W]` to logits `[B, K, H / 4, W / 4]`."""
        x = self.stem(x)
        seen = []
        for stage in self.stages:
            x = stage(x)
            seen.append(x)
        top = self.context(x)
        out = [top]
        for k in (2, 1, 0):
            side = self.sides[k](seen[k])
            top = side + self.align[k](side, top)
            out.append(self.levels[k](top))
        finest = out[-1]
        whole = [finest, *(resize(level, finest) for level in out[-2::-1])]
        logits: Tensor = self.classifier(self.join(torch.cat(whole, 1)))
        return logits


class FlowAlignment(nn.Module):
    """Coarse features sampled where a flow, made of both levels, says (figure 3b, eq. 3 and 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.low = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.high = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.flow = nn.Conv2d(channels, 2, 3, padding=1, bias=False)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """`[B, C, H, W]` and `[B, C, h, w]` to `[B, C, H, W]`."""
        both = torch.cat([self.low(fine), resize(self.high(coarse), fine)], 1)
        return warped(coarse, self.flow(both))


def warped(coarse: Tensor, flow: Tensor) -> Tensor:
    """`coarse` `[B, C, h, w]` sampled bilinearly at every pixel of `flow` `[B, 2, H, W]`, moved by it: `[B, C,
    H, W]`.

    The flow is in pixels of the fine map, x first. A flow of 0 is bilinear upsampling with half-pixel centres:
    grid and sampler follow the same rule, at any ratio of sizes (the authors' code mixes two rules, off by half
    a pixel).
    """
    height, width = flow.shape[2], flow.shape[3]
    ys = (torch.arange(height, device=flow.device, dtype=flow.dtype) * 2 + 1) / height - 1
    xs = (torch.arange(width, device=flow.device, dtype=flow.dtype) * 2 + 1) / width - 1
    across = xs.reshape(1, 1, width) + flow[:, 0] * (2 / width)
    down = ys.reshape(1, height, 1) + flow[:, 1] * (2 / height)
    grid = torch.stack([across, down], 3)
    return F.grid_sample(coarse, grid, mode="bilinear", padding_mode="border", align_corners=False)


class Residual(nn.Module):
    """ResNet's basic block.

    Source: He et al. 2016, arXiv:1512.03385, figure 5.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(ConvNorm(before, after, stride=stride), ConvNorm(after, after, act=None))
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.shortcut = ConvNorm(before, after, 1, stride=stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, before, H, W]` to `[B, after, H / stride, W / stride]`."""
        return F.relu(self.body(x) + self.shortcut(x))


def sfnet(*, classes: int, channels: int = 3) -> nn.Module:
    """SFNet on ResNet-18: the paper gives 12.87 M parameters and 243 GFLOPs at 1024 x 2048."""
    return SFNet(classes=classes, channels=channels)
