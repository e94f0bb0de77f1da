"""Rounding learned per layer: each weight up or down so that the layer's output, not the weight, stays close.

AdaRound's objective is quadratic in the rounding errors of an output channel: d^T H d with H the mean of x x^T
over the layer's inputs. It is minimised here by coordinate descent over whole numbers, starting at the nearest
ones, so the result is never worse on the images it saw, needs no learning rate, and is the same each time.
Shape letters: G groups, O output channels a group, K weights of one output channel, P positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.qdq import graph as graphs
from niwaki.qdq import ranges
from niwaki.qdq.graph import Graph
from niwaki.qdq.grid import Grid

Floats = npt.NDArray[np.float32]
SWEEPS = 3
BLOCK = 64
"""Columns whose mutual effects are kept exactly between two large products."""
POSITIONS = 32
"""Places of a feature map, or tokens, that are taken from each image."""
MEMORY = 512 * 2**20
"""For the matrices H of the layers that are learned in one pass over the images."""
RIDGE = 1e-4


def learn(
    proto: Any, activations: Mapping[str, Grid], weights: Mapping[str, Grid], images: npt.NDArray[np.uint8]
) -> dict[str, float]:
    """Weights moved to the chosen numbers of their grids, in place; what is left of each layer's error, 0..1.

    Args:
        weights: the grids by the constant's name; `insert.write` must get the same.
        images: uint8 `[N, H, W, C]`.
    Source: Nagel et al. 2020, "Up or down? Adaptive rounding for post-training quantization",
        arXiv:2004.10568, equations 13 and 20.
    """
    graph = graphs.read(proto)
    held = [
        node
        for node in graph.layers
        if node.input[0] in activations and node.input[1] in weights and len(graph.readers[node.input[1]]) == 1
        if node.op_type != "MatMul" or len(graph.constants[node.input[1]].dims) == 2
    ]
    left = {}
    for some in _fitting(graph, held):
        for name, second in _moments(graph, some, activations, images).items():
            node = next(one for one in some if one.name == name)
            left[name] = _layer(graph, node, weights[node.input[1]], second)
    return left


def _layer(graph: Graph, node: Any, one: Grid, second: Floats) -> float:
    """One layer's weights moved in place; the share of its error that is left."""
    array = graph.array(node.input[1])
    flat = _rows(node, array, second.shape[0])
    axis_scale = np.broadcast_to(_as_rows_of_scale(node, one, array), array.shape)
    scale = _rows(node, np.ascontiguousarray(axis_scale), second.shape[0])[..., :1]
    numbers, before, after = descend(
        flat / scale, second, low=one.ends[0], high=one.ends[1], size=scale[..., 0]
    )
    graph.set(node.input[1], _back(node, (numbers * scale).astype(np.float32), array.shape))
    return after / before if before > 0 else 1.0


def descend(
    wanted: Floats,
    second: Floats,
    *,
    low: int,
    high: int,
    size: npt.NDArray[Any] | None = None,
    sweeps: int = SWEEPS,
) -> tuple[Floats, float, float]:
    """Whole numbers near `wanted` `[G, O, K]` with a small error under H, and the error before and after.

    Args:
        wanted: weights in steps of their grid.
        second: H `[G, K, K]`, symmetric.
        low, high: ends of the grid; no weight moves by more than to its other neighbour.
        size: of a step, `[G, O]`, for the errors that are returned; None is 1.
    """
    floor, ceil = np.clip(np.floor(wanted), low, high), np.clip(np.ceil(wanted), low, high)
    numbers = np.clip(np.rint(wanted), low, high).astype(np.float32)
    error = (numbers - wanted).astype(np.float32)
    weight = np.ones(wanted.shape[:2]) if size is None else size.astype(np.float64) ** 2
    before = _loss(error, second, weight)
    diagonal = np.einsum("gkk->gk", second)
    for _ in range(sweeps):
        moved = _sweep(error, wanted, floor, ceil, second, diagonal)
        if not moved:
            break
    return (wanted + error).round().astype(np.float32), before, _loss(error, second, weight)


def _sweep(error: Floats, wanted: Floats, floor: Floats, ceil: Floats, second: Floats, diagonal: Floats) -> int:
    """One pass over all columns, a block at a time; the number of weights that moved. `error` is changed."""
    moved, count = 0, wanted.shape[2]
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        slope = error @ second[:, :, start:stop]  # [G, O, block]: half the gradient
        inner = second[:, start:stop, start:stop]
        for k in range(stop - start):
            column, h = start + k, diagonal[:, start + k, None]
            now = error[:, :, column]
            others = slope[:, :, k] - h * now
            down, up = floor[:, :, column] - wanted[:, :, column], ceil[:, :, column] - wanted[:, :, column]
            better = h * up * up + 2 * others * up < h * down * down + 2 * others * down
            new = np.where(better, up, down)
            step = new - now
            # only steps that gain: equal ones would go back and forth
            gains = step * (h * (new + now) + 2 * others) < -1e-12
            step = np.where(gains, step, 0).astype(np.float32)
            if step.any():
                moved += int(np.count_nonzero(step))
                error[:, :, column] += step
                slope += step[:, :, None] * inner[:, None, k, :]
    return moved


