"""Names in exported graphs: a model's own weights may be called what they like, and no two get one name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tests.parity.test_onnx import RGB, TASK
from torch import Tensor, nn

from niwaki import runtimes
from niwaki.qdq.recipe import Recipe
from niwaki.qdq.sensitivity import title
from niwaki.quantize import insert, lsq
from niwaki.runtimes import onnx_export, onnx_names, parity

torch.set_num_threads(1)
ONNX = runtimes.load("onnx")


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class Called(nn.Module):
    """Weights that are called as the wrapper's, as quantizers name theirs, and as each other with a prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.full((8, 1, 1), 3.0)), nn.Parameter(torch.randn(8, 1, 1))
        self.weight, self.weight_scale = (
            nn.Parameter(torch.randn(8, 3, 3, 3)),
            nn.Parameter(torch.randn(8, 1, 1)),
        )
        self.weight_quantized = nn.Parameter(torch.randn(8, 1, 1))
        self.Conv_2_0_scale = nn.Parameter(torch.randn(8, 1, 1))
        self.Relu_9_0 = nn.Parameter(torch.randn(8, 1, 1))
        self.pixels = nn.Parameter(torch.randn(8, 1, 1))
        self.model, self.fc = Inner(), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(nn.functional.conv2d(x, self.weight, padding=1))
        x = torch.relu(x * self.scale + self.shift)
        x = torch.relu(x * self.weight_scale + self.weight_quantized + self.Conv_2_0_scale) + self.pixels
        return self.fc(self.model((x + self.Relu_9_0).mean((2, 3))))


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_model_may_call_its_weights_what_it_likes(precision: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images = Called().eval(), parity.noise(RGB, 48)
    path = ONNX.export(
        model, RGB, tmp_path / "a.onnx", task=TASK, precision=precision, calib=images, prove=False
    )
    names = [tensor.name for tensor in onnx.load(path).graph.initializer]
    assert len(set(names)) == len(names)
    wanted = parity.reference(model, RGB, TASK, images)
    assert np.abs(ONNX.open(path)(images) - wanted).max() < (1e-4 if precision == "float32" else 0.1)


class Tokens(nn.Module):
    """Linear layers on three axes, whose weights the exporter turns round; two of them are alike."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 8)
        self.twin = nn.Linear(8, 8)
        self.twin.load_state_dict(self.second.state_dict())
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x.flatten(2).transpose(1, 2)))
        return self.head(torch.relu(self.twin(torch.relu(self.second(x)))).mean(1))


def test_layers_are_called_as_in_the_model() -> None:
    """What is read in a table of sensitivities can be given to `quantize.qat(four=...)`."""
    torch.manual_seed(0)
    model = Tokens().eval()
    made = onnx_export.maker(model, RGB, task=TASK, calib=parity.noise(RGB, 8))
    names = {title(weight) for weight in made.readers(Recipe())} - {"scale"}
    assert {"first", "second", "head"} <= names <= {"first", "second", "twin", "head"}  # alike: one constant
    bits = lsq.widths(insert.folded(model, RGB), 8, four=sorted(names), skip=())
    assert all(bits[f"{name}.weight"] == 4 for name in names)


def graph(*weights: str) -> onnx.ModelProto:
    """A sum of weights, traced as `model.WEIGHT`."""
    held = [numpy_helper.from_array(np.float32(k), name) for k, name in enumerate(weights)]
    nodes = [helper.make_node("Sum", list(weights), ["s"]), helper.make_node("Relu", ["s"], ["probabilities"])]
    out = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [])
    return helper.make_model(helper.make_graph(nodes, "g", [], [out], held))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["scale", "model.scale"], ["scale", "own.scale"]),
        (["model.x", "model.x_scale", "model.x_scale_zero"], ["x", "own.x_scale", "own.x_scale_zero"]),
        (["model.model.fc", "model.fc"], ["model.fc", "fc"]),
        (
            ["model.Sum_0_0", "model.Sum_0_0_kernel", "model.Sum_7"],
            ["own.Sum_0_0", "own.Sum_0_0_kernel", "Sum_7"],
        ),
        (["model.image", "model.own.image"], ["own.image", "own.own.image"]),
        (["model.a.weight", "model.b_weight"], ["a.weight", "b_weight"]),
    ],
)
def test_names_that_are_not_free_get_another(given: list[str], wanted: list[str]) -> None:
    proto = graph(*given)
    onnx_names.strip(proto, prefix="model.")
    values = {tensor.name: float(numpy_helper.to_array(tensor)) for tensor in proto.graph.initializer}
    assert values == {name: k for k, name in enumerate(wanted)}
    assert list(proto.graph.node[0].input) == wanted and proto.graph.node[1].input[0] == "Sum_0_0"
    again = proto.SerializeToString()
    onnx_names.strip(proto)  # int8 names its graph once more; nothing of the model's changes
    assert proto.SerializeToString() == again
