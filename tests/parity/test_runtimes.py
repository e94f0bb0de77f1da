"""What runtimes share: errors with a code and one line, files that prove themselves, one artifact on all."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from niwaki import Artifact, Classify, Spec, nets, runtimes
from niwaki.errors import MissingExtra, ModelError, ParityError, PlanError, RuntimeFailed, SpecError
from niwaki.qdq import by_nncf
from niwaki.qdq.recipe import Recipe
from niwaki.runtimes import limits, parity, tensorrt_graph
from niwaki.runtimes.session import Session

torch.set_num_threads(1)
SPEC = Spec(size_hw=(8, 8), mean=(0.5,), std=(0.25,), channels=1)
TASK = Classify(tuple("abcd"))
OTHERS = ("openvino", "torch", "litert", "ncnn", "executorch")


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, stride=2), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).relu().mean((2, 3)))


def plain(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = Plain().eval()
    with torch.no_grad():
        model.b.weight.mul_(8)
    return model


def needs(name: str) -> None:
    can = runtimes.support(name)
    if not (can["run"] and can["export"]):
        pytest.skip(f"{name} is not installed: {can['install']}")


@pytest.mark.parametrize("name", ["openvino", "torch", "ncnn"])
def test_a_file_of_another_model_fails_parity(name: str, tmp_path: Path) -> None:
    needs(name)
    made = runtimes.load(name)
    path = made.export(plain(), SPEC, tmp_path / f"float32.{made.SUFFIX}", task=TASK)
    with pytest.raises(ParityError) as caught:
        parity.prove(plain(1), path, SPEC, task=TASK, precision="float32", calib=None, runtime=name)
    assert (caught.value.code, caught.value.exit_code) == ("parity", 3)


@pytest.mark.parametrize("name", OTHERS)
def test_damaged_and_missing_files(name: str, tmp_path: Path) -> None:
    if not runtimes.support(name)["run"]:
        pytest.skip(f"{name} is not installed")
    made = runtimes.load(name)
    with pytest.raises(RuntimeFailed) as caught:
        made.open(tmp_path / f"float32.{made.SUFFIX}")
    assert caught.value.code == "runtime-missing"
    for suffix in (made.SUFFIX, *made.PARTS):
        (tmp_path / f"float32.{suffix}").write_bytes(b"no model at all, whatever the ending says" * 9)
    with pytest.raises(RuntimeFailed) as caught:
        made.open(tmp_path / f"float32.{made.SUFFIX}")
    assert caught.value.code in ("runtime-refused", "runtime-signature")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "package"), [("openvino", "openvino"), ("ncnn", "ncnn"), ("tensorrt", "tensorrt")]
)
def test_a_missing_extra_is_one_line_with_the_install_line(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(MissingExtra) as caught:
        runtimes.load(name).open(tmp_path / "x")
    assert (caught.value.code, caught.value.exit_code) == ("extra-missing", 4)
    assert f"pip install 'niwaki[{name}]'" in str(caught.value)


def test_without_its_converter_litert_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("niwaki.runtimes.litert._python", lambda: None)
    with pytest.raises(MissingExtra) as caught:
        runtimes.load("litert").export(plain(), SPEC, tmp_path / "x.tflite", task=TASK)
    assert "niwaki[litert-export]" in str(caught.value)


@pytest.mark.parametrize("name", runtimes.NAMES)
def test_requests_that_do_not_fit(name: str, tmp_path: Path) -> None:
    made = runtimes.load(name)
    wrong = np.zeros((2, 9, 8, 1), np.uint8)
    for precision, calib, code in (("int3", None, "export-precision"), ("float32", wrong, "export-calib")):
        with pytest.raises(ModelError) as caught:
            made.export(plain(), SPEC, tmp_path / "x", task=TASK, precision=precision, calib=calib)
        assert caught.value.code == code


def test_support_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "_there", lambda package: package not in ("openvino", "onnx"))
    can = runtimes.support("openvino")
    assert (can["run"], can["export"]) == (False, False)
    assert can["install"] == "pip install 'niwaki[train,openvino]'"


def test_a_fixed_batch_is_filled_up_and_cut() -> None:
    sizes = []

    def run(images):
        sizes.append(len(images))
        return images.reshape(len(images), -1)[:, :2].astype(np.float32)

    images = np.arange(5 * 4, dtype=np.uint8).reshape(5, 2, 2, 1)
    session = Session(run, shape=(2, 2, 1), classes=2, batch=2, name="x")
    np.testing.assert_array_equal(session(images), images.reshape(5, 4)[:, :2])
    assert sizes == [2, 2, 2]
    sizes.clear()
    Session(run, shape=(2, 2, 1), classes=2, at_most=4, name="x")(images)
    assert sizes == [4, 1]
    with pytest.raises(SpecError):
        session(images[:, :1])


@pytest.mark.slow
def test_openvino_runs_the_same_int8_numbers(tmp_path: Path) -> None:
    """Both read one QDQ graph: their answers are nearer to each other than either is to float."""
    needs("openvino")
    spec, task = Spec(size_hw=(16, 16)), Classify(tuple("abcde"))
    torch.manual_seed(0)
    model = nets.build("niwaki:resnet20", classes=5).train()
    with torch.no_grad():
        model(torch.from_numpy(spec.example(16)))
        model.linear.weight.mul_(0.1)
    images = parity.noise(spec, 32)
    given = {}
    for name in ("onnx", "openvino"):
        made = runtimes.load(name)
        path = tmp_path / name / f"int8.{made.SUFFIX}"
        made.export(model, spec, path, task=task, precision="int8", calib=images)
        given[name] = made.open(path)(images)
    found = limits.compare(given["onnx"], given["openvino"])
    assert found.agreement >= 0.96
    assert found.moved < limits.compare(parity.reference(model, spec, task, images), given["onnx"]).moved


@pytest.mark.slow
def test_nncf_is_a_choice_that_the_manifest_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nncf")
    needs("openvino")
    calib, made, true = parity.noise(SPEC, 32), [], by_nncf.quantize
    monkeypatch.setattr(by_nncf, "quantize", lambda *given: made.append(true(*given)) or made[-1])
    art = Artifact.save(tmp_path / "a.niwaki", plain(), spec=SPEC, task=TASK)
    art.export("openvino", precision="int8", calib=calib, recipe=Recipe(by="nncf"))
    assert art.exports["openvino"]["int8"]["recipe"]["by"] == "nncf"
    assert [n.op_type for n in made[0].graph.node].count("QuantizeLinear") >= 2
    got = art.session("openvino", precision="int8")(calib)
    assert np.abs(got - parity.reference(plain(), SPEC, TASK, calib)).mean() < 0.1


def test_nncf_is_loaded_without_what_reports_its_use(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "openvino_telemetry"
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.delitem(sys.modules, name, raising=False)
    with by_nncf.silent():
        assert os.environ["NNCF_CI"] == "1"
        with pytest.raises(ImportError):
            importlib.import_module(name)
    assert name not in sys.modules and "NNCF_CI" not in os.environ
    importlib.import_module(name)


def test_nncf_takes_no_other_knobs() -> None:
    with pytest.raises(PlanError, match="own defaults"):
        Recipe(by="nncf", equalise=True)
    with pytest.raises(PlanError, match="niwaki, nncf"):
        Recipe(by="other")


def test_tensorrt_takes_its_int8_graph_and_computes_much_the_same(tmp_path: Path) -> None:
    """Symmetric scales are coarser, so it is another function; what it may not do is fail to run."""
    calib = parity.noise(SPEC, 32)
    paths = {}
    for name in ("onnx", "tensorrt"):
        paths[name] = runtimes.load(name).export(
            plain(), SPEC, tmp_path / f"{name}.onnx", task=TASK, precision="int8", calib=calib
        )
    faults = tensorrt_graph.faults(onnx.load(paths["onnx"]))
    assert any("zero point" in fault for fault in faults)
    assert any("reads uint8, which may only be cast" in fault for fault in faults)
    assert tensorrt_graph.faults(onnx.load(paths["tensorrt"])) == []
    one, other = (runtimes.load("onnx").open(path)(calib) for path in paths.values())
    assert np.abs(one - other).max() < 0.1


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_tensorrt_files_say_their_precision_whatever_they_are_called(precision: str, tmp_path: Path) -> None:
    made = runtimes.load("tensorrt")
    path = made.export(plain(), SPEC, tmp_path / "float16.onnx", task=TASK, precision=precision)
    path = path.rename(tmp_path / "my model.onnx")
    assert made.marked(path.read_bytes(), path) == precision
    proto = onnx.load(path)
    del proto.metadata_props[:]
    with pytest.raises(RuntimeFailed, match="my model") as caught:
        made.marked(proto.SerializeToString(), path)
    assert caught.value.code == "runtime-signature"


def test_tensorrt_refuses_operators_by_name() -> None:
    node = onnx.helper.make_node("NonMaxSuppression", ["a"], ["b"], "odd")
    graph = onnx.helper.make_graph([node], "g", [], [])
    assert tensorrt_graph.faults(onnx.helper.make_model(graph)) == [
        "it has no operator NonMaxSuppression (odd)"
    ]


def test_an_artifact_holds_files_of_two_parts(tmp_path: Path) -> None:
    needs("ncnn")
    art = Artifact.save(tmp_path / "a.niwaki", plain(), spec=SPEC, task=TASK)
    art.export("ncnn")
    art = Artifact.open(tmp_path / "a.niwaki")
    assert art.exports["ncnn"]["float32"]["parts"] == ["exports/ncnn/float32.bin"]
    images = parity.noise(SPEC, 3)
    got = art.session("ncnn")(images)
    np.testing.assert_allclose(got, parity.reference(plain(), SPEC, TASK, images), atol=1e-5)
    (tmp_path / "a.niwaki/exports/ncnn/float32.bin").unlink()
    with pytest.raises(Exception, match=r"float32\.bin is missing"):
        Artifact.open(tmp_path / "a.niwaki")
