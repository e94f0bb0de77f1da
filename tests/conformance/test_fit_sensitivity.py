"""niwaki fit with a width for each group: the plan's scope "sensitivity", resumed from its journal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests import colours
from torch import nn

from niwaki import job
from niwaki.artifact import Artifact
from niwaki.errors import PlanError
from niwaki.plan import Plan, step

pytestmark = pytest.mark.slow
PLAN = Plan(step("prune.channels", scope="sensitivity", multiple=2))


def micro(*, classes: int, channels: int) -> nn.Module:
    """Two layers, the second much wider than three colours need."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes),
    )  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 images 8x8 of three classes that differ in colour."""
    path = tmp_path_factory.mktemp("data") / "colours.npz"
    colours.written(path, count=120)
    return path


def fit(source: Path, out: Path, **more: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {"model": micro, "budget": "macs=50%", "epochs": 4, "recover_epochs": 0}
    return job.fit(source, out=out, plan=PLAN, max_drop=1.0, **{**usual, **more})


def journal(out: Path) -> dict[str, Any]:
    lines = (out / "journal.jsonl").read_text().splitlines()
    return {entry["key"]: entry["value"] for entry in map(json.loads, lines)}


def test_fit_asks_val_which_channels_matter_and_a_resume_replays_it(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = fit(source, out)
    assert result["budget"]["met"] and 0.49 <= result["budget"]["got"] <= 0.5
    keys = [key for key in journal(out) if key.startswith("sensitivity:")]
    assert len(keys) == 1
    losses = journal(out)[keys[0]]
    assert all(own[-1] == 0 and own == sorted(own, reverse=True) for own in losses.values())

    widths = Artifact.open(out / "model.niwaki").manifest["widths"]
    before = journal(out)
    (out / "result.json").unlink()  # as if it had stopped before its end
    shutil.rmtree(out / "model.niwaki")
    assert fit(source, out)["budget"] == result["budget"]
    assert journal(out) == before
    assert widths and Artifact.open(out / "model.niwaki").manifest["widths"] == widths


def test_what_gates_cut_is_counted_and_comes_back(source: Path, tmp_path: Path) -> None:
    """A step that cuts as it trains, without `prune.channels`: its network is what is judged and resumed."""
    out, plan = tmp_path / "run", Plan(step("prune.gates", budget="macs=50%", epochs=2))
    given: dict[str, Any] = {"model": micro, "budget": "macs=55%", "epochs": 2, "max_drop": 1.0, "ledger": 0}
    result = job.fit(source, out=out, plan=plan, **given)
    macs = {stage: result["cost"][stage]["macs"] for stage in ("baseline", "pruned", "distilled", "int8")}
    assert macs["pruned"] == macs["baseline"] and macs["distilled"] == macs["int8"] <= 0.5 * macs["baseline"]
    assert result["budget"]["met"]

    (out / "result.json").unlink()  # as if it had stopped before its end
    shutil.rmtree(out / "model.niwaki")
    assert job.fit(source, out=out, plan=plan, **given)["cost"] == result["cost"]


@pytest.mark.bench
def test_a_latency_by_the_table(source: Path, tmp_path: Path) -> None:
    result = fit(source, tmp_path / "run", budget="latency=60%", size=32)
    assert result["budget"]["got"] <= 0.6 * 1.05


def test_without_a_budget_the_scope_says_what_it_needs() -> None:
    import torch

    from niwaki import prune

    with pytest.raises(PlanError, match=r"search\.allocate") as caught:
        prune.channels(micro(classes=3, channels=3), example=torch.randn(1, 3, 8, 8), scope="sensitivity")
    assert caught.value.code == "prune-scope"
