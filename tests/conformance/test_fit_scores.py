"""The main job with a score made from data, by a plan in TOML: met, recorded, and resumed to the same bits."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests import colours

from niwaki import job
from niwaki.artifact import Artifact
from niwaki.plan import Plan

pytestmark = pytest.mark.slow

PLAN = """
[[step]]
do = "prune.channels"
score = "taylor"
scope = "isomorphic"
normalise = "macs"
ratios = ["3.*=0.25"]

[[step]]
do = "distill.logits"
"""


def fit(out: Path, **more: Any) -> dict[str, Any]:
    """One run on 90 noisy 8x8 images of three classes that differ in colour."""
    source, plan = out.parent / "colours.npz", out.parent / "plan.toml"
    colours.written(source)
    plan.write_text(PLAN)
    return job.fit(
        source, model=colours.micro, budget="macs=50%", plan=plan, epochs=2, recover_epochs=1, max_drop=1.0,
        out=out, **more,
    )  # fmt: skip


def test_a_score_from_data_goes_through_the_whole_job_and_is_resumed_alike(tmp_path: Path) -> None:
    out = tmp_path / "run"

    def interrupt(progress: Any) -> None:
        if progress.stage != "train":  # the baseline is stored; scores are made again from it
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(out, show=interrupt)
    (stored,) = (out / "stages").glob("asked-proof*")
    first = stored.read_bytes()
    stored.unlink()  # so that the widths are not found there, but searched and cut again
    whole = fit(out)
    assert stored.read_bytes() == first
    assert whole["budget"]["met"] and 0.45 <= whole["budget"]["got"] <= 0.5
    assert Plan.load(out / "plan.toml").steps[0].knobs["score"] == "taylor"
    small = Artifact.open(out / "model.niwaki").model(partial(colours.micro, classes=3, channels=3))
    assert small.get_submodule("3").out_channels >= 12  # the plan's own ratio, 0.25; the others go further
    assert small.get_submodule("0").out_channels < 16
