"""Weak and strong augmentation of uint8 batches; draws depend on (seed, epoch, sample index) only.

Not on which images share a batch, not on their order, not on how many processes there are: each
draw is a hash of those numbers (a counter-based generator), so a resumed or distributed run
augments as an uninterrupted one. Numpy and Pillow only. Shape letters: B images, H W pixels,
C channels.

Source: SplitMix64's finaliser: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
generators".
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

ImageU8 = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_SHIFT = 0.125  # weak: up to this share of a side, 4 pixels at 32
_ROTATE = math.radians(15)
_SCALE = 0.15
_SHEAR = math.radians(8)
_TONE = 0.3  # brightness, contrast and saturation in 1 +- this
_REACH = 0.5  # reflected border that a strong transform may reach into, share of a side

# Which uniform draw (the k of `uniforms`) decides what; strong draws the weak ones alike.
_WEAK_DRAWS = 3
_STRONG_DRAWS = 15


def uniforms(index: npt.NDArray[np.integer], *, seed: int, epoch: int, count: int) -> Floats:
    """Uniform numbers in [0, 1), float64 `[B, count]`, of (seed, epoch, index, column)."""
    key = _mix_int(_mix_int(seed + _GOLDEN) + epoch)
    rows = _mix(np.asarray(index, dtype=np.int64).astype(np.uint64) + np.uint64(key))
    steps = np.array([(k + 1) * _GOLDEN & _MASK for k in range(count)], dtype=np.uint64)
    return (_mix(rows[:, None] + steps[None]) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def order(count: int, *, seed: int, epoch: int) -> Ints:
    """A permutation of 0..count-1, int64 `[count]`: the order in which an epoch visits samples."""
    # Another stream than the augmentation's, or an image's place would tell its crop.
    draws = uniforms(np.arange(count), seed=seed ^ 0x6F72646572, epoch=epoch, count=1)[:, 0]
    return np.argsort(draws, kind="stable")


def weak(images: ImageU8, index: npt.NDArray[np.integer], *, seed: int, epoch: int, flip: bool) -> ImageU8:
    """The images `[B, H, W, C]` shifted by up to 12.5 % of a side (reflected border) and mirrored.

    Args:
        images: uint8 `[B, H, W, C]`, left as they are.
        index: int `[B]`: each image's position in its data set.
        flip: mirror left-right half of them.
    """
    _, height, width, _ = images.shape
    draws = uniforms(index, seed=seed, epoch=epoch, count=_WEAK_DRAWS)
    reach_y, reach_x = round(height * _SHIFT), round(width * _SHIFT)
    top = np.floor(draws[:, 0] * (2 * reach_y + 1)).astype(int).tolist()
    left = np.floor(draws[:, 1] * (2 * reach_x + 1)).astype(int).tolist()
    mirrored = ((draws[:, 2] < 0.5) & flip).tolist()
    padded = _pad(images, reach_y, reach_x)
    out = np.empty_like(images)
    for i, (y, x, mirror) in enumerate(zip(top, left, mirrored, strict=True)):
        crop = padded[i, y : y + height, x : x + width]
        out[i] = crop[:, ::-1] if mirror else crop
    return out


def strong(images: ImageU8, index: npt.NDArray[np.integer], *, seed: int, epoch: int, flip: bool) -> ImageU8:
    """The images `[B, H, W, C]` shifted and mirrored as by `weak`, and changed further.

    Rotation up to 15 degrees, scale 0.85..1.15, shear up to 8 degrees (bilinear, reflected border);
    brightness, contrast and, in colour, saturation each times 0.7..1.3 (bands alike); half of the images lose a
    square of a quarter to a half of the side, filled with mid-grey.
    """
    draws = uniforms(index, seed=seed, epoch=epoch, count=_STRONG_DRAWS)
    out = toned(_warp(images, draws, flip), draws[:, 6:9])
    return _cut_out(out, draws[:, 9:13])


def _mix_int(value: int) -> int:
    """SplitMix64's finaliser of one number."""
    value &= _MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser of each number; uint64 wraps around as meant."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def _pad(images: ImageU8, reach_y: int, reach_x: int) -> ImageU8:
    return np.pad(images, ((0, 0), (reach_y, reach_y), (reach_x, reach_x), (0, 0)), mode="reflect")


