"""Graphs are cleaned up with the same outputs; one that would compute something else is an error."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from niwaki.errors import ModelError, ParityError
from niwaki.qdq import clean


def messy() -> Any:
    """A convolution and its batch norm, a constant made by two nodes, a sum of zero, and a dead end."""
    draw = np.random.default_rng(0)
    arrays = {
        "w": draw.normal(size=(4, 3, 3, 3)),
        "gamma": draw.normal(size=4),
        "beta": draw.normal(size=4),
        "mean": draw.normal(size=4),
        "var": draw.uniform(0.5, 2, size=4),
        "two": np.array([2.0]),
        "three": np.array([3.0]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"], "norm"),
        helper.make_node("Add", ["two", "three"], ["five"], "five"),
        helper.make_node("Mul", ["five", "two"], ["ten"], "ten"),
        helper.make_node("Mul", ["n", "ten"], ["y"], "scaled"),
        helper.make_node("Relu", ["c"], ["nobody"], "dead"),
        helper.make_node("Identity", ["y"], ["out"], "same"),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", k, 6, 6])
        for name, k in (("x", 3), ("out", 4))
    ]
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "messy", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_constants_norms_and_dead_ends_go() -> None:
    before = messy()
    kept = before.SerializeToString()
    done = clean.clean(before)
    kinds = [node.op_type for node in done.proto.graph.node]
    assert (done.before, done.after) == (7, len(kinds)) and done.after <= 2
    assert "BatchNormalization" not in kinds and "Relu" not in kinds and done.error <= clean.LIMIT
    assert before.SerializeToString() == kept
    assert {opset.domain for opset in done.proto.opset_import if opset.domain == ""} == {""}
    onnx.checker.check_model(done.proto)


def test_a_cleaning_that_changes_the_outputs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    load = onnx.load

    def spoilt(path: Any) -> Any:
        proto = load(path)
        tensor = next(t for t in proto.graph.initializer if len(t.dims) == 4)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
        return proto

    monkeypatch.setattr(onnx, "load", spoilt)
    with pytest.raises(ParityError, match="differ by") as caught:
        clean.clean(messy())
    assert caught.value.code == "parity"


def test_a_graph_that_does_not_run_is_refused() -> None:
    broken = messy()
    broken.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ModelError, match="does not run the graph") as caught:
        clean.clean(broken)
    assert caught.value.code == "clean-graph" and "\n" not in str(caught.value)
