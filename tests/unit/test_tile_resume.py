"""What a run that was broken off left behind: gone on with only where its pixels are those of this run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from niwaki import tile

SIDE = 600


def odds(images: Any) -> Any:
    """Two classes: how bright a pixel is, and how dark."""
    bright = images.astype(np.float32).mean(3)[:, None] / 255
    return np.concatenate([bright, 1 - bright], 1)


class Breaks:
    """`odds`, broken off after so many tiles."""

    classes = 2

    def __init__(self, tiles: int) -> None:
        self.left = tiles

    def __call__(self, images: Any) -> Any:
        self.left -= len(images)
        if self.left < 0:
            raise KeyboardInterrupt
        return odds(images)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: Any) -> Any:
    monkeypatch.setattr("niwaki.tile.scene._SYNC_S", 0.0)
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    np.save(tmp_path / "s.npy", pixels)
    return pixels


def test_a_zarr_whose_chunks_were_edited_is_another_scene(scene: Any, tmp_path: Path) -> None:
    """No folder above the chunk changes its time, and the chunk's size stays."""
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(tmp_path / "s.zarr", mode="w")
    group.create_array("0", data=scene, chunks=(SIDE, SIDE, 3), compressors=None)
    out = tmp_path / "o.npy"
    knobs: dict[str, Any] = {"tile": 64, "overlap": 16, "batch": 1, "resume": "m"}
    with pytest.raises(KeyboardInterrupt):
        tile.predict(Breaks(90), tmp_path / "s.zarr", out, **knobs)
    chunk = next(path for path in (tmp_path / "s.zarr" / "0" / "c").rglob("*") if path.is_file())
    with chunk.open("r+b") as file:
        file.write((255 - scene[:200]).tobytes())
    stats = tile.predict(odds, tmp_path / "s.zarr", out, **knobs)
    scene[:200] = 255 - scene[:200]
    assert stats.resumed == 0
    assert (np.load(out) == odds(scene[None])[0].argmax(0)).all()


def test_a_zarr_that_is_as_it_was_is_gone_on_with(scene: Any, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    zarr.create_array(tmp_path / "s.zarr", data=scene, chunks=(100, 100, 3))
    out = tmp_path / "o.npy"
    knobs: dict[str, Any] = {"tile": 64, "overlap": 16, "batch": 1, "resume": "m"}
    with pytest.raises(KeyboardInterrupt):
        tile.predict(Breaks(90), tmp_path / "s.zarr", out, **knobs)
    assert tile.predict(odds, tmp_path / "s.zarr", out, **knobs).resumed > 0
    assert (np.load(out) == odds(scene[None])[0].argmax(0)).all()


@pytest.mark.parametrize(("first", "second"), [(2.45, 40), (40, 2.45)])
def test_a_run_goes_on_with_another_memory(scene: Any, tmp_path: Path, first: float, second: float) -> None:
    """Other strips than those of the run before: what it left of them is not taken for whole rows of these."""
    out = tmp_path / "o.npy"
    knobs: dict[str, Any] = {"tile": 64, "overlap": 16, "batch": 1, "resume": "m"}
    with pytest.raises(KeyboardInterrupt):
        tile.predict(Breaks(90), tmp_path / "s.npy", out, memory_mb=first, **knobs)
    stats = tile.predict(odds, tmp_path / "s.npy", out, memory_mb=second, **knobs)
    assert stats.strips == (1 if second == 40 else 2)
    assert (np.load(out) == odds(scene[None])[0].argmax(0)).all()
