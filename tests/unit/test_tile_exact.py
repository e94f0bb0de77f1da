"""What a network sees, against gradients; tiles against the whole image; what is refused; turns and
ensembles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import niwaki as nw
from niwaki import tile
from niwaki.errors import ModelError, ParityError, SpecError

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

SIZE = 96
TASK = nw.Segment(("sea", "land", "ice"))
SPEC = nw.Spec(size_hw=(SIZE, SIZE), mean=(0.5,) * 3, std=(0.25,) * 3)


class Tiny(nn.Module):
    """An encoder of two strides, a decoder with a skip: all kinds of windows."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.c = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.d = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Any) -> Any:
        a = F.relu(self.a(x))
        b = F.gelu(self.norm(self.b(a)))
        c = self.up(F.silu(self.c(self.pool(b))))
        both = F.interpolate(torch.cat([b, c], 1), scale_factor=2, mode="bilinear", align_corners=False)
        return self.d(both)


def plain(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Tiny().eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network written by hand, which takes no exporter's seconds."""
    from onnx import TensorProto, helper, numpy_helper

    model = plain()
    held = {name: value.numpy() for name, value in model.state_dict().items() if value.ndim}
    held |= {"half": np.float32(0.5), "quarter": np.float32(0.25), "white": np.float32(255)}
    held["sizes"] = np.array([1, 1, 2, 2], np.float32)
    norm = ["norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"]
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        ("Cast", "image", "f", {"to": TensorProto.FLOAT}),
        ("Transpose", "f", "t", {"perm": [0, 3, 1, 2]}),
        ("Div", "t white", "u", {}),
        ("Sub", "u half", "v", {}),
        ("Div", "v quarter", "x", {}),
        ("Conv", "x a.weight a.bias", "a0", pads),
        ("Relu", "a0", "a1", {}),
        ("Conv", "a1 b.weight b.bias", "b0", pads | {"strides": [2, 2]}),
        ("BatchNormalization", " ".join(["b0", *norm]), "b1", {}),
        ("Gelu", "b1", "b2", {}),
        ("MaxPool", "b2", "c0", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Conv", "c0 c.weight c.bias", "c1", {"pads": [2] * 4, "dilations": [2, 2], "group": 2}),
        ("Sigmoid", "c1", "c2", {}),
        ("Mul", "c1 c2", "c3", {}),
        ("ConvTranspose", "c3 up.weight up.bias", "c4", {"strides": [2, 2]}),
        ("Concat", "b2 c4", "d0", {"axis": 1}),
        ("Resize", "d0  sizes", "d1", {"mode": "linear"}),
        ("Conv", "d1 d.weight d.bias", "d2", pads),
        ("Softmax", "d2", "probabilities", {"axis": 1}),
    ]
    made = helper.make_graph(
        [helper.make_node(kind, inputs.split(" "), [out], **knobs) for kind, inputs, out, knobs in nodes],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()],
    )
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    path.write_bytes(proto.SerializeToString())
    return path


def seen(model: nn.Module, at: int) -> tuple[int, int]:
    """Pixels before and after that the output at (at, at) depends on, by gradient; ReLU and maxima let all
    through."""
    for part in model.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            part.weight.data.abs_()
    x = torch.rand(1, 3, SIZE, SIZE).requires_grad_()
    model(x)[0, :, at, at].sum().backward()
    rows = x.grad[0].abs().sum((0, 2)).nonzero().ravel()
    return at - int(rows[0]), int(rows[-1]) - at


def test_the_reach_is_that_of_the_gradients(exported: Path) -> None:
    field = tile.receptive_field(exported)
    assert field.period == 4
    before, after = zip(*(seen(plain(), at) for at in range(44, 52)), strict=True)
    assert max(before) <= field.before <= max(before) + 6
    assert max(after) <= field.after <= max(after) + 6


@pytest.mark.slow
def test_a_module_by_way_of_its_graph(exported: Path) -> None:
    assert tile.field_of(plain(), spec=SPEC, task=TASK) == tile.receptive_field(exported)


