"""The ladder and the sensitivities from the command line, on a trained network of digits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from niwaki.cli import main, sensitivity

pytest.importorskip("torch")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`niwaki:small` after two epochs of digits, then with weights that plain int8 cannot hold."""
    import torch

    import niwaki as nw

    torch.manual_seed(0)
    digits = nw.data.read("digits")
    spec = nw.Spec(size_hw=(16, 16), mean=(0.5,), std=(0.25,), channels=1)
    task = nw.Classify(digits.classes)
    model = nw.nets.build("niwaki:small", classes=10, channels=1)
    model = nw.train.fit(model, task=task, spec=spec, train=digits.train.take(600), epochs=3, ema=0.0)
    path = tmp_path_factory.mktemp("int8") / "m.niwaki"
    nw.Artifact.save(path, model, spec=spec, task=task, builder="niwaki:small")
    return path


@pytest.fixture(autouse=True)
def traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One model in all tests here, so torch traces it once; each gets a graph of its own."""
    from niwaki.runtimes import onnx_export

    trace = onnx_export._trace

    def once(*given: Any, as_convolution: bool) -> Any:
        if as_convolution not in TRACED:
            TRACED[as_convolution] = trace(*given, as_convolution=as_convolution).SerializeToString()
        return onnx.ModelProto.FromString(TRACED[as_convolution])

    monkeypatch.setattr(onnx_export, "_trace", once)


TRACED: dict[bool, bytes] = {}


def said(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, Any, str]:
    code = main([*map(str, words), "--json"])
    caught = capsys.readouterr()
    return code, json.loads(caught.out), caught.err


def test_export_climbs_and_keeps_the_recipe(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from niwaki.artifact import Artifact

    code, value, err = said(capsys, "export", artifact, "--data", "digits", "--max-drop", "2%")
    assert code == 0, err
    ladder = value["ladder"]
    assert ladder["held"] and ladder["drop"] <= 0.02 and ladder["rung"] == ladder["steps"][-1]["rung"]
    kept = Artifact.open(artifact)
    assert kept.exports["onnx"]["int8"]["recipe"] == ladder["recipe"]
    assert kept.manifest["ladder"]["rung"] == ladder["rung"]
    assert kept.session("onnx", precision="int8")(np.zeros((2, 16, 16, 1), np.uint8)).shape == (2, 10)


def test_the_exported_file_is_the_one_that_was_scored(artifact: Path, tmp_path: Path) -> None:
    import niwaki as nw
    from niwaki.qdq.recipe import Recipe
    from niwaki.runtimes import onnx_export

    held = nw.Artifact.open(artifact)
    digits = nw.data.read("digits")
    calib = digits.train.batch(range(64), held.spec)
    recipe = Recipe(calibration="mse", equalise=True, correct_bias=True, rounding="learned")
    made = onnx_export.maker(held.model(), held.spec, task=held.task, calib=calib)
    one = onnx_export.save_int8(made, recipe, tmp_path / "a.onnx").read_bytes()
    other = onnx_export.export(
        held.model(),
        held.spec,
        tmp_path / "b.onnx",
        task=held.task,
        precision="int8",
        calib=calib,
        recipe=recipe,
    )
    assert one == other.read_bytes()


def test_a_climb_that_is_not_enough_is_3_and_writes_nothing(
    artifact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from niwaki.artifact import Artifact
    from niwaki.search import ladder

    def never(score: Any, **given: Any) -> ladder.Climbed:
        return climb(score, **{**given, "max_drop": -1.0, "rungs": ladder.RUNGS[:2], "sensitive": None})

    climb = ladder.climb
    monkeypatch.setattr(ladder, "climb", never)
    before = Artifact.open(artifact).manifest
    code, value, _ = said(capsys, "export", artifact, "--data", "digits", "--max-drop", "0")
    assert code == 3 and value["ladder"]["rung"] is None and len(value["ladder"]["steps"]) == 2
    assert Artifact.open(artifact).manifest == before


def test_a_size_gives_four_bits_to_the_layers_that_bear_it(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file has the bytes that were asked for, its bits are in the manifest, the page shows every file."""
    from niwaki.artifact import Artifact

    words = ["export", artifact, "--data", "digits", "--size", "75%", "--max-drop", "3%", "--out", tmp_path]
    code, value, err = said(capsys, *words)
    assert code == 0, err
    found, kept = value["mixed"], Artifact.open(artifact)
    plain, chosen = found["points"][-1], found["chosen"]
    assert set(plain["bits"].values()) == {8} and plain["share"] == 1
    assert 0.6 < chosen["share"] <= 0.75 and set(chosen["bits"].values()) == {4, 8}
    entry = kept.exports["onnx"]["int8"]
    assert entry["bytes"] <= 0.75 * plain["bytes"]
    assert not value["ladder"]["recipe"]["correct_bias"]  # which would give layers biases, and bytes
    assert entry["recipe"]["node_bits"] == chosen["recipe"]["node_bits"]
    assert kept.manifest["mixed"]["chosen"] == chosen and value["ladder"]["held"]
    shares = [point["share"] for point in found["points"]]
    assert shares == sorted(shares) and len(shares) >= 4 and found["front"][0] == shares[0]
    page = (tmp_path / "mixed.html").read_text()
    assert "<svg" in page and all(f"{100 * share:.1f}" in page for share in shares)
    assert json.loads((tmp_path / "mixed.json").read_text())["points"] == found["points"]


