"""Reading one image: a file or its bytes to uint8 pixels, by rules that are the same everywhere.

Training, calibration, `predict` and serving all decode here (through `Spec.read`). Numpy and
Pillow only. The rules, in the order in which they apply:

- The file is read whole: a regular file of at most `MAX_BYTES`. Any format that Pillow opens
  counts, whatever the name says, but for EPS, which would start a program. Of several frames or
  pages the first is taken.
- Size is checked before a pixel is decoded: at most `MAX_PIXELS`. A file that breaks off early is
  refused.
- The EXIF orientation is applied; an EXIF block that cannot be read is ignored, as are colour
  profiles.
- 1 bit: 0 and 255. Palette: expanded. CMYK, YCbCr, HSV: to RGB by Pillow's plain formula.
- 16-bit grey: divided by 257 and rounded. 16-bit colour: Pillow keeps the high byte, at most one
  level away from that. Integers beyond 16 bits, floating point and LAB: refused.
- Alpha (and a palette's or PNG's transparent colour): composed over white, rounded.
- Colour to grey: (19595 R + 38470 G + 7471 B + 32768) // 65536, Pillow's ITU-R 601 luma. Grey to
  colour: repeated.

Every failure is a `DataError` with a code; Pillow's warnings do not leak.
"""

from __future__ import annotations

import importlib.util
import io
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from niwaki.errors import DataError, SpecError

Source = Path | str | bytes
"""What `decode` takes: a file's path, or the file's bytes."""

ImageU8 = npt.NDArray[np.uint8]
Pixels = TypeVar("Pixels", bound=npt.NDArray[np.integer])

MAX_PIXELS = 89_478_485
"""Pixels an image may have: Pillow's own alarm limit, a quarter of a gigabyte as RGB."""

MAX_BYTES = 512 * 2**20
"""Bytes an image file may have."""

_LARGE, _BAND = 1 << 20, 256
_REFUSED_FORMATS = {"EPS"}  # Pillow hands EPS to Ghostscript: no program is run for a file's sake
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*", b"\0\0\1\0")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


def decode(source: Source, *, channels: int, name: str | None = None, most: int = 0) -> ImageU8:
    """An image's pixels: uint8 `[h, w, channels]`, by the rules at the head of this module.

    Args:
        source: a path, or a file's bytes.
        channels: 3 (RGB) or 1 (grey).
        name: what messages call it; the path when not told.
        most: pixels that it may have; `MAX_PIXELS` unless more.
    Raises:
        DataError: it is no image that can be used.
            [image-missing, image-unreadable, image-empty, image-corrupt, image-oversized,
            image-unsupported]
    """
    if channels not in (1, 3):
        raise SpecError(f"decode: channels must be 1 or 3, got {channels}.", code="spec-channels")
    return _guarded(source, name, lambda content, name: to_channels(_pixels(content, name, most), channels))


def stored(
    source: Source, *, name: str | None = None, colours: bool = False, most: int = 0
) -> npt.NDArray[np.integer]:
    """What an image file's pixels hold, unchanged: grey levels (8 or 16 bits) or palette places `[h, w]`, or
    colours uint8 `[h, w, 3]`. For files whose numbers mean something, such as masks.

    Args:
        colours: colours of a palette instead of places in it.
        most: pixels that it may have; `MAX_PIXELS` unless more.
    Raises:
        DataError: as `decode`.
    """
    return _guarded(source, name, lambda content, name: _stored(content, name, colours, most))


def head(source: Source) -> tuple[int, int, str]:
    """Width, height and Pillow's mode of an image of any size, from its head alone; raises what Pillow does."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    with _quiet(), _lifted(1 << 62), Image.open(file) as image:
        return *image.size, image.mode


def _guarded(source: Source, name: str | None, take: Callable[[bytes, str], Pixels]) -> Pixels:
    """`take` of an image file's bytes; whatever goes wrong is a DataError with a code."""
    name = name or label(source)
    content = load(source, name=name)
    with _quiet():
        try:
            return take(content, name)
        except DataError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
            what = str(error).split(", could")[0] or "it does not fit in memory"
            raise _oversized(name, what) from error
        except UnidentifiedImageError as error:
            raise _unidentified(content, name) from error
        # Pillow's decoders raise whatever a damaged byte leads them to: SyntaxError, KeyError, ...
        except Exception as error:
            raise DataError(
                f"{name}: the image is damaged or breaks off early ({type(error).__name__}: "
                f"{_short(error)}). Replace the file or take it out.",
                code="image-corrupt",
            ) from error


