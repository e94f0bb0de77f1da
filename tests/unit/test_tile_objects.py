"""Objects of scenes by window: what reaches the finder, where their numbers are kept, and what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from niwaki.errors import DataError, NiwakiError, RunError
from niwaki.instances.tiled import Tiled
from niwaki.rasters.raster import Raster
from niwaki.tile import objects
from niwaki.tile.readers import of_array


def found(count: int, shape: tuple[int, int] = (300, 400)) -> Tiled:
    """A pixel an object, as many as asked for."""
    labels = np.zeros(shape, np.int64)
    labels.ravel()[:count] = np.arange(1, count + 1)
    return Tiled(labels=labels, scores=np.ones(count), points=np.zeros((count, 2), np.int64), cut=0)


def raster() -> Raster:
    return of_array(np.zeros((300, 400, 3), np.uint8))


@pytest.mark.parametrize(
    ("kind", "channels"), [("grey", 3), ("grey", 1), ("colour", 1), ("colour", 3), ("alpha", 3)]
)
def test_pixels_are_those_that_a_picture_gives(tmp_path: Path, kind: str, channels: int) -> None:
    """Grey and colour become what the model takes, as `Spec.pixels` has it; windows agree with the whole."""
    import niwaki as nw

    deep = {"grey": 1, "colour": 3, "alpha": 4}[kind]
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, deep)).astype(np.uint8)
    Image.fromarray(pixels.squeeze()).save(tmp_path / "a.png")
    spec = nw.Spec(size_hw=(64, 64), channels=channels, mean=(0.5,) * channels, std=(0.2,) * channels)
    with objects.opened(tmp_path / "a.png", channels=channels, tile=64) as (scene, _):
        assert scene.shape == (90, 70, channels)
        got = np.concatenate([scene[0:50, 0:70], scene[50:90, 0:70]])
    assert (got == spec.pixels(tmp_path / "a.png")).all()


def test_bands_that_the_model_does_not_take(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((90, 70, 4), np.uint8))
    with (
        pytest.raises(DataError) as caught,
        objects.opened(tmp_path / "a.npy", channels=3, tile=64),
    ):
        pass
    assert caught.value.code == "bands-count"


def test_a_map_beyond_the_memory_lies_on_disk_and_goes(tmp_path: Path) -> None:
    with objects.label_map((200, 300), tmp_path / "o.npy", memory_mb=64) as small:
        assert not isinstance(small, np.memmap)
        assert list(tmp_path.iterdir()) == []
    with objects.label_map((600, 300), tmp_path / "o.npy", memory_mb=1) as large:
        assert isinstance(large, np.memmap)
        assert not large.any()
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_for_the_map_is_told(tmp_path: Path, monkeypatch: Any) -> None:
    def no_room(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", no_room)
    with (
        pytest.raises(RunError) as caught,
        objects.label_map((600, 300), tmp_path / "o.npy", memory_mb=1),
    ):
        pass
    assert caught.value.code == "tile-disk"
    assert list(tmp_path.iterdir()) == []


def test_more_objects_than_a_png_numbers_are_not_lost(tmp_path: Path) -> None:
    most = objects.write(found(objects.PNG_MOST), tmp_path / "a.png", raster=raster(), memory_mb=64)
    assert most == tmp_path / "a.png"
    with Image.open(most) as file:
        assert (np.array(file) == found(objects.PNG_MOST).labels).all()
    more = found(objects.PNG_MOST + 1)
    path = objects.write(more, tmp_path / "b.png", raster=raster(), memory_mb=64)
    assert path == tmp_path / "b.png.npy"
    assert (np.load(path) == more.labels).all()
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize("suffix", [".npy", ".zarr", ".tif", ".png", ".json"])
def test_numbers_are_written_as_they_are(tmp_path: Path, suffix: str) -> None:
    one = found(700)
    path = objects.write(one, tmp_path / f"o{suffix}", raster=raster(), memory_mb=16)
    if suffix == ".json":
        assert len(json.loads(path.read_text())) == 700
        return
    if suffix == ".zarr":
        got = pytest.importorskip("zarr").open_array(path, mode="r")[:]
    elif suffix == ".tif":
        got = pytest.importorskip("tifffile").imread(path)
    else:
        got = np.load(path) if suffix == ".npy" else np.array(Image.open(path))
    assert (got == one.labels).all()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "source", "code"),
    [
        ("o.jpg", "a.npy", "tile-sink"),
        ("none/o.npy", "a.npy", "tile-sink"),
        ("a.npy", "a.npy", "tile-overwrite"),
        ("a.png", "a.png.npy", "tile-overwrite"),  # where the numbers may have to go
        ("o.geojson", "a.npy", "tile-geo"),
    ],
)
def test_what_cannot_be_written_is_told_beforehand(tmp_path: Path, name: str, source: str, code: str) -> None:
    np.save(tmp_path / "a.npy", np.zeros((8, 8)))
    np.save(tmp_path / "a.png.npy", np.zeros((8, 8)))
    with pytest.raises(NiwakiError) as caught:
        objects.check(tmp_path / name, tmp_path / source, raster())
    assert caught.value.code == code
