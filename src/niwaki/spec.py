"""Spec: what an image must look like when it enters a model. Numpy and Pillow only, no torch.

Training, calibration, prediction and serving all go through `Spec.read`, so what a model sees in the field
is what it saw while it learned. Shape letters: N images, H W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from niwaki.errors import SpecError
from niwaki.images import Source, decode

ImageU8 = npt.NDArray[np.uint8]

RESIZE = "pillow-bilinear-antialias-stretch"
"""The resize rule's name in a manifest: the whole image is stretched to (H, W) by Pillow's BILINEAR filter,
whose support grows with the reduction (antialiased)."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Size, channels and normalisation of a model's input; a value, equal by content.

    Args:
        size_hw: height and width in pixels.
        mean, std: per channel, in units where white is 1.
        channels: 3 (RGB) or 1 (grey).
    Raises:
        SpecError: a value is out of range. [spec-size, spec-channels, spec-std]
    """

    size_hw: tuple[int, int]
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    channels: int = 3

    def __post_init__(self) -> None:
        if len(self.size_hw) != 2 or min(self.size_hw) < 1:
            raise SpecError(
                f"Spec: size_hw must be two numbers of at least 1, got {self.size_hw}.",
                code="spec-size",
            )
        if self.channels not in (1, 3) or {len(self.mean), len(self.std)} != {self.channels}:
            raise SpecError(
                f"Spec: channels must be 1 or 3 with one mean and std each, got channels="
                f"{self.channels}, {len(self.mean)} means, {len(self.std)} stds.",
                code="spec-channels",
            )
        if min(self.std) <= 0:
            raise SpecError(f"Spec: std must be above 0, got {self.std}.", code="spec-std")

    def read(self, source: Source) -> ImageU8:
        """An image file or its bytes, decoded and resized: uint8 `[H, W, C]`.

        Raises:
            DataError: it is no image that can be used. [image-*]
        """
        return self.pack(decode(source, channels=self.channels))

    def pack(self, image: ImageU8) -> ImageU8:
        """A decoded image uint8 `[h, w, C]`, resized to uint8 `[H, W, C]`."""
        height, width = self.size_hw
        if image.shape[:2] == (height, width):
            return np.ascontiguousarray(image)
        flat = image[..., 0] if self.channels == 1 else image
        resized = Image.fromarray(flat).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(resized, dtype=np.uint8).reshape(height, width, self.channels)

    def normalise(self, images: ImageU8) -> npt.NDArray[np.float32]:
        """uint8 `[N, H, W, C]` to what the bare model takes: float32 `[N, C, H, W]`."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        scaled = (images.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), dtype=np.float32)

    def example(self, batch: int = 1, *, seed: int = 0) -> npt.NDArray[np.float32]:
        """A random normalised batch: float32 `[batch, C, H, W]`, the same for the same seed."""
        draw = np.random.default_rng(seed).standard_normal((batch, self.channels, *self.size_hw))
        return draw.astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """What a manifest holds; `from_json` reads it back."""
        return {
            "size_hw": list(self.size_hw),
            "mean": list(self.mean),
            "std": list(self.std),
            "channels": self.channels,
            "resize": RESIZE,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Spec:
        """The Spec that `to_json` wrote.

        Raises:
            SpecError: the resize rule is another one, or a value is out of range. [spec-resize]
        """
        if value.get("resize") != RESIZE:
            raise SpecError(
                f"Spec: resize rule {value.get('resize')!r} is not known, expected {RESIZE!r}. "
                "It was written by another version of niwaki.",
                code="spec-resize",
            )
        height, width = value["size_hw"]
        return cls(
            size_hw=(int(height), int(width)),
            mean=tuple(map(float, value["mean"])),
            std=tuple(map(float, value["std"])),
            channels=int(value["channels"]),
        )
