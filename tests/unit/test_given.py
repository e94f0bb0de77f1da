"""What a verb is given for an artifact: classes by name, splits of its own fit, images without labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import niwaki as nw
from niwaki.cli import given, main
from niwaki.errors import DataError

torch.set_num_threads(1)
SPEC = nw.Spec(size_hw=(8, 8))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> nw.Artifact:
    torch.manual_seed(0)
    model = nw.nets.build("niwaki:small", classes=3).eval()
    path = tmp_path_factory.mktemp("given") / "a.niwaki"
    task = nw.Classify(("ash", "elm", "oak"))
    return nw.Artifact.save(path, model, spec=SPEC, task=task, builder="niwaki:small")


def folder(root: Path, classes: str, count: int = 4) -> Path:
    """Class folders whose images all have one grey value, the number of the class's first letter."""
    for name in classes.split():
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.full((9, 7, 3), ord(name[0]), np.uint8)
            pixels[0, 0] = i
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def test_classes_are_found_by_name_whatever_part_of_them_is_there(
    artifact: nw.Artifact, tmp_path: Path
) -> None:
    found = given.labelled(artifact, str(folder(tmp_path, "elm oak")))
    assert found.classes == artifact.task.classes
    for part in (found.train, found.val, found.test):
        letters = part.batch(range(len(part)), SPEC)[:, 5, 5, 0]
        assert [artifact.task.classes[label][0] for label in part.labels] == [chr(n) for n in letters]


@pytest.mark.parametrize("classes", ["ash elm pine", "cat dog"])
def test_other_classes_are_refused_and_both_told(artifact: nw.Artifact, tmp_path: Path, classes: str) -> None:
    with pytest.raises(DataError, match="ash, elm, oak") as caught:
        given.labelled(artifact, str(folder(tmp_path, classes)))
    assert caught.value.code == "classes-differ" and classes.split()[-1] in str(caught.value)


def test_masks_are_refused_for_a_classifier(artifact: nw.Artifact, tmp_path: Path) -> None:
    for part, kind in (("images", (8, 8, 3)), ("masks", (8, 8))):
        (tmp_path / part).mkdir()
        for i in range(4):
            pixels = np.random.default_rng(i).integers(0, 2, kind, np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / f"{i}.png")
    with pytest.raises(DataError, match="masks") as caught:
        given.labelled(artifact, str(tmp_path))
    assert caught.value.code == "classes-differ"


def test_splits_are_those_of_the_fit_that_made_it(artifact: nw.Artifact, tmp_path: Path) -> None:
    source = str(folder(tmp_path, "ash elm oak", 12))
    fitted = nw.Artifact.open(artifact.path)
    fitted.manifest["splits"] = {"seed": 5, "val": 0.4}
    wanted = nw.data.read(source, seed=5, val=0.4)
    got = given.labelled(fitted, source)
    assert (got.train.names, got.test.names) == (wanted.train.names, wanted.test.names)
    assert got.test.names != given.labelled(artifact, source).test.names
    assert given.labelled(fitted, source, seed=0).test.names == given.labelled(artifact, source).test.names


def test_images_without_labels_calibrate(
    artifact: nw.Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder(tmp_path / "deep", "one", 20)
    images = given.calibration(artifact, str(tmp_path))
    assert images.shape == (20, 8, 8, 3) and capsys.readouterr().err == ""
    for path in (tmp_path / "deep" / "one").glob("1*.png"):
        path.write_bytes(b"\x89PNG but no more")
    assert len(given.calibration(artifact, str(tmp_path))) == 9
    told = capsys.readouterr().err
    assert "image-corrupt" in told and "9 images" in told


@pytest.mark.parametrize("what", ["nothing", "damage", "words"])
def test_no_image_to_calibrate_on_is_one_line(
    artifact: nw.Artifact, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if what != "nothing":
        (tmp_path / ("a.png" if what == "damage" else "a.txt")).write_bytes(b"none")
    assert main(["export", str(artifact.path), "--calib", str(tmp_path), "--json"]) == 1
    caught = capsys.readouterr()
    assert json.loads(caught.out)["error"]["code"] == "data-empty"
    assert len(caught.err.splitlines()) == 1
    assert ("a.png: image-" in caught.err) is (what == "damage")


def test_a_labelled_set_calibrates_by_its_train_split(artifact: nw.Artifact, tmp_path: Path) -> None:
    source = folder(tmp_path, "ash elm oak", 10)
    train = nw.data.read(source).train
    wanted: Any = train.batch(range(len(train)), SPEC)
    np.testing.assert_array_equal(given.calibration(artifact, str(source)), wanted)
