"""`images.decode`: the stated rule for each kind of image, and each refusal's code."""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from niwaki import images
from niwaki.errors import DataError, SpecError


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def code_of(source: images.Source) -> str:
    with pytest.raises(DataError) as caught:
        images.decode(source, channels=3)
    return caught.value.code


def colours(height: int = 4, width: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png_of(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these (name, data) chunks, with right lengths and checksums."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def test_path_text_and_bytes_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(colours())))
    for source in (path, str(path), path.read_bytes()):
        out = images.decode(source, channels=3)
        assert out.dtype == np.uint8 and np.array_equal(out, colours())


def test_grey_is_repeated_and_colour_becomes_luma() -> None:
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6)
    out = images.decode(encoded(Image.fromarray(grey)), channels=3)
    assert np.array_equal(out, np.stack([grey] * 3, axis=-1))
    r, g, b = colours().astype(int).transpose(2, 0, 1)
    want = (19595 * r + 38470 * g + 7471 * b + 32768) // 65536
    out = images.decode(encoded(Image.fromarray(colours())), channels=1)
    assert out.shape == (4, 6, 1) and np.array_equal(out[..., 0], want)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_divided_by_257(form: str) -> None:
    values = np.array([[0, 128, 129, 256, 257, 385, 386, 65535]], dtype=np.uint16)
    out = images.decode(encoded(Image.fromarray(values), form), channels=1)
    assert out[0, :, 0].tolist() == [round(v / 257) for v in values[0].tolist()]


def test_sixteen_bit_colour_keeps_the_high_byte() -> None:
    rows = np.array([[[0x1234, 0xFFFF, 0x00FF]]], dtype=">u2")
    head = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    png = png_of((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" + rows.tobytes())), (b"IEND", b""))
    assert images.decode(png, channels=3)[0, 0].tolist() == [0x12, 0xFF, 0x00]


def test_alpha_is_composed_over_white() -> None:
    rgba = np.zeros((1, 256, 4), dtype=np.uint8)
    rgba[0, :, 3] = np.arange(256)
    rgba[0, :, 0] = 200
    out = images.decode(encoded(Image.fromarray(rgba)), channels=3)
    want = [round((200 * a + 255 * (255 - a)) / 255) for a in range(256)]
    assert out[0, :, 0].tolist() == want
    assert out[0, :, 1].tolist() == [255 - a for a in range(256)]
    half = Image.fromarray(np.array([[[0, 128]]], dtype=np.uint8))
    assert images.decode(encoded(half), channels=1).tolist() == [[[127]]]


def test_palette_is_expanded_and_its_transparency_is_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    assert images.decode(encoded(image), channels=3).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    clear = encoded(image, transparency=1)
    assert images.decode(clear, channels=3).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_one_bit_cmyk_and_animation() -> None:
    bits = Image.fromarray(np.array([[True, False]]))
    assert images.decode(encoded(bits), channels=1).tolist() == [[[255], [0]]]
    cmyk = Image.new("CMYK", (1, 1), (0, 255, 0, 0))
    assert images.decode(encoded(cmyk, "TIFF"), channels=3).tolist() == [[[255, 0, 255]]]
    red, blue = Image.new("RGB", (2, 2), (255, 0, 0)), Image.new("RGB", (2, 2), (0, 0, 255))
    gif = encoded(red, "GIF", save_all=True, append_images=[blue])
    assert images.decode(gif, channels=3)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_is_applied(form: str, turn: int) -> None:
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :16] = 255  # white top left
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[turn]
    stored = Image.fromarray(upright)
    stored = stored if undo is None else stored.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"lossless": True} if form == "WEBP" else {}
    out = images.decode(encoded(stored, form, exif=exif, **options), channels=3)
    assert out.shape == upright.shape
    assert np.abs(out.astype(int) - upright).max() < 16


def test_damaged_exif_is_ignored() -> None:
    data = encoded(Image.fromarray(colours(16, 16)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert images.decode(data, channels=3).shape == (16, 16, 3)


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    png = encoded(Image.fromarray(colours(64, 64)))
    assert code_of(tmp_path / "none.png") == "image-missing"
    assert code_of(tmp_path) == "image-unreadable"
    assert code_of("a\0b.png") == "image-unreadable"
    assert code_of(b"") == "image-empty"
    assert code_of(png[: len(png) // 2]) == "image-corrupt"
    assert code_of(b"hello, I am a text") == "image-unsupported"
    assert code_of(b"\x89PNG but no more") == "image-corrupt"
    floats = Image.fromarray(np.ones((2, 2), dtype=np.float32))
    assert code_of(encoded(floats, "TIFF")) == "image-unsupported"
    deep = Image.fromarray(np.array([[70000]], dtype=np.int32))
    assert code_of(encoded(deep, "TIFF")) == "image-unsupported"
    assert code_of(encoded(Image.fromarray(colours()), "EPS")) == "image-unsupported"
    os.mkfifo(tmp_path / "pipe.png")
    assert code_of(tmp_path / "pipe.png") == "image-unreadable"
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 64 - 1)
    assert code_of(png) == "image-oversized"
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    assert code_of(png) == "image-oversized"


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)
    assert code_of(png_of((b"IHDR", head), (b"IDAT", zlib.compress(b"")))) == "image-oversized"


def test_channels_other_than_1_and_3_are_refused() -> None:
    with pytest.raises(SpecError) as caught:
        images.decode(b"", channels=4)
    assert caught.value.code == "spec-channels"


def test_pillow_warnings_do_not_leak_from_any_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)  # 64 x 64 is more, but not twice as much
    png = encoded(Image.fromarray(colours(64, 64)))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        work = [threading.Thread(target=images.decode, args=(png,), kwargs={"channels": 3})] * 1
        work += [
            threading.Thread(target=lambda: [images.decode(png, channels=1) for _ in range(50)])
            for _ in range(4)
        ]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
        assert warnings.filters == before
        with Image.open(io.BytesIO(png)):  # the same warning does come without decode
            pass
    assert [w.category for w in seen] == [Image.DecompressionBombWarning]


def test_messages_name_the_path_printably(tmp_path: Path) -> None:
    path = tmp_path / "new\nline\x1b[31m.png"
    path.write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        images.decode(path, channels=3)
    assert "new\\nline\\x1b[31m.png" in str(caught.value)
    assert images.printable("ok é 木 \udcff") == "ok é 木 \\xff"
