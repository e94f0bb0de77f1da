"""The browser's page: Pillow's pixels, onnxruntime's answers, no word to anybody, and without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.browser import chromium, served, tab
from torch import nn

from niwaki import Artifact, Classify, Segment, Spec, nets, web
from niwaki.cli import main
from niwaki.errors import ArtifactError, MissingExtra
from niwaki.instances.task import Instances

torch.set_num_threads(1)
ENGINE = Path(__file__).parents[1] / "node" / "node_modules" / "onnxruntime-web" / "dist"
PAGE = Path(web.__file__).parent / "page"
SPEC = Spec(size_hw=(24, 32))
TASK = Classify(("temple", "flower", "neither"))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    torch.manual_seed(0)
    model = nets.build("niwaki:small", classes=3).train()
    with torch.no_grad():
        model(torch.from_numpy(SPEC.example(16)))
    art = Artifact.save(
        tmp_path_factory.mktemp("web") / "a.niwaki", model.eval(), spec=SPEC, task=TASK, builder="niwaki:small"
    )
    art.export("onnx")
    return art


@pytest.fixture(scope="module")
def page(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not ENGINE.is_dir():
        pytest.skip("onnxruntime-web is not installed: npm install --prefix tests/node")
    before = os.environ.get("NIWAKI_ORT_WEB")
    os.environ["NIWAKI_ORT_WEB"] = str(ENGINE)
    try:
        folder = web.write(artifact, tmp_path_factory.mktemp("page") / "web", precision="float32")
    finally:
        os.environ.pop("NIWAKI_ORT_WEB") if before is None else os.environ.update(NIWAKI_ORT_WEB=before)
    from sklearn.datasets import load_sample_image  # china.jpg, by Ultra-7, CC BY 2.0

    Image.fromarray(load_sample_image("china.jpg")).save(folder / "photo.png")
    return folder


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
def test_the_page_resizes_as_pillow_does_to_the_bit(tmp_path: Path) -> None:
    draw, cases, wanted = np.random.default_rng(0), [], []
    for h, w, c, height, width in (
        (40, 60, 3, 16, 16),
        (7, 9, 3, 32, 48),
        (33, 33, 1, 33, 17),
        (90, 31, 3, 8, 31),
    ):
        pixels = draw.integers(0, 256, (h, w, c), np.uint8)
        image = Image.fromarray(pixels if c == 3 else pixels[:, :, 0])
        wanted.append(np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).ravel().tolist())
        cases.append([pixels.ravel().tolist(), h, w, c, height, width])
    colours = draw.integers(0, 256, (500, 4), np.uint8)
    wanted.append(np.asarray(Image.fromarray(colours[None, :, :3]).convert("L")).ravel().tolist())
    (tmp_path / "resize.mjs").write_bytes((PAGE / "resize.js").read_bytes())
    (tmp_path / "cases.json").write_text(json.dumps({"cases": cases, "colours": colours.ravel().tolist()}))
    (tmp_path / "run.mjs").write_text(
        "import fs from 'node:fs'; import { planes, resize } from './resize.mjs';"
        "const { cases, colours } = JSON.parse(fs.readFileSync('cases.json'));"
        "const found = cases.map(([p, ...sizes]) => Array.from(resize(Uint8Array.from(p), ...sizes)));"
        "console.log(JSON.stringify([...found, Array.from(planes(colours, 1))]));"
    )
    done = subprocess.run(["node", "run.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == wanted


@pytest.mark.slow
@pytest.mark.skipif(chromium() is None, reason="no chromium")
def test_a_real_photo_in_a_real_browser(artifact: Artifact, page: Path, tmp_path: Path) -> None:
    with served(page) as (address, asked, stop), tab(tmp_path / "profile") as browser:
        browser.go(f"{address}?photo=photo.png")
        browser.wait("document.body?.dataset.probabilities")
        got = json.loads(browser.value("document.body.dataset.probabilities"))
        wanted = artifact.session("onnx")(SPEC.read(page / "photo.png")[None])[0]
        np.testing.assert_allclose(got, wanted, atol=1e-5)
        assert browser.value("document.body.dataset.label") == TASK.classes[int(wanted.argmax())]
        assert browser.value("Number(document.body.dataset.ms)") > 0
        elsewhere = "fetch('https://example.com').then(() => 'sent', (error) => error.name)"
        assert browser.value(elsewhere) == "TypeError"
        refused = (
            "new Promise((done) => { document.onsecuritypolicyviolation = (e) => done(e.violatedDirective);"
        )
        assert browser.value(refused + " fetch('https://example.com').catch(() => 0); })") == "connect-src"
        browser.wait("navigator.serviceWorker.controller ? 'yes' : ''")
        browser.wait("caches.match('model.onnx').then((kept) => kept ? 'yes' : '')")
        names = {line.split("?")[0] for line in asked}
        known = {f"GET /{path.relative_to(page).as_posix()}" for path in page.rglob("*") if path.is_file()}
        assert names <= known | {"GET /", "GET /favicon.ico"}
        stop()  # no server, no network: the page still opens and answers a photo given to it
        browser.go(address)
        browser.wait("document.body?.dataset.ready")
        give = (
            "(async () => { const canvas = new OffscreenCanvas(64, 48);"
            "canvas.getContext('2d').fillRect(0, 0, 9, 9);"
            "const file = new File([await canvas.convertToBlob()], 'x.png'); const data = new DataTransfer();"
            "data.items.add(file); document.getElementById('file').files = data.files;"
            "document.getElementById('file').dispatchEvent(new Event('change')); })()"
        )
        browser.value(give)
        browser.wait("document.body.dataset.probabilities")
        browser.value("delete document.body.dataset.probabilities")
        browser.value("document.getElementById('camera').click()")
        browser.wait("document.body.dataset.probabilities")
        assert browser.value("document.body.dataset.error") is None


@pytest.mark.slow
@pytest.mark.skipif(chromium() is None, reason="no chromium")
def test_what_fails_in_the_browser_is_said_there(artifact: Artifact, page: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(page, tmp_path / "web")
    (folder / "text.png").write_text("no picture")
    turned = Image.open(page / "photo.png").convert("RGBA")
    turned.putalpha(turned.getchannel("R"))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "turned.png", exif=exif)
    with served(folder) as (address, _, _), tab(tmp_path / "profile") as browser:
        browser.go(f"{address}?photo=turned.png")
        got = json.loads(browser.wait("document.body?.dataset.probabilities"))
        wanted = artifact.session("onnx")(SPEC.read(folder / "turned.png")[None])[0]
        np.testing.assert_allclose(got, wanted, atol=2e-3)  # transparent pixels are rounded by the browser
        give = (
            "(async () => { const data = new DataTransfer(); data.items.add(new File(['no picture'], 'x.png'));"
            "document.getElementById('file').files = data.files;"
            "document.getElementById('file').dispatchEvent(new Event('change')); })()"
        )
        browser.value(give)
        browser.wait("document.body.dataset.error")
        assert "did not work" in browser.value("document.getElementById('time').innerText")
        assert browser.value("document.getElementById('answer').childElementCount") == 0
        assert browser.value("document.body.dataset.label") is None
        browser.value("navigator.serviceWorker.ready.then((one) => one.unregister())")
        browser.value("caches.delete('niwaki')")
        (folder / "model.onnx").unlink()
        browser.go(f"{address}index.html")
        browser.wait("location.pathname.includes('index') && document.body?.dataset.error")
        says = browser.value("document.getElementById('model').innerText")
        assert "could not be loaded" in says and "model.onnx" in says


def test_what_cannot_be_written(artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtifactError) as caught:
        web.write(artifact, tmp_path / "x", precision="int8")
    assert caught.value.code == "artifact-export"
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ArtifactError) as caught:
        web.write(artifact, tmp_path, precision="float32")
    assert caught.value.code == "artifact-occupied"
    monkeypatch.setenv("NIWAKI_ORT_WEB", str(tmp_path))
    with pytest.raises(MissingExtra) as missing:
        web.write(artifact, tmp_path / "x", precision="float32")
    assert missing.value.exit_code == 4
    assert not (tmp_path / "x").exists()


def test_the_command_line_ships_the_default_or_what_is_asked_for(
    artifact: Artifact, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("NIWAKI_ORT_WEB", str(ENGINE))
    words = ["export", str(artifact.path), "--runtime", "web", "--json", "--out", str(tmp_path / "web")]
    assert main([*words, "--precision", "int8"]) == 1
    told = json.loads(capsys.readouterr().out)["error"]
    assert told["code"] == "artifact-export" and "int8" in told["message"]
    assert not (tmp_path / "web").exists()
    calib = np.random.default_rng(0).integers(0, 256, (16, *SPEC.size_hw, 3), np.uint8)
    shutil.copytree(artifact.path, tmp_path / "a.niwaki")
    words[1] = str(tmp_path / "a.niwaki")
    Artifact.open(words[1]).export("onnx", precision="int8", calib=calib)
    for more, wanted in (([], "float32"), (["--precision", "int8"], "int8")):
        assert main([*words, *more]) == 0
        assert json.loads(capsys.readouterr().out)["precision"] == wanted
        assert json.loads((tmp_path / "web" / "model.json").read_text())["precision"] == wanted


@pytest.mark.parametrize("task", [Segment(("sky", "ground")), Instances(("cell",))], ids=["masks", "objects"])
def test_masks_and_objects_are_refused(task: Any, tmp_path: Path) -> None:
    model = nn.Conv2d(3, int(task.shape(SPEC.size_hw)[0]), 1).eval()
    art = Artifact.save(tmp_path / "a.niwaki", model, spec=SPEC, task=task)
    art.export("onnx")
    with pytest.raises(ArtifactError, match="photograph") as caught:
        web.write(art, tmp_path / "web")
    assert caught.value.code == "web-task" and not (tmp_path / "web").exists()
