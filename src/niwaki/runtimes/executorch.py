"""ExecuTorch with its XNNPACK kernels, for phones: one .pte file. Its Python side loads torch to run.

    float32   as trained

The format holds one batch size: files take one image, and a Session loops.
Shape letters: N images, H W pixels, C channels, K classes.
"""

from __future__ import annotations

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

SUFFIX, PARTS = "pte", ()
PRECISIONS = ("float32",)
_BYTE, _FLOAT = 0, 6  # ExecuTorch's numbers for uint8 and float32


def open(path: str | Path, *, threads: int = 1) -> Session:
    """A predictor that runs an exported file on the CPU.

    Args:
        threads: cores XNNPACK may use; ExecuTorch holds one such number for the whole process.
    Raises:
        MissingExtra: executorch is not installed. [extra-missing]
        RuntimeFailed: it cannot be read, ExecuTorch refuses it, or it is not niwaki's.
            [runtime-missing, runtime-refused, runtime-signature]
    """
    torch = require("torch", extra="executorch")
    runtime = require("executorch.runtime", extra="executorch").Runtime.get()
    path = Path(path)
    data = read(path)
    _set_threads(threads)
    try:
        program = runtime.load_program(data)
        method = program.load_method("forward")
        image, out = method.metadata.input_tensor_meta(0), method.metadata.output_tensor_meta(0)
        sides = [(v.dtype(), tuple(v.sizes())) for v in (image, out)]
    except Exception as error:  # RuntimeError by its own codes
        raise refused(path, "ExecuTorch", error) from error
    (kind, sizes), (gives, rows) = sides
    if (kind, len(sizes), gives) != (_BYTE, 4, _FLOAT) or len(rows) not in (2, 4) or sizes[0] != 1:
        raise RuntimeFailed(
            f"{path.name}: takes and gives {sides}, expected uint8 [1, H, W, C] and float32 [1, K] or [1, K, "
            "H, W]. It was not exported by niwaki.",
            code="runtime-signature",
        )

    def run(images: npt.NDArray[np.uint8]) -> Any:
        assert program  # a method reads from its program, and does not keep it
        return method.execute([torch.from_numpy(images)])[0].numpy()

    return Session(run, shape=sizes[1:], **of_answer(rows[1:]), batch=1, name="ExecuTorch")


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
    """The path of the .pte file written. Needs niwaki[train,executorch].

    Raises:
        MissingExtra: executorch is not installed. [extra-missing]
        ModelError: it cannot be exported, or the precision is unknown.
            [export-failed, export-precision, export-calib]
        ParityError: the file computes something else. [parity]
    """
    request.check(precision, calib, spec, precisions=PRECISIONS, runtime="executorch", model=model)
    exir = require("executorch.exir", extra="executorch")
    parts = require("executorch.backends.xnnpack.partition.xnnpack_partitioner", extra="executorch")
    deployed = require("niwaki.runtimes.deployed", extra="train")
    parity = require("niwaki.runtimes.parity", extra="train")
    from niwaki.surgery.trace import quiet

    whole = deployed.wrap(model, spec, task)
    program = deployed.program(whole, deployed.example(spec), runtime="ExecuTorch")
    try:
        with quiet():
            edge = exir.to_edge_transform_and_lower(program, partitioner=[parts.XnnpackPartitioner()])
            data = bytes(edge.to_executorch().buffer)
    except Exception as error:  # its passes raise many kinds
        raise deployed.failed(whole, "ExecuTorch", error) from error
    path = Path(path)
    files.write_bytes(path, data)
    if prove:
        parity.prove(model, path, spec, task=task, precision=precision, calib=calib, runtime="executorch")
    return path


def _set_threads(threads: int) -> None:
    from executorch.extension.pybindings import portable_lib

    reset = getattr(portable_lib, "_unsafe_reset_threadpool", None)
    if reset is not None:
        reset(threads)
