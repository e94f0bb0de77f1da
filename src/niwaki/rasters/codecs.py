"""One compressed block of a TIFF to its pixels, with zlib, numpy and Pillow (whose wheel brings libtiff).

LZW, Zstandard, LZMA and PackBits blocks are handed to Pillow inside a TIFF of one row that is made around them;
JPEG, JPEG 2000 and WebP blocks are files of their own. Predictors are undone here, whatever the type of the
pixels.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.generic]

NONE, LZW, JPEG, DEFLATE, ADOBE_DEFLATE, PACKBITS = 1, 5, 7, 32946, 8, 32773
JP2, JP2_YCBCR, JP2_RGB, ZSTD, LZMA, WEBP = 34712, 33003, 33005, 50000, 34925, 50001
BYTES = (NONE, LZW, DEFLATE, ADOBE_DEFLATE, PACKBITS, ZSTD, LZMA)
"""Compressions of bytes, whatever the bytes mean."""
PICTURES = (JPEG, JP2, JP2_YCBCR, JP2_RGB, WEBP)
"""Compressions that hold a picture of 8-bit pixels."""

HORIZONTAL, FLOATING = 2, 3
YCBCR = 6


def unpack(data: bytes, compression: int, size: int) -> bytes:
    """The `size` bytes of a block; what is missing raises ValueError.

    Args:
        compression: one of `BYTES`.
    """
    if compression == NONE:
        out = data
    elif compression in (DEFLATE, ADOBE_DEFLATE):
        try:
            out = zlib.decompressobj().decompress(data, size)
        except zlib.error as error:
            raise ValueError(f"deflate: {error}") from error
    else:
        with Image.open(io.BytesIO(_as_file(data, compression, size))) as image:
            out = image.tobytes()
    if len(out) < size:
        raise ValueError(f"a block of {len(out)} bytes, expected {size}")
    return out[:size]


def picture(data: bytes, compression: int, *, tables: bytes | None, photometric: int) -> npt.NDArray[np.uint8]:
    """A block that is a picture: uint8 `[h, w, C]`.

    Args:
        tables: the JPEG tables that all blocks of the file share.
        photometric: the TIFF's colour kind; says whether a JPEG's colours are YCbCr.
    """
    if compression == JPEG:
        # the marker tells the decoder what the TIFF says of the colours, which the block itself does not
        marker = b"\xff\xee\x00\x0eAdobe\x00\x64\0\0\0\0" + bytes([photometric == YCBCR])
        shared = tables[2:-2] if tables else b""
        data = data[:2] + marker + shared + data[2:]
    with Image.open(io.BytesIO(data)) as opened:
        image: Image.Image = opened
        if compression == JP2_YCBCR and image.mode == "RGB":
            image = Image.frombytes("YCbCr", image.size, image.tobytes()).convert("RGB")
        pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def undo(block: Pixels, predictor: int) -> Pixels:
    """A block `[h, w, C]` in the machine's byte order, its predictor undone; a new array or the same."""
    if predictor == HORIZONTAL:
        # sums that wrap round, as the differences did
        unsigned = block.view(f"u{block.dtype.itemsize}")
        return np.cumsum(unsigned, axis=1, dtype=unsigned.dtype).view(block.dtype)
    return block


def undo_floating(data: bytes, shape: tuple[int, int, int], itemsize: int) -> Pixels:
    """A block of floats `[h, w, C]` whose bytes were sorted by weight and differenced (predictor 3)."""
    height, width, channels = shape
    rows = np.frombuffer(data, np.uint8).reshape(height, itemsize, width * channels)
    # bytes are differenced with a distance of one pixel's channels
    flat = rows.reshape(height, itemsize * width, channels)
    summed = np.cumsum(flat, axis=1, dtype=np.uint8).reshape(height, itemsize, width * channels)
    big = np.ascontiguousarray(summed.transpose(0, 2, 1))
    return big.view(f">f{itemsize}").reshape(shape).astype(f"f{itemsize}")


def _as_file(data: bytes, compression: int, size: int) -> bytes:
    """A TIFF of one row of `size` grey pixels, whose only strip is `data`."""
    tags = (
        (256, 4, size),
        (257, 4, 1),
        (258, 3, 8),
        (259, 3, compression),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, 1),
        (279, 4, len(data)),
    )
    padded = data + b"\0" * (len(data) % 2)
    head = struct.pack("<2sHI", b"II", 42, 8 + len(padded))
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return head + padded + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
