"""PointRend: a map of logits made finer where it is least sure, by a small network on single points.

It is put on any segmentation network; the numbers of points are fixed by the image's size, so that it exports.
Shape letters: B batch, C channels, H W pixels of the image, h w of a map, K classes, F channels of the fine
features, P points.

Source: Kirillov, Wu, He, Girshick 2020, "PointRend: Image Segmentation as Rendering", arXiv:1912.08193,
sections 3.1 to 3.3; details as in the authors' code (detectron2, projects/PointRend). Differences: what is
written back fades out towards the surest of the chosen points, so that a rounding error that chooses another
point changes nothing (an export and its model would else differ); the number of points is a share of each map.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.errors import ModelError

POINTS = "+pointrend"
"""What a network's name ends in that has one."""
WIDTH = 64
"""Channels of the point network; the paper has 256, beside a ResNet-50."""
SHARE = 1 / 32
"""Points over the pixels of a map; the paper has 1/64 at 224 x 224, fewer at 1024 x 2048."""
OVER, SURE = 3, 0.75
"""Training draws `OVER` times the points and keeps the least sure, which are this share of those it uses."""
_LOW = -1e4  # below any logit; no infinity, for what is measured for int8 must be finite
_FADE = 2.0  # points below half of the largest margin chosen count fully