def test_exact_tiles_give_the_whole_image(exported: Path) -> None:
    field = tile.receptive_field(exported)
    predict = nw.runtimes.load("onnx").open(exported)
    assert tile.prove(predict, field, channels=3) < tile.exact.TOLERANCE
    scene = np.random.default_rng(0).integers(0, 256, (200, 230, 3)).astype(np.uint8)
    got = np.zeros((3, 200, 230), np.float32)
    tile.predict(predict, scene, got, output="probabilities", exact=field)
    padded = np.pad(scene, [(0, 0), (0, 2), (0, 0)], mode="reflect")  # up to a multiple of the stride
    with torch.no_grad():
        logits = plain()(torch.from_numpy(SPEC.normalise(padded[None])))
    whole = logits.softmax(1)[0, :, :200, :230].numpy()
    assert np.abs(got - whole).max() < 1e-5
    blended = np.zeros((3, 200, 230), np.float32)
    tile.predict(predict, scene, blended, output="probabilities", overlap=8)
    assert np.abs(blended - whole).max() > 1e-3  # what exact tiles are for


@pytest.mark.parametrize("size", [(60, 230), (96, 50), (30, 31)])
def test_exact_tiles_of_a_scene_smaller_than_a_tile(exported: Path, size: tuple[int, int]) -> None:
    """A model of a fixed size would see it mirrored and is refused; one of any size gets smaller tiles."""
    field = tile.receptive_field(exported)
    scene = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    got = np.zeros((3, *size), np.float32)
    with pytest.raises(ModelError, match="mirrored") as caught:
        tile.predict(nw.runtimes.load("onnx").open(exported), scene, got, output="probabilities", exact=field)
    assert caught.value.code == "tile-exact"

    def open_sized(images: Any) -> Any:
        with torch.no_grad():
            return plain()(torch.from_numpy(SPEC.normalise(images))).softmax(1).numpy()

    tile.predict(open_sized, scene, got, output="probabilities", exact=field, tile=SIZE)
    padded = np.pad(scene, [(0, -side % field.period) for side in size] + [(0, 0)], mode="reflect")
    assert np.abs(got - open_sized(padded[None])[0, :, : size[0], : size[1]]).max() < 1e-5


def test_a_reach_that_is_too_small_is_caught(exported: Path) -> None:
    predict = nw.runtimes.load("onnx").open(exported)
    with pytest.raises(ParityError) as caught:
        tile.prove(predict, tile.Field(3, 3, 4), channels=3)
    assert caught.value.code == "tile-inexact"
    with pytest.raises(ParityError):
        tile.prove(predict, tile.Field(20, 20, 3), channels=3)  # a wrong period
    with pytest.raises(ModelError, match="leave nothing"):
        tile.prove(predict, tile.Field(60, 60, 4), channels=3)


def graph(*middle: Any, constants: dict[str, Any] | None = None) -> bytes:
    """An ONNX file: pixels, a convolution of 3 x 3 with a stride of 2 to `x`, the given nodes from `x` to `y`,
    twice as large again, a softmax."""
    from onnx import TensorProto, helper, numpy_helper

    held = {"w": np.ones((4, 3, 3, 3), np.float32), "sizes": np.array([1, 1, 2, 2], np.float32)} | (
        constants or {}
    )
    nodes = [
        helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w"], ["x"], pads=[1, 1, 1, 1], strides=[2, 2]),
        *(helper.make_node(kind, inputs, outputs, **knobs) for kind, inputs, outputs, knobs in middle),
        helper.make_node("Resize", ["y", "", "sizes"], ["r"], mode="nearest"),
        helper.make_node("Softmax", ["r"], ["probabilities"], axis=1),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 32, 32, 3])
    out = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 4, 32, 32])
    tensors = [numpy_helper.from_array(array, name) for name, array in held.items()]
    made = helper.make_graph(nodes, "g", [image], [out], tensors)
    return bytes(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()
    )


ONES = np.ones((16, 16), np.float32)
FOUR = np.ones((4, 4), np.float32)


