"""What a model costs in expectation when each atom stays with a probability: differentiable, and counted by the
same terms as `axes.cost`. With probabilities of 0 and 1 both agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.errors import PlanError
from niwaki.surgery import Axes, Group


class Expected(nn.Module):
    """Expected multiply-adds of one image, or parameters, as a share of the whole model's.

    Args:
        axes: the analysis that counts.
        groups: whose atoms may go; all others stay.
        kind: "macs" or "params".
    Source: Louizos et al. 2018, arXiv:1712.01312, section 2 (expected L0); for structures, Wang et al. 2020,
        arXiv:1910.04732, eq. 6. Atoms of one group within a product count as independent.
    """

    factors: Tensor

    def __init__(self, axes: Axes, groups: Sequence[Group], *, kind: str) -> None:
        super().__init__()
        atoms = positions(groups)
        self._slots: list[list[int]] = []
        tables: dict[bytes, int] = {}
        fixed: list[float] = []
        for factor, sized in axes.terms(kind):
            slots = []
            for axis in sized:
                index = placed(axis, atoms)
                if (index < len(atoms)).any():
                    key = repr(index.shape).encode() + index.tobytes()
                    if key not in tables:
                        tables[key] = len(tables)
                        self.register_buffer(f"axis{tables[key]}", torch.from_numpy(index), persistent=False)
                    slots.append(tables[key])
                else:
                    factor *= len(axis)
            self._slots.append(slots)
            fixed.append(factor)
        self._count = len(tables)
        total = getattr(axes.cost({}), kind)
        self.register_buffer("factors", torch.tensor(fixed, dtype=torch.float64) / total, persistent=False)

    def forward(self, probability: Tensor) -> Tensor:
        """The expected share, a scalar, from each atom's probability to stay `[atoms of the groups]`."""
        extended = torch.cat([probability.double(), probability.new_ones(1, dtype=torch.float64)])
        sizes = [extended[getattr(self, f"axis{i}")].prod(1).sum() for i in range(self._count)]
        one = extended.new_ones(())
        parts = []
        for slots in self._slots:
            part = one
            for slot in slots:
                part = part * sizes[slot]
            parts.append(part)
        return (self.factors * torch.stack(parts)).sum()


def positions(groups: Sequence[Group]) -> dict[int, int]:
    """Each atom's place when the groups are laid one after the other."""
    return {atom: i for i, atom in enumerate(atom for group in groups for atom in group.atoms)}


def placed(axis: Any, atoms: Mapping[int, int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """An axis `[size, k]` in places instead of atoms; `len(atoms)` for an atom that always stays."""
    numbers, inverse = np.unique(axis, return_inverse=True)
    found = np.array([atoms.get(int(number), len(atoms)) for number in numbers], dtype=np.int64)
    return found[inverse].reshape(axis.shape)


def check_kind(budget: str) -> None:
    """Nothing, when a budget's kind can be counted while training.

    Raises:
        PlanError: it is of latency or size. [gates-budget]
    """
    kind = budget.partition("=")[0].strip().lower()
    if kind in ("latency", "size"):
        raise PlanError(
            f"prune.gates: the budget {budget!r} cannot be counted while training; expected macs=50% or "
            "params=50%. For latency or size: niwaki fit, or gates to a macs budget and then measure.",
            code="gates-budget",
        )