def test_a_size_that_loses_too_much_names_the_step_that_trains_it(
    artifact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tomllib

    import niwaki as nw
    from niwaki.search import ladder

    climb = ladder.climb
    monkeypatch.setattr(
        ladder,
        "climb",
        lambda score, **given: climb(score, **{**given, "max_drop": -1.0, "rungs": ladder.RUNGS[:1]}),
    )
    words = ["export", artifact, "--data", "digits", "--size", "70%", "--max-drop", "0"]
    assert main([str(word) for word in words]) == 3
    said = capsys.readouterr().out
    (step,) = tomllib.loads(said[said.index("[[step]]") :])["step"]
    assert step["do"] == "quantize.qat" and len(step["four"]) > 5
    model = nw.Artifact.open(artifact).model()
    assert set(step["four"]) <= {name for name, _ in model.named_modules()}


@pytest.mark.parametrize("words", [["--max-drop", "1%"], ["--size", "80%"], ["--sensitivity", "layer"]])
def test_a_model_whose_bits_were_trained_takes_no_recipe(
    words: list[str], artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    import niwaki as nw

    monkeypatch.undo()
    held, digits = nw.Artifact.open(artifact), nw.data.read("digits")
    given = {"spec": held.spec, "task": held.task}
    model = nw.quantize.qat(held.model(), train=digits.train.take(40), epochs=0, **given)
    nw.Artifact.save(tmp_path / "q.niwaki", model, **given)
    code, value, _ = said(capsys, "export", tmp_path / "q.niwaki", "--data", "digits", *words)
    assert code == 1 and value["error"]["code"] == "export-recipe"


def test_a_size_that_no_bits_reach_is_3_and_writes_nothing(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from niwaki.artifact import Artifact

    before = Artifact.open(artifact).manifest
    code, value, _ = said(capsys, "export", artifact, "--data", "digits", "--size", "10%")
    assert (
        code == 3
        and value["error"]["code"] == "budget-unreachable"
        and "4 bits for all layers" in value["error"]["message"]
    )
    assert Artifact.open(artifact).manifest == before


def test_the_ladder_is_scored_on_the_runtime_that_it_is_for(
    artifact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    from niwaki.runtimes import onnx, openvino

    def never(*given: Any, **knobs: Any) -> Any:
        raise AssertionError("ONNX Runtime was asked")

    opened: list[Path] = []
    ran = openvino.open
    monkeypatch.setattr(onnx, "open", never)
    monkeypatch.setattr(openvino, "open", lambda path, **knobs: opened.append(Path(path)) or ran(path, **knobs))
    words = ["export", artifact, "--data", "digits", "--max-drop", "5%", "--runtime", "openvino"]
    code, value, err = said(capsys, *words)
    assert code == 0, err
    assert len(opened) > len(value["ladder"]["steps"]) and all(path.suffix == ".xml" for path in opened)
    assert value["exports"]["openvino"]["int8"]["recipe"] == value["ladder"]["recipe"]


def test_sensitivity_is_a_table_a_page_and_json(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "export",
        artifact,
        "--sensitivity",
        "layer",
        "--data",
        "digits",
        "--images",
        "64",
        "--out",
        tmp_path,
    ]
    code, value, err = said(capsys, *words)
    assert code == 0, err
    assert json.loads((tmp_path / "sensitivity.json").read_text())["rows"] == value["rows"]
    page = (tmp_path / "sensitivity.html").read_text()
    assert "<svg" in page and all(row["name"] in page for row in value["rows"] if "→" not in row["name"])
    assert -1 <= value["rank"]["few images"] <= 1 and value["all"]["score"] is not None
    text = sensitivity._text(value, "the page")
    assert "rank correlation" in text and " dB" in text and "(on the 48 others)" in text
    assert all(row["rest"] is not None for row in value["rows"])
    assert "rank correlation" in text and all(row["name"] in text for row in value["rows"])


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["--max-drop", "1%"], 1, "export-calib"),
        (["--size", "60%"], 1, "export-calib"),
        (["--size", "0"], 2, "usage"),
        (["--size", "60%", "--data", "digits", "--sensitivity", "layer"], 1, "export-recipe"),
        (["--floats", "--data", "digits"], 1, "export-recipe"),
        (["--size", "60%", "--data", "digits", "--quantizer", "nncf"], 1, "export-recipe"),
        (["--size", "60%", "--data", "nowhere", "--runtime", "ncnn"], 1, "export-recipe"),
        (["--sensitivity", "block"], 1, "export-calib"),
        (["--max-drop", "1%", "--data", "digits", "--precision", "float32"], 1, "export-precision"),
        (["--max-drop", "200%", "--data", "digits"], 2, "usage"),
        (["--max-drop", "1%", "--data", "nowhere"], 1, "data-missing"),
        (["--max-drop", "1%", "--data", "nowhere", "--runtime", "litert"], 1, "export-recipe"),
        (["--max-drop", "1%", "--data", "nowhere", "--runtime", "web"], 1, "export-recipe"),
        (["--max-drop", "1%", "--data", "nowhere", "--runtime", "onxx"], 1, "runtime-unknown"),
        (["--calib", "nowhere", "--runtime", "onxx"], 1, "runtime-unknown"),
    ],
)
def test_bad_input_is_one_line(
    artifact: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, error: str
) -> None:
    got, value, err = said(capsys, "export", artifact, *words)
    assert (got, value["error"]["code"]) == (code, error)
    assert len(err.strip().splitlines()) == 1 and "Traceback" not in err


@pytest.mark.parametrize("shape", [(0, 16, 16, 1), (4, 8, 8, 1), (4, 16, 16, 3)])
def test_calibration_images_that_do_not_fit(artifact: Path, shape: tuple[int, ...]) -> None:
    import niwaki as nw
    from niwaki.errors import ModelError
    from niwaki.qdq.recipe import Recipe

    with pytest.raises(ModelError, match="at least one image") as caught:
        nw.Artifact.open(artifact).export(
            "onnx", precision="int8", calib=np.zeros(shape, np.uint8), recipe=Recipe()
        )
    assert caught.value.code == "export-calib"


def test_a_recipe_for_a_runtime_without_is_refused(artifact: Path) -> None:
    import niwaki as nw
    from niwaki.errors import ModelError
    from niwaki.qdq.recipe import Recipe

    with pytest.raises(ModelError, match="takes no recipe") as caught:
        nw.Artifact.open(artifact).export("torch", recipe=Recipe())
    assert caught.value.code == "export-recipe"


def test_narrow_weights_are_safe_without_vnni(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(artifact, tmp_path / "a.niwaki")
    largest = {}
    for more in ([], ["--narrow"]):
        code, value, err = said(capsys, "export", tmp_path / "a.niwaki", "--calib", "digits", *more)
        assert code == 0, err
        entry = value["exports"]["onnx"]["int8"]
        whole = [onnx.numpy_helper.to_array(one) for one in _constants(tmp_path / "a.niwaki" / entry["file"])]
        largest[bool(more)] = max(int(np.abs(one.astype(int)).max()) for one in whole if one.dtype == np.int8)
    assert largest[False] > 64 >= largest[True]
    assert entry["recipe"]["narrow"] and "pairs" in entry["instruction_sets"]["safe_for"]
    assert entry["instruction_sets"]["decided_by"] == "weights"


def _constants(path: Path) -> list[onnx.TensorProto]:
    return list(onnx.load(path).graph.initializer)