def load(source: Source, *, name: str | None = None) -> bytes:
    """An image file's bytes, unread as yet but for its kind and size.

    Raises:
        DataError: [image-missing, image-unreadable, image-empty, image-oversized]
    """
    name = name or label(source)
    content = source if isinstance(source, bytes) else _read_file(Path(source), name)
    if not content:
        raise DataError(f"{name}: the file is empty (0 bytes).", code="image-empty")
    if len(content) > MAX_BYTES:
        raise _oversized(name, f"more than {MAX_BYTES >> 20} MiB of file")
    return content


def label(source: Source) -> str:
    """How messages name a source: its path made printable, or `image of N bytes`."""
    if isinstance(source, bytes):
        return f"image of {len(source)} bytes"
    return printable(str(source))


def printable(text: str) -> str:
    """`text` with control characters and undecodable bytes escaped: safe to show and in JSON."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # how Python carries a byte of a name that is no UTF-8
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


def to_channels(image: ImageU8, channels: int) -> ImageU8:
    """Pixels u8 `[h, w, 1|2|3|4]` (grey, grey+alpha, RGB, RGBA) as `[h, w, channels]`, 1 or 3."""
    have = image.shape[-1]
    if have in (2, 4):
        alpha = image[..., -1:].astype(np.uint16)
        over = image[..., :-1] * alpha + np.uint16(255) * (np.uint16(255) - alpha)
        # Exact rounded division by 255 within 16 bits: (v + 128 + (v + 128 >> 8)) >> 8.
        over = over + np.uint16(128)
        image = ((over + (over >> np.uint16(8))) >> np.uint16(8)).astype(np.uint8)
        have -= 1
    if have == 3 and channels == 1:
        image = np.asarray(Image.fromarray(image).convert("L"))[..., None]
    elif have == 1 and channels == 3:
        image = np.repeat(image, 3, axis=2)
    return np.ascontiguousarray(image)


def _read_file(path: Path, name: str) -> bytes:
    """A regular file's bytes, up to `MAX_BYTES` + 1; a pipe or device would block for ever."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            kind = "a folder" if path.is_dir() else "no regular file"
            raise DataError(f"{name}: is {kind}, expected an image file.", code="image-unreadable")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{name}: there is no such file.", code="image-missing") from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"{name}: the file cannot be read ({_short(error)}). Check its name and permissions.",
            code="image-unreadable",
        ) from error


def _pixels(content: bytes, name: str, most: int) -> ImageU8:
    """Decoded pixels uint8 `[h, w, 1|2|3|4]`, upright."""
    with _opened(content, name, most) as image:
        return _eight_bit(_upright(image), name)


def _stored(content: bytes, name: str, colours: bool, most: int) -> npt.NDArray[np.integer]:
    """The pixels' own values: `[h, w]`, or uint8 `[h, w, 3]`."""
    with _opened(content, name, most) as image:
        turned = _upright(image)
        if turned.mode in ("1", "L") or turned.mode.startswith("I") or (turned.mode == "P" and not colours):
            return _array(turned.convert("L") if turned.mode == "1" else turned)
        return _array(turned.convert("RGB"))


def _array(image: Image.Image) -> npt.NDArray[np.integer]:
    """An image's pixels. Those of a large one are taken in bands: Pillow would hold them three times over."""
    width, height = image.size
    if width * height < _LARGE:
        return np.array(image)
    first = np.asarray(image.crop((0, 0, width, 1)))
    out = np.empty((height, *first.shape[1:]), first.dtype)
    for top in range(0, height, _BAND):
        end = min(height, top + _BAND)
        out[top:end] = np.asarray(image.crop((0, top, width, end)))
    return out


