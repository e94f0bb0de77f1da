"""The browser: a folder with a page, the artifact's ONNX file and onnxruntime-web, all from one origin.

The page takes a photo or a camera frame, prepares it exactly as `Spec.read` does (page/resize.js is Pillow's
filter in whole numbers), runs the model on WebAssembly and shows the answer with its own latency. Its content
security policy lets it talk to nobody but the place it came from, and once opened it works without a network.

onnxruntime-web is not part of niwaki: it is taken from `NIWAKI_ORT_WEB` (a folder that holds its `dist`
files), or fetched once through npm from its registry and kept in the user's cache folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from niwaki import files
from niwaki.artifact import Artifact
from niwaki.errors import ArtifactError, MissingExtra

PACKAGE = "onnxruntime-web@1.30.0"
ENGINE = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""What the page needs of onnxruntime-web: its smallest bundle and its WebAssembly file."""
LICENSE = """onnxruntime-web. MIT License. Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without
limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of
the Software, and to permit persons to whom the Software is furnished to do so, subject to the following
conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT
LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO
EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN
AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE
OR OTHER DEALINGS IN THE SOFTWARE.
"""
PAGE = ("main.js", "index.html", "resize.js", "worker.js")
"""main.js first: by it a folder that was begun is known as a page."""


def write(artifact: Artifact, folder: str | Path, *, precision: str | None = None) -> Path:
    """The folder written, which any static web server serves; one that is there is replaced if it is a page.

    Args:
        precision: the ONNX export to ship; None is the artifact's default.
    Raises:
        ArtifactError: there is no such ONNX export, or the folder holds something else.
            [artifact-export, artifact-occupied, web-bands, web-task]
        MissingExtra: neither npm nor onnxruntime-web is there. [extra-missing]
    """
    wanted, folder = precision or artifact.default, Path(folder)
    held = artifact.exports.get("onnx", {})
    if wanted not in held:
        add = wanted if wanted in ("float32", "int8") else "float32"
        raise ArtifactError(
            f"{artifact.path.name}: has no onnx export of precision {wanted!r}, it has "
            f"{sorted(held) or 'none'}. Add one: niwaki export {artifact.path.name} --precision {add}.",
            code="artifact-export",
        )
    if folder.exists() and not (folder / "main.js").is_file() and any(folder.iterdir()):
        raise ArtifactError(
            f"{folder}: holds something that is no page of niwaki's, so it stays. Choose another --out.",
            code="artifact-occupied",
        )
    if artifact.spec.banded:
        raise ArtifactError(
            f"{artifact.path.name}: takes {artifact.spec.channels} bands{artifact.spec.named} in a range of "
            "their own, and the page takes photographs of a camera. Use niwaki predict.",
            code="web-bands",
        )
    if artifact.task.kind != "classify":
        raise ArtifactError(
            f"{artifact.path.name}: its task is {artifact.task.kind!r}, and the page shows classes of a whole "
            "photograph, expected 'classify'. Use niwaki predict SCENE -o FILE --viewer FOLDER.",
            code="web-task",
        )
    engine = _engine()
    for name in PAGE:
        files.write_bytes(folder / name, (Path(__file__).parent / "page" / name).read_bytes())
    for name in ENGINE:
        files.write_bytes(folder / "ort" / name, (engine / name).read_bytes())
    files.write_bytes(folder / "ort" / "LICENSE.txt", LICENSE.encode())
    files.write_bytes(folder / "model.onnx", (artifact.path / held[wanted]["file"]).read_bytes())
    about = {"spec": artifact.spec.to_json(), "task": artifact.task.to_json(), "precision": wanted}
    files.write_json(folder / "model.json", about)
    return folder


def support() -> dict[str, Any]:
    """Whether a page can be written here: `export` (bool), `engine` (where onnxruntime-web is from), and
    `install` (the line that brings it, None where it is there)."""
    found, npm = _held(), shutil.which("npm")
    named = os.environ.get("NIWAKI_ORT_WEB")
    where = None
    if found is not None:
        where = "NIWAKI_ORT_WEB" if named else "the cache folder"
    elif npm and not named:
        where = "npm, fetched once"
    line = f"npm install {PACKAGE} && export NIWAKI_ORT_WEB=$PWD/node_modules/onnxruntime-web/dist"
    return {"export": where is not None, "engine": where, "install": None if where else line}


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "niwaki" / PACKAGE


def _held() -> Path | None:
    """The folder with onnxruntime-web's files, where they are here: the one that is named, if one is."""
    named = os.environ.get("NIWAKI_ORT_WEB")
    folder = Path(named) if named else _cache()
    return folder if all((folder / name).is_file() for name in ENGINE) else None


def _engine() -> Path:
    """The folder with onnxruntime-web's files, fetched where they are not here."""
    if (found := _held()) is not None:
        return found
    named, cache, npm = os.environ.get("NIWAKI_ORT_WEB"), _cache(), shutil.which("npm")
    if named or npm is None:
        where = f"{named} (NIWAKI_ORT_WEB) lacks {', '.join(ENGINE)}" if named else "npm is not installed"
        raise MissingExtra(
            f"web: needs {PACKAGE}, and {where}. Install npm, or name a folder: "
            f"npm install {PACKAGE} && export NIWAKI_ORT_WEB=$PWD/node_modules/onnxruntime-web/dist.",
            code="extra-missing",
        )
    with tempfile.TemporaryDirectory() as folder:
        words = [npm, "install", "--no-audit", "--no-fund", "--silent", "--ignore-scripts", PACKAGE]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
        dist = Path(folder) / "node_modules" / "onnxruntime-web" / "dist"
        if done.returncode or not all((dist / name).is_file() for name in ENGINE):
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise MissingExtra(f"web: npm could not fetch {PACKAGE}: {reason}.", code="extra-missing")
        for name in ENGINE:
            files.write_bytes(cache / name, (dist / name).read_bytes())
    return cache
