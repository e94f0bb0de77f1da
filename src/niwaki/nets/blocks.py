"""Parts that several segmentation networks are made of. Shape letters: B batch, C channels, H W pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNorm(nn.Sequential):
    """Convolution, batch norm, activation (`None`: none); the size is kept where `stride` is 1."""

    def __init__(
        self,
        before: int,
        after: int,
        kernel: int | tuple[int, int] = 3,
        *,
        stride: int = 1,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        act: type[nn.Module] | None = nn.ReLU,
        bias: bool = False,
    ) -> None:
        kernels, dilations = _pair(kernel), _pair(dilation)
        pad = (dilations[0] * (kernels[0] - 1) // 2, dilations[1] * (kernels[1] - 1) // 2)
        parts: list[nn.Module] = [
            nn.Conv2d(
                before, after, kernels, stride=stride, padding=pad, dilation=dilations, groups=groups, bias=bias
            ),
            nn.BatchNorm2d(after),
        ]
        if act is not None:
            parts.append(act())
        super().__init__(*parts)


class Separable(nn.Sequential):
    """A depthwise 3x3 and a 1x1 convolution, each with batch norm and ReLU.

    Source: Howard et al. 2017, MobileNets, arXiv:1704.04861, section 3.1.
    """

    def __init__(self, before: int, after: int, *, stride: int = 1) -> None:
        super().__init__(ConvNorm(before, before, 3, stride=stride, groups=before), ConvNorm(before, after, 1))


class Bottleneck(nn.Module):
    """An inverted residual: 1x1 wider, depthwise 3x3, 1x1 narrower without activation; added where shapes
    agree.

    Source: Sandler et al. 2018, MobileNetV2, arXiv:1801.04381, table 1.
    """

    def __init__(self, before: int, after: int, *, expand: int, stride: int = 1) -> None:
        super().__init__()
        wide = before * expand
        self.body = nn.Sequential(
            ConvNorm(before, wide, 1),
            ConvNorm(wide, wide, 3, stride=stride, groups=wide),
            ConvNorm(wide, after, 1, act=None),
        )
        self.residual = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        """`[B, before, H, W]` to `[B, after, H / stride, W / stride]`."""
        out: Tensor = self.body(x)
        return out + x if self.residual else out


class PyramidPooling(nn.Module):
    """Means over grids of several sizes, each through a 1x1 convolution, beside the features themselves.

    Source: Zhao et al. 2017, PSPNet, arXiv:1612.01105, figure 3.
    """

    def __init__(self, before: int, after: int, *, bins: Sequence[int]) -> None:
        super().__init__()
        self.bins = tuple(bins)
        self.levels = nn.ModuleList(ConvNorm(before, before // len(bins), 1) for _ in bins)
        self.join = ConvNorm(before + before // len(bins) * len(bins), after, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, before, H, W]` to `[B, after, H, W]`."""
        pairs = zip(self.bins, self.levels, strict=True)
        seen = [resize(level(F.adaptive_avg_pool2d(x, size)), x) for size, level in pairs]
        out: Tensor = self.join(torch.cat([x, *seen], 1))
        return out


def resize(x: Tensor, like: Tensor) -> Tensor:
    """`x` at the height and width of `like`, bilinear with half-pixel centres."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
