"""A page to look at a big prediction: scene and classes in tiles that are loaded as one zooms. No network.

The folder holds index.html and pictures of 256 pixels, `scene/Z/X_Y.png` and `classes/Z/X_Y.png`, Z = 0 being
the coarsest. The finest level has at most `side` pixels on its longer side; larger scenes are read coarser,
window by window, so memory stays small. Shape letters: H W pixels, C channels.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from niwaki import files
from niwaki.bands import shown
from niwaki.errors import DataError
from niwaki.overlays import palette
from niwaki.rasters.raster import Raster, Windows
from niwaki.tile.readers import Source, class_map, open_source
from niwaki.tile.viewer_page import PAGE

TILE = 256
_CACHE = 64 << 20
Pixels = npt.NDArray[Any]


def viewer(
    scene: Source,
    prediction: str | Path | Pixels,
    folder: str | Path,
    *,
    classes: Sequence[str],
    side: int = 8192,
    level: int = 0,
    names: Sequence[str] = (),
) -> Path:
    """The page's path, after it and its pictures were written.

    Args:
        scene: what was predicted.
        prediction: the class map, .tif, .zarr or .npy, or an array.
        classes: their names.
        side: pixels of the longer side at the finest level.
        level: of the scene's pyramid, that was predicted.
        names: of the scene's bands, by which red, green and blue are found; else the first three are shown.
    Raises:
        DataError: one cannot be read, or their sizes differ. [tile-corrupt, tile-format, image-missing]
    """
    folder = Path(folder)
    below = open_source(scene, memory=_CACHE * 4, level=level)
    above = class_map(prediction)
    try:
        if below.shape[:2] != above.shape[:2] or above.shape[2] != 1:
            raise DataError(
                f"viewer: the scene has {list(below.shape)} and the classes {list(above.shape)}, expected "
                "classes [H, W] of the scene's height and width.",
                code="tile-format",
            )
        table = np.zeros((65536, 3), np.uint8)
        table[: len(classes)] = palette(len(classes))
        layers: dict[str, tuple[Raster, Callable[[Pixels], Pixels]]] = {
            "scene": (below, _shown(below, names)),
            "classes": (above, lambda pixels: table[pixels[..., 0]]),
        }
        for name, (raster, draw) in layers.items():
            depth = _pyramid(raster, folder / name, draw, side=side, sharp=name == "classes")
    finally:
        below.close()
        above.close()
    height, width = below.shape[:2]
    said = {"height": height, "width": width, "step": _step(below, side), "depth": depth, "tile": TILE}
    legend = [[html.escape(name), table[k].tolist()] for k, name in enumerate(classes)]
    page = PAGE.replace("__DATA__", json.dumps(said | {"legend": legend}).replace("<", "\\u003c"))
    files.write_bytes(folder / "index.html", page.encode())
    return folder / "index.html"


def _step(raster: Raster, side: int) -> int:
    """Pixels of the scene in one of the finest level, a power of two."""
    step = 1
    while max(raster.shape[:2]) > side * step:
        step *= 2
    return step


def _shown(raster: Raster, names: Sequence[str]) -> Callable[[Pixels], Pixels]:
    """What turns a scene's pixels into colours: up to three channels, and more than 8 bits from dark to
    bright."""
    channels = raster.shape[2]
    wanted = list(shown(channels, names)) if channels > 1 else [0, 0, 0]
    if raster.dtype == np.uint8 and channels in (1, 3):
        return lambda pixels: pixels[..., wanted]
    height, width, _ = raster.shape
    reader = Windows(raster, keep=0)
    seen = [
        reader.read(y, x, min(64, height - y), min(64, width - x))[..., wanted].reshape(-1, 3)
        for y in range(0, height, max(64, height // 4))
        for x in range(0, width, max(64, width // 4))
    ]
    low, high = np.nanpercentile(np.concatenate(seen).astype(np.float64), (2, 98), axis=0)
    wide = np.maximum(high - low, 1e-9)
    return lambda pixels: np.clip(
        (np.nan_to_num(pixels[..., wanted].astype(np.float64)) - low) * 255 / wide, 0, 255
    ).astype(np.uint8)


def _pyramid(raster: Raster, folder: Path, draw: Callable[[Pixels], Pixels], *, side: int, sharp: bool) -> int:
    """Writes all levels of a layer; how many there are. `sharp`: pixels are picked, not averaged."""
    step = _step(raster, side)
    height, width = (-(-n // step) for n in raster.shape[:2])
    depth = 1
    while max(height, width) > TILE << (depth - 1):
        depth += 1
    reader = Windows(raster, keep=_CACHE)
    finest = folder / str(depth - 1)
    finest.mkdir(parents=True, exist_ok=True)
    for row in range(-(-height // TILE)):
        for column in range(-(-width // TILE)):
            y, x = row * TILE * step, column * TILE * step
            high = min(TILE * step, raster.shape[0] - y)
            wide = min(TILE * step, raster.shape[1] - x)
            picture = _thinned(reader, y, x, high, wide, step)
            Image.fromarray(draw(picture)).save(finest / f"{column}_{row}.png")
    for level in range(depth - 2, -1, -1):
        height, width = -(-height // 2), -(-width // 2)
        _coarser(folder / str(level + 1), folder / str(level), height, width, sharp=sharp)
    return depth


def _thinned(reader: Windows, y: int, x: int, high: int, wide: int, step: int) -> Pixels:
    """Every `step`-th pixel of a window, read in bands."""
    band = max(step, 64 // step * step)
    parts = [
        reader.read(top, x, min(band, y + high - top), wide)[::step, ::step] for top in range(y, y + high, band)
    ]
    return np.concatenate(parts)


def _coarser(fine: Path, coarse: Path, height: int, width: int, *, sharp: bool) -> None:
    """Each picture from four of the finer level."""
    coarse.mkdir(parents=True, exist_ok=True)
    how = Image.Resampling.NEAREST if sharp else Image.Resampling.BOX
    for row in range(-(-height // TILE)):
        for column in range(-(-width // TILE)):
            whole = Image.new("RGB", (2 * TILE, 2 * TILE))
            for k in (0, 1, 2, 3):
                part = fine / f"{2 * column + k % 2}_{2 * row + k // 2}.png"
                if part.exists():
                    with Image.open(part) as image:
                        whole.paste(image, (k % 2 * TILE, k // 2 * TILE))
            size = min(TILE, width - column * TILE), min(TILE, height - row * TILE)
            whole.resize((TILE, TILE), how).crop((0, 0, *size)).save(coarse / f"{column}_{row}.png")
