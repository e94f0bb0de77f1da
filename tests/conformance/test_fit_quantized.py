"""The main job with a plan that ends in quantization-aware training: one export, int8, its scales trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests import colours

from niwaki import job
from niwaki.artifact import Artifact

pytestmark = pytest.mark.slow

PLAN = """
[[step]]
do = "prune.channels"

[[step]]
do = "distill.logits"

[[step]]
do = "quantize.qat"
epochs = 1
"""


def test_a_quantized_network_is_delivered_as_int8_alone(tmp_path: Path) -> None:
    images = colours.written(tmp_path / "colours.npz")
    (tmp_path / "plan.toml").write_text(PLAN)
    result = job.fit(
        tmp_path / "colours.npz", model=colours.micro, budget="macs=50%", plan=tmp_path / "plan.toml", epochs=3,
        recover_epochs=2, max_drop=1.0, out=tmp_path / "run",
    )  # fmt: skip
    assert result["default"] == "int8" and result["budget"]["met"]
    delivered = Artifact.open(tmp_path / "run" / "model.niwaki")
    assert list(delivered.exports["onnx"]) == ["int8"]
    assert delivered.session("onnx")(images[:4]).shape == (4, 3)
    record = json.loads((tmp_path / "run" / "report.json").read_text())
    cost = {stage["name"]: stage["cost"] for stage in record["stages"]}
    assert cost["int8"]["ms"] > 0 and cost["distilled"]["ms"] is None  # what was not measured is not shown