def _warp(images: ImageU8, draws: Floats, flip: bool) -> ImageU8:
    """Shift, mirror, rotation, scale and shear in one bilinear sampling of each image."""
    _, height, width, channels = images.shape
    reach_y, reach_x = math.ceil(height * _REACH), math.ceil(width * _REACH)
    padded = _pad(images, reach_y, reach_x)
    out = np.empty_like(images)
    # Each image alone and by `math`: vector code may round its tail otherwise, by the batch.
    for i, row in enumerate(draws.tolist()):
        a, b, d, e = _matrix(row[3], row[4], row[5], mirror=flip and row[2] < 0.5)
        shift_y = math.floor(row[0] * (2 * round(height * _SHIFT) + 1)) - round(height * _SHIFT)
        shift_x = math.floor(row[1] * (2 * round(width * _SHIFT) + 1)) - round(width * _SHIFT)
        middle_x, middle_y = width / 2, height / 2
        offset_x = middle_x + shift_x + reach_x - a * middle_x - b * middle_y
        offset_y = middle_y + shift_y + reach_y - d * middle_x - e * middle_y
        for part in planes(channels):
            warped = Image.fromarray(padded[i, ..., part]).transform(
                (width, height),
                Image.Transform.AFFINE,
                (a, b, offset_x, d, e, offset_y),
                Image.Resampling.BILINEAR,
            )
            out[i, ..., part] = np.asarray(warped)
    return out


def planes(channels: int) -> list[int | slice]:
    """The channels as Pillow takes them: three as one colour picture, else one by one."""
    return [slice(None)] if channels == 3 else list(range(channels))


def _matrix(turn: float, size: float, lean: float, *, mirror: bool) -> tuple[float, float, float, float]:
    """Output to input, 2 x 2 by rows: rotation @ shear / scale, from three draws in [0, 1)."""
    angle = _ROTATE * (2 * turn - 1)
    scale = 1 / (1 + _SCALE * (2 * size - 1))
    shear = math.tan(_SHEAR * (2 * lean - 1))
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    sign = -1.0 if mirror else 1.0
    return sign * cos, cos * shear - sin, sign * sin, sin * shear + cos


def toned(images: ImageU8, draws: Floats) -> ImageU8:
    """Brightness, contrast around the image's mean, saturation; exact sums keep it batch-free. Bands (other
    than 1 or 3) keep their means apart, since they have nothing in common, and have no saturation."""
    factors = (1 + _TONE * (2 * draws - 1)).astype(np.float32)[:, :, None, None, None]
    values = images.astype(np.float32)
    alone = images.shape[-1] not in (1, 3)
    pixels = max(1, images[0, ..., 0].size if alone else images[0].size) if len(images) else 1
    total: Ints = images.sum(axis=(1, 2) if alone else (1, 2, 3), keepdims=True, dtype=np.int64)
    mean = (total / pixels).astype(np.float32)
    if images.shape[-1] == 3:
        red, green, blue = np.moveaxis(images.astype(np.int32), -1, 0)
        luma = (19595 * red + 38470 * green + 7471 * blue) >> 16
        grey = luma.astype(np.float32)[..., None]
        values = grey + (values - grey) * factors[:, 2]
    values = (mean + (values - mean) * factors[:, 1]) * factors[:, 0]
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _cut_out(images: ImageU8, draws: Floats) -> ImageU8:
    """Half of the images lose a square; changes `images`."""
    _, height, width, _ = images.shape
    for image, (whether, size, y, x) in zip(images, draws.tolist(), strict=True):
        if whether < 0.5:
            side = max(1, round(min(height, width) * (0.25 + 0.25 * size)))
            top, left = int(y * height) - side // 2, int(x * width) - side // 2
            image[max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = 128
    return images
