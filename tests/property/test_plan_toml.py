"""Any plan of niwaki's own steps survives TOML unchanged."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from niwaki import plan
from niwaki.plan import Plan, Step, step

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
plain = st.one_of(
    text,
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
)
values = st.one_of(plain, st.lists(plain, max_size=4))


@st.composite
def steps(draw: st.DrawFn) -> Step:
    name = draw(st.sampled_from(plan.names()))
    chosen = draw(st.sets(st.sampled_from(sorted(plan.knobs(name)))))
    knobs: dict[str, Any] = {knob: draw(values) for knob in sorted(chosen)}
    return step(name, **knobs)


@given(st.lists(steps(), max_size=4))
def test_toml_round_trip(made: list[Step]) -> None:
    written = Plan(*made)
    read = Plan.from_toml(written.to_toml())
    assert read == written
    assert read.to_toml() == written.to_toml()
    assert [dict(item.knobs) for item in read] == [dict(item.knobs) for item in written]
