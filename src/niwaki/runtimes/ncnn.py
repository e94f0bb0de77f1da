"""ncnn, for phones and small boards: two files, .param (text) and .bin, run without torch.

    float32   as trained; ncnn's own 16-bit options are off
    float16   weights stored in 16 bits, and ncnn's 16-bit options on (what a CPU has of them is used)

ncnn's wheel holds no int8 tool, so there is no int8 here. Sizes are written into the .param file, which ncnn
itself leaves out. The format takes one image, and a Session loops. ncnn takes planes of floats, so a Session
turns raw pixels into those; scaling, normalisation and softmax are in the file.
Shape letters: N images, H W pixels, C channels, K classes.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from niwaki import files
from niwaki.errors import RuntimeFailed
from niwaki.lazy import require
from niwaki.runtimes import request
from niwaki.runtimes.session import Session, of_answer, read, refused

if TYPE_CHECKING:
    from torch import nn

    from niwaki.spec import Spec
    from niwaki.tasks import Task

SUFFIX, PARTS = "param", ("bin",)
PRECISIONS = ("float32", "float16")
_INPUT = re.compile(r"^Input +in0 +0 1 in0 0=(\d+) 1=(\d+) 2=(\d+) 20=(16|32)$", re.MULTILINE)
"""The first layer as niwaki writes it: width, height, channels and bits."""


def open(path: str | Path, *, threads: int = 1) -> Session:
    """A predictor that runs an exported file on the CPU; no torch needed.

    Raises:
        MissingExtra: ncnn is not installed. [extra-missing]
        RuntimeFailed: it cannot be read, ncnn refuses it, or it is not niwaki's.
            [runtime-missing, runtime-refused, runtime-signature]
    """
    ncnn = require("ncnn", extra="ncnn")
    path = Path(path)
    graph = read(path)
    read(path.with_suffix(".bin"))  # or there is an error that says so
    about = _INPUT.search(graph.decode("utf-8", errors="replace"))
    if not about:
        raise RuntimeFailed(
            f"{path.name}: its first layer is no image of a stated size. It was not exported by niwaki.",
            code="runtime-signature",
        )
    width, height, channels, bits = map(int, about.groups())
    net = ncnn.Net()
    _set(net.opt, threads=threads, half=bits == 16)
    # ncnn reports damage by its return value, and ends the process when such a net is run
    if net.load_param(str(path)) or net.load_model(str(path.with_suffix(".bin"))):
        raise refused(path, "ncnn", "its layers or weights do not load")
    if list(net.input_names()) != ["in0"] or list(net.output_names()) != ["out0"]:
        raise refused(path, "ncnn", "its input and output are not in0 and out0")

    def run(images: npt.NDArray[np.uint8]) -> Any:
        planes = np.ascontiguousarray(images[0].transpose(2, 0, 1), dtype=np.float32)
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(planes))
        failed, out = extractor.extract("out0")
        if failed:
            raise RuntimeError(f"code {failed}")
        found = np.array(out, np.float32)
        return found[None] if found.ndim == 3 else found.reshape(1, -1)

    try:
        answer = run(np.zeros((1, height, width, channels), np.uint8)).shape[1:]
    except RuntimeError as error:
        raise refused(path, "ncnn", error) from error
    return Session(run, shape=(height, width, channels), **of_answer(answer), batch=1, name="ncnn")


def export(
    model: nn.Module,
    spec: Spec,
    path: str | Path,
    *,
    task: Task,
    precision: str = "float32",
    calib: npt.NDArray[np.uint8] | None = None,
    prove: bool = True,
) -> Path:
    """The path of the .param file written; its weights lie beside it as .bin. Needs niwaki[train,ncnn].

    Raises:
        MissingExtra: ncnn or pnnx is not installed. [extra-missing]
        ModelError: it cannot be exported, or the precision is unknown.
            [export-failed, export-precision, export-calib]
        ParityError: the file computes something else. [parity]
    """
    request.check(precision, calib, spec, precisions=PRECISIONS, runtime="ncnn", model=model)
    require("ncnn", extra="ncnn")
    require("pnnx", extra="ncnn")
    deployed = require("niwaki.runtimes.deployed", extra="train")
    parity = require("niwaki.runtimes.parity", extra="train")
    path = Path(path)
    whole = deployed.wrap(model, spec, task, planes=True)
    image = deployed.example(spec, planes=True)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "x.ncnn.param"
        reason = _convert(whole, image, Path(folder), half=precision == "float16")
        if reason or not made.is_file():
            raise deployed.failed(whole, "ncnn", reason or "pnnx wrote no file")
        graph = _with_sizes(made.read_text(encoding="utf-8"), spec, half=precision == "float16")
        files.write_bytes(path, graph.encode())
        files.write_bytes(path.with_suffix(".bin"), made.with_suffix(".bin").read_bytes())
    _loads(path, whole)
    if prove:
        parity.prove(model, path, spec, task=task, precision=precision, calib=calib, runtime="ncnn")
    return path


def _convert(whole: Any, image: Any, folder: Path, *, half: bool) -> str | None:
    """Writes x.ncnn.param and .bin; what could not be converted, else None."""
    import pnnx
    import torch

    from niwaki.runtimes.equivalent import Equivalents
    from niwaki.surgery.trace import quiet

    try:
        with quiet(), torch.no_grad(), Equivalents("ncnn"):
            traced = torch.jit.trace(whole, image, check_trace=False)  # type: ignore[no-untyped-call]
    except Exception as error:  # torch raises whatever the forward trips over
        return str(error)
    traced.save(str(folder / "x.pt"))
    shape = ",".join(map(str, image.shape))
    done = subprocess.run(
        [pnnx.EXEC_PATH, "x.pt", f"inputshape=[{shape}]", f"fp16={int(half)}"],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    said = done.stdout + done.stderr
    unknown = [line for line in said.splitlines() if re.search(r"not supported|^ignore ", line)]
    if done.returncode:
        return f"pnnx ended with {done.returncode}"
    return f"pnnx: {unknown[0].strip()}" if unknown else None


def _with_sizes(graph: str, spec: Spec, *, half: bool) -> str:
    """The .param text with the image's size in its first layer."""
    (height, width), bits = spec.size_hw, 16 if half else 32
    line = rf"\1 0={width} 1={height} 2={spec.channels} 20={bits}"
    return re.sub(r"^(Input +in0 +0 1 in0)\b.*$", line, graph, count=1, flags=re.MULTILINE)


def _loads(path: Path, whole: Any) -> None:
    """Raises when ncnn does not know a layer of the file; the file is taken away again."""
    from niwaki.runtimes import deployed

    try:
        open(path)
    except RuntimeFailed as error:
        kinds = {line.split()[0] for line in path.read_text(encoding="utf-8").splitlines()[2:] if line}
        odd = sorted(kind for kind in kinds if "." in kind or "_" in kind or "::" in kind)
        for suffix in (".param", ".bin"):
            path.with_suffix(suffix).unlink()
        says = f"ncnn has no layer {', '.join(odd)}" if odd else str(error)
        raise deployed.failed(whole, "ncnn", says) from error


def _set(options: Any, *, threads: int, half: bool) -> None:
    options.num_threads = threads
    for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
        setattr(options, name, half)
    options.use_bf16_storage = False
