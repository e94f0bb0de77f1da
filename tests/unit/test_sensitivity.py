"""Sensitivity: switches compute what the int8 file computes, and a layer made fragile is found."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper
from tests import onnx_nets as nets

from niwaki.qdq import graph as graphs
from niwaki.qdq import ranges, sensitivity, switches, twins
from niwaki.qdq.recipe import Recipe
from niwaki.runtimes import onnx_int8


def maker(proto: Any) -> onnx_int8.Maker:
    return onnx_int8.Maker(onnx_int8.prepare(proto, nets.SPEC), nets.IMAGES)


def parts(proto: Any, recipe: Recipe | None = None) -> tuple[Any, ...]:
    made = maker(proto)
    done, activations, weights = made.rounded(recipe or Recipe())
    return done, made.nodes(done, recipe or Recipe()), activations, weights


def fragile() -> Any:
    """The middle layer's channels differ by a factor of 300: its output has one scale for all of them."""
    proto = nets.plain()
    arrays = {t.name: t for t in proto.graph.initializer}
    factors = np.where(np.arange(16) < 2, 300, 1).astype(np.float32)
    for name, shape in (("b.weight", (-1, 1, 1, 1)), ("b.bias", (-1,)), ("c.weight", (1, -1, 1, 1))):
        array = numpy_helper.to_array(arrays[name])
        factor = factors if name != "c.weight" else 1 / factors
        arrays[name].CopyFrom(numpy_helper.from_array(array * factor.reshape(shape), name))
    return proto


@pytest.mark.parametrize("floats", [(), ("Conv_b",), ("Conv_b", "Conv_c"), ("Gemm_logits", "Conv_a")])
def test_switches_compute_what_the_file_computes(floats: tuple[str, ...]) -> None:
    proto, nodes, activations, weights = parts(nets.plain())
    whole = switches.switched(proto, nodes, activations, weights)
    np.testing.assert_allclose(whole.run(nets.IMAGES, whole.roundings(())), nets.run(nets.plain()), atol=1e-5)
    file = nets.run(maker(nets.plain()).make(Recipe(float_nodes=floats)))
    on = whole.roundings({node.name for node in nodes} - set(floats))
    # sums in another order round some number the other way; all other images are equal
    alike = np.abs(whole.run(nets.IMAGES, on) - file) < 1e-4
    assert alike.mean() > 0.6 and np.abs(whole.run(nets.IMAGES, on) - file).max() < 0.02
    for other in (whole.roundings(()), on * 0.9):
        assert (np.abs(whole.run(nets.IMAGES, other) - file) < 1e-4).mean() < alike.mean() - 0.15


def test_one_switch_rounds_one_layer() -> None:
    proto, nodes, activations, weights = parts(nets.plain())
    whole = switches.switched(proto, nodes, activations, weights)
    other = nets.copied(proto)
    found = graphs.read(other)
    found.set("b.weight", weights["b.weight"].rounded(found.array("b.weight")))
    got = whole.run(nets.IMAGES, whole.roundings(["Conv_b"], values=False))
    np.testing.assert_allclose(got, nets.run(other), atol=1e-5)


def test_a_fragile_layer_is_found_by_every_figure() -> None:
    proto, nodes, activations, weights = parts(fragile())
    wanted = nets.run(fragile()).argmax(1)
    rows, whole = sensitivity.measure(
        proto, nodes, activations, weights, nets.IMAGES, score=lambda p: float((p.argmax(1) == wanted).mean())
    )
    worst = max(rows, key=lambda row: row.alone.kl)
    assert worst.name == "b", [(row.name, row.alone.kl) for row in rows]
    assert worst.few == max(row.few for row in rows)
    own = {row.name: row.own for row in rows if row.own is not None}
    assert min(own, key=lambda name: own[name]) == "c"  # by its own output it is the reader that suffers
    assert worst.others.kl == min(row.others.kl for row in rows)
    assert worst.inputs is not None and worst.weights is not None and worst.inputs.kl > 10 * worst.weights.kl
    assert whole["float"].score == 1.0 and whole["all"].kl > worst.others.kl
    assert maker(fragile()).sensitive(Recipe())[0] == ("Conv_b", "Conv_c")
    rank = sensitivity.agreement(rows)["few images"]
    assert rank is not None and rank > 0.7


