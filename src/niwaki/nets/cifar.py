"""CIFAR ResNets (20, 32, 56 layers), with the state-dict keys of the published checkpoints.

Source: He et al. 2016, arXiv:1512.03385, section 4.2, shortcut option A; key names as in
akamaster/pytorch_resnet_cifar10 (BSD-2).
Shape letters: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class ShortcutA(nn.Module):
    """The parameter-free shortcut: every `stride`-th pixel, and zeros for new channels.

    Both sizes are attributes and not constants of the forward, so that surgery can narrow them.
    """

    def __init__(self, stride: int, pad: tuple[int, int]) -> None:
        super().__init__()
        self.stride = stride
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, pad[0] + C + pad[1], H / stride, W / stride]`."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.pad))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            front = (after - before) // 2
            self.shortcut = ShortcutA(stride, (front, after - before - front))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, before, H, W]` to `[B, after, H / stride, W / stride]`."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """Three stages of `blocks` BasicBlocks, 16, 32 and 64 wide: `6 * blocks + 2` layers."""

    def __init__(self, blocks: int, *, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1, blocks)
        self.layer2 = _stage(16, 32, 2, blocks)
        self.layer3 = _stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Images float `[B, C, H, W]` to logits `[B, K]`."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        logits: Tensor = self.linear(out.mean(dim=(2, 3)))
        return logits


def _stage(before: int, after: int, stride: int, blocks: int) -> nn.Sequential:
    rest = [BasicBlock(after, after, 1) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(before, after, stride), *rest)


def resnet20(*, classes: int, channels: int = 3) -> nn.Module:
    """A CIFAR ResNet of 20 layers: 0.27 M parameters, 41 M multiply-adds at 32x32."""
    return CifarResNet(3, classes=classes, channels=channels)


def resnet32(*, classes: int, channels: int = 3) -> nn.Module:
    """A CIFAR ResNet of 32 layers: 0.46 M parameters, 69 M multiply-adds at 32x32."""
    return CifarResNet(5, classes=classes, channels=channels)


def resnet56(*, classes: int, channels: int = 3) -> nn.Module:
    """A CIFAR ResNet of 56 layers: 0.85 M parameters, 126 M multiply-adds at 32x32."""
    return CifarResNet(9, classes=classes, channels=channels)
