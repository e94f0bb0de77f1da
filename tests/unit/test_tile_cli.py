"""`niwaki predict -o`: a real artifact, a GeoTIFF in and out, in a process without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from niwaki.cli import main
from niwaki.cli.scene import megabytes

pytestmark = pytest.mark.slow
SIZE = 64


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    import niwaki as nw

    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 3, padding=1)]
    path = tmp_path_factory.mktemp("artifact") / "m.niwaki"
    task = nw.Segment(("sea", "land", "ice"))
    spec = nw.Spec(size_hw=(SIZE, SIZE), mean=(0.5,) * 3, std=(0.25,) * 3)
    nw.Artifact.save(path, torch.nn.Sequential(*layers).eval(), spec=spec, task=task).export("onnx")
    return path


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    np.save(tmp_path / "s.npy", np.random.default_rng(0).integers(0, 256, (150, 170, 3)).astype(np.uint8))
    return tmp_path / "s.npy"


def wanted(artifact: Path, scene: Path) -> Any:
    """The whole image through the float module."""
    import torch

    import niwaki as nw

    opened = nw.Artifact.open(artifact)
    with torch.no_grad():
        logits = opened.model()(torch.from_numpy(opened.spec.normalise(np.load(scene)[None])))
    return logits.argmax(1)[0].numpy()


def test_exact_tiles_from_the_command_line_without_torch(artifact: Path, scene: Path, tmp_path: Path) -> None:
    out, view = tmp_path / "m.tif", tmp_path / "view"
    words = ["predict", str(artifact), str(scene), "-o", str(out), "--memory", "16MB", "--exact", "--json"]
    code = "import sys\nfrom niwaki.cli import main\ncode = main(sys.argv[1:])\n"
    code += "print('torch' in sys.modules, file=sys.stderr)\nsys.exit(code)"
    command = [sys.executable, "-c", code, *words, "--viewer", str(view)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "False"
    said = json.loads(done.stdout)
    assert said["classes"] == ["sea", "land", "ice"]
    assert said["need_mb"] <= 16
    tifffile = pytest.importorskip("tifffile")
    assert (tifffile.imread(out) == wanted(artifact, scene)).all()
    assert (view / "index.html").exists()


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ({"height": 2 * SIZE, "width": SIZE}, "2.0 times smaller (64 x 64)"),
        ({"height": SIZE // 4, "width": SIZE // 4}, "bring it to 400 %"),
        ({"height": SIZE, "width": int(1.4 * SIZE)}, ""),
        ({"height": 0, "width": 0}, ""),
        ({}, ""),
    ],
)
def test_a_scene_of_another_scale_is_told_of(
    artifact: Path, scene: Path, tmp_path: Path, capsys: Any, images: dict[str, int], says: str
) -> None:
    import shutil

    import niwaki as nw

    own = tmp_path / "own.niwaki"
    shutil.copytree(artifact, own)
    nw.Artifact.open(own).update(images=images)
    assert main(["predict", str(own), str(scene), "-o", str(tmp_path / "m.npy"), "--json"]) == 0
    said = capsys.readouterr()
    assert says in said.err
    assert ("warning" in said.err) == bool(says) == bool(json.loads(said.out)["warnings"])


def test_turns_and_models_are_joined(artifact: Path, scene: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "m.npy"
    joined = [
        "--with",
        str(artifact),
        "--join",
        "vote",
        "--weights",
        "2,1",
        "--turns",
        "hflip,rot90",
        "--overlap",
        "8",
    ]
    assert main(["predict", str(artifact), str(scene), "-o", str(out), *joined]) == 0
    assert "tiles" in capsys.readouterr().out
    same = np.load(out) == wanted(artifact, scene)
    assert 0.5 < same.mean() < 1  # a random network is not symmetric, so the turns change some pixels
    whole = ["--probabilities", "--blend", "crop", "--overlap", "8"]
    assert main(["predict", str(artifact), str(scene), "-o", str(out), *whole]) == 0
    assert np.allclose(np.load(out).sum(0), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["-o", "m.tif", "--memory", "1KB"], "tile-memory"),
        (["-o", "m.jpg"], "tile-sink"),
        (["-o", "m.npy", "--tile", "32"], "tile-knob"),
        (["-o", "m.npy", "--top", "2"], "tile-knob"),
        (["-o", "m.png", "--viewer", "v"], "tile-knob"),
        (["-o", "m.PNG", "--viewer", "v"], "tile-knob"),
        (["-o", "m.npy", "--turns", "flop"], "tile-members"),
        (["-o", "m.npy", "--weights", "1,2"], "tile-members"),
        (["-o", "m.geojson"], "tile-geo"),
        ([], "tile-knob"),
    ],
)
def test_wrong_words_have_codes(
    artifact: Path, scene: Path, words: list[str], code: str, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(scene.parent)
    assert main(["predict", str(artifact), str(scene), *words, "--json"]) in (1, 3)
    assert json.loads(capsys.readouterr().out)["error"]["code"] == code
    assert [path.name for path in scene.parent.iterdir()] == ["s.npy"]


@pytest.mark.parametrize(("text", "value"), [("512MB", 512), ("2GB", 2048), ("64", 64), ("1.5 GiB", 1536)])
def test_sizes_of_memory(text: str, value: float) -> None:
    assert megabytes(text) == value


@pytest.mark.parametrize("text", ["", "0", "-1", "MB", "12 apples"])
def test_no_sizes_of_memory(text: str) -> None:
    import argparse

    with pytest.raises(argparse.ArgumentTypeError):
        megabytes(text)
