"""A small U-Net for dense round objects: a probability and 32 distances at every second pixel.

Source: Schmidt et al. 2018, arXiv:1806.03535 (what is predicted); Ronneberger et al. 2015, arXiv:1505.04597
(the shape of the network; skips are added, as in LinkNet, arXiv:1707.03718, for speed).
Shape letters: B batch, C channels, H W pixels, R rays.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from niwaki.instances.stars import RAYS
from niwaki.nets.blocks import ConvNorm, resize

LEAST = 0.01
"""Standard deviation below which an image's contrast is not stretched any further."""


class StarUNet(nn.Module):
    """Four levels from a half to a sixteenth of the size; each image is brought to the same mean and contrast.

    Args:
        widths: channels of the levels.
    """

    def __init__(
        self, *, classes: int = 1, channels: int = 3, widths: Sequence[int] = (16, 32, 64, 96)
    ) -> None:
        super().__init__()
        before = [channels, *widths[:-1]]
        self.down = nn.ModuleList(
            nn.Sequential(ConvNorm(b, a, 3, stride=2), ConvNorm(a, a, 3))
            for b, a in zip(before, widths, strict=True)
        )
        self.across = nn.ModuleList(ConvNorm(deep, a, 1) for a, deep in pairwise(widths))
        self.up = nn.ModuleList(ConvNorm(a, a, 3) for a in widths[:-1])
        self.features = ConvNorm(widths[0], 2 * widths[0], 3)
        self.predict = nn.Conv2d(2 * widths[0], classes + RAYS, 1)
        assert self.predict.bias is not None
        nn.init.constant_(self.predict.bias[:classes], -2.0)  # most points are background
        nn.init.constant_(self.predict.bias[classes:], 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Images float `[B, C, H, W]` to `[B, classes + R, H / 2, W / 2]`."""
        x = contrasted(x)
        levels = []
        for stage in self.down:
            x = stage(x)
            levels.append(x)
        for skip, across, up in zip(levels[-2::-1], reversed(self.across), reversed(self.up), strict=True):
            x = up(resize(across(x), skip) + skip)
        out: Tensor = self.predict(self.features(x))
        return out


def contrasted(x: Tensor) -> Tensor:
    """Images at mean 0 and standard deviation 1, each channel of each: microscopes differ by 20 times."""
    middle = x - x.mean((2, 3), keepdim=True)
    spread = (middle * middle).mean((2, 3), keepdim=True).sqrt()
    return middle / (spread + LEAST)


def star_unet(*, classes: int = 1, channels: int = 3) -> nn.Module:
    """The network of the instances task: 0.40 GMACs at 256 x 256."""
    return StarUNet(classes=classes, channels=channels)


def star_unet_wide(*, classes: int = 1, channels: int = 3) -> nn.Module:
    """Twice as wide, for images of several kinds: 1.54 GMACs at 256 x 256."""
    return StarUNet(classes=classes, channels=channels, widths=(32, 64, 128, 160))
