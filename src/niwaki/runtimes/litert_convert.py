"""The converter to LiteRT, run as a program in an environment of its own; imports nothing of niwaki.

    python litert_convert.py FOLDER

reads FOLDER/model.pt2 and, for int8, calib.npy, or an empty file `trained` where the graph holds its own
scales; writes FOLDER/model.tflite, or the reason in error.txt.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def convert(folder: Path) -> None:
    """Writes model.tflite into the folder."""
    import litert_torch
    import numpy as np
    import torch

    trained = (folder / "trained").exists()
    if trained:
        import torch.ao.quantization.fx._decomposed  # registers the calls that such a graph is made of
    program = torch.export.load(folder / "model.pt2")
    example = tuple(torch.zeros_like(value) for value in program.example_inputs[0])
    made = litert_torch.convert(program.module(), example, **({"quant_config": _whole()} if trained else {}))
    target = folder / "model.tflite"
    made.export(str(target))
    if (folder / "calib.npy").exists():
        _quantize(target, np.load(folder / "calib.npy", allow_pickle=False))


def _whole() -> Any:
    """What tells the converter that the graph is quantized; it fuses what it finds and decides nothing."""
    from litert_torch.quantize import pt2e_quantizer, quant_config

    how = pt2e_quantizer.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False)
    return quant_config.QuantConfig(pt2e_quantizer=pt2e_quantizer.PT2EQuantizer().set_global(how))


def _quantize(target: Path, images: Any) -> None:
    """Static int8 of all that the quantizer knows; the file keeps taking raw pixels."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    name = next(iter(Interpreter(str(target)).get_signature_list()))
    runner = Interpreter(str(target)).get_signature_runner(name)
    key = next(iter(runner.get_input_details()))
    work = quantizer.Quantizer(str(target), recipe.static_wi8_ai8())
    ranges = work.calibrate({name: [{key: image[None]} for image in images]})
    made = work.quantize(ranges)
    target.unlink()
    made.export_model(str(target))


if __name__ == "__main__":
    where = Path(sys.argv[1])
    try:
        convert(where)
    except Exception as error:  # the parent tells its user; it shares no exception classes with us
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        (where / "error.txt").write_text(first, encoding="utf-8")
        sys.exit(1)
