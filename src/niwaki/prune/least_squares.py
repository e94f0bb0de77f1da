"""Linear layers fitted to activations in closed form: sums of products, and the ridge regression they solve.

Convolutions are linear in their patches, and a grouped one is as many problems as it has groups. Shape letters:
N images, G groups, R rows (positions of all images), D inputs of one output (channels of a group times kernel),
O outputs of a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from niwaki.surgery.rules import operator_of
from niwaki.surgery.trace import Call

ROWS_PER_INPUT = 16
LEAST_ROWS = 16384
"""A layer is fitted to at most max(16384, 16 D) positions; more change next to nothing and cost time."""
_BYTES = 64 << 20
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridges that are tried on held-out images."""


@dataclass
class Sums:
    """What a fit needs of inputs `[R, G, D]` and residuals `[R, G, O]`, summed over rows in float64.

    Args:
        x, r: `[G, D]` and `[G, O]`.
        xx, xr, rr: products, `[G, D, D]`, `[G, D, O]` and one number.
    """

    rows: int
    x: Tensor
    r: Tensor
    xx: Tensor
    xr: Tensor
    rr: float = 0.0

    @classmethod
    def zero(cls, groups: int, inputs: int, outputs: int, device: torch.device) -> Sums:
        """The sums of nothing."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros((groups, *shape), dtype=torch.float64, device=device)

        return cls(0, zeros(inputs), zeros(outputs), zeros(inputs, inputs), zeros(inputs, outputs))

    def add(self, x_RGD: Tensor, r_RGO: Tensor) -> None:
        """Count these rows too."""
        x_GRD, r_GRO = x_RGD.double().transpose(0, 1), r_RGO.double().transpose(0, 1)
        self.rows += len(x_RGD)
        self.x += x_GRD.sum(1)
        self.r += r_GRO.sum(1)
        self.xx += x_GRD.mT @ x_GRD
        self.xr += x_GRD.mT @ r_GRO
        self.rr += float((r_GRO * r_GRO).sum())

    def __add__(self, other: Sums) -> Sums:
        """The sums of both."""
        rows, rr = self.rows + other.rows, self.rr + other.rr
        return Sums(rows, self.x + other.x, self.r + other.r, self.xx + other.xx, self.xr + other.xr, rr)

    def error(self, weight_GOD: Tensor, bias_GO: Tensor) -> float:
        """Mean square of what `r - W x - b` leaves of a row."""
        fitted = weight_GOD @ self.xx + bias_GO[:, :, None] * self.x[:, None, :]
        cross = (weight_GOD * (fitted - 2 * self.xr.mT)).sum() - 2 * (bias_GO * self.r).sum()
        answers = (weight_GOD @ self.x[:, :, None])[..., 0]
        offset = (bias_GO * (self.rows * bias_GO + answers)).sum()
        return (self.rr + float(cross + offset)) / self.rows

    def ridge(self, held: Sums, *, intercept: bool) -> float:
        """The ridge whose fit to these rows leaves least of the held-out ones."""
        errors = {r: held.error(*self.solve(ridge=r, intercept=intercept)) for r in RIDGES}
        return min(errors, key=lambda r: errors[r])

    def solve(self, *, ridge: float, intercept: bool) -> tuple[Tensor, Tensor]:
        """`(dW [G, O, D], db [G, O])` that minimise `|r - dW x - db|^2 / R + ridge * mean(x^2) * |dW|^2`.

        Args:
            ridge: 0 takes, of all minima, the smallest change.
            intercept: whether there is a db; without, it is zero.
        """
        mean_x, mean_r = self.x / self.rows, self.r / self.rows
        xx, xr = self.xx / self.rows, self.xr / self.rows
        if intercept:
            xx = xx - mean_x[:, :, None] * mean_x[:, None, :]
            xr = xr - mean_x[:, :, None] * mean_r[:, None, :]
        change = _ridge(xx, xr, ridge)
        offset = mean_r - (change.mT @ mean_x[:, :, None])[..., 0]
        return change.mT, offset if intercept else torch.zeros_like(offset)


def _ridge(xx_GDD: Tensor, xr_GDO: Tensor, ridge: float) -> Tensor:
    scale = xx_GDD.diagonal(dim1=1, dim2=2).mean(1)
    eye = torch.eye(xx_GDD.shape[-1], dtype=xx_GDD.dtype, device=xx_GDD.device)
    factor, failed = torch.linalg.cholesky_ex(xx_GDD + (ridge * scale)[:, None, None] * eye)
    if ridge > 0 and not bool(failed.any()):
        solved: Tensor = torch.cholesky_solve(xr_GDO, factor)
        return solved
    inverse: Tensor = torch.linalg.pinv(xx_GDD, rtol=max(ridge, 1e-9), hermitian=True)
    return inverse @ xr_GDO


def argument(node: Call, place: int, name: str, default: Any = None) -> Any:
    """An argument of a call, by place or by name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def fitted(node: Call, weight: Tensor, inputs: list[Tensor], residuals: list[Tensor]) -> Sums:
    """The sums of a linear layer or convolution over batches of its inputs and of its outputs' errors."""
    groups = 1 if operator_of(node) == "linear" else int(argument(node, 6, "groups", 1))
    outputs = weight.shape[0] // groups
    sums = Sums.zero(groups, weight[0].numel(), outputs, weight.device)
    positions = sum(r.numel() for r in residuals) // weight.shape[0]
    most = max(LEAST_ROWS, ROWS_PER_INPUT * weight[0].numel())
    draw = torch.Generator().manual_seed(0)
    for x, r in zip(inputs, residuals, strict=True):
        for rows, errors in _rows(node, weight, x, r, groups):
            if positions > most:
                count = max(1, len(rows) * most // positions)
                chosen = torch.randperm(len(rows), generator=draw)[:count].to(rows.device)
                rows, errors = rows[chosen], errors[chosen]
            sums.add(rows, errors)
    return sums


def _rows(node: Call, weight: Tensor, x: Tensor, r: Tensor, groups: int) -> Any:
    """`(inputs [R, G, D], errors [R, G, O])`, a few images at a time."""
    if operator_of(node) == "linear":
        yield x.reshape(-1, 1, x.shape[-1]), r.reshape(-1, 1, r.shape[-1])
        return
    channels = x.shape[1]
    each = max(1, _BYTES // max(1, r[0].numel() // r.shape[1] * channels * weight[0, 0].numel() * 4))
    for some, errors in zip(torch.split(x, each), torch.split(r, each), strict=True):
        patches = _patches(some, weight.shape[2:], node)
        flat = patches.movedim(1, 1 + len(weight.shape[2:]))
        rows = flat.reshape(-1, groups, channels // groups * weight[0, 0].numel())
        yield rows, errors.movedim(1, -1).reshape(len(rows), groups, -1)


def _patches(x: Tensor, kernel: tuple[int, ...], node: Call) -> Tensor:
    """Patches of a convolution: `[N, C, *positions, *kernel]`."""
    rank = len(kernel)
    stride = _each(argument(node, 3, "stride", 1), rank)
    dilation = _each(argument(node, 5, "dilation", 1), rank)
    padding = argument(node, 4, "padding", 0)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(p, p) for p in _each(0 if padding == "valid" else padding, rank)]
    x = F.pad(x, [side for pair in reversed(sides) for side in pair])
    for i, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(2 + i, d * (k - 1) + 1, s)[..., ::d]
    return x


def _each(value: Any, rank: int) -> list[int]:
    values = [value] if isinstance(value, int) else [int(v) for v in value]
    return values * rank if len(values) == 1 else values
