"""torch itself as a runtime: the graph of `torch.export` in one safetensors file, no pickle and no code.

torch's own `.pt2` archive holds pickled parts, so it is not used: the graph is niwaki's JSON over allow-listed
operators (surgery/program.py), in the header of the file that holds the tensors. It is the reference that the
other runtimes are compared with, and the only one beside ExecuTorch that loads torch to run.

    float32   as trained
    bfloat16  matrix products and convolutions in bfloat16 (torch's autocast); any CPU, fast where it has it
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from niwaki import files
from niwaki.errors import NiwakiError, RuntimeFailed
from niwaki.lazy import require
from niwaki.runtimes import request
from niwaki.runtimes.session import Session, of_answer, read, refused

if TYPE_CHECKING:
    from torch import nn

    from niwaki.spec import Spec
    from niwaki.tasks import Task

SUFFIX, PARTS = "safetensors", ()
PRECISIONS = ("float32", "bfloat16")


def open(path: str | Path, *, threads: int = 1) -> Session:
    """A predictor that runs an exported file with torch on the CPU.

    Args:
        threads: cores torch may use; torch holds one such number for the whole process.
    Raises:
        MissingExtra: torch is not installed. [extra-missing]
        RuntimeFailed: it cannot be read, or is no file of niwaki's. [runtime-missing, runtime-refused]
        UnsafeArtifact: its graph asks for an operator that is not allowed. [program-operator]
    """
    torch = require("torch", extra="train")
    from niwaki.surgery import program

    path = Path(path)
    data = read(path)
    try:
        about = json.loads(_metadata(data)["niwaki"])
        graph, (height, width, channels) = about["graph"], about["shape"]
        answer, precision = [int(n) for n in about.get("answer") or [about["classes"]]], about["precision"]
        tensors = require("safetensors.torch", extra="train").load(data)
        module = program.load(graph, tensors).eval()
    except NiwakiError:
        raise
    except Exception as error:  # safetensors has its own kinds, JSON of any shape raises others
        raise refused(path, "torch", error) from error
    if precision not in PRECISIONS:
        raise RuntimeFailed(f"{path.name}: precision {precision!r:.40}.", code="runtime-signature")
    torch.set_num_threads(threads)

    def run(images: npt.NDArray[np.uint8]) -> Any:
        half = precision == "bfloat16"
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            return module(torch.from_numpy(images)).float().numpy()

    return Session(run, shape=(int(height), int(width), int(channels)), **of_answer(answer), name="torch")


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
    """The path of the safetensors file written. Needs niwaki[train].

    Raises:
        ModelError: it cannot be exported, or the precision is unknown.
            [program-export, program-operator, export-precision, export-calib]
        ParityError: the file computes something else. [parity]
    """
    request.check(precision, calib, spec, precisions=PRECISIONS, runtime="torch", model=model)
    deployed = require("niwaki.runtimes.deployed", extra="train")
    parity = require("niwaki.runtimes.parity", extra="train")
    from safetensors.torch import save

    from niwaki.surgery import record

    path = Path(path)
    graph, tensors = record.save(deployed.wrap(model, spec, task), deployed.example(spec, batch=2))
    about = {
        "graph": graph,
        "precision": precision,
        "shape": [*spec.size_hw, spec.channels],
        "answer": list(task.shape(spec.size_hw)),
    }
    whole = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    files.write_bytes(path, save(whole, {"niwaki": json.dumps(about, sort_keys=True)}))
    if prove:
        parity.prove(model, path, spec, task=task, precision=precision, calib=calib, runtime="torch")
    return path


def _metadata(data: bytes) -> dict[str, str]:
    """The texts in a safetensors file's header, whose length is its first eight bytes."""
    size = int.from_bytes(data[:8], "little")
    if size > len(data) - 8:
        raise ValueError("its header is longer than the file")
    found: dict[str, str] = json.loads(data[8 : 8 + size])["__metadata__"]
    return found
