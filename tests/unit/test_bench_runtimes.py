"""bench --all-runtimes: one row an export with exactly the documented fields, as JSON, text and chart."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from niwaki import Artifact, Classify, Segment, Spec, bench_chart, bench_runtimes, nets
from niwaki.cli import main
from niwaki.data import Samples
from niwaki.errors import ArtifactError, RuntimeFailed

torch.set_num_threads(1)
FIELDS = {"agreement", "max_error", "accuracy", "ms", "p90_ms", "start_ms", "mb", "peak_mb"}
SPEC = Spec(size_hw=(12, 12), mean=(0.5,), std=(0.25,), channels=1)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    torch.manual_seed(0)
    model = nets.build("niwaki:small", classes=4, channels=1).eval()
    folder = tmp_path_factory.mktemp("bench") / "a.niwaki"
    art = Artifact.save(folder, model, spec=SPEC, task=Classify(tuple("abcd")), builder="niwaki:small")
    art.export("onnx")
    art.export("torch")
    return art


def samples(count: int = 50) -> Samples:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 12, 12, 1), np.uint8)
    names = tuple(map(str, range(count)))
    return Samples(sources=pixels, names=names, labels=np.arange(count) % 4)


def test_rows_have_the_documented_fields(artifact: Artifact) -> None:
    data = samples()
    found = bench_runtimes.measure(artifact, data=data, rounds=3)
    assert set(found["runtimes"]) == {"onnx:float32", "torch:float32"}
    predicted = artifact.session("onnx")(data.batch(range(50), SPEC)).argmax(1)
    for row in found["runtimes"].values():
        assert set(row) == FIELDS
        assert row["agreement"] == 1.0
        assert row["max_error"] < 1e-4
        assert row["accuracy"] == pytest.approx(float((predicted == data.labels).mean()))
        assert 0 < row["ms"] < row["start_ms"]
    rows = found["runtimes"]
    assert rows["torch:float32"]["peak_mb"] > rows["onnx:float32"]["peak_mb"] + 50  # torch itself
    assert found["fastest"]["name"] == min(rows, key=lambda name: rows[name]["ms"])  # no int8 among them
    assert found["reference"] == "the torch model"
    chart = ElementTree.fromstring(bench_chart.svg(found))
    texts = [text.text for text in chart.iter("{http://www.w3.org/2000/svg}text")]
    assert {"onnx:float32", "torch:float32"} <= set(texts)


def test_slower_int8_is_said_and_same_numbers_are_compared() -> None:
    slow, quick = np.full(9, 2.0), np.full(9, 1.0)
    taken = {"onnx:float32": quick, "onnx:int8": slow, "ncnn:int8": slow}
    assert bench_runtimes._slower(taken) == ["onnx:int8"]
    assert bench_runtimes._slower({"onnx:float32": slow, "onnx:int8": quick}) == []
    unsure = {"onnx:float32": np.array([1.0, 1.1, 1.2] * 3), "onnx:int8": np.array([1.1, 1.0, 1.15] * 3)}
    assert np.median(unsure["onnx:int8"]) <= np.median(unsure["onnx:float32"])
    assert bench_runtimes._slower(unsure) == ["onnx:int8"]
    assert bench_runtimes._fastest(unsure)["name"] == "onnx:float32"
    assert bench_runtimes._fastest({"onnx:float32": slow, "onnx:int8": quick})["name"] == "onnx:int8"
    one = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    given = {"onnx:int8": one, "openvino:int8": one[::-1]}
    assert bench_runtimes._same_numbers(given) == {"openvino:int8": 0.0}


def test_as_many_images_as_their_answers_fit(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = samples(50)
    assert bench_runtimes._within(artifact, whole, answers=3) is whole
    monkeypatch.setattr(bench_runtimes, "MEMORY_BYTES", 20 * 4 * 4 * 3 + 5)  # 20 images, 4 classes, 3 answers
    some = bench_runtimes._within(artifact, whole, answers=3)
    assert some is not None and len(some) == 20 and bench_runtimes._within(artifact, None, answers=3) is None
    masks = Artifact(artifact.path, artifact.manifest, SPEC, Segment(("sky", "ground")))
    monkeypatch.setattr(bench_runtimes, "MEMORY_BYTES", 10 * 4 * 2 * 12 * 12)
    one = bench_runtimes._within(masks, whole, answers=2)
    assert one is not None and len(one) == 5
    assert len(bench_runtimes._images(masks, None, answers=2)) == 5  # random ones, too


CRASHES = """
import os, signal, sys
if "niwaki.bench_start" in sys.orig_argv and "torch" in sys.orig_argv:
    os.kill(os.getpid(), signal.SIGSEGV)
"""


def test_a_process_that_crashes_is_told_and_stops_no_other(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(CRASHES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = bench_runtimes.measure(artifact, rounds=2)
    assert set(found["runtimes"]) == {"onnx:float32"} and found["fastest"]["name"] == "onnx:float32"
    assert "ended with -11" in found["failed"]["torch:float32"]


@pytest.mark.parametrize("largest", [0, 1], ids=["while it answers", "while it is timed"])
def test_a_runtime_that_fails_is_told_and_stops_no_other(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    """The torch file's session fails on batches of up to `largest` images, or on larger ones."""
    opened = Artifact.session

    def session(self: Artifact, runtime: str = "onnx", **knobs: Any) -> Any:
        predict = opened(self, runtime, **knobs)

        def fails(images: Any) -> Any:
            if (len(images) > 1) is (largest == 0):
                raise RuntimeFailed("torch: out of memory.", code="runtime-failed")
            return predict(images)

        return fails if runtime == "torch" else predict

    monkeypatch.setattr(Artifact, "session", session)
    found = bench_runtimes.measure(artifact, rounds=2)
    assert set(found["runtimes"]) == {"onnx:float32"}
    assert found["failed"] == {"torch:float32": "torch: out of memory."}


def test_the_command_line(artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chart = tmp_path / "c.svg"
    words = ["bench", str(artifact.path), "--all-runtimes", "--rounds", "2", "--chart", str(chart)]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: set(row) for name, row in found["runtimes"].items()} == {
        "onnx:float32": FIELDS,
        "torch:float32": FIELDS,
    }
    assert chart.read_text().startswith("<svg")
    assert main(["bench", str(artifact.path)]) == 2


def test_an_artifact_without_exports_says_what_to_do(tmp_path: Path) -> None:
    model = nets.build("niwaki:small", classes=4, channels=1).eval()
    task = Classify(tuple("abcd"))
    art = Artifact.save(tmp_path / "a.niwaki", model, spec=SPEC, task=task, builder="niwaki:small")
    with pytest.raises(ArtifactError, match="no export runs here"):
        bench_runtimes.measure(art)
    with pytest.raises(ArtifactError) as caught:
        bench_runtimes.start(art, "onnx", "float32")
    assert caught.value.code == "artifact-export"
