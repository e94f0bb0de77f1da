"""Spec: what an image must look like when it enters a model. Numpy and Pillow only, no torch.

Training, calibration, prediction and serving all go through `Spec.read`, so what a model sees in the field
is what it saw while it learned. Models take 8 bits a channel; `scale` says how anything else becomes that.
Shape letters: N images, H W pixels, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki import bands
from niwaki.bands import Source
from niwaki.errors import DataError, SpecError
from niwaki.images import decode, label

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
        channels: 3 (RGB), 1 (grey), or any number of bands.
        scale: for each channel the values (low, high) that become 0 and 255, for images of more than 8 bits or
            of bands; None for photographs, which are read by the rules of `niwaki.images`.
        bands: names of the channels, such as `B02`; empty where they have none.
    Raises:
        SpecError: a value is out of range. [spec-size, spec-channels, spec-std, spec-scale, spec-bands]
    """

    size_hw: tuple[int, int]
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    channels: int = 3
    scale: tuple[tuple[float, float], ...] | None = None
    bands: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.size_hw) != 2 or min(self.size_hw) < 1:
            raise SpecError(
                f"Spec: size_hw must be two numbers of at least 1, got {self.size_hw}.",
                code="spec-size",
            )
        if self.channels < 1 or {len(self.mean), len(self.std)} != {self.channels}:
            raise SpecError(
                f"Spec: channels must be at least 1 with one mean and std each, got channels="
                f"{self.channels}, {len(self.mean)} means, {len(self.std)} stds.",
                code="spec-channels",
            )
        if min(self.std) <= 0:
            raise SpecError(f"Spec: std must be above 0, got {self.std}.", code="spec-std")
        self._check_bands()

    def _check_bands(self) -> None:
        ends = self.scale if self.scale is not None else ((0.0, 1.0),) * self.channels
        right = len(ends) == self.channels and all(len(pair) == 2 for pair in ends)
        if not right or not all(
            math.isfinite(low) and math.isfinite(high) and low < high for low, high in ends
        ):
            raise SpecError(
                f"Spec: scale must be a pair (low, high), low below high, for each of {self.channels} "
                f"channels, got {self.scale}.",
                code="spec-scale",
            )
        if self.bands and len(set(self.bands)) != self.channels:
            raise SpecError(
                f"Spec: bands must be {self.channels} names that differ, or none, got {self.bands}.",
                code="spec-bands",
            )

    @property
    def banded(self) -> bool:
        """Whether images are bands, read by `niwaki.bands`, and no photographs."""
        return self.scale is not None or self.channels not in (1, 3)

    def read(self, source: Source) -> ImageU8:
        """An image file, its bytes, or several files of bands, decoded and resized: uint8 `[H, W, C]`.

        Raises:
            DataError: it is no image that can be used. [image-*, bands-*]
        """
        return self.pack(self.pixels(source))

    def pixels(self, source: Source, *, name: str | None = None) -> ImageU8:
        """An image at its own size in the model's 8 bits: uint8 `[h, w, C]`.

        Raises:
            DataError: it is no image that can be used, or has another number of bands. [image-*, bands-*]
        """
        plain = not self.banded and bands.no_photograph(source, name=name) is None
        if plain and not isinstance(source, bands.Stack):
            return decode(source, channels=self.channels, name=name)
        name = name or ("image" if isinstance(source, bands.Stack) else label(source))
        return self.adapted(bands.read(source, name=name)[0], name=name)

    def adapted(self, pixels: npt.NDArray[Any], *, name: str = "image") -> ImageU8:
        """Bands `[h, w, C]` as a file holds them in the model's 8 bits: uint8 `[h, w, C]`.

        Raises:
            DataError: there is another number of bands. [bands-count]
        """
        if pixels.shape[-1] != self.channels:
            raise DataError(
                f"{name}: has {bands.counted(pixels.shape[-1])}, the model takes {self.channels}{self.named}.",
                code="bands-count",
            )
        return bands.stretched(pixels, self.scale, name=name)

    @property
    def named(self) -> str:
        """The names of the bands in brackets, for messages; empty where there are none."""
        return f" ({', '.join(self.bands)})" if self.bands else ""

    def pack(self, image: ImageU8) -> ImageU8:
        """A decoded image uint8 `[h, w, C]`, resized to uint8 `[H, W, C]`."""
        return bands.resized(image, self.size_hw)

    def picture(self, image: ImageU8) -> ImageU8:
        """An image uint8 `[h, w, C]` as it is shown: photographs as they are, of bands three as colours."""
        return bands.picture(image, self.bands) if self.banded else image

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
        told: dict[str, Any] = {
            "size_hw": list(self.size_hw),
            "mean": list(self.mean),
            "std": list(self.std),
            "channels": self.channels,
            "resize": RESIZE,
        }
        if self.scale is not None:  # photographs' manifests stay as they were
            told["scale"] = [list(pair) for pair in self.scale]
        if self.bands:
            told["bands"] = list(self.bands)
        return told

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
            scale=_scale(value.get("scale")),
            bands=tuple(str(name) for name in list(value.get("bands", []))),
        )


def _scale(value: Any) -> tuple[tuple[float, float], ...] | None:
    if value is None:
        return None
    try:
        return tuple((float(low), float(high)) for low, high in value)
    except (TypeError, ValueError) as error:
        raise SpecError(
            f"Spec: scale is no list of pairs (low, high): {value!r}.", code="spec-scale"
        ) from error
