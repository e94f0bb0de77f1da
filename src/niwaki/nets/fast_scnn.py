"""Fast-SCNN: two branches that share their first layers, for high resolution on small processors.

Source: Poudel, Liwicki, Cipolla 2019, "Fast-SCNN: Fast Semantic Segmentation Network", arXiv:1902.04502, table
1 and figure 1. Shape letters: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from niwaki.nets.blocks import Bottleneck, ConvNorm, PyramidPooling, Separable, resize


class FastSCNN(nn.Module):
    """Learning to downsample, a global feature extractor at 1/32, fusion at 1/8, a classifier.

    Logits come at an eighth of the image's size. `auxiliary` names modules that training may look at as well.
    """

    auxiliary = ("downsample", "features")

    def __init__(self, *, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.downsample = nn.Sequential(
            ConvNorm(channels, 32, 3, stride=2), Separable(32, 48, stride=2), Separable(48, 64, stride=2)
        )
        self.features = nn.Sequential(
            *_stage(64, 64, blocks=3, stride=2),
            *_stage(64, 96, blocks=3, stride=2),
            *_stage(96, 128, blocks=3, stride=1),
            PyramidPooling(128, 128, bins=(1, 2, 3, 6)),
        )
        self.fusion = Fusion(64, 128, 128)
        self.classifier = nn.Sequential(
            Separable(128, 128), Separable(128, 128), nn.Dropout(0.1), nn.Conv2d(128, classes, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images float `[B, C, H, W]` to logits `[B, K, H / 8, W / 8]`."""
        shared = self.downsample(x)
        logits: Tensor = self.classifier(self.fusion(shared, self.features(shared)))
        return logits


class Fusion(nn.Module):
    """Deep features brought to the size of shallow ones and added to them."""

    def __init__(self, shallow: int, deep: int, after: int) -> None:
        super().__init__()
        self.spread = ConvNorm(deep, deep, 3, groups=deep)
        self.deep = ConvNorm(deep, after, 1, act=None, bias=True)
        self.shallow = ConvNorm(shallow, after, 1, act=None, bias=True)
        self.act = nn.ReLU()

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """`[B, shallow, H, W]` and `[B, deep, h, w]` to `[B, after, H, W]`."""
        deep = self.deep(self.spread(resize(deep, shallow)))
        out: Tensor = self.act(self.shallow(shallow) + deep)
        return out


def _stage(before: int, after: int, *, blocks: int, stride: int) -> list[nn.Module]:
    rest = [Bottleneck(after, after, expand=6) for _ in range(blocks - 1)]
    return [Bottleneck(before, after, expand=6, stride=stride), *rest]


def fast_scnn(*, classes: int, channels: int = 3) -> nn.Module:
    """Fast-SCNN: 1.14 M parameters with 19 classes (the paper says 1.11 M)."""
    return FastSCNN(classes=classes, channels=channels)
