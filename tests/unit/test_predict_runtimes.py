"""`niwaki predict --runtime`: labels, masks and scenes by any export of an artifact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from niwaki import Artifact, Classify, Segment, Spec, nets
from niwaki.cli import main

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = nets.build("niwaki:small", classes=4).eval()
    path = tmp_path_factory.mktemp("predict") / "a.niwaki"
    task = Classify(tuple("abcd"))
    art = Artifact.save(path, model, spec=Spec(size_hw=(12, 14)), task=task, builder="niwaki:small")
    art.export("onnx")
    art.export("torch")
    art.export("torch", precision="bfloat16")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8)
    Image.fromarray(pixels).save(path.parent / "photo.png")
    return path


def said(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, Any]:
    code = main([*map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_any_export_labels_images(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", artifact, artifact.parent / "photo.png"]
    rows = []
    for more in ([], ["--runtime", "torch"], ["--runtime", "torch", "--precision", "bfloat16"]):
        code, value = said(capsys, *words, *more)
        assert code == 0
        rows.append(np.array(value["predictions"][0]["probabilities"]))
    assert 0 <= np.abs(rows[0] - rows[1]).max() < 1e-5 < np.abs(rows[1] - rows[2]).max() < 0.2


def test_few_images_are_made_up_to_what_parity_asks_for(artifact: Path, tmp_path: Path) -> None:
    art = Artifact.open(shutil.copytree(artifact, tmp_path / "a.niwaki"))
    art.export("torch", calib=np.full((1, 12, 14, 3), 9, np.uint8))
    assert art.exports["torch"]["float32"]["parity"]["images"] == 16


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--runtime", "tflite"], "runtime-unknown", "litert"),
        (["--runtime", "ncnn"], "artifact-export", "--runtime ncnn --precision float32"),
        (["--precision", "int8"], "artifact-export", "--runtime onnx --precision int8"),
        (["--precision", "float16"], "artifact-export", "There are float32, int8."),
    ],
)
def test_what_is_not_there_is_told(
    artifact: Path, capsys: pytest.CaptureFixture[str], more: list[str], code: str, says: str
) -> None:
    got, value = said(capsys, "predict", artifact, artifact.parent / "photo.png", *more)
    assert got == 1 and value["error"]["code"] == code and says in value["error"]["message"]


def test_scenes_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(3, 2, 3, padding=1).eval()
    path = tmp_path / "s.niwaki"
    art = Artifact.save(path, model, spec=Spec(size_hw=(16, 16)), task=Segment(("sky", "ground")))
    art.export("torch")
    np.save(tmp_path / "scene.npy", np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    words: list[str | Path] = ["predict", path, tmp_path / "scene.npy"]
    code, value = said(capsys, *words, "-o", tmp_path / "x.npy", "--runtime", "torch", "--exact")
    assert code == 1 and "has none. Add it" in value["error"]["message"]
    art.export("onnx")
    for name in ("onnx", "torch"):
        assert said(capsys, *words, "-o", tmp_path / f"{name}.npy", "--runtime", name, "--exact")[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "onnx.npy"), np.load(tmp_path / "torch.npy"))