@pytest.mark.parametrize(
    ("middle", "constants", "why"),
    [
        ([("GlobalAveragePool", ["x"], ["p"], {}), ("Mul", ["x", "p"], ["y"], {})], {}, "GlobalAveragePool"),
        (
            [("ReduceMean", ["x", "a"], ["p"], {}), ("Mul", ["x", "p"], ["y"], {})],
            {"a": np.array([3])},
            "ReduceMean",
        ),
        ([("MatMul", ["x", "m"], ["y"], {})], {"m": ONES}, "MatMul"),
        ([("MatMul", ["m", "x"], ["y"], {})], {"m": ONES}, "MatMul"),
        ([("Add", ["x", "m"], ["y"], {})], {"m": ONES}, "Add .* place to place"),
        ([("InstanceNormalization", ["x", "s", "s"], ["y"], {})], {"s": FOUR[0]}, "InstanceNormalization"),
        ([("Softmax", ["x"], ["y"], {"axis": -1})], {}, "Softmax"),
        ([("Concat", ["x", "x"], ["y"], {"axis": 2})], {}, "Concat"),
        ([("CumSum", ["x", "a"], ["y"], {})], {"a": np.array(2)}, "CumSum .* not known"),
        (
            [("Slice", ["x", "a", "b", "c"], ["y"], {})],
            {"a": np.array([-9]), "b": np.array([99]), "c": np.array([2])},
            "Slice",
        ),
        (
            [
                (
                    "Resize",
                    ["x", "", "u"],
                    ["y"],
                    {"coordinate_transformation_mode": "align_corners", "mode": "linear"},
                )
            ],
            {"u": np.array([1, 1, 1, 2], np.float32)},
            "Resize .*align_corners",
        ),
        ([("Reshape", ["x", "h"], ["y"], {})], {"h": np.array([1, 4, 8, 32])}, "Reshape"),
        ([("Transpose", ["x"], ["z"], {"perm": [0, 1, 3, 2]}), ("Add", ["x", "z"], ["y"], {})], {}, "Add"),
    ],
)
def test_what_is_not_local_is_refused_by_name(tmp_path: Path, middle: Any, constants: Any, why: str) -> None:
    (tmp_path / "m.onnx").write_bytes(graph(*middle, constants=constants))
    with pytest.raises(ModelError, match=f"exact: {why}") as caught:
        tile.receptive_field(tmp_path / "m.onnx")
    assert caught.value.code == "tile-exact"


BASE = (4, 3)
"""Reach of the graph around the middle: its convolution and its resizing."""


@pytest.mark.parametrize(
    ("middle", "constants", "more", "period"),
    [
        ([("Relu", ["x"], ["y"], {})], {}, (0, 0), 2),
        (
            [("Conv", ["x", "k"], ["y"], {"pads": [2, 2, 2, 2], "dilations": [2, 2]})],
            {"k": np.ones((4, 4, 3, 3), np.float32)},
            (4, 4),
            2,
        ),
        (
            [("QuantizeLinear", ["x", "s", "z"], ["q"], {}), ("DequantizeLinear", ["q", "s", "z"], ["y"], {})],
            {"s": 9 * FOUR[0], "z": np.zeros(4, np.uint8)},
            (0, 0),
            2,
        ),
        ([("MaxPool", ["x"], ["y"], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]})], {}, (2, 2), 2),
        (
            [
                ("SpaceToDepth", ["x"], ["z"], {"blocksize": 2}),
                ("DepthToSpace", ["z"], ["y"], {"blocksize": 2}),
            ],
            {},
            (2, 2),
            4,
        ),
        (
            [("ReduceMax", ["x", "a"], ["p"], {}), ("Mul", ["x", "p"], ["y"], {})],
            {"a": np.array([1])},
            (0, 0),
            2,
        ),
        (
            [
                ("Reshape", ["x", "h"], ["z"], {}),
                ("Transpose", ["z"], ["u"], {"perm": [0, 2, 1, 3, 4]}),
                ("Reshape", ["u", "i"], ["y"], {}),
            ],
            {"h": np.array([1, 2, 2, 16, 16]), "i": np.array([1, 4, 16, 16])},
            (0, 0),
            2,
        ),
        (
            [
                ("Transpose", ["x"], ["z"], {"perm": [0, 2, 3, 1]}),
                ("LayerNormalization", ["z", "s"], ["n"], {"axis": -1}),
                ("MatMul", ["n", "m"], ["u"], {}),
                ("Transpose", ["u"], ["y"], {"perm": [0, 3, 1, 2]}),
            ],
            {"s": FOUR[0], "m": FOUR},
            (0, 0),
            2,
        ),
        (
            [("Pad", ["x", "h"], ["z"], {}), ("Slice", ["z", "a", "b", "c"], ["y"], {})],
            {
                "h": np.array([0, 0, 2, 2, 0, 0, 0, 0]),
                "a": np.array([2, 2]),
                "b": np.array([18, 18]),
                "c": np.array([2, 3]),
            },
            (0, 0),
            2,
        ),
    ],
)
def test_reaches_of_operators(tmp_path: Path, middle: Any, constants: Any, more: Any, period: int) -> None:
    (tmp_path / "m.onnx").write_bytes(graph(*middle, constants=constants))
    field = tile.receptive_field(tmp_path / "m.onnx")
    assert (field.before - BASE[0], field.after - BASE[1], field.period) == (*more, period)
    predict = nw.runtimes.load("onnx").open(tmp_path / "m.onnx")
    assert tile.prove(predict, field, channels=3) <= tile.exact.TOLERANCE


