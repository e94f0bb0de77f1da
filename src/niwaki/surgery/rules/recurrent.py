"""Rules of recurrent layers (lstm, gru, rnn): one hidden axis, in all layers and both directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from niwaki.surgery import operators
from niwaki.surgery.atoms import Axis
from niwaki.surgery.rules.calls import axes_of, operator_of, sizes_of, unknown
from niwaki.surgery.rules.shapes import join
from niwaki.surgery.trace import Call

if TYPE_CHECKING:
    from niwaki.surgery.axes import Walk

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
"""Blocks of hidden size in the first axis of a layer's weights."""


def recurrent(walk: Walk, node: Call) -> Any:
    """x `[.., I]`, weights `[gates H, I]` and `[gates H, H]`, biases; states `[layers, B, H]` to start from."""
    x, states, weights, biased, layers = node.args[:5]
    both = 2 if node.args[7] else 1
    states = list(states) if isinstance(states, (list, tuple)) else [states]
    per = 4 if biased else 2
    if len(weights) != per * layers * both:  # projections
        return unknown(walk, node)
    gates, hidden = GATES[operator_of(node)], sizes_of(weights[1])[1]
    units = axes_of(walk, weights[1])[1]
    given = axes_of(walk, x)[-1]
    for layer in range(layers):
        for first in range(layer * both * per, (layer + 1) * both * per, per):
            _cell(walk, node, weights[first : first + per], given, units, gates=gates)
        given = join([(hidden, walk.atoms.resolve(units))] * both)
    for state in states:
        _start(walk, state, units)
    lead = axes_of(walk, x)[:-1]
    return [[*lead, given], *[[None, None, units] for _ in states]]


def _cell(walk: Walk, node: Call, weights: list[Call], given: Axis, units: Axis, *, gates: int) -> None:
    """One layer in one direction: its input, its gates one after the other, and its own output."""
    atoms = walk.atoms
    inputs, own = (axes_of(walk, w) for w in weights[:2])
    atoms.tie(given, inputs[1])
    atoms.tie(units, own[1])
    rows = atoms.merge([(gates, None), (sizes_of(weights[1])[1], units)])
    for axis in (inputs[0], own[0], *(axes_of(walk, bias)[0] for bias in weights[2:])):
        atoms.tie(rows, axis)
    for weight in weights[:2]:
        walk.recurrence(node, weight)


def _start(walk: Walk, state: Call, units: Axis) -> None:
    """The state to start from: zeros made for it shrink with it, anything else is tied."""
    if state.op == "call_function" and operator_of(state) in operators.CONSTANT and len(state.users) == 1:
        walk.axes[state] = [*axes_of(walk, state)[:-1], units]
    else:
        walk.atoms.tie(axes_of(walk, state)[-1], units)
