"""Zero channels that fill up thin int8 convolutions change no output bit, and a wrong filling would show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from niwaki import nets, prune, runtimes, surgery
from niwaki.runtimes import onnx_widen
from niwaki.spec import Spec
from niwaki.tasks import Classify

SPEC, TASK = Spec(size_hw=(32, 32)), Classify(tuple("abcdefghij"))
IMAGES = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)


def pruned() -> torch.nn.Module:
    torch.manual_seed(0)
    example = prune.drawn((8, 3, 32, 32), torch.Generator().manual_seed(0))
    model = prune.redrawn(nets.build("niwaki:resnet20", classes=10), example)
    axes = surgery.analyse(model, example)
    return surgery.shrink(model, axes, prune.choose(axes, prune.score(model, axes), ratio=0.4)).eval()


def export(path: Path, spec: Spec = SPEC) -> np.ndarray:
    onnx_file = runtimes.load("onnx")
    onnx_file.export(pruned(), spec, path, task=TASK, precision="int8", calib=IMAGES, prove=False)
    return onnx_file.open(path)(IMAGES)


def widths(path: Path) -> list[int]:
    graph = onnx.load(path).graph
    return sorted(t.dims[0] for t in graph.initializer if len(t.dims) == 4)


@pytest.mark.parametrize("spec", [SPEC, Spec(size_hw=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)])
def test_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: Spec) -> None:
    wide = export(tmp_path / "wide.onnx", spec)
    monkeypatch.setattr(onnx_widen, "thin", lambda graph, **_: 0)
    thin = export(tmp_path / "thin.onnx", spec)
    assert widths(tmp_path / "wide.onnx") != widths(tmp_path / "thin.onnx")
    np.testing.assert_array_equal(wide, thin)


def test_a_filling_that_is_not_zero_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thin = export(tmp_path / "right.onnx")

    def wrong(tensor: onnx.TensorProto, *, axis: int, added: int) -> None:
        array = numpy_helper.to_array(tensor)
        pads = [(0, added if d == axis else 0) for d in range(array.ndim)]
        tensor.CopyFrom(numpy_helper.from_array(np.pad(array, pads, mode="edge"), tensor.name))

    monkeypatch.setattr(onnx_widen, "_pad", wrong)
    assert np.abs(export(tmp_path / "wrong.onnx") - thin).max() > 1e-3