def _loss(error: Floats, second: Floats, weight: npt.NDArray[Any]) -> float:
    each = ((error @ second) * error).sum(2).astype(np.float64)
    return float((each * weight).sum())


def _fitting(graph: Graph, nodes: Sequence[Any]) -> Iterator[list[Any]]:
    """Nodes in groups whose matrices H fit into memory together."""
    some: list[Any] = []
    held = 0
    for node in nodes:
        groups, width = _sizes(graph, node)
        need = groups * width * width * 4
        if some and held + need > MEMORY:
            yield some
            some, held = [], 0
        some.append(node)
        held += need
    if some:
        yield some


def _sizes(graph: Graph, node: Any) -> tuple[int, int]:
    """(G, K) of a layer."""
    dims = list(graph.constants[node.input[1]].dims)
    if node.op_type == "Conv":
        return graphs.attribute(node, "group", 1), int(np.prod(dims[1:]))
    return 1, int(dims[1] if graphs.attribute(node, "transB", 0) else dims[0])


def _moments(
    graph: Graph, nodes: Sequence[Any], activations: Mapping[str, Grid], images: npt.NDArray[np.uint8]
) -> dict[str, Floats]:
    """H `[G, K, K]` of each layer over its rounded inputs, a little added to the diagonal."""
    sums = {node.name: np.zeros((g, k, k), np.float32) for node in nodes for g, k in [_sizes(graph, node)]}
    counts = dict.fromkeys(sums, 0)
    draw = np.random.default_rng(0)
    for values in ranges.stream(graph.proto, list(dict.fromkeys(n.input[0] for n in nodes)), images):
        for node in nodes:
            x = activations[node.input[0]].rounded(values[node.input[0]])
            rows = _patches(graph, node, x, draw)  # [G, P, K]
            sums[node.name] += rows.transpose(0, 2, 1) @ rows
            counts[node.name] += rows.shape[1]
    for name, second in sums.items():
        second /= max(1, counts[name])
        diagonal = np.einsum("gkk->gk", second)
        diagonal += RIDGE * diagonal.mean(1, keepdims=True) + 1e-12
    return sums


def _patches(graph: Graph, node: Any, x: Floats, draw: np.random.Generator) -> Floats:
    """What each output position reads, `[G, P, K]`, at positions drawn from every image."""
    if node.op_type != "Conv":
        flat = x.reshape(len(x), -1, x.shape[-1])
        place = draw.permutation(flat.shape[1])[:POSITIONS]
        return np.ascontiguousarray(flat[:, place].reshape(1, -1, x.shape[-1]))
    kernel = list(graph.constants[node.input[1]].dims)[2:]
    strides = graphs.attribute(node, "strides", [1] * len(kernel))
    dilations = graphs.attribute(node, "dilations", [1] * len(kernel))
    pads = graphs.attribute(node, "pads", [0] * 2 * len(kernel))
    rank = len(kernel)  # of the map: 1 for sequences, 2 for images
    x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(2, 2 + rank)))
    every = (slice(None), slice(None), *(slice(None, None, step) for step in (*strides, *dilations)))
    view = view[every]
    batch, channels, *sizes = view.shape[: 2 + rank]
    place = draw.permutation(int(np.prod(sizes)))[:POSITIONS]
    where: tuple[Any, ...] = (slice(None), slice(None), *np.unravel_index(place, sizes))
    taken = view[where]  # [B, C, places, *kernel]
    groups = graphs.attribute(node, "group", 1)
    apart = taken.reshape(batch, groups, channels // groups, len(place), -1).transpose(1, 0, 3, 2, 4)
    return np.ascontiguousarray(apart.reshape(groups, batch * len(place), -1))


def _rows(node: Any, array: npt.NDArray[Any], groups: int) -> Floats:
    """Weights as `[G, O, K]`."""
    if node.op_type != "Conv" and not graphs.attribute(node, "transB", 0):
        array = array.T
    return np.ascontiguousarray(array.reshape(groups, array.shape[0] // groups, -1), np.float32)


def _back(node: Any, rows: Floats, shape: tuple[int, ...]) -> Floats:
    """Weights `[G, O, K]` in their own shape again."""
    if node.op_type != "Conv" and not graphs.attribute(node, "transB", 0):
        return np.ascontiguousarray(rows.reshape(shape[1], shape[0]).T)
    return rows.reshape(shape)


def _as_rows_of_scale(node: Any, one: Grid, array: npt.NDArray[Any]) -> Floats:
    """The scale of each output channel in the shape of the weights."""
    if one.axis is None:
        return np.asarray(one.scale, np.float32)
    shape = [1] * array.ndim
    shape[one.axis] = -1
    return one.scale.reshape(shape)
