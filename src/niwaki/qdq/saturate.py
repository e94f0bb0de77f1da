"""int8 on a CPU that this one may not be: u8·s8 products as x86 without VNNI adds them. Needs onnx.

Without VNNI an x86 CPU multiplies u8 by s8 with `vpmaddubsw`, which adds two neighbouring products in 16 bits
and cuts off what does not fit: 255·127 + 255·127 = 64770 becomes 32767. Only then sums go on in 32 bits. ONNX
Runtime's kernels (MLAS) pair along K from its start: of a matrix product its inner axis, of a convolution
kernel position by kernel position, all channels of the group at each. Depthwise convolutions extend to 32 bits
before they multiply, and never saturate; neither do CPUs with VNNI or ARM's.

    safe(proto)                nothing can saturate, whatever the images: by the weights alone
    emulator(proto)(images)    the probabilities that ONNX Runtime gives on such a CPU
    safe_for(proto, images)    the kinds of CPUs that compute what the file says, for a manifest

Shape letters: N images, M rows, K products a sum, O outputs, C channels, G groups, H W pixels.
Source: MLAS in ONNX Runtime (MIT): QgemmU8S8KernelAvx2.S, ConvSymKernelAvx2.S, convsym.cpp, qlinearconv.cc.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from niwaki.qdq.processors import KINDS

Ints = npt.NDArray[np.int32]
Array = npt.NDArray[Any]

LOW, HIGH = -(2**15), 2**15 - 1
"""What 16 bits hold."""
MOVED = 1e-3
"""Mean share of probability that saturation may move in a file that is taken for safe."""
Predictor = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]


def products(a: npt.NDArray[np.uint8], b: npt.NDArray[np.int8], *, saturates: bool = True) -> Ints:
    """The product of u8 `[M, K]` and s8 `[K, O]`, int32 `[M, O]`, neighbours in K cut at 16 bits in pairs."""
    odd = a.shape[1] % 2  # the kernels fill K up with zeros
    a, b = np.pad(a, ((0, 0), (0, odd))), np.pad(b, ((0, odd), (0, 0)))
    exact = (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)  # whole numbers below 2^53
    if saturates:
        for pair in np.flatnonzero(_exposed(b).any(1)):
            columns = np.flatnonzero(_exposed(b[2 * pair : 2 * pair + 2])[0])
            both = a[:, 2 * pair : 2 * pair + 2].astype(np.int32)
            sums = both @ b[2 * pair : 2 * pair + 2, columns].astype(np.int32)
            exact[:, columns] -= sums - np.clip(sums, LOW, HIGH)
    return exact.astype(np.int32)


def _exposed(b: npt.NDArray[np.int8]) -> npt.NDArray[np.bool_]:
    """For each pair of rows and each column of s8 `[K, O]` whether some u8 make it saturate: `[K / 2, O]`."""
    wide = b.astype(np.int32).reshape(-1, 2, b.shape[1])
    most, least = 255 * np.maximum(wide, 0).sum(1), 255 * np.minimum(wide, 0).sum(1)
    exposed: npt.NDArray[np.bool_] = (most > HIGH) | (least < LOW)
    return exposed


def safe(proto: Any) -> bool:
    """Whether no image at all can make this QDQ ModelProto saturate."""
    graph = _Graph(_optimised(proto))
    return not any(_exposed(weights).any() for node in graph.layers() for weights in graph.matrices(node))


def emulator(proto: Any, *, saturates: bool = True) -> Predictor:
    """A predictor, uint8 `[N, H, W, C]` to what a QDQ ModelProto gives where u8·s8 products saturate in pairs.

    The graph is the one that ONNX Runtime makes of the file; what multiplies u8 by constant s8 is computed
    here, all else node by node by ONNX Runtime.

    Args:
        saturates: False computes what a CPU with VNNI does, to check the emulation against ONNX Runtime itself.
    """
    graph = _Graph(_optimised(proto))

    def predict(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        values: dict[str, Array] = {graph.input: images, **graph.constants}
        for node in graph.nodes:
            if graph.weight(node) is not None:
                values[node.output[0]] = _LAYERS[node.op_type](graph, node, values, saturates)
            else:
                values.update(zip(node.output, graph.run(node, values), strict=True))
            for name in graph.last[id(node)]:
                del values[name]
        return np.asarray(values[graph.output], np.float32)

    return predict


def safe_for(proto: Any, images: npt.NDArray[np.uint8] | None = None) -> dict[str, Any]:
    """Which CPUs compute what a QDQ ModelProto says: `{"safe_for": [of KINDS], "decided_by", ...}`, as JSON.

    Where the weights alone do not rule saturation out, it is emulated on images; a file whose predictions all
    stay and whose probabilities move by no more than `MOVED` on average is taken for safe.

    Args:
        images: uint8 `[N, H, W, C]`; without them only the weights are asked.
    """
    if safe(proto):
        return {"safe_for": list(KINDS), "decided_by": "weights"}
    if images is None:
        return {"safe_for": ["vnni", "arm"], "decided_by": "weights"}
    exact, pairs = (emulator(proto, saturates=saturates)(images) for saturates in (False, True))
    agreement = float((exact.argmax(1) == pairs.argmax(1)).mean())
    moved = float(np.abs(exact.astype(np.float64) - pairs).sum(1).mean() / 2)
    fine = agreement == 1 and moved <= MOVED
    return {
        "safe_for": list(KINDS) if fine else ["vnni", "arm"],
        "decided_by": "emulation",
        "images": len(images),
        "agreement": agreement,
        "moved": moved,
    }


def _optimised(proto: Any) -> Any:
    """The graph that ONNX Runtime makes of a file, channels first, as its extended optimisations leave it."""
    options = _options(ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(path)


def _options(level: Any) -> Any:
    """One thread a session: there is one for each node, and idle threads take the core from each other."""
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return options


class _Graph:
    """An optimised graph, ready to be computed node by node."""

    def __init__(self, proto: Any) -> None:
        self.proto, self.nodes = proto, list(proto.graph.node)
        self.constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        self.input, self.output = proto.graph.input[0].name, proto.graph.output[0].name
        self.last = self._last()
        self._sessions: dict[int, Any] = {}

    def layers(self) -> list[Any]:
        """The nodes that multiply u8 by constant s8."""
        return [node for node in self.nodes if self.weight(node) is not None]

    def weight(self, node: Any) -> npt.NDArray[np.int8] | None:
        """The constant s8 weights of a node whose kernel pairs products, None of all others."""
        place = {"QLinearConv": 3, "QGemm": 3, "QLinearMatMul": 3, "MatMulIntegerToFloat": 1}.get(node.op_type)
        held = self.constants.get(node.input[place]) if place is not None else None
        if held is None or held.dtype != np.int8:
            return None
        if node.op_type == "QLinearConv":
            depthwise = held.shape[1] == 1 and held.shape[0] == _attribute(node, "group", 1)
            return None if depthwise else held
        return held if held.ndim == 2 else None

    def matrices(self, node: Any) -> list[npt.NDArray[np.int8]]:
        """A layer's weights as matrices s8 `[K, O]`, K even and in the kernels' order, one for each group."""
        weight = self.weight(node)
        assert weight is not None, "only layers have weights"
        if node.op_type == "QLinearConv":
            groups = _attribute(node, "group", 1)
            flat = [
                one.transpose(2, 3, 1, 0).reshape(-1, len(one)) for one in np.split(_square(weight), groups)
            ]
        else:
            flat = [weight.T if node.op_type == "QGemm" and _attribute(node, "transB", 0) else weight]
        return [np.pad(one, ((0, len(one) % 2), (0, 0))) for one in flat]

    def run(self, node: Any, values: dict[str, Array]) -> list[Array]:
        """A node's outputs, by ONNX Runtime."""
        if id(node) not in self._sessions:
            self._sessions[id(node)] = self._session(node, values)
        session = self._sessions[id(node)]
        names = [one.name for one in session.get_inputs()]
        outputs: list[Array] = session.run(None, {name: values[name] for name in names})
        return outputs

    def _session(self, node: Any, values: dict[str, Array]) -> Any:
        read = list(dict.fromkeys(name for name in node.input if name))
        kinds = {name: helper.np_dtype_to_tensor_dtype(values[name].dtype) for name in read}
        given = [
            helper.make_tensor_value_info(name, kinds[name], None)
            for name in read
            if name not in self.constants
        ]
        held = [numpy_helper.from_array(self.constants[name], name) for name in read if name in self.constants]
        made = [onnx.ValueInfoProto(name=name) for name in node.output]
        whole = helper.make_graph([node], "one", given, made, held)
        options = _options(ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
        one = helper.make_model(whole, opset_imports=self.proto.opset_import, ir_version=self.proto.ir_version)
        return ort.InferenceSession(one.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def _last(self) -> dict[int, list[str]]:
        """For each node the values that nothing reads after it."""
        known, last = {self.output, *self.constants}, {}
        for node in reversed(self.nodes):
            read = {name for name in node.input if name} - known
            unread = {name for name in node.output if name} - known
            last[id(node)] = sorted(read | unread)
            known |= read
        return last


def _convolution(graph: _Graph, node: Any, values: dict[str, Array], saturates: bool) -> Array:
    """QLinearConv: `[N, C, H, W]` u8 to `[N, O, h, w]` u8."""
    x, x_scale, x_zero, weight, w_scale, _, y_scale, y_zero = (values[name] for name in node.input[:8])
    columns, shape = _columns(_square(x), _square(weight).shape[2:], node, int(x_zero))
    outputs = []
    matrices = graph.matrices(node)
    for group, matrix in enumerate(matrices):
        part = _group(columns, group, len(matrices))
        flat = part.reshape(len(part), -1)
        total = products(np.pad(flat, ((0, 0), (0, len(matrix) - flat.shape[1]))), matrix, saturates=saturates)
        outputs.append(total - int(x_zero) * matrix.sum(0, dtype=np.int32))
    total = np.concatenate(outputs, 1)
    if len(node.input) > 8 and node.input[8]:
        total = total + values[node.input[8]]
    whole = _requantized(total, x_scale * np.atleast_1d(w_scale) / y_scale, int(y_zero))
    whole = whole.reshape(len(x), *shape, -1).transpose(0, 3, 1, 2)
    return whole if x.ndim == 4 else whole[:, :, 0]


def _group(columns: npt.NDArray[np.uint8], group: int, groups: int) -> npt.NDArray[np.uint8]:
    """The channels of one group: of `[M, positions, C]`."""
    count = columns.shape[2] // groups
    return columns[:, :, group * count : (group + 1) * count]


def _square(array: Array) -> Array:
    """One axis of pixels as two."""
    return array if array.ndim == 4 else array[:, :, None]


def _columns(
    x: npt.NDArray[np.uint8], kernel: tuple[int, ...], node: Any, zero: int
) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    """What each output pixel reads: u8 `[N * h * w, kernel positions, C]`, and (h, w)."""
    one = len(_attribute(node, "strides", [1, 1])) == 1  # one axis of pixels

    def both(name: str, default: list[int], fill: int) -> list[int]:
        found = list(_attribute(node, name, default))
        return [fill, *found] if one else found

    strides, dilations = both("strides", [1, 1], 1), both("dilations", [1, 1], 1)
    pads = list(_attribute(node, "pads", [0, 0] if one else [0, 0, 0, 0]))
    top, left, bottom, right = (0, pads[0], 0, pads[1]) if one else pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=zero)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    height, width = windows.shape[2:4]
    order = windows.transpose(0, 2, 3, 4, 5, 1)  # N, h, w, kernel rows, kernel columns, C
    return order.reshape(len(x) * height * width, -1, x.shape[1]), (height, width)


def _requantized(total: Ints, scale: Array, zero: int) -> npt.NDArray[np.uint8]:
    """Sums as u8: times a float32 scale, cut off, rounded half to even, as MLAS does it in this order."""
    values = total.astype(np.float32) * scale.astype(np.float32)
    return (np.rint(np.clip(values, -zero, 255 - zero)) + zero).astype(np.uint8)


def _gemm(graph: _Graph, node: Any, values: dict[str, Array], saturates: bool) -> Array:
    """QGemm: `[M, K]` u8 to `[M, O]`, u8 with an output scale and float32 without."""
    a, a_scale, a_zero, _, b_scale, _ = (values[name] for name in node.input[:6])
    a = a.T if _attribute(node, "transA", 0) else a
    names = [*node.input[6:], "", "", ""]
    total = _total(graph, node, a, int(a_zero), saturates) + (values[names[0]] if names[0] else 0)
    scale = np.float32(_attribute(node, "alpha", 1.0)) * a_scale * np.atleast_1d(b_scale)
    if not names[1]:
        return np.asarray(total.astype(np.float32) * scale.astype(np.float32))
    return _requantized(total, scale / values[names[1]], int(values[names[2]]))


def _matmul(graph: _Graph, node: Any, values: dict[str, Array], saturates: bool) -> Array:
    """QLinearMatMul: `[..., K]` u8 to `[..., O]` u8."""
    a, a_scale, a_zero, _, b_scale, _, y_scale, y_zero = (values[name] for name in node.input)
    total = _total(graph, node, a, int(a_zero), saturates)
    return _requantized(total, a_scale * np.atleast_1d(b_scale) / y_scale, int(y_zero))


def _matmul_to_float(graph: _Graph, node: Any, values: dict[str, Array], saturates: bool) -> Array:
    """MatMulIntegerToFloat: `[..., K]` u8 to `[..., O]` float32."""
    names = [*node.input, "", "", ""]
    a, a_scale, b_scale = (values[names[place]] for place in (0, 2, 3))
    total = _total(graph, node, a, int(values[names[4]]) if names[4] else 0, saturates)
    out: Array = total.astype(np.float32) * (a_scale * np.atleast_1d(b_scale)).astype(np.float32)
    return out + values[names[6]] if names[6] else out


def _total(graph: _Graph, node: Any, a: Array, zero: int, saturates: bool) -> Ints:
    (matrix,) = graph.matrices(node)
    flat = a.reshape(-1, a.shape[-1])
    total = products(np.pad(flat, ((0, 0), (0, len(matrix) - flat.shape[1]))), matrix, saturates=saturates)
    whole: Ints = (total - zero * matrix.sum(0, dtype=np.int32)).reshape(*a.shape[:-1], -1)
    return whole


_LAYERS: dict[str, Callable[[_Graph, Any, dict[str, Array], bool], Array]] = {
    "QLinearConv": _convolution,
    "QGemm": _gemm,
    "QLinearMatMul": _matmul,
    "MatMulIntegerToFloat": _matmul_to_float,
}


def _attribute(node: Any, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
