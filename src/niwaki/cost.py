"""Cost is measured, Budget is asked. Both speak of the same four quantities: macs, params, bytes, ms."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from niwaki.errors import PlanError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a model costs; None where it was not measured.

    Args:
        macs: multiply-adds of one image through convolutions, linear layers and matrix products.
        params: trainable and frozen parameters, buffers left out.
        bytes: the exported file.
        ms: median latency of one image on the runtime named beside it.
    """

    macs: int | None = None
    params: int | None = None
    bytes: int | None = None
    ms: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The four quantities by name."""
        return asdict(self)

    def with_(self, **known: float | None) -> Cost:
        """The same cost with some quantities filled in."""
        return replace(self, **known)  # type: ignore[arg-type]


_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "kb": 1e3, "mb": 1e6, "gb": 1e9, "b": 1.0, "ms": 1.0, "s": 1e3}
_ALLOWED = {
    "macs": {"", "k", "m", "g"},
    "params": {"", "k", "m", "g"},
    "size": {"", "b", "kb", "mb", "gb"},
    "latency": {"ms", "s"},
}
_SYNTAX = re.compile(r"(macs|params|size|latency)=([0-9]*\.?[0-9]+)\s*([a-z%]*)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A limit on one quantity: `kind` macs, params, size or latency; a share of the original, or absolute.

    Args:
        value: the share that remains (0..1) when `relative`, else macs, parameters, bytes or milliseconds.
    """

    FIELD: ClassVar[dict[str, str]] = {
        "macs": "macs",
        "params": "params",
        "size": "bytes",
        "latency": "ms",
    }

    kind: str
    value: float
    relative: bool
    text: str

    @classmethod
    def parse(cls, text: str) -> Budget:
        """`latency=50%`, `latency=4ms`, `macs=40%`, `params=1.2M`, `size=3MB` (1 MB = 10^6 bytes).

        Raises:
            PlanError: it reads otherwise, or a share is not in (0, 100] %. [budget-syntax]
        """
        match = _SYNTAX.fullmatch(text.strip())
        kind, number, unit = match.groups() if match else ("", "nan", "")
        kind, unit = kind.lower(), unit.lower()
        value = float(number)
        relative = unit == "%"
        ok = (relative and 0 < value <= 100) or (unit in _ALLOWED.get(kind, ()) and value > 0)
        if not ok or not math.isfinite(value):
            raise PlanError(
                f"--budget: got {text!r}, expected KIND=VALUE such as latency=50%, latency=4ms, macs=40%, "
                "params=1.2M or size=3MB; a percentage is the share that remains.",
                code="budget-syntax",
            )
        value = value / 100 if relative else value * _UNITS[unit]
        return cls(kind=kind, value=value, relative=relative, text=text.strip())

    def limit(self, baseline: Cost) -> float:
        """The largest allowed cost, in macs, parameters, bytes or ms."""
        return self.value * self._of(baseline) if self.relative else self.value

    def got(self, cost: Cost, baseline: Cost) -> float:
        """A cost in the budget's own terms: the share that remains, or the absolute figure."""
        return self._of(cost) / self._of(baseline) if self.relative else self._of(cost)

    def met(self, cost: Cost, baseline: Cost) -> bool:
        """Whether the cost is within the limit."""
        return self.got(cost, baseline) <= self.value

    def _of(self, cost: Cost) -> float:
        value = getattr(cost, self.FIELD[self.kind])
        if value is None:
            raise ValueError(f"cost has no {self.FIELD[self.kind]} yet")
        return float(value)


def params(model: nn.Module) -> int:
    """Number of parameters; a shared one counts once."""
    return sum(p.numel() for p in model.parameters())
