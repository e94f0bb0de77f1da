"""`niwaki:small`: the default network for images below 64 pixels, inverted residuals without squeeze or swish.

Pointwise and depthwise convolutions make it cheap in float; int8 gains little on such layers on most CPU
runtimes, so a latency budget is met by its widths. Widths are multiples of 16, which kernels work in.
Shape letters: B batch, C channels, H W pixels, K classes.
Source: Sandler et al. 2018, "MobileNetV2", arXiv:1801.04381, figure 3b; here with plain ReLU, expansion 2
and a projected shortcut where the shape changes.
"""

from __future__ import annotations

from torch import Tensor, nn


def _unit(before: int, after: int, size: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(before, after, size, stride=stride, padding=size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(after)]


class Block(nn.Module):
    """Widen, filter each channel, narrow, and add the input (projected where the shape changes)."""

    def __init__(self, before: int, after: int, *, stride: int) -> None:
        super().__init__()
        wide = 2 * after
        self.body = nn.Sequential(
            *_unit(before, wide, 1),
            nn.ReLU(),
            *_unit(wide, wide, 3, stride=stride, groups=wide),
            nn.ReLU(),
            *_unit(wide, after, 1),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(*_unit(before, after, 1, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, before, H, W]` to `[B, after, H / stride, W / stride]`."""
        out: Tensor = (self.body(x) + self.shortcut(x)).relu()
        return out


class Small(nn.Module):
    """A stem, stages of two blocks at the given widths, the mean over pixels, a linear head."""

    def __init__(self, widths: tuple[int, ...], *, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_unit(channels, widths[0], 3), nn.ReLU())
        blocks = []
        before = widths[0]
        for stage, width in enumerate(widths):
            blocks.append(Block(before, width, stride=1 if stage == 0 else 2))
            blocks.append(Block(width, width, stride=1))
            before = width
        self.stages = nn.Sequential(*blocks)
        self.head = nn.Linear(before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images float `[B, C, H, W]` to logits `[B, K]`."""
        logits: Tensor = self.head(self.stages(self.stem(x)).mean(dim=(2, 3)))
        return logits


def small(*, classes: int, channels: int = 3) -> nn.Module:
    """The default small network: 0.13 M parameters, 7 M multiply-adds at 16x16, 29 M at 32x32."""
    return Small((32, 64, 96), classes=classes, channels=channels)
