"""LiteRT (once TensorFlow Lite), for phones and small boards: one .tflite file, run without torch.

    float32   as trained
    int8      weights and activations in whole numbers, by LiteRT's own quantizer, ranges from `calib`; of a
              model that was trained with fake quantizers its own scales and zero points (litert_trained.py)

Running needs only ai-edge-litert. The converter (litert-torch) is heavy and asks for an older typing-extensions
than other packages like to have, so it is an extra of its own, may live in an environment of its own, and is
called as a program: litert_convert.py. `NIWAKI_LITERT_PYTHON` names that environment's Python; else
`.venv-litert` beside this one's folder is looked for (`make litert` makes it), and this environment itself.
The format holds one batch size: files take one image, and a Session loops.
Shape letters: N images, H W pixels, C channels, K classes.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from niwaki import files
from niwaki.errors import MissingExtra, RuntimeFailed
from niwaki.lazy import require
from niwaki.qdq import processors
from niwaki.runtimes import request
from niwaki.runtimes.session import Session, of_answer, read, refused

if TYPE_CHECKING:
    from torch import nn

    from niwaki.spec import Spec
    from niwaki.tasks import Task

SUFFIX, PARTS = "tflite", ()
PRECISIONS = ("float32", "int8")
INSTALL = "pip install 'niwaki[litert-export]'"


def facts(path: Path, *, precision: str, images: npt.NDArray[np.uint8] | None) -> dict[str, Any]:
    """What a manifest says of a file beside its size: an int8 one is safe on every CPU.

    XNNPACK's kernels widen s8 to 16 bits before they multiply, and add in 32: nothing saturates.
    """
    if precision != "int8":
        return {}
    return {"instruction_sets": {"safe_for": list(processors.KINDS), "decided_by": "kernels"}}


def open(path: str | Path, *, threads: int = 1) -> Session:
    """A predictor that runs an exported file on the CPU; no torch needed.

    Raises:
        MissingExtra: ai-edge-litert is not installed. [extra-missing]
        RuntimeFailed: it cannot be read, LiteRT refuses it, or it is not niwaki's.
            [runtime-missing, runtime-refused, runtime-signature]
    """
    litert = require("ai_edge_litert.interpreter", extra="litert")
    path = Path(path)
    data = read(path)
    try:
        interpreter = litert.Interpreter(model_content=data, num_threads=threads)
        interpreter.allocate_tensors()
        image, out = interpreter.get_input_details(), interpreter.get_output_details()
    except Exception as error:  # ValueError or RuntimeError, by the damage
        raise refused(path, "LiteRT", error) from error
    sides = [[(np.dtype(v["dtype"]).name, len(v["shape"])) for v in side] for side in (image, out)]
    takes = [("uint8", 4)]
    gives = [[(kind, rank)] for kind in ("float32", "int8") for rank in (2, 4)]
    if sides[0] != takes or sides[1] not in gives or image[0]["shape"][0] != 1:
        raise RuntimeFailed(
            f"{path.name}: takes and gives {sides}, expected uint8 [1, H, W, C] and float32 [1, K] or [1, K, "
            "H, W]. It was not exported by niwaki.",
            code="runtime-signature",
        )

    scale, zero = out[0]["quantization"]  # int8 files give probabilities in steps of 1/256

    def run(images: npt.NDArray[np.uint8]) -> Any:
        interpreter.set_tensor(image[0]["index"], images)
        interpreter.invoke()
        found = interpreter.get_tensor(out[0]["index"])
        return found if found.dtype == np.float32 else scale * (found.astype(np.float32) - zero)

    shape = [int(n) for n in image[0]["shape"][1:]]
    return Session(run, shape=shape, **of_answer([int(n) for n in out[0]["shape"][1:]]), batch=1, name="LiteRT")


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
    """The path of the .tflite file written. Needs niwaki[train] and the converter.

    Args:
        calib: uint8 `[N, H, W, C]`, needed by int8; at most 64 of them are used.
    Raises:
        MissingExtra: the converter is not installed. [extra-missing]
        ModelError: it cannot be exported, or `precision` and `calib` do not fit.
            [export-failed, export-precision, export-calib]
        ParityError: the file computes something else. [parity]
    """
    trained = request.check(precision, calib, spec, precisions=PRECISIONS, runtime="litert", model=model)
    deployed = require("niwaki.runtimes.deployed", extra="train")
    parity = require("niwaki.runtimes.parity", extra="train")
    if line := export_needs():
        raise MissingExtra(
            f"LiteRT's converter is not installed, and this needs it. Install it: {line}.",
            code="extra-missing",
        )
    import torch

    path = Path(path)
    whole = deployed.wrap(model, spec, task)
    program = deployed.program(whole, deployed.example(spec), runtime="LiteRT")
    if trained:
        from niwaki.runtimes import litert_trained

        program = litert_trained.pairs(program, deployed.example(spec))
    with tempfile.TemporaryDirectory() as folder:
        torch.export.save(program, Path(folder) / "model.pt2")  # ours, and read back at once
        if trained:
            (Path(folder) / "trained").touch()
        elif precision == "int8" and calib is not None:
            np.save(Path(folder) / "calib.npy", calib[:64])
        made = _convert(Path(folder))
        if isinstance(made, str):
            raise deployed.failed(whole, "LiteRT", made)
        files.write_bytes(path, made)
    if prove:
        parity.prove(model, path, spec, task=task, precision=precision, calib=calib, runtime="litert")
    return path


def export_needs() -> str | None:
    """The install line of the converter; None when it is there."""
    return None if _python() else INSTALL


def _python() -> str | None:
    """The Python whose environment holds the converter."""
    named = os.environ.get("NIWAKI_LITERT_PYTHON")
    beside = Path(sys.prefix).parent / ".venv-litert" / "bin" / "python"
    for found in (named, str(beside)):
        if found and Path(found).exists():
            return found
    return sys.executable if importlib.util.find_spec("litert_torch") else None


def _convert(folder: Path) -> bytes | str:
    """The converter's file, or why there is none."""
    script = Path(__file__).with_name("litert_convert.py")
    own = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(_python()), "-I", str(script), str(folder)], capture_output=True, text=True, env=own, check=False
    )
    made, reason = folder / "model.tflite", folder / "error.txt"
    if done.returncode == 0 and made.is_file():
        return made.read_bytes()
    if reason.is_file():
        return reason.read_text(encoding="utf-8").rpartition("error: ")[
            2
        ]  # before it stand paths of the converter
    return (done.stderr.strip().splitlines() or [f"the converter ended with {done.returncode}"])[-1]
