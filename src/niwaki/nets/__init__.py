"""Networks by name: `timm:NAME`, niwaki's own `niwaki:NAME`, segmentation networks of libraries
(`smp:unet-resnet18`, `torchvision:fcn_resnet50`), and a user's function. Needs torch.

Only `build_user` imports a user's file; nothing read from an artifact gets there.
"""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from torch import nn

from niwaki.errors import ModelError
from niwaki.lazy import require
from niwaki.nets import libraries
from niwaki.nets.bisenet_v2 import bisenet_v2
from niwaki.nets.cifar import resnet20, resnet32, resnet56
from niwaki.nets.fast_scnn import fast_scnn
from niwaki.nets.lednet import lednet
from niwaki.nets.light_context import light_context
from niwaki.nets.mask_rcnn import MaskRCNN
from niwaki.nets.point_rend import POINTS, PointRend, point_rend
from niwaki.nets.sfnet import sfnet
from niwaki.nets.small import small
from niwaki.nets.star_unet import star_unet, star_unet_wide
from niwaki.nets.weights import load_weights

__all__ = [
    "BUILDERS",
    "SEGMENTATION",
    "MaskRCNN",
    "PointRend",
    "build",
    "build_user",
    "load_weights",
    "point_rend",
]

SEGMENTATION: dict[str, Callable[..., nn.Module]] = {
    "bisenet_v2": bisenet_v2,
    "fast_scnn": fast_scnn,
    "lednet": lednet,
    "light_context": light_context,
    "sfnet": sfnet,
}
"""Networks that answer for each pixel: logits `[B, K, h, w]`."""
BUILDERS: dict[str, Callable[..., nn.Module]] = {
    **SEGMENTATION,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet56": resnet56,
    "small": small,
    "star_unet": star_unet,
    "star_unet_wide": star_unet_wide,
}
STARS = ("star_unet", "star_unet_wide")
"""Those of `BUILDERS` that answer with star-convex objects."""

LIBRARIES: dict[str, Callable[..., nn.Module]] = {"smp": libraries.smp, "torchvision": libraries.torchvision}
"""Segmentation networks of others, by the word before the colon."""


def build(name: str, *, classes: int, channels: int = 3, pretrained: bool = False) -> nn.Module:
    """A fresh model in training mode: images float `[B, C, H, W]` to logits `[B, classes]`.

    Args:
        name: `timm:NAME`, `niwaki:NAME`, one of `BUILDERS`, `smp:ARCHITECTURE-ENCODER` or `torchvision:NAME`;
            those of masks give logits `[B, classes, h, w]`, and may end in `+pointrend` or `+pointrend@MODULE`,
            which puts a PointRend on them (`point_rend`).
        pretrained: start from the published weights (timm only; they are downloaded once).
    Raises:
        ModelError: no such model, no weights for it, or the download failed.
            [model-unknown, model-pretrained, model-download, model-points]
    """
    whole, points, fine = name.partition(POINTS)
    if points and (not fine or fine[0] == "@"):
        inner = build(whole, classes=classes, channels=channels, pretrained=pretrained)
        return point_rend(inner, channels=channels, fine=fine[1:] or None)
    family, _, rest = name.partition(":")
    if family == "timm" and rest:
        return _timm(rest, classes=classes, channels=channels, pretrained=pretrained)
    if family in LIBRARIES and rest and not pretrained:
        return LIBRARIES[family](rest, classes=classes, channels=channels)
    if family in LIBRARIES and rest:
        raise ModelError(
            f"model: {name} starts from random weights here. Use --weights FILE.", code="model-pretrained"
        )
    if family != "niwaki" or rest not in BUILDERS:
        known = [f"niwaki:{own}" for own in BUILDERS]
        raise ModelError(
            f"model: {name!r} is not known.{_nearest(name, known)} Expected timm:NAME, "
            f"smp:ARCHITECTURE-ENCODER, torchvision:NAME, one of {', '.join(known)}, or file.py:function.",
            code="model-unknown",
        )
    if pretrained:
        raise ModelError(
            f"model: {name} has no published weights. Use --weights FILE, or a timm: model.",
            code="model-pretrained",
        )
    return BUILDERS[rest](classes=classes, channels=channels)


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def _timm(name: str, *, classes: int, channels: int, pretrained: bool) -> nn.Module:
    timm = require("timm", extra="train")
    if not timm.is_model(name):
        raise ModelError(
            f"model: timm {timm.__version__} has no model {name!r}."
            f"{_nearest(name, timm.list_models())} `timm.list_models()` lists them.",
            code="model-unknown",
        )
    if not pretrained:
        model: nn.Module = timm.create_model(name, num_classes=classes, in_chans=channels)
        return model
    if not timm.models.is_model_pretrained(name):
        raise ModelError(
            f"model: timm has no published weights for {name}. Use --weights FILE, or none.",
            code="model-pretrained",
        )
    try:
        model = timm.create_model(name, pretrained=True, num_classes=classes, in_chans=channels)
    except Exception as error:  # the hub's client raises many classes, none of them ours to list
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(
            f"model: the weights of timm:{name} could not be fetched: {reason}. Check the "
            "network, or start from random weights, or give a file with --weights.",
            code="model-download",
        ) from error
    return model


def build_user(name: str, *, classes: int, channels: int = 3) -> nn.Module:
    """The model that the user's own function returns; runs the user's file.

    Args:
        name: `path/to/file.py:function`; it is called as `function(classes=..., channels=...)`.
    Raises:
        ModelError: no such file or function, or what it returned is no `nn.Module`. [model-user]
    """
    file, _, function = name.rpartition(":")
    path = Path(file)
    if path.suffix != ".py" or not path.is_file():
        raise ModelError(
            f"model: {name!r}: there is no file {file or name}, expected file.py:function.",
            code="model-user",
        )
    maker = getattr(_run(path), function, None)
    if not callable(maker):
        raise ModelError(f"model: {path} has no function {function!r}.", code="model-user")
    model = maker(classes=classes, channels=channels)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model: {name} returned {type(model).__name__}, expected a torch.nn.Module.",
            code="model-user",
        )
    return model


def _run(path: Path) -> ModuleType:
    name = f"niwaki_user_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None and found.loader is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and torch.export look their module up by name
    try:
        found.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ModelError(
            f"model: {path} fails when it is run: {type(error).__name__}: {error}.",
            code="model-user",
        ) from error
    return module
