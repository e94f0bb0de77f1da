"""Bits within a budget of bytes: against brute force, and a front that nothing beats."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.training import SPEC, net, samples

from niwaki import quantize
from niwaki.errors import BudgetError
from niwaki.search import knapsack, precision

layers = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=5)


@given(layers=layers, share=st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_least_loss_within_the_bytes(layers: list[tuple[int, int, int]], share: float) -> None:
    sizes = {str(k): {4: 2.0 * n, 8: 4.0 * n} for k, (n, *_) in enumerate(layers)}
    losses = {str(k): {4: float(a + b), 8: float(b)} for k, (_, a, b) in enumerate(layers)}
    least, most = (sum(own[count] for own in sizes.values()) for count in (4, 8))
    limit = least + share * (most - least)
    every = [dict(zip(sizes, chosen, strict=True)) for chosen in itertools.product((4, 8), repeat=len(sizes))]
    bins = len(sizes) * (most - least) / knapsack.BINS if share < 1 else 0.0  # costs are rounded up to bins
    fitting = [bits for bits in every if sum(sizes[k][n] for k, n in bits.items()) <= max(least, limit - bins)]
    best = min(sum(losses[k][n] for k, n in bits.items()) for bits in fitting)
    found = precision.within(sizes, losses, limit=limit)
    assert found.bytes <= limit
    assert found.loss <= best + 1e-9
    front = precision.front(sizes, losses)
    assert all(a.bytes < b.bytes and a.loss > b.loss for a, b in itertools.pairwise(front))
    assert front[-1].loss == pytest.approx(sum(min(own.values()) for own in losses.values()))


def test_bits_of_a_network() -> None:
    model = net().eval()
    noise = quantize.noise(model, spec=SPEC, samples=samples(), bits=(4, 8))
    sizes = precision.weight_bytes(model)
    most = sum(sizes[name][8] for name in noise)
    found = precision.within(sizes, noise, limit=0.7 * most)
    assert found.of(4) and found.of(8) and 0.5 * most <= found.bytes <= 0.7 * most
    with pytest.raises(BudgetError, match="fewest bits"):
        precision.within(sizes, noise, limit=0.4 * most)
