"""An ONNX file cleaned up: constants folded, batch norms fused, dead ends taken away; then compared.

The work is done by ONNX Runtime's own offline optimiser, at the level whose result is plain ONNX and fits every
machine. What it makes is kept only if it gives the same outputs.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from niwaki.errors import ModelError, ParityError
from niwaki.qdq import graph as graphs

LIMIT = 1e-4
"""Largest difference of an output, over the largest output: sums in another order give less."""


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """A cleaned graph.

    Args:
        proto: the ModelProto.
        before, after: nodes of the graph.
        error: largest difference of the outputs over the largest output.
    """

    proto: Any
    before: int
    after: int
    error: float


def clean(proto: Any, *, feed: dict[str, npt.NDArray[Any]] | None = None, seed: int = 0) -> Cleaned:
    """The graph cleaned up, after its outputs were found to be the same; `proto` is left as it was.

    Args:
        feed: inputs to compare on, by name; None draws them, free sizes being 2.
        seed: of the draw.
    Raises:
        ModelError: ONNX Runtime cannot load or run the graph. [clean-graph]
        ParityError: the cleaned graph computes something else. [parity]
    """
    import onnxruntime as ort

    levels = ort.GraphOptimizationLevel
    try:
        feed = drawn(proto, seed=seed) if feed is None else feed
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cleaned.onnx"
            _run(_alive(proto), feed, levels.ORT_ENABLE_BASIC, path)
            done = onnx.load(path)
        wanted, got = (_run(one, feed, levels.ORT_DISABLE_ALL) for one in (proto, done))
    except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(
            f"clean: ONNX Runtime does not run the graph: {reason}. Give a file that it loads.",
            code="clean-graph",
        ) from error
    error_ = max((_difference(a, b) for a, b in zip(wanted, got, strict=True)), default=0.0)
    if not error_ <= LIMIT:
        raise ParityError(
            f"clean: the cleaned graph's outputs differ by {error_:.3g} of the largest (allowed {LIMIT:.1g}). "
            "Use the file as it was.",
            code="parity",
        )
    return Cleaned(proto=done, before=len(proto.graph.node), after=len(done.graph.node), error=error_)


def drawn(proto: Any, *, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Random inputs of a graph by name: whole numbers of the whole range for uint8, else normal ones."""
    draw = np.random.default_rng(seed)
    constants = {tensor.name for tensor in proto.graph.initializer}
    found: dict[str, npt.NDArray[Any]] = {}
    for value in proto.graph.input:
        if value.name in constants:
            continue
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        shape = [d.dim_value or 2 for d in value.type.tensor_type.shape.dim]
        if np.issubdtype(kind, np.integer):
            found[value.name] = draw.integers(0, 256 if kind == np.uint8 else 2, shape).astype(kind)
        else:
            found[value.name] = draw.standard_normal(shape).astype(kind)
    return found


def _alive(proto: Any) -> Any:
    """The graph without dead ends, whose readers would keep a batch norm from being fused."""
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    graphs.drop_unused(whole.graph)
    return whole


def _run(proto: Any, feed: dict[str, npt.NDArray[Any]], level: Any, keep: Path | None = None) -> list[Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = level
    if keep is not None:
        options.optimized_model_filepath = str(keep)
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


def _difference(wanted: npt.NDArray[Any], got: npt.NDArray[Any]) -> float:
    if wanted.shape != got.shape:
        return float("inf")
    largest = float(np.abs(wanted.astype(np.float64)).max(initial=0.0))
    return float(np.abs(wanted.astype(np.float64) - got).max(initial=0.0)) / max(largest, 1e-12)
