"""The command line as machines and people meet it: real artifacts, exit codes, streams apart."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from niwaki import errors
from niwaki.cli import _explain, main, parser, screen
from niwaki.cli.predict import find


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real artifact with a float export, of an untrained small network."""
    torch = pytest.importorskip("torch")
    import niwaki as nw

    torch.manual_seed(0)
    spec = nw.Spec(size_hw=(8, 8), mean=(0.5,), std=(0.25,), channels=1)
    task = nw.Classify(("ash", "elm", "oak"))
    model = nw.nets.build("niwaki:small", classes=3, channels=1).eval()
    path = tmp_path_factory.mktemp("artifact") / "m.niwaki"
    made = nw.Artifact.save(path, model, spec=spec, task=task, builder="niwaki:small")
    made.export("onnx")
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """b/1.png, b/0.jpg good; a.png damaged; a hidden and a foreign file."""
    draw = np.random.default_rng(0)
    (tmp_path / "b").mkdir()
    for name in ("b/1.png", "b/0.jpg"):
        Image.fromarray(draw.integers(0, 256, (20, 30, 3)).astype(np.uint8)).save(tmp_path / name)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nbut no more")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    return tmp_path


class Said:
    """What a command printed, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def niwaki(capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    def call(*words: str | Path) -> Said:
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    yield call


def test_help_is_a_result(niwaki: Any) -> None:
    said = niwaki("--help")
    assert (said.code, said.err) == (0, "")
    assert "predict" in said.out
    assert re.fullmatch(r"niwaki \d+\.\d+\S*\n", niwaki("--version").out)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["prune"],
        ["fit", "--epochs", "-1"],
        ["fit", "--epochs", "two"],
        ["fit", "--max-drop", "2"],
        ["fit", "--max-drop", "nan"],
        ["fit", "--size", "0"],
        ["fit", "--size", "1x2x3"],
        ["fit", "--bugdet", "x"],
        ["fit", "--threads", "0"],
        ["bench", "a"],
        ["predict", "a"],
        ["fit", "a", "b"],
        ["fit", "--bud", "macs=5%"],
        ["doctor", "m", "--budget", "macs=5%", "--channels", "0.5"],
        ["export", "a", "--precision", "int4"],
    ],
)
def test_usage_is_2_and_answers_in_json_when_asked(niwaki: Any, words: list[str]) -> None:
    said = niwaki(*words)
    assert (said.code, said.out) == (2, "")
    assert said.err.count("\n") == 1
    said = niwaki(*words, "--json")
    assert said.code == 2
    assert said.json["error"]["code"] == "usage"


@pytest.mark.parametrize(
    ("error", "code", "exit_code"),
    [
        (errors.DataError("m", code="data-empty"), "data-empty", 1),
        (errors.BudgetError("m", code="budget-unreachable"), "budget-unreachable", 3),
        (errors.ParityError("m", code="prune-proof"), "prune-proof", 3),
        (errors.MissingExtra("m", code="extra-missing"), "extra-missing", 4),
        (KeyboardInterrupt(), "interrupted", 130),
        (FileNotFoundError(2, "No such file", "x"), "file-access", 1),
        (OSError(28, "No space left on device"), "file-access", 1),
        (OSError(9, "Bad file descriptor"), "internal", 1),
        (ZeroDivisionError("m"), "internal", 1),
        (OSError("without a file"), "internal", 1),
    ],
)
def test_every_error_has_a_code_and_an_exit(error: BaseException, code: str, exit_code: int) -> None:
    message, found, exit_ = _explain(error)
    assert (found, exit_) == (code, exit_code)
    assert message
    assert found in errors.CODES


def test_a_user_error_is_one_line_and_json(niwaki: Any, tmp_path: Path) -> None:
    said = niwaki("info", tmp_path / "none.niwaki")
    assert (said.code, said.out) == (1, "")
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    said = niwaki("info", tmp_path / "none.niwaki", "--json")
    assert set(said.json) == {"error"}
    assert said.json["error"]["code"] in errors.CODES


def test_debug_shows_the_traceback(niwaki: Any, tmp_path: Path) -> None:
    assert "Traceback" in niwaki("info", tmp_path / "none.niwaki", "--debug").err


def test_an_unforeseen_error_is_internal(niwaki: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(args: Any, out: Any) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr("niwaki.cli.info.run", broken)
    said = niwaki("info", "x", "--json")
    assert said.code == 1
    assert said.json["error"]["code"] == "internal"
    assert "--debug" in said.json["error"]["message"]
    assert "Traceback" not in said.err


def test_ctrl_c_is_130(niwaki: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(args: Any, out: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("niwaki.cli.info.run", interrupted)
    assert niwaki("info", "x").code == 130


def test_what_libraries_print_goes_to_stderr(niwaki: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def chatty(args: Any, out: Any) -> screen.Answer:
        print("noise")
        return screen.Answer({"ok": float("nan"), "path": Path("x")})

    monkeypatch.setattr("niwaki.cli.info.run", chatty)
    said = niwaki("info", "x", "--json")
    assert said.json == {"ok": None, "path": "x"}
    assert said.err == "noise\n"


def test_info(niwaki: Any, artifact: Path) -> None:
    said = niwaki("info", artifact, "--json").json
    assert said["task"]["classes"] == ["ash", "elm", "oak"]
    assert said["default"] == "float32"
    text = niwaki("info", artifact).out
    assert "3 classes: ash, elm, oak" in text
    assert "8 x 8 pixels, grey" in text


def test_predict_json(niwaki: Any, artifact: Path, photos: Path) -> None:
    said = niwaki("predict", artifact, photos, photos / "gone.png", "--json", "--top", "2")
    assert said.code == 1
    found = said.json["predictions"]
    names = [Path(entry["path"]).name for entry in found]
    assert names == ["a.png", "0.jpg", "1.png", "gone.png"]
    assert found[0]["error"]["code"] == "image-corrupt"
    assert found[3]["error"]["code"] == "image-missing"
    for entry in found[1:3]:
        assert sum(entry["probabilities"]) == pytest.approx(1, abs=1e-5)
        best = int(np.argmax(entry["probabilities"]))
        assert entry["label"] == ("ash", "elm", "oak")[best]
        assert entry["score"] == max(entry["probabilities"])
        assert entry["top"][0]["label"] == entry["label"]
        assert len(entry["top"]) == 2


def test_predict_is_the_same_at_any_batch_and_in_any_form(niwaki: Any, artifact: Path, photos: Path) -> None:
    whole = niwaki("predict", artifact, photos / "b", "--json")
    assert whole.code == 0
    rows = [
        json.loads(line)
        for line in niwaki("predict", artifact, photos / "b", "--jsonl", "--batch", "1").out.splitlines()
    ]
    for row, entry in zip(rows, whole.json["predictions"], strict=True):
        assert row["label"] == entry["label"]
        assert row["probabilities"] == pytest.approx(entry["probabilities"], abs=1e-6)
    text = niwaki("predict", artifact, photos / "b").out.splitlines()
    assert [line.split("\t")[1] for line in text] == [row["label"] for row in rows]


def test_predict_agrees_with_the_torch_model(niwaki: Any, artifact: Path, photos: Path) -> None:
    import torch

    import niwaki as nw

    opened = nw.Artifact.open(artifact)
    pixels = opened.spec.read(photos / "b" / "1.png")[None]
    with torch.no_grad():
        wanted = opened.model().eval()(torch.from_numpy(opened.spec.normalise(pixels))).softmax(1)[0]
    [entry] = niwaki("predict", artifact, photos / "b" / "1.png", "--json").json["predictions"]
    assert entry["probabilities"] == pytest.approx(wanted.tolist(), abs=1e-5)


def test_find_recurses_sorted_and_takes_named_files_as_they_are(photos: Path) -> None:
    found = [str(path.relative_to(photos)) for path in find([str(photos), str(photos / "notes.txt")])]
    assert found == ["a.png", "b/0.jpg", "b/1.png", "notes.txt"]


def test_an_empty_folder_predicts_nothing(niwaki: Any, artifact: Path, tmp_path: Path) -> None:
    said = niwaki("predict", artifact, tmp_path, "--json")
    assert said.code == 0
    assert said.json["predictions"] == []


def test_bench(niwaki: Any, artifact: Path) -> None:
    said = niwaki("bench", artifact, "--against", artifact, "--json").json
    assert set(said["ratio"]) == {"median", "low", "high"}
    assert said["ratio"]["low"] <= said["ratio"]["median"] <= said["ratio"]["high"]
    assert set(said["ms"]) == {"a", "b"}
    assert said["threads"] == 1
    assert said["cpu"]


def test_export_adds_int8(niwaki: Any, artifact: Path, tmp_path: Path) -> None:
    import shutil

    own = tmp_path / "own.niwaki"
    shutil.copytree(artifact, own)
    refused = niwaki("export", own, "--json")
    assert (refused.code, refused.json["error"]["code"]) == (1, "export-calib")
    said = niwaki("export", own, "--calib", "digits", "--json")
    assert said.code == 0
    assert set(said.json["exports"]["onnx"]) == {"float32", "int8"}
    assert set(niwaki("info", own, "--json").json["exports"]["onnx"]) == {"float32", "int8"}


def test_doctor_of_the_machine(niwaki: Any) -> None:
    said = niwaki("doctor", "--json").json
    assert said["runtimes"]["onnx"]["run"] is True
    assert said["parts"]["base"]["numpy"] == np.__version__
    assert (
        set(said["web"]) == {"export", "engine", "install"}
        and (said["web"]["install"] is None) is said["web"]["export"]
    )
    text = niwaki("doctor").out
    assert "numpy" in text and "NVIDIA GPU" in text and "page for browsers" in text and "\nnncf" in text
    if said["runtimes"]["openvino"]["run"]:
        assert "bfloat16: this CPU has" in text


def test_doctor_says_where_the_page_gets_its_engine(
    monkeypatch: pytest.MonkeyPatch, niwaki: Any, tmp_path: Path
) -> None:
    from niwaki import web

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))  # no npm
    monkeypatch.delenv("NIWAKI_ORT_WEB", raising=False)
    assert "npm install onnxruntime-web" in niwaki("doctor").out
    for name in web.ENGINE:
        (tmp_path / name).write_text("there")
    monkeypatch.setenv("NIWAKI_ORT_WEB", str(tmp_path))
    assert "page for browsers: export, NIWAKI_ORT_WEB" in niwaki("doctor").out


def test_doctor_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, niwaki: Any) -> None:
    from niwaki.cli import doctor

    monkeypatch.setattr(doctor, "PARTS", {"base": ("numpy",), "train": ("no-such-package",)})
    said = niwaki("doctor")
    assert "missing: no-such-package  (pip install 'niwaki[train]')" in said.out


@pytest.mark.parametrize(("words", "left"), [(("--budget", "macs=50%"), 0.5), (("--channels", "0.5"), None)])
def test_doctor_of_a_model(niwaki: Any, words: tuple[str, ...], left: float | None) -> None:
    said = niwaki("doctor", "niwaki:small", "--size", "16", *words, "--json").json
    assert {
        "exported",
        "prunable",
        "proof_error",
        "macs",
        "seconds",
        "unprunable",
        "result",
    } <= set(said)
    assert said["exported"] is True
    assert said["result"] == "module"
    assert 0 < said["prunable"] <= 1
    assert said["proof_error"] <= 1e-4
    before, after = said["macs"]["before"], said["macs"]["after"]
    if left is not None:
        assert said["macs"]["asked"] == pytest.approx(left * before)
        assert after <= left * before
    else:
        assert said["macs"]["asked"] is None
        assert all(g["after"] == round(g["before"] / 2) for g in said["groups"])


def test_doctor_of_a_model_that_cannot_be_exported(niwaki: Any, tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "import torch\n"
        "class Data(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        if x.sum() > 0:\n"
        "            return x\n"
        "        return [-x, x.tolist()]\n"
        "def make(classes, channels):\n"
        "    return Data()\n"
    )
    said = niwaki("doctor", f"{file}:make", "--json")
    assert said.code == 0
    assert said.json["exported"] is False
    assert said.json["result"] is None
    assert said.json["reason"]


def test_report_of_a_folder_without_record(niwaki: Any, tmp_path: Path) -> None:
    said = niwaki("report", tmp_path, "--json")
    assert (said.code, said.json["error"]["code"]) == (1, "report-missing")


def test_show_plan_is_a_plan(niwaki: Any, tmp_path: Path) -> None:
    from niwaki.plan import Plan, default

    said = niwaki("fit", "--show-plan")
    assert said.code == 0
    assert Plan.from_toml(said.out) == default()
    own = tmp_path / "plan.toml"
    own.write_text('[[step]]\ndo = "prune.channels"\nscore = "l1"\n')
    assert 'score = "l1"' in niwaki("fit", "--plan", own, "--show-plan").out


def test_table_has_columns() -> None:
    text = screen.table([["", "ms"], ["a", "1.5"], ["long", "10"]])
    assert text == "       ms\na     1.5\nlong   10"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0"), (12_345_678, "12.3 M"), (999, "999"), (0.1234, "0.1234")],
)
def test_count(value: float | None, text: str) -> None:
    assert screen.count(value) == text


def test_every_verb_takes_json_and_debug() -> None:
    for verb in (
        "info a",
        "predict a b",
        "bench a --against b",
        "export a",
        "doctor",
        "report a",
        "fit",
    ):
        args = parser().parse_args([*verb.split(), "--json", "--debug"])
        assert args.json and args.debug


def run(*words: str | Path, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "niwaki", *map(str, words)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **more,
    )


def test_a_reader_that_leaves_is_no_error(artifact: Path, photos: Path) -> None:
    many = [photos / "b" / "1.png"] * 400
    process = run("predict", artifact, *many, "--jsonl", "--batch", "1")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(60) == 1
    assert err == ""


def test_only_the_first_process_answers(artifact: Path) -> None:
    out, _ = run("info", artifact, env={**os.environ, "RANK": "1"}).communicate(timeout=60)
    assert out == ""
    out, _ = run("info", artifact, env={**os.environ, "RANK": "0"}).communicate(timeout=60)
    assert out


BLOCKED = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "onnx", "onnxscript", "sklearn"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
from niwaki.cli import main
sys.exit(main(sys.argv[1:]))
"""


