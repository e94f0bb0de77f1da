"""Pictures for a page: small images as PNG data URIs. Numpy and Pillow only."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import numpy as np
from PIL import Image

SIDE = 128
"""Pictures are drawn at this many pixels; smaller ones are enlarged without blur."""
WIDE = 1200
"""So are rows of pictures."""

_URI = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+=*")


def uri(image: Any, *, side: int = SIDE) -> str:
    """A picture as a `data:image/png` URI.

    Args:
        image: uint8 `[H, W]`, `[H, W, 1]` or `[H, W, 3]`, or such a URI already, which is checked.
        side: pixels of its longer side.
    Raises:
        ValueError: it is neither.
    """
    if isinstance(image, str):
        if not _URI.fullmatch(image):
            raise ValueError(f"not a picture's data URI: {image[:40]!r}")
        return image
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise ValueError(f"a picture is uint8 [H, W] or [H, W, C], got {pixels.dtype} {pixels.shape}")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    picture = Image.fromarray(pixels)
    largest = max(picture.size)
    scale = side // largest if largest < side else side / largest
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    grows = largest < side
    picture = picture.resize(size, Image.Resampling.NEAREST if grows else Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
