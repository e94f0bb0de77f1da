"""Bits within a size: the knapsack's choice is a file that is that small, and shared weights are one choice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from tests import onnx_nets as nets

from niwaki.errors import BudgetError
from niwaki.qdq import sensitivity
from niwaki.qdq.recipe import Recipe
from niwaki.runtimes import onnx_int8, onnx_names
from niwaki.search import mixed
from niwaki.search.int8_files import Measured


@dataclass
class Made:
    """Files without torch: the score is the share of answers that stay."""

    proto: Any
    reference: float = 1.0
    made: list[Recipe] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.maker = onnx_int8.Maker(onnx_int8.prepare(nets.copied(self.proto), nets.SPEC), nets.IMAGES)
        self.wanted = nets.run(self.proto)

    def file(self, recipe: Recipe) -> Any:
        proto = self.maker.make(recipe)
        onnx_names.strip(proto)
        onnx_names.shorten(proto.graph)
        return proto

    def bytes(self, recipe: Recipe) -> int:
        return int(self.file(recipe).ByteSize())

    def measure(self, recipe: Recipe) -> Measured:
        self.made.append(recipe)
        got = nets.run(self.file(recipe))
        score = float((got.argmax(1) == self.wanted.argmax(1)).mean())
        return Measured(score, 0.01, sensitivity.divergence(self.wanted, got), self.bytes(recipe))


def wide() -> Any:
    return nets.Net().conv("a", 3, 32).conv("b", 32, 32).conv("c", 32, 64).done(64)


def test_every_size_between_the_ends_is_kept_to() -> None:
    files = Made(wide())
    least = files.bytes(Recipe(weight_bits=4)) / files.bytes(Recipe())
    for size in (least + 0.01, 0.8, 0.95, 1.0):
        found = mixed.search(files, size=size, points=2)
        assert found.chosen.bytes <= size * files.bytes(Recipe()) and found.chosen.share <= size
        assert found.chosen.bytes == files.bytes(found.chosen.recipe)
    assert set(found.chosen.bits.values()) == {8} and found.chosen.recipe == Recipe()
    shares = [point.share for point in found.front]
    assert shares == sorted(shares) and found.points[-1].share == 1


def test_smaller_than_all_layers_of_4_bits_is_refused() -> None:
    with pytest.raises(BudgetError, match="4 bits for all layers") as caught:
        mixed.search(Made(wide()), size=0.3)
    assert caught.value.code == "budget-unreachable"


def test_the_layer_that_loses_most_keeps_its_bits() -> None:
    """Weights of `b` have one value far above the others in each row: 4 bits leave nothing of these."""
    proto = wide()
    tensor = next(t for t in proto.graph.initializer if t.name == "b.weight")
    array = nets.numpy_helper.to_array(tensor).copy()
    array[:, 0, 0, 0] = 8.0
    tensor.CopyFrom(nets.numpy_helper.from_array(array, "b.weight"))
    found = mixed.search(Made(proto), size=0.85, points=1)
    assert found.losses["b"][4] > 3 * found.losses["c"][4]
    assert found.chosen.bits["b"] == 8 and found.chosen.bits["c"] == 4


def test_layers_that_share_weights_get_one_choice() -> None:
    net = nets.Net().conv("a", 3, 16).conv("b", 16, 16)
    for turn in range(2):
        names = ["b.weight", "b.bias"]
        kept = {"kernel_shape": [3, 3], "pads": [1] * 4, "group": 1}
        net.value = net.node("Conv", [net.value, *names], f"again{turn}", **kept)
    files = Made(net.done(16))
    found = mixed.search(files, size=0.9, points=1)
    assert {"a", "b", "head"} <= set(found.chosen.bits) <= {"scale", "a", "b", "head"}
    assert found.chosen.bits["b"] == 4
    assert len(found.chosen.recipe.node_bits or {}) >= 3


def test_floats_are_only_taken_where_they_may_be() -> None:
    files = Made(wide())
    assert all(
        bits != 32 for point in mixed.search(files, size=1.0, points=2).points for bits in point.bits.values()
    )
    found = mixed.search(files, size=1.0, floats=True, points=2)
    floats = [name for point in found.points for name, bits in point.bits.items() if bits == 32]
    assert floats and any(recipe.float_nodes for recipe in files.made)
    assert np.isfinite([point.score for point in found.points]).all()