def odds(images: Any) -> Any:
    """Not symmetric: a ramp from left to right is added, and one from the top."""
    height, width = images.shape[1:3]
    bright = images.astype(np.float32).mean(3) / 255
    ramp = np.linspace(0, 1, width, dtype=np.float32) + 2 * np.linspace(0, 1, height, dtype=np.float32)[:, None]
    one = (bright + ramp) / 4
    return np.stack([one, 1 - one], 1)


@pytest.mark.parametrize("name", tile.augment.TURNS)
def test_a_turn_is_turned_back(name: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1)).astype(np.uint8)

    def bright(images: Any) -> Any:
        return images.astype(np.float32).transpose(0, 3, 1, 2)

    assert (tile.turned(bright, [name])(image) == bright(image)).all()
    if name != "none":
        assert not np.allclose(tile.turned(odds, [name])(image), odds(image))


def test_all_turns_make_a_predictor_symmetric() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 1)).astype(np.uint8)
    all_of_them = tile.turned(odds, tile.augment.TURNS)
    given = all_of_them(image)
    for turn in (lambda a: a[:, :, ::-1], lambda a: a[:, ::-1]):
        again = all_of_them(np.ascontiguousarray(turn(image)))
        assert np.allclose(turn(np.moveaxis(again, 1, -1)), np.moveaxis(given, 1, -1), atol=1e-6)


def test_ensembles() -> None:
    def sure(value: float) -> Any:
        return lambda images: np.broadcast_to(
            np.array([value, 1 - value], np.float32)[None, :, None, None], (len(images), 2, *images.shape[1:3])
        )

    image = np.zeros((1, 4, 4, 1), np.uint8)
    three = [sure(0.0), sure(0.6), sure(0.7)]
    assert np.allclose(tile.together(three)(image)[0, 0], 1.3 / 3)
    assert np.allclose(tile.together(three, how="vote")(image)[0, 0], 2 / 3)
    assert np.allclose(tile.together(three, weights=[2, 1, 1])(image)[0, 0], 1.3 / 4)
    assert np.allclose(tile.together(three, how="vote", weights=[2, 1, 1])(image)[0, 0], 0.5)
    out = np.zeros((9, 9), np.uint8)
    tile.predict(tile.turned(tile.together(three, how="vote")), np.zeros((9, 9, 1), np.uint8), out, tile=4)
    assert (out == 0).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: tile.together([]),
        lambda: tile.together([odds], how="median"),
        lambda: tile.together([odds, odds], weights=[1]),
        lambda: tile.together([odds], weights=[0]),
        lambda: tile.together([odds], weights=[-1]),
        lambda: tile.turned(odds, []),
        lambda: tile.turned(odds, ["flop"]),
        lambda: tile.together([odds, lambda i: odds(i)[:, :1]])(np.zeros((1, 4, 4, 1), np.uint8)),
    ],
)
def test_members_that_do_not_fit(call: Any) -> None:
    with pytest.raises(SpecError) as caught:
        call()
    assert caught.value.code == "tile-members"
