"""Where a prediction may go: never over the scene it is made of, nor over a folder that is none of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from niwaki import tile
from niwaki.bands import Stack
from niwaki.errors import DataError


def odds(images: Any) -> Any:
    """Two classes: how bright a pixel is, and how dark."""
    bright = images.astype(np.float32).mean(3)[:, None] / 255
    return np.concatenate([bright, 1 - bright], 1)


def pixels() -> Any:
    return np.random.default_rng(0).integers(0, 256, (70, 80, 3)).astype(np.uint8)


def refused(source: Any, sink: Path, code: str = "tile-overwrite") -> None:
    with pytest.raises(DataError) as caught:
        tile.predict(odds, source, sink, tile=64)
    assert caught.value.code == code


@pytest.mark.parametrize("how", ["same", "dots", "link", "hard link", "other case of the source's ending"])
def test_the_scene_itself_is_no_sink(tmp_path: Path, how: str) -> None:
    own = tmp_path / ("own.NPY" if how.startswith("other") else "own.npy")
    with own.open("wb") as file:
        np.save(file, pixels())
    sink = tmp_path / "out.npy"
    if how == "link":
        sink.symlink_to(own)
    elif how == "hard link":
        sink.hardlink_to(own)
    else:
        sink = tmp_path / "x" / ".." / own.name if how == "dots" else own
        (tmp_path / "x").mkdir()
    refused(own, sink)
    assert (np.load(own) == pixels()).all()


def test_a_memory_map_and_a_band_of_several_are_scenes_too(tmp_path: Path) -> None:
    np.save(tmp_path / "own.npy", pixels())
    refused(np.load(tmp_path / "own.npy", mmap_mode="r"), tmp_path / "own.npy")
    np.save(tmp_path / "b2.npy", pixels()[..., 0])
    refused(Stack(files=(tmp_path / "own.npy", tmp_path / "b2.npy"), names=("a", "b")), tmp_path / "b2.npy")
    assert (np.load(tmp_path / "own.npy") == pixels()).all()


def test_zarr_inside_and_around_the_scene(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(tmp_path / "slide.zarr", mode="w")
    group.create_array("0", data=pixels())
    for source, sink in (
        (tmp_path / "slide.zarr", tmp_path / "slide.zarr"),
        (tmp_path / "slide.zarr" / "0", tmp_path / "slide.zarr"),
        (tmp_path / "slide.zarr", tmp_path / "slide.zarr" / "classes.zarr"),
    ):
        refused(source, sink)
    assert (zarr.open_group(tmp_path / "slide.zarr", mode="r")["0"][:] == pixels()).all()


def test_only_a_prediction_is_replaced_by_a_zarr(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    out = tmp_path / "o.zarr"
    out.mkdir()
    (out / "thesis.txt").write_text("years")
    refused(pixels(), out)
    assert (out / "thesis.txt").read_text() == "years"
    (out / "thesis.txt").unlink()
    for _ in range(2):  # into an empty folder, then over the prediction
        tile.predict(odds, pixels(), out, tile=64)
        assert (zarr.open_array(out, mode="r")[:] == odds(pixels()[None])[0].argmax(0)).all()
    zarr.create_array(tmp_path / "scene.zarr", data=pixels())
    refused(np.zeros((64, 64, 3), np.uint8), tmp_path / "scene.zarr")
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_folder_that_changed_while_tiles_were_predicted_is_left(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    out = tmp_path / "o.zarr"

    def late(images: Any) -> Any:
        out.mkdir(exist_ok=True)
        (out / "thesis.txt").write_text("years")
        return odds(images)

    refused_late = pytest.raises(DataError)
    with refused_late as caught:
        tile.predict(late, pixels(), out, tile=64)
    assert caught.value.code == "tile-overwrite"
    assert (out / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("classes", "dtype", "output"),
    [
        (2, np.uint8, "probabilities"),
        (2, np.int8, "classes"),
        (2, bool, "classes"),
        (300, np.uint8, "classes"),
        (300, np.int16, "classes"),
    ],
)
def test_an_array_that_cannot_hold_the_output(classes: int, dtype: Any, output: str) -> None:
    def many(images: Any) -> Any:
        return np.full((len(images), classes, *images.shape[1:3]), 1 / classes, np.float32)

    sink = np.zeros((70, 80) if output == "classes" else (classes, 70, 80), dtype)
    with pytest.raises(DataError) as caught:
        tile.predict(many, pixels(), sink, tile=64, output=output)
    assert caught.value.code == "tile-sink"


@pytest.mark.parametrize(("dtype", "output"), [(np.int16, "classes"), (np.float16, "probabilities")])
def test_arrays_of_other_types_that_hold_it(dtype: Any, output: str) -> None:
    sink = np.zeros((70, 80) if output == "classes" else (2, 70, 80), dtype)
    tile.predict(odds, pixels(), sink, tile=64, output=output)
    whole = odds(pixels()[None])[0]
    assert np.allclose(sink, whole.argmax(0) if output == "classes" else whole, atol=1e-3)
