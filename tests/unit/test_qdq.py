"""Grids, ranges and the parts of recipes: each against a plain reference, and the writer of int8 graphs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from tests import onnx_nets as nets

from niwaki.errors import ModelError, PlanError
from niwaki.qdq import bias, equalise, grid, insert, ranges, rounding, seams, smooth
from niwaki.qdq import graph as graphs
from niwaki.qdq.grid import Grid
from niwaki.qdq.recipe import Recipe
from niwaki.runtimes import onnx_int8
from niwaki.spec import Spec

DRAW = np.random.default_rng(3)


@pytest.mark.parametrize("mean", [0.5, 0.1307, 0.4465, 0.2, 128 / 255])
def test_pixels_keep_their_levels_and_are_no_further_off_than_any_grid(mean: float) -> None:
    """Where 255 * mean is no whole number, too: 127.5 for 0.5."""
    one = onnx_int8.pixels_grid(Spec(size_hw=(4, 4), mean=(mean,) * 3, std=(0.25,) * 3))
    assert one is not None
    levels = np.arange(256)
    exact, got = (levels / 255 - mean) / 0.25, one.values(levels)
    other = grid.of_range(exact.min(), exact.max()).rounded(exact)
    whole = min(255 * mean % 1, 1 - 255 * mean % 1) * one.scale  # what of the shift no whole number holds
    assert len(np.unique(got)) == 256 >= len(np.unique(other))
    assert np.abs(got - exact).max() <= min(whole, np.abs(other - exact).max()) + 1e-5
    np.testing.assert_allclose(np.diff(got), np.diff(exact), rtol=1e-4)  # moved alike, none merged
    assert onnx_int8.pixels_grid(Spec(size_hw=(4, 4), mean=(mean, mean, 0.3), std=(0.25,) * 3)) is None


def seen(values: np.ndarray) -> ranges.Seen:
    low, high = float(values.min()), float(values.max())
    return ranges.Seen(low, high, np.histogram(values, ranges.BINS, (low, high))[0])


def heavy(count: int = 200_000) -> np.ndarray:
    """Mostly small numbers, and a few far out on both sides."""
    return np.concatenate([DRAW.normal(0.3, 1, count), DRAW.normal(0, 12, count // 500)])


# grids


def test_grid_holds_zero_exactly_and_rounds_to_half_a_step() -> None:
    one = grid.of_range(-1.3, 4.1)
    values = np.linspace(-1.3, 4.1, 999).astype(np.float32)
    assert one.rounded(np.zeros(1, np.float32))[0] == 0
    assert np.abs(one.rounded(values) - values).max() <= one.scale * 0.51
    assert np.array_equal(one.numbers(one.rounded(values)), one.numbers(values))


def test_grid_cuts_off_what_lies_outside() -> None:
    one = grid.of_range(0, 1)
    assert one.rounded(np.array([-3.0, 7.0], np.float32)).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(("bits", "narrow", "most"), [(8, False, 127), (8, True, 64), (4, False, 7)])
def test_grid_of_weights(bits: int, narrow: bool, most: int) -> None:
    weights = DRAW.normal(size=(6, 5, 3, 3)).astype(np.float32) * np.arange(6)[:, None, None, None]
    one = grid.of_weights(weights, axis=0, bits=bits, narrow=narrow)
    numbers = one.numbers(weights)
    assert np.abs(numbers).max() == most and (numbers[0] == 0).all()
    assert [int(np.abs(row).max()) for row in numbers[1:]] == [most] * 5
    again = Grid.from_json(one.to_json())
    assert np.array_equal(again.rounded(weights), one.rounded(weights))


# ranges


def test_percentile_against_sorted_values() -> None:
    values = heavy()
    low, high = ranges.percentile(seen(values))
    step = (values.max() - values.min()) / ranges.BINS
    share = (100 - ranges.PERCENTILE) / 2
    wanted = np.percentile(values, [share, 100 - share])
    # where numbers are rare the next one may be far: it is the share left out that has to be right
    for end, cut in ((low, values < low - step), (high, values > high + step)):
        assert cut.mean() <= share / 100 + 1e-9, end
    assert low >= values.min() and abs(low - wanted[0]) < 3 and abs(high - wanted[1]) < 3


def brute(values: np.ndarray, loss: Any) -> float:
    """The smallest loss over all pairs of shrunken ends."""
    low, high = min(0.0, values.min()), max(0.0, values.max())
    return min(loss(low * a, high * b) for a, b in itertools.product(ranges.SHRINK[::4], repeat=2))


def test_mse_against_brute_force_on_the_values() -> None:
    values = np.concatenate([DRAW.normal(0.3, 1, 200_000), [-22.0, 24.5]])

    def loss(low: float, high: float) -> float:
        return float(((grid.of_range(low, high).rounded(values) - values) ** 2).mean())

    found = loss(*ranges.mse(seen(values)))
    assert found <= brute(values, loss) * 1.05
    assert found < loss(values.min(), values.max()) * 0.8


def kl_by_hand(one: ranges.Seen, low: float, high: float) -> float:
    """The definition in plain loops: clipped counts against counts shared out within each step."""
    centres, counts = one.centres.tolist(), one.counts.tolist()
    inside = [k for k, c in enumerate(centres) if low <= c <= high]
    p = {k: float(counts[k]) for k in inside}
    p[inside[0]] += sum(counts[: inside[0]])
    p[inside[-1]] += sum(counts[inside[-1] + 1 :])
    numbers = {k: int(grid.of_range(low, high).numbers(np.array([centres[k]]))[0]) for k in inside}
    q = {}
    for k in inside:
        filled = [j for j in inside if numbers[j] == numbers[k] and counts[j] > 0]
        q[k] = sum(counts[j] for j in filled) / len(filled) if counts[k] > 0 else 0.0
    total, kept = sum(p.values()), sum(q.values())
    terms = [p[k] / total * np.log(p[k] / total / max(q[k] / kept, 1e-12)) for k in inside if p[k] > 0]
    return float(sum(terms))


def test_entropy_against_the_definition_and_brute_force() -> None:
    one = seen(heavy(20_000))
    for low, high in ((one.low, one.high), (one.low / 3, one.high / 2), (one.low / 10, one.high / 9)):
        assert ranges.divergence(one, low, high) == pytest.approx(
            kl_by_hand(one, low, high), rel=1e-6, abs=1e-9
        )
    shares = itertools.product(ranges.SHRINK[::6], repeat=2)
    best = min(ranges.divergence(one, one.low * a, one.high * b) for a, b in shares)
    assert ranges.divergence(one, *ranges.entropy(one)) <= best * 1.1 + 1e-6


def test_ranges_do_not_depend_on_the_size_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ranges.collect(nets.plain(), ["a_relu", "logits"], nets.IMAGES)
    monkeypatch.setattr(ranges, "BATCH", 5)
    parts = ranges.collect(nets.plain(), ["a_relu", "logits"], nets.IMAGES)
    for name, one in whole.items():
        assert parts[name].low == pytest.approx(one.low, rel=1e-5)
        assert np.abs(parts[name].counts - one.counts).sum() <= 1e-3 * one.counts.sum()


def test_no_images_and_infinite_values_are_refused() -> None:
    with pytest.raises(ModelError, match="no calibration images") as caught:
        onnx_int8.quantize(nets.plain(), nets.IMAGES[:0], nets.SPEC)
    assert caught.value.code == "quantize-images"
    broken = nets.plain()
    tensor = next(t for t in broken.graph.initializer if t.name == "b.bias")
    tensor.CopyFrom(numpy_helper.from_array(np.full(16, np.inf, np.float32), "b.bias"))
    with pytest.raises(ModelError, match="not finite") as caught:
        onnx_int8.quantize(broken, nets.IMAGES, nets.SPEC)
    assert caught.value.code == "quantize-infinite"


# recipes


def test_recipe_goes_through_json() -> None:
    one = Recipe(calibration="mse", smooth=0.5, float_nodes=("Conv_3",), node_bits={"Conv_4": 4}, narrow=True)
    assert Recipe.from_json(one.to_json()) == one
    assert Recipe.from_json({}) == Recipe() and Recipe().plain


@pytest.mark.parametrize(
    "value",
    [
        {"calibration": "best"},
        {"rounding": "up"},
        {"smooth": 2},
        {"weight_bits": 3},
        {"no": 1},
        [],
        {"node_bits": {"a": 1}},
    ],
)
def test_unknown_recipes_are_refused(value: Any) -> None:
    with pytest.raises(PlanError, match="expected") as caught:
        Recipe.from_json(value)
    assert caught.value.code == "quantize-recipe"


def test_recipe_of_another_model_is_refused() -> None:
    with pytest.raises(PlanError, match="no node 'Conv_99'"):
        onnx_int8.quantize(nets.plain(), nets.IMAGES, nets.SPEC, Recipe(float_nodes=("Conv_99",)))


# what leaves the function as it is


def test_equalisation_keeps_the_function_and_evens_the_weights() -> None:
    before, after = nets.depthwise(broken=1e3), nets.depthwise(broken=1e3)
    assert equalise.equalise(after) >= 2
    np.testing.assert_allclose(nets.run(after), nets.run(before), atol=2e-5)

    def spread(proto: Any) -> float:
        found = graphs.read(proto)
        seam = next(one for one in seams.seams(found) if one.maker.output[0] == "a")
        first, second = seams.largest(found, seam)
        return float(np.log(first / second).std())

    assert spread(after) < 0.1 < 1 < spread(before)


def test_a_wrong_scaling_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = nets.depthwise(broken=1e3), nets.depthwise(broken=1e3)
    monkeypatch.setattr(seams, "_reader_shape", lambda node, array, factors: np.float32(1))
    equalise.equalise(after)
    assert np.abs(nets.run(after) - nets.run(before)).max() > 1e-2


def test_smoothing_keeps_the_function_and_lowers_outliers() -> None:
    before, after = nets.depthwise(broken=1e3), nets.depthwise(broken=1e3)
    assert smooth.smooth(after, nets.IMAGES) >= 2
    np.testing.assert_allclose(nets.run(after), nets.run(before), atol=2e-5)
    spans = []
    for proto in (before, after):
        values = ranges.runner(proto, ["a_relu"])(nets.IMAGES)["a_relu"]
        sizes = np.abs(values).max(axis=(0, 2, 3))
        spans.append(sizes[sizes > 0].max() / sizes[sizes > 0].min())
    assert spans[1] < spans[0] / 5


def test_smoothing_is_kept_only_where_it_helps() -> None:
    """One channel of `a` is loud: that value is smoothed, and weights that gain nothing keep every bit."""
    before = nets.plain()
    graph = graphs.read(before)
    for name, place, factor in (("a.weight", 0, 50), ("a.bias", 0, 50), ("b.weight", (slice(None), 0), 0.02)):
        array = graph.array(name).copy()
        array[place] *= factor
        graph.set(name, array)
    after = nets.copied(before)
    assert 1 <= smooth.smooth(after, nets.IMAGES) < len(seams.seams(graph))
    other = graphs.read(after)
    same = {name for name in graph.constants if np.array_equal(graph.array(name), other.array(name))}
    assert not same & {"a.weight", "a.bias"} and same >= {"b.bias", "scale"}
    np.testing.assert_allclose(nets.run(after), nets.run(before), atol=2e-6)


def test_factors_that_help_nobody_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = nets.depthwise(broken=1e3)
    after = nets.copied(before)
    monkeypatch.setattr(smooth, "_noise", lambda *given: 1.0)
    assert smooth.smooth(after, nets.IMAGES) == 0
    assert after.SerializeToString() == before.SerializeToString()


def test_a_value_read_by_a_sum_is_no_seam() -> None:
    net = nets.Net().conv("a", 3, 8)
    left = net.value
    net.conv("b", 8, 8)
    net.value = net.node("Add", [left, net.value], "sum")
    found = graphs.read(net.done(8))
    assert {seam.maker.output[0] for seam in seams.seams(found)} == {"normal"}


# rounding and bias


def test_rounding_is_as_good_as_trying_all_or_close() -> None:
    for seed in range(5):
        draw = np.random.default_rng(seed)
        x = draw.normal(size=(60, 8)) @ draw.normal(size=(8, 8))
        second = (x.T @ x / 60).astype(np.float32)[None]
        wanted = draw.normal(0, 3, (1, 3, 8)).astype(np.float32)
        numbers, before, after = rounding.descend(wanted, second, low=-8, high=7, sweeps=20)
        assert set(np.unique(np.abs(numbers - np.clip(wanted, -8, 7)) < 1)) == {True}
        choices = np.array(list(itertools.product((0, 1), repeat=8)))
        best = 0.0
        for row in wanted[0]:
            error = np.clip(np.floor(row), -8, 7) + choices - row
            best += float(np.einsum("ck,kl,cl->c", error, second[0], error).min())
        assert best * (1 - 1e-4) <= after <= min(before, best * 2.5)
        assert _no_single_move_helps(numbers, wanted, second)


def _no_single_move_helps(numbers: np.ndarray, wanted: np.ndarray, second: np.ndarray) -> bool:
    def loss(error: np.ndarray) -> float:
        return float(np.einsum("ok,kl,ol->", error, second[0], error))

    least = loss(numbers[0] - wanted[0])
    for o, k in np.ndindex(*numbers.shape[1:]):
        for new in (np.floor(wanted[0, o, k]), np.ceil(wanted[0, o, k])):
            moved = numbers[0].copy()
            moved[o, k] = np.clip(new, -8, 7)
            if loss(moved - wanted[0]) < least * (1 - 1e-4):
                return False
    return True


def made(recipe: Recipe, proto: Any) -> tuple[Any, dict[str, Grid], dict[str, Grid]]:
    return onnx_int8.Maker(onnx_int8.prepare(proto, nets.SPEC), nets.IMAGES).rounded(recipe)


@pytest.mark.parametrize("build", [nets.plain, nets.depthwise])
def test_learned_rounding_brings_layers_closer(build: Any) -> None:
    proto, activations, weights = made(Recipe(weight_bits=4), build())
    left = rounding.learn(nets.copied(proto), activations, weights, nets.IMAGES)
    assert all(0 <= share <= 1 + 1e-6 for share in left.values()) and min(left.values()) < 0.7


def test_learned_rounding_brings_outputs_closer() -> None:
    errors = {"nearest": 0.0, "learned": 0.0}
    for seed, how in itertools.product(range(3), errors):
        recipe = Recipe(weight_bits=4, rounding=how)
        int8 = onnx_int8.quantize(nets.plain(seed), nets.IMAGES, nets.SPEC, recipe)
        errors[how] += float(np.abs(nets.run(int8) - nets.run(nets.plain(seed))).mean())
    assert errors["learned"] < 0.8 * errors["nearest"]


def test_patches_are_what_a_convolution_reads() -> None:
    proto = nets.Net().conv("a", 3, 8).conv("b", 8, 12, group=4).done(12)
    found = graphs.read(proto)
    node = next(n for n in proto.graph.node if n.output[0] == "b")
    values = ranges.runner(proto, ["a_relu", "b"])(nets.IMAGES[:2])
    everything = np.random.default_rng(0)
    monkey = rounding.POSITIONS
    rounding.POSITIONS = 10**6
    try:
        rows = rounding._patches(found, node, values["a_relu"], everything)
    finally:
        rounding.POSITIONS = monkey
    kernel = found.array("b.weight").reshape(4, 3, -1)
    out = np.einsum("gpk,gok->gop", rows, kernel).reshape(12, -1) + found.array("b.bias")[:, None]
    order = np.random.default_rng(0).permutation(nets.SIZE**2)
    wanted = values["b"].transpose(1, 0, 2, 3).reshape(12, 2, -1)[:, :, order].reshape(12, -1)
    np.testing.assert_allclose(out, wanted, atol=1e-4)


@pytest.mark.parametrize(("rank", "group"), [(1, 1), (1, 3), (3, 2)])
def test_patches_of_sequences_and_volumes(rank: int, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "POSITIONS", 10**6)
    draw = np.random.default_rng(0)
    kernel = draw.normal(size=(6, 6 // group, *(3, 2, 1)[:rank])).astype(np.float32)
    x = draw.normal(size=(2, 6, *(9, 8, 5)[:rank])).astype(np.float32)
    knobs = {"strides": [2, 1, 1][:rank], "dilations": [1, 2, 1][:rank]}
    knobs["pads"] = [*[1, 0, 2][:rank], *[0, 1, 1][:rank]]
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], "c", group=group, **knobs)
    value = onnx.helper.make_tensor_value_info
    held = [onnx.numpy_helper.from_array(kernel, "w")]
    ends = [[value(name, onnx.TensorProto.FLOAT, [None] * (2 + rank))] for name in "xy"]
    proto = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", *ends, held), opset_imports=[onnx.helper.make_opsetid("", 20)]
    )
    proto.ir_version = 10
    rows = rounding._patches(graphs.read(proto), node, x, np.random.default_rng(0))
    out = np.einsum("gpk,gok->gop", rows, kernel.reshape(group, 6 // group, -1)).reshape(6, -1)
    wanted = ReferenceEvaluator(proto).run(None, {"x": x})[0]
    order = np.random.default_rng(0).permutation(int(np.prod(wanted.shape[2:])))
    wanted = wanted.transpose(1, 0, *range(2, 2 + rank)).reshape(6, 2, -1)[:, :, order].reshape(6, -1)
    np.testing.assert_allclose(out, wanted, atol=1e-4)


def test_learned_rounding_of_a_convolution_over_channels() -> None:
    """Efficient channel attention: a 1-D convolution over the pooled channels, and what it gates."""
    net = nets.Net().conv("a", 3, 16)
    gated = net.value
    shape = net.const("row", np.array([0, 1, -1])), net.const("map", np.array([0, -1, 1, 1]))
    x = net.node("GlobalAveragePool", [gated], "means")
    x = net.node("Reshape", [x, shape[0]], "channels")
    weight = net.const("eca.weight", np.array([[[0.5, 1.1, -0.7]]], np.float32))
    x = net.node("Conv", [x, weight], "mixed", kernel_shape=[3], pads=[1, 1])
    x = net.node("Sigmoid", [net.node("Reshape", [x, shape[1]], "maps")], "gate")
    net.value = net.node("Mul", [gated, x], "gated")
    proto = net.done(16)
    int8 = onnx_int8.quantize(nets.copied(proto), nets.IMAGES, nets.SPEC, Recipe(rounding="learned"))
    assert np.abs(nets.run(int8) - nets.run(proto)).mean() < 0.02


def test_bias_correction_removes_the_shift_it_measured() -> None:
    from niwaki.qdq import twins

    proto, activations, weights = made(Recipe(weight_bits=4), nets.depthwise())
    before = {
        n: np.abs(t.shift).max() for n, t in twins.compare(proto, activations, weights, nets.IMAGES).items()
    }
    kept = {n: graphs.read(proto).array(f"{n}.bias").copy() for n in ("a", "b", "c")}
    shift = twins.compare(proto, activations, weights, nets.IMAGES)["Conv_b"].shift
    assert bias.correct(proto, activations, weights, nets.IMAGES) == len(before)
    now = graphs.read(proto).array("b.bias")
    np.testing.assert_allclose(now, kept["b"] - shift, atol=1e-6)
    float_means, int_means = (_mean_logits(one) for one in (nets.depthwise(), _int8(correct=False)))
    corrected = _mean_logits(_int8(correct=True))
    assert np.abs(corrected - float_means).mean() < np.abs(int_means - float_means).mean()


def _int8(*, correct: bool) -> Any:
    recipe = Recipe(weight_bits=4, correct_bias=correct)
    return onnx_int8.quantize(nets.depthwise(), nets.IMAGES, nets.SPEC, recipe)


def _mean_logits(proto: Any) -> np.ndarray:
    return np.log(nets.run(proto)).mean(0)


# the writer


def kinds(proto: Any) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def test_written_scales_are_those_given() -> None:
    proto, activations, weights = made(Recipe(), nets.plain())
    activations["a_relu"] = Grid(scale=np.array(0.0371, np.float32), zero=np.array(0))
    written = insert.write(proto, activations, weights=weights)
    arrays = {t.name: numpy_helper.to_array(t) for t in written.graph.initializer}
    node = next(n for n in written.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "a_relu")
    assert arrays[node.input[1]] == np.float32(0.0371) and arrays[node.input[2]] == 0
    held = next(t for name, t in arrays.items() if name.startswith("b.weight_quant"))
    found = graphs.read(proto)
    assert np.array_equal(held, weights["b.weight"].numbers(found.array("b.weight")))


def test_a_node_in_float_reads_floats_where_it_can() -> None:
    proto, activations, weights = made(Recipe(), nets.plain())
    written = insert.write(proto, activations, weights=weights, float_nodes=("Gemm_logits",))
    head = next(n for n in written.graph.node if n.op_type == "Gemm")
    assert head.input[1] == "head.weight"
    out = insert.write(proto, activations, weights=weights)
    assert next(n for n in out.graph.node if n.op_type == "Gemm").input[1] != "head.weight"
    assert out.graph.node[-1].op_type == "Softmax" and out.graph.node[-1].input[0] == "logits"


def test_only_values_with_grids_are_rounded() -> None:
    proto, activations, weights = made(Recipe(), nets.plain())
    some = {name: activations[name] for name in ("pixels", "normal", "a_relu")}
    written = insert.write(proto, some, weights=weights)
    assert kinds(written).count("QuantizeLinear") == 3
    nets.run(written)
    assert np.allclose(nets.run(insert.write(proto, {}, weights={})), nets.run(proto), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "one"),
    [
        ("nothing", grid.of_range(0, 1)),
        ("a_relu", grid.of_weights(np.ones((2, 2)), axis=0)),
        ("image", grid.of_range(0, 1)),
    ],
)
def test_grids_that_do_not_fit_are_refused(name: str, one: Grid) -> None:
    with pytest.raises(ModelError, match=f"{name!r} does not fit") as caught:
        insert.write(nets.plain(), {name: one})
    assert caught.value.code == "quantize-grid"


def test_clips_stay_where_a_grid_does_not_end_where_they_cut() -> None:
    proto, activations, weights = made(Recipe(), nets.plain())
    assert "Relu" not in kinds(insert.write(proto, activations, weights=weights))
    below = Grid(scale=np.array(0.05, np.float32), zero=np.array(40))
    written = insert.write(proto, {**activations, "b_relu": below}, weights=weights)
    assert "Relu" in kinds(written)
    np.testing.assert_allclose(nets.run(written), nets.run(proto), atol=0.2)


def test_four_bits_are_stored_as_four_bits() -> None:
    int4 = onnx_int8.quantize(nets.plain(), nets.IMAGES, nets.SPEC, Recipe(node_bits={"Conv_b": 4}))
    held = {t.name: t.data_type for t in int4.graph.initializer}
    assert [kind for name, kind in held.items() if name.startswith("b.weight_q")] == [onnx.TensorProto.INT4]
    assert np.abs(nets.run(int4) - nets.run(nets.plain())).max() < 0.5


def test_four_bits_run_in_the_kernels_of_eight_and_halve_the_weights(tmp_path: Path) -> None:
    """The numbers of a file that holds the same weights as int8, in a file that is smaller by half of them."""
    import onnxruntime as ort

    bits = {"Conv_b": 4, "Conv_c": 4}
    int4 = onnx_int8.quantize(nets.plain(), nets.IMAGES, nets.SPEC, Recipe(node_bits=bits))
    int8 = onnx.ModelProto.FromString(int4.SerializeToString())
    casts = {n.output[0]: n.input[0] for n in int8.graph.node if n.op_type == "Cast" and "weight" in n.input[0]}
    held = {t.name: t for t in int8.graph.initializer}
    for wide, stored in casts.items():
        held[stored].CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(held[stored]).astype(np.int8), wide)
        )
    kept = [n for n in int8.graph.node if n.output[0] not in casts]
    del int8.graph.node[:]
    int8.graph.node.extend(kept)
    np.testing.assert_array_equal(nets.run(int4), nets.run(int8))
    count = 16 * 16 * 9 + 24 * 16 * 9
    saved = int8.ByteSize() - int4.ByteSize()
    assert count / 2 - 200 < saved < count / 2  # a node and a name are needed for the Cast
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "o.onnx"), 4
    ort.InferenceSession(int4.SerializeToString(), options)
    ran = [node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node]
    assert ran.count("QLinearConv") == 4 and not {"Conv", "Cast"}.intersection(ran)


def test_a_float_layer_between_whole_numbers_stays_float() -> None:
    """ONNX Runtime would round its weights again; what it runs must be what the file says."""
    import onnxruntime as ort

    def both(proto: Any) -> tuple[np.ndarray, np.ndarray]:
        out = []
        for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
            options = ort.SessionOptions()
            options.graph_optimization_level = level
            session = ort.InferenceSession(proto.SerializeToString(), options)
            out.append(np.asarray(session.run(None, {"image": nets.IMAGES})[0]))
        return out[0], out[1]

    recipe = Recipe(float_nodes=("Conv_c",))
    written = onnx_int8.quantize(nets.depthwise(broken=1e4), nets.IMAGES, nets.SPEC, recipe)
    plain, optimised = both(written)
    assert (np.abs(plain - optimised) < 1e-3).mean() > 0.9
    guards = [node for node in written.graph.node if node.op_type == "Max"]
    assert len(guards) == 1
    for node in written.graph.node:
        graphs.rewire([node], guards[0].output[0], guards[0].input[0])
    plain, optimised = both(written)
    assert (np.abs(plain - optimised) < 1e-3).mean() < 0.5
