"""Tiles, whatever their size: weights sum to one, and a streamed scene is that of a full canvas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from niwaki import tile
from niwaki.errors import SpecError
from niwaki.tile import windows
from niwaki.tile.budget import cut
from niwaki.tile.stitch import best


@st.composite
def axes(draw: st.DrawFn, most: int = 300) -> windows.Axis:
    multiple = draw(st.sampled_from([1, 1, 2, 4]))
    size = draw(st.integers(1, 24)) * multiple
    overlap = draw(st.integers(0, size - multiple))
    blend = draw(st.sampled_from(windows.BLENDS))
    scene = draw(st.integers(1, most))
    return windows.axis(scene, tile=size, overlap=overlap, blend=blend, multiple=multiple)


@given(axes())
def test_weights_of_an_axis_sum_to_exactly_one(axis: windows.Axis) -> None:
    total = np.zeros(axis.size + axis.tile + 4, np.float32)
    for start, weights in zip(axis.starts, axis.weights, strict=True):
        assert (weights >= 0).all()
        total[start : start + axis.tile] += weights
    assert (total[: axis.size] == 1).all()
    assert (total[axis.size :] == 0).all()


@given(axes(most=60), axes(most=60))
def test_products_of_weights_sum_to_exactly_one_in_float32(rows: windows.Axis, columns: windows.Axis) -> None:
    total = np.zeros((rows.size + rows.tile + 4, columns.size + columns.tile + 4), np.float32)
    for y, down in zip(rows.starts, rows.weights, strict=True):
        for x, across in zip(columns.starts, columns.weights, strict=True):
            total[y : y + rows.tile, x : x + columns.tile] += down[:, None] * across
    assert (total[: rows.size, : columns.size] == 1).all()


@given(axes(), st.integers(1, 9))
def test_strips_are_the_whole_width_and_reach_what_weighs_on_them(axis: windows.Axis, count: int) -> None:
    strips = cut(axis, min(count, len(axis.starts)))
    assert [strip.x0 for strip in strips] == [0, *(strip.x1 for strip in strips[:-1])]
    assert strips[-1].x1 == axis.size
    for strip in strips:
        outside = set(range(len(axis.starts))) - set(strip.windows)
        for k in outside:
            start = axis.starts[k]
            here = axis.weights[k, max(0, strip.x0 - start) : max(0, strip.x1 - start)]
            assert not here.any()


def noisy(images: Any) -> Any:
    """Probabilities that depend on where in its tile a pixel lies, so that tiles disagree."""
    height, width = images.shape[1:3]
    place = np.sin(np.arange(height)[:, None] * 0.7 + np.arange(width) * 1.3)
    raw = images[..., :1].astype(np.float64) / 255 + np.stack([place, -place, 0.5 * place**2], -1)[None]
    odds = np.exp(raw)
    return np.moveaxis(odds / odds.sum(-1, keepdims=True), -1, 1).astype(np.float32)


def full_canvas(scene: Any, rows: windows.Axis, columns: windows.Axis) -> Any:
    """The plain way: all weighted tiles added up on one canvas in float64, then divided by their weights."""
    canvas = np.zeros((3, rows.size, columns.size))
    weight = np.zeros((rows.size, columns.size))
    for y, down in zip(rows.starts, rows.weights, strict=True):
        for x, across in zip(columns.starts, columns.weights, strict=True):
            image = scene[y : y + rows.tile, x : x + columns.tile]
            both = down[:, None].astype(np.float64) * across
            canvas[:, y : y + rows.tile, x : x + columns.tile] += noisy(image[None])[0] * both
            weight[y : y + rows.tile, x : x + columns.tile] += both
    return canvas / weight


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(24, 70),
    st.integers(24, 70),
    st.integers(4, 24),
    st.floats(0, 0.9),
    st.sampled_from(windows.BLENDS),
    st.integers(1, 5),
    st.integers(0, 9),
)
def test_a_streamed_scene_is_that_of_a_full_canvas(
    height: int, width: int, size: int, share: float, blend: str, batch: int, seed: int
) -> None:
    scene = np.random.default_rng(seed).integers(0, 256, (height, width, 2)).astype(np.uint8)
    overlap = int(share * (size - 1))
    rows = windows.axis(height, tile=size, overlap=overlap, blend=blend)
    columns = windows.axis(width, tile=size, overlap=overlap, blend=blend)
    whole = full_canvas(scene, rows, columns)
    got = np.zeros((3, height, width), np.float32)
    knobs: dict[str, Any] = {"tile": size, "overlap": overlap, "blend": blend, "batch": batch, "memory_mb": 64}
    tile.predict(noisy, scene, got, output="probabilities", **knobs)
    assert np.abs(got - whole).max() < 2e-6
    classes = np.full((height, width), 9, np.uint8)
    tile.predict(noisy, scene, classes, **knobs)
    top = np.sort(whole, 0)
    clear = top[-1] - top[-2] > 4e-6
    assert (classes == whole.argmax(0))[clear].all()
    assert (classes == best(got)).all()


@given(st.integers(1, 40), st.integers(1, 5))
def test_best_is_argmax(count: int, seed: int) -> None:
    sums = np.random.default_rng(seed).integers(0, 4, (max(2, count), 5, 7)).astype(np.float32)
    assert (best(sums) == sums.argmax(0)).all()


@pytest.mark.parametrize(
    "knobs",
    [
        {"tile": 8, "overlap": 8},
        {"tile": 0, "overlap": 0},
        {"tile": 8, "overlap": -1},
        {"tile": 8, "overlap": 2, "blend": "none"},
        {"tile": 10, "overlap": 2, "multiple": 4},
        {"tile": 8, "overlap": 6, "multiple": 4},
    ],
)
def test_windows_out_of_range_are_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        windows.axis(20, **knobs)
    assert caught.value.code == "tile-window"
