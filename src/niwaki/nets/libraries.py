"""Segmentation networks of kept libraries, by name: segmentation_models_pytorch and torchvision.

    smp:unet-resnet18         architecture and any encoder of timm; sides are multiples of 32 (PSPNet: of 8)
    torchvision:fcn_resnet50
    torchvision:maskrcnn_resnet50_fpn     of objects: `mask_rcnn.py`

Shape letters: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from niwaki.errors import ModelError
from niwaki.lazy import require
from niwaki.nets.mask_rcnn import mask_rcnn

SMP = (
    "unet",
    "unetplusplus",
    "fpn",
    "pspnet",
    "deeplabv3",
    "deeplabv3plus",
    "manet",
    "linknet",
    "pan",
    "upernet",
)
"""Architectures of segmentation_models_pytorch that can be named."""
TORCHVISION = (
    *("fcn_resnet50", "fcn_resnet101", "deeplabv3_resnet50", "deeplabv3_resnet101"),
    *("deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"),
)


def smp(name: str, *, classes: int, channels: int) -> nn.Module:
    """A network of segmentation_models_pytorch with random weights: images to logits `[B, K, H, W]`.

    Args:
        name: `ARCHITECTURE-ENCODER`, the encoder any of timm's that gives features, such as `unet-resnet18`.
    Raises:
        ModelError: no such architecture or encoder. [model-unknown]
        MissingExtra: segmentation_models_pytorch is not installed. [extra-missing]
    """
    architecture, _, encoder = name.partition("-")
    library = require("segmentation_models_pytorch", extra="segment")
    timm = require("timm", extra="train")
    if architecture not in SMP or not timm.is_model(encoder):
        raise ModelError(
            f"model: 'smp:{name}' is not known. Expected smp:ARCHITECTURE-ENCODER, the architecture one of "
            f"{', '.join(SMP)}, the encoder a model of timm, such as smp:unet-resnet18.",
            code="model-unknown",
        )
    try:
        made: nn.Module = library.create_model(
            architecture,
            encoder_name=f"tu-{encoder}",
            encoder_weights=None,
            in_channels=channels,
            classes=classes,
        )
    except Exception as error:  # encoders without stages fail in many ways, none of them the library's own
        raise ModelError(
            f"model: timm:{encoder} cannot be the encoder of {architecture}: {str(error)[:200]}.",
            code="model-unknown",
        ) from error
    return made


def torchvision(name: str, *, classes: int, channels: int) -> nn.Module:
    """A segmentation network of torchvision with random weights: images to logits `[B, K, H, W]`.

    Raises:
        ModelError: no such network. [model-unknown]
    """
    if name.startswith("maskrcnn_"):
        return mask_rcnn(name, classes=classes, channels=channels)
    if name not in TORCHVISION:
        raise ModelError(
            f"model: 'torchvision:{name}' is not known, expected one of {', '.join(TORCHVISION)}.",
            code="model-unknown",
        )
    models = require("torchvision.models", extra="train")
    inner = models.get_model(name, weights=None, weights_backbone=None, num_classes=classes)
    if channels != 3:
        _widen(inner, channels)
    return Output(inner)


class Output(nn.Module):
    """A network of torchvision whose only output is what is predicted."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Images float `[B, C, H, W]` to logits `[B, K, H, W]`."""
        logits: Tensor = self.inner(x)["out"]
        return logits


def _widen(network: nn.Module, channels: int) -> None:
    """The first convolution made anew for that many channels."""
    name, first = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    holder, _, last = name.rpartition(".")
    fresh: Any = nn.Conv2d(
        channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        stride=first.stride,  # type: ignore[arg-type]
        padding=first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    network.get_submodule(holder).register_module(last, fresh)