def test_few_images_are_held_against_the_others_only() -> None:
    proto, nodes, activations, weights = parts(fragile())
    given = (proto, nodes, activations, weights)
    rows, _ = sensitivity.measure(*given, nets.IMAGES[:24], few=8)
    others, _ = sensitivity.measure(*given, nets.IMAGES[8:24], few=8)
    np.testing.assert_allclose(
        [row.rest for row in rows], [row.alone.kl for row in others], rtol=1e-3, atol=1e-9
    )
    assert sensitivity.agreement(rows)["few images"] == pytest.approx(
        sensitivity.spearman([row.few for row in rows], [row.alone.kl for row in others])
    )
    same, _ = sensitivity.measure(*given, nets.IMAGES[:8], few=8)
    assert sensitivity.agreement(same)["few images"] is None  # with themselves alone it would be 1


def test_twins_against_plain_numpy() -> None:
    proto, _, activations, weights = parts(nets.plain())
    found = twins.compare(proto, activations, weights, nets.IMAGES)["Conv_b"]
    values = ranges.runner(proto, ["a_relu", "b"])(nets.IMAGES)
    index = graphs.read(proto)
    x = np.pad(activations["a_relu"].rounded(values["a_relu"]), [(0, 0), (0, 0), (1, 1), (1, 1)])
    view = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    kernel = weights["b.weight"].rounded(index.array("b.weight"))
    y = np.einsum("nchwij,ocij->nohw", view, kernel) + index.array("b.bias")[:, None, None]
    change = y.astype(np.float64) - values["b"]
    np.testing.assert_allclose(found.shift, change.mean((0, 2, 3)), atol=1e-5)
    assert found.noise == pytest.approx((change**2).mean(), rel=1e-3)
    assert found.signal == pytest.approx((values["b"].astype(np.float64) ** 2).mean(), rel=1e-4)


def test_figures_of_outputs() -> None:
    p = np.array([[0.7, 0.2, 0.1]], np.float32)
    q = np.array([[0.5, 0.3, 0.2]], np.float32)
    wanted = 0.7 * math.log(0.7 / 0.5) + 0.2 * math.log(0.2 / 0.3) + 0.1 * math.log(0.1 / 0.2)
    assert sensitivity.divergence(p, q) == pytest.approx(wanted, rel=1e-5)
    assert sensitivity.divergence(p, p) == 0 and sensitivity.sqnr(p, p) == math.inf
    assert sensitivity.sqnr(p, q) == pytest.approx(10 * math.log10((0.49 + 0.04 + 0.01) / 0.06), rel=1e-5)


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [((1, 2, 3), (10, 20, 90), 1.0), ((1, 2, 3), (3, 2, 1), -1.0), ((1, 2, 2, 4), (1, 2, 3, 4), 0.9486833)],
)
def test_rank_correlation(one: Any, other: Any, wanted: float) -> None:
    assert sensitivity.spearman(one, other) == pytest.approx(wanted)


def test_names_of_layers_and_blocks() -> None:
    assert sensitivity.title("layer1.0.conv1.weight") == "layer1.0.conv1"
    assert sensitivity.block("layer1.0.conv1") == "layer1.0" and sensitivity.block("head") == "head"
    proto, nodes, activations, weights = parts(nets.plain())
    names = sensitivity.groups(graphs.read(proto), nodes)
    assert [name for name in names if " " not in name] == ["scale", "a", "b", "c", "head"] or "a" in names
    rows, _ = sensitivity.measure(proto, nodes, activations, weights, nets.IMAGES[:8], by="block")
    assert sum(len(row.nodes) for row in rows) == len(graphs.units(graphs.read(proto), nodes)) > len(rows)


def test_outputs_that_are_no_classes_have_a_distance_too() -> None:
    """Of objects most channels are distances: a KL divergence of those would fall below zero."""
    before = np.random.default_rng(0).uniform(1, 30, (3, 33, 4, 4)).astype(np.float32)
    assert sensitivity.divergence(before, before) == 0
    assert sensitivity.divergence(before, 1.1 * before) == pytest.approx(0.01, rel=1e-4)
    classes = np.array([[0.7, 0.3], [0.2, 0.8]], np.float32)
    other = np.array([[0.6, 0.4], [0.2, 0.8]], np.float32)
    wanted = (0.7 * np.log(0.7 / 0.6) + 0.3 * np.log(0.3 / 0.4)) / 2
    assert sensitivity.divergence(classes, other) == pytest.approx(wanted, rel=1e-5)
