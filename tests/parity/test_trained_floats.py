"""A network trained with fake quantizers of which some layers stay float: in the file they do, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tests.unit.test_quantize import WIDE, images, opened, rounded, settled
from torch import Tensor, nn

from niwaki import evaluate, runtimes
from niwaki.errors import ParityError
from niwaki.runtimes import parity
from niwaki.tasks import Classify

torch.set_num_threads(1)
TASK = Classify(("a", "b", "c"))


class Three(nn.Module):
    """Three convolutions, of which the middle one is set by `kernel`, and a head."""

    def __init__(self, kernel: Tensor | None = None) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.middle = nn.Conv2d(8, 8, 1, bias=kernel is None)
        if kernel is not None:
            self.middle.weight = nn.Parameter(kernel)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.middle(torch.relu(self.first(x))))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


def picks(*rows: list[int]) -> Tensor:
    """A 1x1 kernel `[8, 8, 1, 1]` of ones at these columns of each row."""
    kernel = torch.zeros(8, 8, 1, 1)
    for row, columns in enumerate(rows):
        kernel[row, columns] = 1
    return kernel


SUMS = picks(*[[k, (k + 1) % 8, (k + 3) % 8] for k in range(8)])


@pytest.mark.parametrize("kernel", [None, SUMS, SUMS * 0.3], ids=["drawn", "sums of channels", "means"])
def test_a_skipped_convolution_keeps_its_float_weights(kernel: Tensor | None, tmp_path: Path) -> None:
    float_model = settled(Three()) if kernel is None else Three(kernel).eval()
    model = rounded(float_model, WIDE, skip=("middle",))
    path = runtimes.load("onnx").export(model, WIDE, tmp_path / "a.onnx", task=TASK, precision="int8")
    stored = [onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
    wanted = float_model.get_parameter("middle.weight").detach().numpy()
    assert any(a.shape == wanted.shape and np.array_equal(a, wanted) for a in stored)
    kinds, session = opened(path)
    assert kinds["Conv"] + kinds["FusedConv"] == 1 and kinds["QLinearConv"] >= 2
    given = evaluate.predictor(model, WIDE, TASK)(images(WIDE))
    got = session(images(WIDE))
    assert (got.argmax(1) == given.argmax(1)).mean() >= 0.99
    assert np.abs(got - given).max() < 0.01


def test_a_file_that_is_not_what_was_trained_fails_parity(tmp_path: Path) -> None:
    float_model = settled(Three())
    with torch.no_grad():
        float_model.get_parameter("head.weight").mul_(30)  # else it is as unsure as a file without weights
    model = rounded(float_model, WIDE)
    path = runtimes.load("onnx").export(model, WIDE, tmp_path / "a.onnx", task=TASK, precision="int8")
    proto = onnx.load(path)
    middle = next(t for t in proto.graph.initializer if list(t.dims) == [8, 8, 1, 1])
    middle.raw_data = bytes(len(middle.raw_data))
    onnx.save(proto, path)
    knobs = {"task": TASK, "calib": None, "precision": "int8"}
    with pytest.raises(ParityError) as caught:
        parity.prove(model, path, WIDE, runtime="onnx", **knobs)
    assert caught.value.code == "parity"
    parity.prove(model, path, WIDE, runtime="tensorrt", **knobs)  # whose int8 is another function


def test_a_selector_of_channels_runs_on_whole_numbers(tmp_path: Path) -> None:
    kernel = picks([3], [], [0], [1], [7], [], [2], [5])
    model = rounded(Three(kernel).eval(), WIDE, skip=("middle",))
    path = runtimes.load("onnx").export(model, WIDE, tmp_path / "a.onnx", task=TASK, precision="int8")
    kinds, session = opened(path)
    assert kinds["Conv"] + kinds["FusedConv"] == 0
    given = evaluate.predictor(model, WIDE, TASK)(images(WIDE))
    assert np.abs(session(images(WIDE)) - given).max() < 0.01
