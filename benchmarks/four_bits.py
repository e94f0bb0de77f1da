"""What ONNX Runtime's CPU kernels make of 4-bit weights: operators it runs, file size, time against int8.

    python benchmarks/four_bits.py --rounds 30

One convolution (64 to 64 channels, 3x3, 32x32 pixels) and one linear layer (1024 to 1024, 64 rows), each as a
QDQ file: weights int8; INT4 widened to int8 by a Cast that is folded when the file is loaded (niwaki's way);
INT4 behind a DequantizeLinear; and, for the linear layer, INT4 in blocks of 32 and float activations, which
ONNX Runtime turns into MatMulNBits. Times: one interleaved run on one thread, as ratios to int8; loading apart.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from niwaki import timing
from niwaki.qdq import four_bits

WAYS = ("int8", "INT4, Cast", "INT4, DequantizeLinear", "INT4 in blocks, float activations")


def layer(kind: str, way: str) -> bytes | None:
    """A file of one layer; None where that way is none of this layer's."""
    rng = np.random.default_rng(0)
    shape = (64, 64, 3, 3) if kind == "convolution" else (1024, 1024)
    axis = 0 if kind == "convolution" else 1
    whole = rng.integers(-7, 8, shape).astype(np.int8)
    blocks = "blocks" in way
    if blocks and kind == "convolution":
        return None
    scales = np.full((shape[0] // 32, shape[1]) if blocks else shape[axis], 0.01, np.float32)
    held = {"ws": scales, "xs": np.float32(0.02), "xz": np.uint8(3), "ys": np.float32(0.5), "yz": np.uint8(9)}
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()]
    constants.append(numpy_helper.from_array(whole, "w") if way == "int8" else four_bits.tensor("w", whole))
    nodes = [helper.make_node("Cast", ["w"], ["w8"], to=TensorProto.INT8)] if "Cast" in way else []
    extra = {"block_size": 32, "axis": 0} if blocks else {"axis": axis}
    nodes.append(helper.make_node("DequantizeLinear", ["w8" if nodes else "w", "ws"], ["wf"], **extra))
    if not blocks:
        nodes.append(helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xf"]))
    given = ["x" if blocks else "xf", "wf"]
    if kind == "convolution":
        nodes.append(helper.make_node("Conv", given, ["yf"], pads=[1, 1, 1, 1]))
    else:
        nodes.append(helper.make_node("MatMul", given, ["yf"]))
    if not blocks:
        nodes.append(helper.make_node("QuantizeLinear", ["yf", "ys", "yz"], ["y"]))
    size = [1, 64, 32, 32] if kind == "convolution" else [64, 1024]
    types = TensorProto.FLOAT if blocks else TensorProto.UINT8
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", types, size)],
        [helper.make_tensor_value_info("yf" if blocks else "y", types, None)], constants,
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(made.SerializeToString())


def opened(data: bytes) -> tuple[Any, str, float]:
    """The session, the operators it runs, and milliseconds of loading."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "o.onnx")
        ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        kinds = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    options.optimized_model_filepath = ""
    began = time.perf_counter()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session, ", ".join(sorted(kinds)), 1e3 * (time.perf_counter() - began)


def main() -> None:
    """A table a layer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    for kind in ("convolution", "linear layer"):
        calls, told = {}, {}
        for way in WAYS:
            if (data := layer(kind, way)) is None:
                continue
            session, kinds, load = opened(data)
            one = session.get_inputs()[0]
            x = (
                np.random.default_rng(1)
                .integers(0, 256, one.shape)
                .astype(np.uint8 if "uint8" in one.type else np.float32)
            )
            calls[way] = lambda session=session, x=x: session.run(None, {"x": x})
            told[way] = f"{len(data) / 1e3:8.1f} KB  load {load:6.2f} ms  {kinds}"
        taken = timing.interleave(calls, rounds=given.rounds, calls_per_sample=5)
        print(kind)
        for way, samples in taken.items():
            ratio = timing.ratio(samples, taken["int8"])
            print(f"  {way:34s} {ratio['median']:6.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})  {told[way]}")


if __name__ == "__main__":
    main()
