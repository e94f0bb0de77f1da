"""Models of bands from the folder to the scene: the main job, its artifact, tiles, and what refuses what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import nn

from niwaki import Artifact, Plan, data, job, step, tile
from niwaki.bands import Stack
from niwaki.cli import main
from niwaki.errors import ArtifactError, DataError

tifffile = pytest.importorskip("tifffile")
torch.set_num_threads(1)
pytestmark = pytest.mark.slow
SIDE, BANDS = 32, 5
Array = npt.NDArray[Any]


def scene(seed: int, height: int = SIDE, width: int = SIDE) -> tuple[Array, Array]:
    """Five bands of 12 bits in 16, and squares that only the last band shows."""
    draw = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    for _ in range(max(1, height * width // 1500)):
        y, x = draw.integers(0, height - 12), draw.integers(0, width - 12)
        mask[y : y + 12, x : x + 12] = 1
    levels = np.array([300, 500, 800, 1200, 2500]) - mask[..., None] * np.array([0, 0, 0, 0, 1500])
    return np.clip(levels + draw.normal(0, 60, (height, width, BANDS)), 1, 65535).astype(np.uint16), mask


def write(path: Path, array: Array, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, array, **{"photometric": "minisblack", "planarconfig": "contig", **more})
    return path


class Small(nn.Module):
    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, 12, 3, 1, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.last = nn.Conv2d(12, classes, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x))


def small(*, classes: int, channels: int) -> nn.Module:
    return Small(classes, channels)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run of the main job on 16 images of five bands."""
    root = tmp_path_factory.mktemp("bands")
    for seed in range(14):
        image, mask = scene(seed)
        write(root / "set/images" / f"{seed}.tif", image)
        (root / "set/masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(root / f"set/masks/{seed}.png")
    (root / "set/bands.txt").write_text("B02\nB03\nB04\nB08\nB11\n")
    plan = Plan(
        step("train.fit", epochs=16, batch=4, lr=0.03),
        step("prune.channels", multiple=1, min_width=0),
    )
    given = {"model": small, "size": SIDE, "plan": plan, "epochs": 0, "budget": "macs=80%", "max_drop": 0.9}
    job.fit(root / "set", **given, out=root / "run")
    return root


@pytest.fixture(scope="module")
def artifact(root: Path) -> Artifact:
    return Artifact.open(root / "run/baseline.niwaki")


def test_the_main_job_learns_bands_and_shows_them(root: Path, artifact: Artifact) -> None:
    result = json.loads((root / "run/result.json").read_text())
    assert result["scores"]["baseline"]["test"]["miou"] > 0.9
    spec = artifact.spec
    assert spec.channels == BANDS and spec.bands == ("B02", "B03", "B04", "B08", "B11")
    assert spec == data.read(root / "set").bands.spec((SIDE, SIDE))  # type: ignore[union-attr]
    kept = json.loads((root / "run/report.json").read_text())
    assert kept["maps"] and all(entry["image"].startswith("data:image/png") for entry in kept["maps"])
    assert set(Artifact.open(root / "run/model.niwaki").exports["onnx"]) == {"float32", "int8"}


def test_all_sources_of_a_scene_give_the_same(root: Path, artifact: Artifact, tmp_path: Path) -> None:
    image, true = scene(99, 90, 110)
    files = tuple(write(tmp_path / f"b/x_{k}.tif", image[..., k], tile=(32, 32)) for k in range(BANDS))
    np.save(tmp_path / "s.npy", image)
    sources: dict[str, Any] = {
        "array": image,
        "tiled": write(tmp_path / "t.tif", image, tile=(32, 32), compression="zlib"),
        "planar": write(tmp_path / "p.tif", np.moveaxis(image, -1, 0).copy(), planarconfig="separate"),
        "npy": tmp_path / "s.npy",
        "memmap": np.load(tmp_path / "s.npy", mmap_mode="r"),
        "files": Stack(files=files, names=artifact.spec.bands),
    }
    zarr = pytest.importorskip("zarr")
    held = zarr.create_array(str(tmp_path / "z.zarr"), shape=image.shape, chunks=(40, 50, 5), dtype="uint16")
    held[:] = image
    sources["zarr"] = tmp_path / "z.zarr"
    session = artifact.session("onnx", precision="float32")
    out = {}
    for name, source in sources.items():
        out[name] = np.zeros(image.shape[:2], np.uint8)
        tile.predict(session, source, out[name], scale=artifact.spec.scale, memory_mb=32)
    assert all((found == out["array"]).all() for found in out.values())
    assert (out["array"] == true).mean() > 0.95
    wide = np.concatenate([image[..., :2], image], axis=2)
    chosen = np.zeros(image.shape[:2], np.uint8)
    tile.predict(session, wide, chosen, scale=artifact.spec.scale, memory_mb=32, bands=(1, 2, 5, 6, 7))
    assert (chosen == out["array"]).all()


def test_one_tile_sees_what_training_saw(artifact: Artifact) -> None:
    """The scaling of tiles is that of Spec.read, to the bit."""
    image, _ = scene(7)
    seen = []

    def look(images: Array) -> Array:
        seen.append(images)
        return np.zeros((len(images), 2, SIDE, SIDE), np.float32)

    tile.predict(look, image, np.zeros((SIDE, SIDE), np.uint8), tile=SIDE, scale=artifact.spec.scale)
    assert any((images[0] == artifact.spec.adapted(image)).all() for images in seen)


def test_the_command_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(root / "run/baseline.niwaki")
    image, true = scene(5, 80, 96)
    image[:20, :30] = 0
    tag = [(42113, "s", 0, "0", True)]
    out = tmp_path / "mask.tif"
    assert main(["predict", model, str(write(tmp_path / "s.tif", image, extratags=tag)), "-o", str(out)]) == 0
    found = tifffile.imread(out)
    assert (found[:20, :30] == 255).all()
    known = found != 255
    assert known.sum() == 80 * 96 - 600 and (found == true)[known].mean() > 0.95
    for k, name in enumerate(("B02", "B03", "B04", "B08", "B11")):
        write(tmp_path / "scene" / f"S2_{name}.tif", image[..., k], extratags=tag)
    more = ["-o", str(tmp_path / "again.tif"), "--viewer", str(tmp_path / "view")]
    assert main(["predict", model, str(tmp_path / "scene"), *more]) == 0
    assert (tifffile.imread(tmp_path / "again.tif") == found).all()
    assert (tmp_path / "view/index.html").exists()
    capsys.readouterr()
    assert main(["info", model]) == 0
    assert "5 bands (B02, B03, B04, B08, B11), black to white" in capsys.readouterr().out


def test_what_does_not_fit_is_refused_in_one_line(
    root: Path, artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from niwaki import web

    model, out = str(root / "run/baseline.niwaki"), str(tmp_path / "m.tif")
    image, _ = scene(5, 64, 64)
    for array, text in (
        (image[..., :4], "has 4 bands, the model takes 5. Give a scene that has all of them."),
        (np.concatenate([image, image], 2), "has 10 bands, the model takes 5. Name those that it takes"),
    ):
        assert main(["predict", model, str(write(tmp_path / "s.tif", array)), "-o", out]) != 0
        said = capsys.readouterr().err.strip()
        assert text in said and "[bands-count]" in said and "\n" not in said
    with pytest.raises(DataError, match="asked for 6"):
        tile.predict(lambda x: x, image, np.zeros((64, 64), np.uint8), bands=(6,))
    files = (write(tmp_path / "a.tif", image[..., 0]), write(tmp_path / "b.tif", image[:32, :, 0]))
    with pytest.raises(DataError) as caught:
        tile.predict(lambda x: x, Stack(files=files, names=("a", "b")), np.zeros((64, 64), np.uint8))
    assert caught.value.code == "bands-size"
    with pytest.raises(ArtifactError) as refused:
        web.write(artifact, tmp_path / "web")
    assert refused.value.code == "web-bands" and not (tmp_path / "web").exists()


def test_classes_of_bands_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model of labels takes single files and folders of bands."""
    from niwaki import Classify

    spec = data.Bands(names=("B1", "B2"), scale=((0, 1000),) * 2, mean=(0.5,) * 2, std=(0.2,) * 2).spec((8, 8))
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ).eval()
    Artifact.save(tmp_path / "m.niwaki", net, spec=spec, task=Classify(("a", "b"))).export("onnx")
    image = np.random.default_rng(0).integers(0, 1000, (12, 12, 2)).astype(np.uint16)
    np.save(tmp_path / "one.npy", image)
    (tmp_path / "set").mkdir()
    np.save(tmp_path / "set/two.npy", image)
    for k, name in enumerate(("B1", "B2")):
        write(tmp_path / "set/three" / f"{name}.tif", image[..., k])
    np.save(tmp_path / "wrong.npy", image[..., :1])
    paths = [str(tmp_path / name) for name in ("one.npy", "set", "wrong.npy")]
    assert main(["predict", str(tmp_path / "m.niwaki"), *paths, "--json"]) == 1
    given = json.loads(capsys.readouterr().out)["predictions"]
    assert [Path(entry["path"]).name for entry in given] == ["one.npy", "two.npy", "three", "wrong.npy"]
    assert given[3]["error"]["code"] == "bands-count"
    assert given[0]["probabilities"] == given[1]["probabilities"] == given[2]["probabilities"]


def test_crops_of_a_scene_of_bands(tmp_path: Path) -> None:
    image, mask = scene(3, 160, 160)
    found = tile.crops(image, mask, classes=("ground", "roof"), crop=16, val=0.2, test=0.2)
    assert found.bands is not None and found.bands.scale[0][1] < 1000 < found.bands.scale[4][0] + 1000
    spec = found.bands.spec((16, 16))
    batch = found.train.batch([0, 1, 2], spec)
    assert batch.dtype == np.uint8 and batch.shape == (3, 16, 16, BANDS) and batch.std() > 10
    # a range that is given is the Spec's: a tile of the scene is what the crop was
    given = tile.crops(image, mask, classes=("a", "b"), crop=16, scale=(0, 4000))
    assert given.bands is not None and given.bands.scale == ((0, 4000),) * BANDS
    spec = given.bands.spec((16, 16))
    y, x = map(int, given.train.names[0].split(":")[1].split(","))
    assert (given.train.batch([0], spec)[0] == spec.adapted(image[y : y + 16, x : x + 16])).all()
    assert tile.crops(image[..., :3], mask, classes=("a", "b"), crop=16, scale="bits").bands is None
    eight = (image[..., :3] >> 4).astype(np.uint8)
    assert tile.crops(eight, mask, classes=("a", "b"), crop=16).bands is None
