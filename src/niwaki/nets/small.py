"""`niwaki:small`: the default network for images below 64 pixels, a plain residual CNN.

Between stem and head each width is a multiple of 16, at least 32: below that, int8 kernels of CPU
runtimes spend their time packing and not multiplying.
Shape letters: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm; the shortcut is 1x1 where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, before, H, W]` to `[B, after, H / stride, W / stride]`."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class Small(nn.Module):
    """A stem, three residual stages of the given widths, the mean over pixels, a linear head."""

    def __init__(self, widths: tuple[int, int, int], *, classes: int, channels: int = 3) -> None:
        super().__init__()
        first, second, third = widths
        self.stem = nn.Sequential(
            nn.Conv2d(channels, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU()
        )
        self.stages = nn.Sequential(
            Block(first, first, 1), Block(first, second, 2), Block(second, third, 2)
        )
        self.head = nn.Linear(third, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images float `[B, C, H, W]` to logits `[B, K]`."""
        logits: Tensor = self.head(self.stages(self.stem(x)).mean(dim=(2, 3)))
        return logits


def small(*, classes: int, channels: int = 3) -> nn.Module:
    """The default small network: 0.3 M parameters, 12 M multiply-adds at 16x16, 49 M at 32x32."""
    return Small((32, 64, 128), classes=classes, channels=channels)
