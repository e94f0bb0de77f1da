"""Recipe: what is done to a float graph on its way to int8, as plain JSON that stays with the export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from niwaki.errors import PlanError

CALIBRATIONS = ("min-max", "percentile", "entropy", "mse")
ROUNDINGS = ("nearest", "learned")
BITS = (4, 8)
FLOAT_BITS = 32
"""Of the weights of a layer that stays float."""
MAKERS = ("niwaki", "nncf")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a float graph becomes int8. The default is plain min-max calibration.

    Args:
        calibration: how the range of an activation is chosen from what it took on calibration images.
        equalise: channels of neighbouring convolutions are scaled alike first (Nagel 2019).
        smooth: share of outliers moved from activations into weights, 0..1 (SmoothQuant); None: not done.
        correct_bias: biases make up for the mean error that rounding weights causes.
        rounding: weights to the nearest number, or up or down as learned per layer (AdaRound).
        float_nodes: names of nodes that stay in float.
        weight_bits: 8 or 4; `node_bits` has the nodes that differ, by name.
        by: whose quantizer: niwaki's, or NNCF with its defaults (niwaki[nncf]), which takes no other knob.
        narrow: 7-bit weights, safe on CPUs that add products of u8 and s8 in 16 bits.
    Raises:
        PlanError: a value is not one of these. [quantize-recipe]
    """

    calibration: str = "min-max"
    equalise: bool = False
    smooth: float | None = None
    correct_bias: bool = False
    rounding: str = "nearest"
    float_nodes: tuple[str, ...] = ()
    weight_bits: int = 8
    node_bits: Mapping[str, int] | None = None
    narrow: bool = False
    by: str = "niwaki"

    def __post_init__(self) -> None:
        _one_of("calibration", self.calibration, CALIBRATIONS)
        _one_of("rounding", self.rounding, ROUNDINGS)
        _one_of("by", self.by, MAKERS)
        if self.by == "nncf" and asdict(self) != {f.name: f.default for f in fields(self)} | {"by": "nncf"}:
            raise PlanError(
                "recipe: by 'nncf' came with other knobs, expected none: NNCF runs with its own defaults.",
                code="quantize-recipe",
            )
        for bits in (self.weight_bits, *(self.node_bits or {}).values()):
            _one_of("weight_bits", bits, BITS)
        if self.smooth is not None and not 0 <= self.smooth <= 1:
            raise PlanError(
                f"recipe: smooth is {self.smooth!r}, expected None or a share from 0 to 1.",
                code="quantize-recipe",
            )

    def bits(self, node: str) -> int:
        """Bits of a node's weights."""
        return (self.node_bits or {}).get(node, self.weight_bits)

    @property
    def plain(self) -> bool:
        """Whether this is the default."""
        return self == Recipe()

    def to_json(self) -> dict[str, Any]:
        """What a manifest holds; `from_json` reads it back."""
        found = asdict(self)
        return found | {"float_nodes": list(self.float_nodes), "node_bits": dict(self.node_bits or {})}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_json` wrote, or a part of it; what is left out is the default.

        Raises:
            PlanError: a name or value is not known. [quantize-recipe]
        """
        known = {one.name for one in fields(cls)}
        if not isinstance(value, Mapping) or (unknown := sorted(value.keys() - known)):
            came = f"has no knob {unknown[0]!r}" if isinstance(value, Mapping) else f"is {value!r}"
            raise PlanError(
                f"recipe: {came}, expected a table of {', '.join(sorted(known))}.", code="quantize-recipe"
            )
        whole = dict(value)
        whole["float_nodes"] = tuple(map(str, whole.get("float_nodes") or ()))
        whole["node_bits"] = dict(whole.get("node_bits") or {}) or None
        return cls(**whole)


def _one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise PlanError(
            f"recipe: {name} is {value!r}, expected one of {', '.join(map(str, allowed))}.",
            code="quantize-recipe",
        )