def without_torch(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_runtime_side_works_without_torch(artifact: Path, photos: Path) -> None:
    for words in (
        ["info", artifact],
        ["predict", artifact, photos / "b"],
        ["bench", artifact, "--against", artifact],
        ["doctor"],
        ["fit", "--help"],
    ):
        done = without_torch(*words)
        assert done.returncode == 0, done.stderr
        assert done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["fit"],
        ["doctor", "niwaki:small"],
        ["search"],
        ["export", "A", "--precision", "float32"],
        ["export", "A", "--calib", "PHOTOS"],
        ["export", "A", "--calib", "PHOTOS", "--runtime", "torch", "--precision", "float32"],
        ["export", "A", "--all-runtimes"],
        ["export", "A", "--data", "SET", "--max-drop", "1%"],
        ["export", "A", "--data", "SET", "--sensitivity", "layer"],
    ],
    ids=lambda words: " ".join(words),
)
def test_the_training_side_without_torch_is_4(
    words: list[str], artifact: Path, photos: Path, tmp_path: Path
) -> None:
    for label in json.loads((artifact / "niwaki.json").read_text())["task"]["classes"]:
        for i in range(4):
            (tmp_path / "set" / label).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), (20 * i, 0, ord(label[-1]))).save(tmp_path / "set" / label / f"{i}.png")
    known = {"A": artifact, "PHOTOS": photos, "SET": tmp_path / "set"}
    done = without_torch(*(known.get(word, word) for word in words), "--json")
    assert done.returncode == 4, done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "extra-missing"
    assert "niwaki[train]" in error["message"]