@contextmanager
def _opened(content: bytes, name: str, most: int) -> Iterator[Image.Image]:
    """An image whose size was checked before and after a pixel was decoded."""
    with _lifted(most), Image.open(io.BytesIO(content)) as image:
        if image.format in _REFUSED_FORMATS:
            raise _unsupported(name, f"format {image.format} would start another program")
        _check_size(image.size, name, most)
        image.load()
        _check_size(image.size, name, most)  # an icon's size is known only now
        yield image


def _check_size(size: tuple[int, int], name: str, most: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise DataError(f"{name}: the image has no pixels ({width} x {height}).", code="image-empty")
    most = max(most, MAX_PIXELS)
    if width * height > most:
        raise _oversized(name, f"{width} x {height} pixels, at most {most} are decoded")


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says (TIFF and AVIF come turned by Pillow)."""
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block raises anything; the pixels are whole
        return image
    return image if turn is None else image.transpose(turn)


def _eight_bit(image: Image.Image, name: str) -> ImageU8:
    """Any mode as uint8 `[h, w, C]`: C is 1 grey, 2 grey+alpha, 3 RGB, 4 RGBA."""
    mode = image.mode
    if mode.startswith("I"):
        return _sixteen_bit(_array(image), name, mode)
    if mode in ("F", "LAB"):
        raise _unsupported(name, f"mode {mode} has no agreed scale to 8 bits; save it as 8 or 16 bits")
    if mode in ("LA", "La"):
        target = "LA"
    elif image.has_transparency_data:
        target = "RGBA"
    else:
        target = "L" if mode in ("1", "L") else "RGB"
    pixels = np.asarray(_array(image if mode == target else image.convert(target)), np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _sixteen_bit(values: npt.NDArray[np.integer], name: str, mode: str) -> ImageU8:
    """Grey integers 0..65535 `[h, w]` to uint8 `[h, w, 1]`: divided by 257, rounded."""
    if values.min() < 0 or values.max() > 65535:
        raise _unsupported(name, f"mode {mode} with values {values.min()}..{values.max()}, expected 0..65535")
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)[..., None]


def _oversized(name: str, what: str) -> DataError:
    return DataError(f"{name}: the image is too large: {what}. Make it smaller first.", code="image-oversized")


def _unsupported(name: str, what: str) -> DataError:
    return DataError(
        f"{name}: this kind of image is not read: {what}. Convert it to PNG or JPEG.",
        code="image-unsupported",
    )


def _unidentified(content: bytes, name: str) -> DataError:
    """An image's head or name on what is none: corrupt. Neither: not an image at all."""
    if content.startswith(_MAGIC) or Path(name).suffix.lower() in Image.registered_extensions():
        bands = content.startswith((b"II*\0", b"MM\0*")) and importlib.util.find_spec("tifffile") is None
        why = " Or it holds bands, which need: pip install 'niwaki[tiles]'." if bands else ""
        return DataError(
            f"{name}: it claims to be an image, but its head is damaged. Replace or remove it.{why}",
            code="image-corrupt",
        )
    return _unsupported(name, f"no image format known to Pillow (it starts with {content[:8]!r})")


def _short(error: BaseException) -> str:
    return printable(str(error))[:200]


_quiet_lock = threading.Lock()
_quiet_depth = 0
_quiet_saved: warnings.catch_warnings[None] | None = None
_lift_lock = threading.RLock()


@contextmanager
def _lifted(most: int) -> Iterator[None]:
    """Pillow's own limit of pixels out of the way, where more than it are asked for; one thread at a time."""
    if most <= MAX_PIXELS:
        yield
        return
    with _lift_lock:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, most
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow's warnings silenced while any thread decodes.

    `warnings.catch_warnings` is not safe for threads: overlapping uses can leave the filter on for
    ever. So the first thread in sets it and the last one out takes it back.
    """
    global _quiet_depth, _quiet_saved
    with _quiet_lock:
        if _quiet_depth == 0:
            _quiet_saved = warnings.catch_warnings()
            _quiet_saved.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0 and _quiet_saved is not None:
                _quiet_saved.__exit__(None, None, None)
                _quiet_saved = None
