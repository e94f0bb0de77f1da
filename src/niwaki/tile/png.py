"""PNG written row by row: grey, or with a palette, of 8 or 16 bits. Source: PNG (third edition), W3C, section
11."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from niwaki.tile.scratch import Raw

_ROWS = 64


def write(raw: Raw, path: Path, *, palette: tuple[tuple[int, int, int], ...] = ()) -> None:
    """Writes a plane `[H, W]` of uint8 or uint16; a palette of up to 256 colours goes with 8 bits."""
    height, width = raw.shape
    coloured = bool(palette) and raw.dtype == np.uint8
    bits = 8 * raw.dtype.itemsize
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 3 if coloured else 0, 0, 0, 0))
        if coloured:
            # all 256, so that a pixel without data (255) has a colour too
            colours = [*palette[:256], *[(0, 0, 0)] * (256 - len(palette))]
            chunk(file, b"PLTE", bytes(number for colour in colours for number in colour))
        packer = zlib.compressobj(6)
        for y in range(0, height, _ROWS):
            rows = raw.read(y, min(y + _ROWS, height), 0, width)
            lines = np.zeros(
                (len(rows), 1 + width * raw.dtype.itemsize), np.uint8
            )  # each begins with its filter, none
            lines[:, 1:] = rows.astype(raw.dtype.newbyteorder(">")).view(np.uint8).reshape(len(rows), -1)
            chunk(file, b"IDAT", packer.compress(lines.tobytes()))
        chunk(file, b"IDAT", packer.flush())
        chunk(file, b"IEND", b"")


def chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
    """Writes one chunk: length, kind, data, checksum."""
    if data or kind == b"IEND":
        file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
