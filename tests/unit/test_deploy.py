"""docs/deploy.md: its programs run the exported file without niwaki, and give what niwaki gives."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from niwaki import nets
from niwaki.artifact import Artifact
from niwaki.runtimes import parity
from niwaki.spec import Spec
from niwaki.tasks import Classify

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deploy.md").read_text()
NODE = ROOT / "tests" / "node"
SPEC = Spec(size_hw=(24, 32))
TASK = Classify(("ant", "bee", "cat", "dog"))


def program(language: str) -> str:
    """The one program in that language on the page, ten lines of it."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert len(found.splitlines()) == 10
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model.niwaki`, whose default is int8."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("deploy")
    model = nets.build("niwaki:small", classes=4).train()
    with torch.no_grad():
        model(torch.from_numpy(SPEC.example(16)))
    artifact = Artifact.save(
        folder / "model.niwaki", model.eval(), spec=SPEC, task=TASK, builder="niwaki:small"
    )
    for precision in ("float32", "int8"):
        artifact.export(precision=precision, calib=parity.noise(SPEC, 16))
    artifact.update(default="int8")
    return folder


def photo(path: Path, size_hw: tuple[int, int], **options: object) -> None:
    image = parity.noise(Spec(size_hw=size_hw), 1, seed=4)[0]
    Image.fromarray(image).save(path, **options)


def wanted(folder: Path) -> tuple[str, float]:
    artifact = Artifact.open(folder / "model.niwaki")
    probabilities = artifact.session()(artifact.spec.read(folder / "photo.jpg")[None])
    return artifact.task.decode(probabilities)[0][0]


_BARE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("niwaki", "torch", "onnx", "safetensors"):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
"""


@pytest.mark.parametrize("orientation", [1, 6])
def test_python_lines_give_what_niwaki_gives(place: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo(place / "photo.jpg", (57, 91), exif=exif, quality=95)
    done = subprocess.run(
        [sys.executable, "-c", _BARE + program("python")], cwd=place, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    label, score = done.stdout.split()
    assert (label, float(score)) == wanted(place)


def test_pinned_versions_are_those_of_the_page() -> None:
    pinned = json.loads((NODE / "package.json").read_text())["dependencies"]
    line = re.search(r"`npm install ([^`]+)`", PAGE)
    assert line and dict(one.rsplit("@", 1) for one in line[1].split()) == pinned


@pytest.mark.slow
def test_node_lines_give_what_niwaki_gives(place: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if not all((NODE / "node_modules" / name).is_dir() for name in ("onnxruntime-web", "sharp")):
        pytest.skip("run: npm install --prefix tests/node")
    # a PNG under that name (sharp and Pillow look at the bytes), of the right size: the same
    # pixels everywhere
    photo(place / "photo.jpg", SPEC.size_hw, format="PNG")
    script = place / "predict.mjs"
    script.write_text(program("js"))
    link = place / "node_modules"
    if not link.exists():
        link.symlink_to(NODE / "node_modules")
    done = subprocess.run(["node", script.name], cwd=place, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    label, score = done.stdout.split()
    expected = wanted(place)
    assert label == expected[0]
    np.testing.assert_allclose(float(score), expected[1], atol=0.02)
