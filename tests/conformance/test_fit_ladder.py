"""niwaki fit where plain int8 collapses: the ladder is climbed for the point, named, and replayed on resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests import colours
from torch import nn

from niwaki import data, job, train
from niwaki.artifact import Artifact
from niwaki.job import climb
from niwaki.spec import Spec
from niwaki.tasks import Classify

pytestmark = pytest.mark.slow


def micro(*, classes: int, channels: int) -> nn.Module:
    """A depthwise network without norms, so that channels can be scaled against each other."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU(),
        nn.Conv2d(16, 24, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, classes),
    )  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 images 8x8 of three classes that differ in colour."""
    path = tmp_path_factory.mktemp("data") / "colours.npz"
    colours.written(path, count=240, contrast=90, noise=50)
    return path


@pytest.fixture(scope="module")
def weights(source: Path) -> Path:
    """A trained network, then a channel of each layer blown up where int8 has one scale: the same function."""
    torch.manual_seed(0)
    read = data.read(source)
    model = train.fit(
        micro(classes=3, channels=3),
        task=Classify(read.classes),
        spec=Spec(size_hw=(8, 8)),
        train=read.train,
        epochs=12,
        batch=16,
        ema=0.0,
    )
    with torch.no_grad():
        for first, second in ((model[0], model[2]), (model[2], model[4])):
            factors = torch.ones(16)
            factors[int(second.weight.abs().flatten(1).sum(1)[:16].argmin())] = 1e6
            first.weight *= factors[:, None, None, None]
            first.bias *= factors
            second.weight /= factors[:, None, None, None] if second.groups > 1 else factors[:, None, None]
    path = source.parent / "broken.safetensors"
    save_file(model.state_dict(), path)
    return path


def fit(source: Path, weights: Path, out: Path) -> dict[str, Any]:
    return job.fit(
        source,
        out=out,
        model=micro,
        weights=weights,
        epochs=0,
        recover_epochs=0,
        budget="macs=100%",
        max_drop=0.05,
        ledger=0,
    )


def test_the_rung_is_named_and_a_resume_measures_nothing_again(
    source: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    result = fit(source, weights, out)
    plain = (
        result["scores"]["baseline"]["val"]["accuracy"] - result["scores"]["unpruned int8"]["val"]["accuracy"]
    )
    assert plain > 0.2, "the network was built to break in plain int8"
    assert result["ladder"]["held"] and result["ladder"]["rung"] != "min-max"
    lost = result["scores"]["baseline"]["val"]["accuracy"] - result["scores"]["int8"]["val"]["accuracy"]
    assert lost == pytest.approx(result["ladder"]["drop"], abs=1e-6) and lost <= 0.05
    assert any(f"{result['ladder']['rung']} is enough" in note for note in result["notes"])
    point = Artifact.open(out / "points" / "asked.niwaki")
    assert point.exports["onnx"]["int8"]["recipe"] == result["ladder"]["recipe"]
    assert result["ladder"]["rung"] in (out / "report.html").read_text()

    for name in ("result.json", "stages/asked-ladder.json", "stages/asked-int8-recipe.json"):
        (out / name).unlink()
    measured: list[str] = []  # every score of the climb is in the journal
    monkeypatch.setattr(climb.Files, "measure", lambda *given: measured.append("again"))
    again = fit(source, weights, out)
    assert measured == [] and again["ladder"]["rung"] == result["ladder"]["rung"]
