"""Small float ONNX graphs as the exporter writes them, with known weights: what the tests of int8 work on."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from niwaki.spec import Spec

SIZE, CLASSES = 12, 5
SPEC = Spec(size_hw=(SIZE, SIZE))
_DRAW = np.random.default_rng(0)
IMAGES = np.clip(
    _DRAW.integers(0, 256, (96, 1, 1, 3)) * 0.7 + _DRAW.integers(0, 256, (96, SIZE, SIZE, 3)) * 0.3, 0, 255
).astype(np.uint8)
"""Each of another colour, so that what is pooled differs from image to image by many steps of int8."""


class Net:
    """A graph from raw pixels to probabilities, built one node after the other."""

    def __init__(self, seed: int = 0) -> None:
        self.draw = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        scale = np.diag(1 / (255 * np.array(SPEC.std)))[:, :, None, None]
        shift = -np.array(SPEC.mean) / np.array(SPEC.std)
        x = self.node("Transpose", ["image"], "planes", perm=[0, 3, 1, 2])
        x = self.node("Cast", [x], "pixels", to=TensorProto.FLOAT)
        scale, shift = scale.astype(np.float32), shift.astype(np.float32)
        self.value = self.node("Conv", [x, self.const("scale", scale), self.const("shift", shift)], "normal")

    def const(self, name: str, array: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], f"{kind}_{output}", **attributes))
        return output

    def conv(
        self, name: str, width: int, count: int, *, group: int = 1, kernel: int = 3, relu: bool = True
    ) -> Net:
        shape = (count, width // group, kernel, kernel)
        weight = self.draw.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32)
        bias = self.draw.normal(0, 0.1, count).astype(np.float32)
        names = [self.const(f"{name}.weight", weight), self.const(f"{name}.bias", bias)]
        pads = [kernel // 2] * 4
        kept = {"kernel_shape": [kernel] * 2, "pads": pads, "group": group}
        self.value = self.node("Conv", [self.value, *names], name, **kept)
        if relu:
            self.value = self.node("Relu", [self.value], f"{name}_relu")
        return self

    def done(self, width: int) -> Any:
        """The ModelProto, with a pooled linear head of that many channels."""
        x = self.node("GlobalAveragePool", [self.value], "pooled")
        x = self.node("Flatten", [x], "flat")
        weight = self.draw.normal(0, 1, (CLASSES, width)).astype(np.float32)
        names = [self.const("head.weight", weight), self.const("head.bias", np.zeros(CLASSES, np.float32))]
        x = self.node("Gemm", [x, *names], "logits", transB=1)
        self.node("Softmax", [x], "probabilities", axis=1)
        given = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIZE, SIZE, 3])
        out = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", CLASSES])
        graph = helper.make_graph(self.nodes, "net", [given], [out], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def plain(seed: int = 0) -> Any:
    """Three convolutions and a head."""
    return Net(seed).conv("a", 3, 16).conv("b", 16, 16).conv("c", 16, 24).done(24)


def depthwise(seed: int = 0, *, broken: float = 1.0) -> Any:
    """A depthwise net whose channels differ by up to `broken` where int8 has one scale, the function alike."""
    net = Net(seed).conv("a", 3, 16).conv("b", 16, 16, group=16).conv("c", 16, 16, kernel=1).done(16)
    draw = np.random.default_rng(seed + 1)
    arrays = {t.name: t for t in net.graph.initializer}
    for first, second in (("a", "b"), ("b", "c")):
        factors = np.exp(draw.uniform(0, np.log(broken), 16)).astype(np.float32)
        for name in (f"{first}.weight", f"{first}.bias"):
            array = numpy_helper.to_array(arrays[name])
            shaped = factors.reshape(-1, *[1] * (array.ndim - 1))
            arrays[name].CopyFrom(numpy_helper.from_array(array * shaped, name))
        name = f"{second}.weight"
        array = numpy_helper.to_array(arrays[name])
        shaped = factors[:, None, None, None] if second == "b" else factors[None, :, None, None]
        arrays[name].CopyFrom(numpy_helper.from_array(array / shaped, name))
    return net


def run(proto: Any, images: np.ndarray = IMAGES) -> np.ndarray:
    """Probabilities of a graph."""
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": images})[0])


def copied(proto: Any) -> Any:
    """The same graph, to change."""
    other = type(proto)()
    other.CopyFrom(proto)
    return other