class PointRend(nn.Module):
    """A segmentation network and a point network; logits come at the image's size.

    Args:
        network: images to logits `[B, K, h, w]`.
        fine: name of its module whose features are looked at, `[B, F, ., .]`; finer than the logits.
    """

    def __init__(
        self, network: nn.Module, *, fine: str, features: int, classes: int, width: int = WIDTH,
        share: float = SHARE,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.fine, self.share = network, fine, share
        before = [features, width, width]
        self.layers = nn.ModuleList(nn.Conv2d(count + classes, width, 1) for count in before)
        self.predict = nn.Conv2d(width + classes, classes, 1)
        nn.init.normal_(self.predict.weight, std=0.001)  # as the authors': first the points say little
        assert self.predict.bias is not None
        nn.init.zeros_(self.predict.bias)

    @property
    def auxiliary(self) -> tuple[str, ...]:
        """Modules that training may look at as well, as the network names them."""
        return tuple(f"network.{name}" for name in getattr(self.network, "auxiliary", ()))

    def forward(self, x: Tensor) -> Tensor:
        """Images float `[B, C, H, W]` to logits `[B, K, H, W]`."""
        coarse, fine = self.seen(x)
        logits = coarse
        for height, width in _sizes((coarse.shape[2], coarse.shape[3]), (x.shape[2], x.shape[3])):
            logits = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
            logits = self._refined(logits, coarse, fine)
        return logits

    def seen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The network's logits `[B, K, h, w]` and the fine features."""
        kept: list[Tensor] = []
        handle = self.network.get_submodule(self.fine).register_forward_hook(
            lambda module, given, out: kept.append(out)
        )
        try:
            coarse = self.network(x)
        finally:
            handle.remove()
        return coarse, kept[0]

    def at(self, coarse: Tensor, fine: Tensor, where: Tensor) -> Tensor:
        """Logits `[B, K, P, 1]` of the point network at places `[B, P, 2]`, as `sampled` takes them."""
        guess = sampled(coarse, where)
        x = sampled(fine, where)
        for layer in self.layers:
            x = torch.relu(layer(torch.cat([x, guess], 1)))
        logits: Tensor = self.predict(torch.cat([x, guess], 1))
        return logits

    def _refined(self, logits: Tensor, coarse: Tensor, fine: Tensor) -> Tensor:
        """A map with its least sure pixels given by the point network."""
        height, width = logits.shape[2], logits.shape[3]
        count = max(1, math.ceil(self.share * height * width))
        flat = logits.flatten(2)
        margins, index = margin(flat).topk(count, dim=1, largest=False)
        found = self.at(coarse, fine, _places(index, height, width, logits.dtype)).squeeze(3)
        index = index[:, None].expand(-1, logits.shape[1], -1)
        before = flat.gather(2, index)
        return flat.scatter(2, index, torch.lerp(before, found, _faded(margins))).view_as(logits)


def margin(logits: Tensor) -> Tensor:
    """How far the best class is above the second, `[B, P]`, of logits `[B, K, P]`; 0 where two are equal."""
    best = logits.amax(1, keepdim=True)
    top = logits == best
    second = torch.where(top, _LOW, logits).amax(1)
    alone = top.sum(1) == 1
    return torch.where(alone, best.squeeze(1) - second, torch.zeros_like(second))


def sampled(maps: Tensor, where: Tensor) -> Tensor:
    """Maps `[B, C, h, w]` at places `[B, P, 2]` (x, y; -1 is the map's edge, 1 the other): `[B, C, P, 1]`.

    Bilinear with half-pixel centres, the rule by which the logits are enlarged.
    """
    return F.grid_sample(maps, where[:, :, None], mode="bilinear", padding_mode="border", align_corners=False)


def uncertain(coarse: Tensor, count: int) -> Tensor:
    """Places `[B, P, 2]` to train at: most where the logits `[B, K, h, w]` are least sure, the others anywhere.

    Source: section 3.2, "mildly biased": k = 3, beta = 0.75.
    """
    batch, device = len(coarse), coarse.device
    drawn = 2 * torch.rand(batch, OVER * count, 2, device=device) - 1
    least = round(SURE * count)
    index = margin(sampled(coarse, drawn).squeeze(3)).topk(least, dim=1, largest=False).indices
    unsure = drawn.gather(1, index[:, :, None].expand(-1, -1, 2))
    return torch.cat([unsure, 2 * torch.rand(batch, count - least, 2, device=device) - 1], 1)


def point_rend(
    network: nn.Module, *, channels: int = 3, fine: str | None = None, width: int = WIDTH
) -> PointRend:
    """The network with a point network on it, which is untrained.

    Args:
        fine: name of the module to look at; None takes the last of a quarter of the image's size before the
            maps become coarser, or of half of it where there is none.
        width: channels of the point network.
    Raises:
        ModelError: the network gives no map, or no module gives fine features. [model-points]
    """
    side = 128
    maps, logits = _watched(network, torch.zeros(1, channels, side, side))
    if logits is None:
        raise _unusable(f"{type(network).__name__} gives no map [B, K, h, w]")
    name = fine if fine is not None else _finest(maps, side)
    if name not in dict(maps):
        raise _unusable(f"module {name!r} gives no feature map [B, C, h, w]")
    features = int(dict(maps)[name].shape[1])
    return PointRend(network, fine=name, features=features, classes=int(logits.shape[1]), width=width)


def _watched(network: nn.Module, image: Tensor) -> tuple[list[tuple[str, Tensor]], Tensor | None]:
    """What each module gave of an image, in order, where it was a map; and the output."""
    maps: list[tuple[str, Tensor]] = []

    def hook(name: str) -> Any:
        return lambda module, given, out: (
            maps.append((name, out)) if isinstance(out, Tensor) and out.dim() == 4 else None
        )

    modes = [(module, module.training) for module in network.modules()]
    handles = [m.register_forward_hook(hook(name)) for name, m in network.named_modules() if name]
    try:
        with torch.no_grad():
            found = network.eval()(image)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return maps, found if isinstance(found, Tensor) and found.dim() == 4 else None


def _finest(maps: list[tuple[str, Tensor]], side: int) -> str:
    for part in (4, 2):
        sizes = [out.shape[2] for _, out in maps]
        coarser = next((k for k, size in enumerate(sizes) if size < side // part), len(sizes))
        if names := [name for name, out in maps[:coarser] if out.shape[2] == side // part]:
            return names[-1]
    raise _unusable("no module gives features of a quarter or half of the image's size")


def _sizes(coarse: tuple[int, int], image: tuple[int, int]) -> list[tuple[int, int]]:
    """From the map's size to the image's by doubling, the image's last; at least that."""
    sizes, here = [image], image
    while (here := (-(-here[0] // 2), -(-here[1] // 2)))[0] > coarse[0] and here[1] > coarse[1]:
        sizes.append(here)
    return sizes[::-1]


def _places(index: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Middles of pixels given by number, int64 `[B, P]`, as `sampled` takes them.

    Whole numbers until the last two steps, and neither a sum nor a product of floats: those are rounded to 8
    bits in an int8 export, and with them the places.
    """
    middles = torch.stack([2 * (index % width) + 1, 2 * (index // width) + 1], 2)
    return middles.to(dtype) / torch.tensor([width, height], dtype=dtype, device=index.device) - 1


def _faded(margins: Tensor) -> Tensor:
    """Weights `[B, 1, P]`, 1 at most, 0 at the surest of the points, from their margins `[B, P]`."""
    last = margins.amax(1, keepdim=True)
    scale = torch.maximum(last / _FADE, torch.full_like(last, 1e-6))
    return torch.minimum((last - margins) / scale, torch.ones_like(margins))[:, None]


def _unusable(what: str) -> ModelError:
    return ModelError(
        f"point_rend: {what}. Give a segmentation network, and with fine= (in a name: NAME+pointrend@MODULE) "
        "one of its modules; `dict(network.named_modules())` lists them.",
        code="model-points",
    )
