"""Grid: the whole numbers that a tensor is rounded to, and the values that they stand for. Numpy only.

It is a finished grid of a file. The one of `quantize.grids` is where training starts: its scale is a torch
parameter, held as a logarithm, and its ends are those of the kernel that it trains for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
TINY = np.float32(np.finfo(np.float32).tiny)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A whole number `q` stands for `scale * (q - zero)`.

    Args:
        scale: float32 `[]`, or `[C]` with `axis`: above 0.
        zero: whole numbers of the same shape.
        bits: 2 to 8.
        signed: numbers from `-2**(bits-1)` on, else from 0 on.
        axis: of the tensor, one scale for each of its indices; None: one for the whole tensor.
    """

    scale: Floats
    zero: npt.NDArray[np.int64]
    bits: int = 8
    signed: bool = False
    axis: int | None = None

    @property
    def ends(self) -> tuple[int, int]:
        """Smallest and largest whole number."""
        return (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1) if self.signed else (0, 2**self.bits - 1)

    def numbers(self, values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Values as whole numbers: rounded half to even, cut off at the ends."""
        scale, zero = self._shaped(values.ndim)
        found: npt.NDArray[np.int64] = np.clip(np.rint(values / scale).astype(np.int64) + zero, *self.ends)
        return found

    def values(self, numbers: npt.NDArray[np.int64]) -> Floats:
        """What whole numbers stand for, float32."""
        scale, zero = self._shaped(numbers.ndim)
        found: Floats = ((numbers - zero) * scale).astype(np.float32)
        return found

    def rounded(self, values: npt.NDArray[Any]) -> Floats:
        """Values after the way to whole numbers and back, float32."""
        return self.values(self.numbers(values))

    def low_high(self) -> tuple[Floats, Floats]:
        """Smallest and largest value that it holds."""
        least, most = self.ends
        return (least - self.zero) * self.scale, (most - self.zero) * self.scale

    def _shaped(self, ndim: int) -> tuple[Any, Any]:
        if self.axis is None:
            return self.scale, self.zero
        shape = [1] * ndim
        shape[self.axis] = -1
        return self.scale.reshape(shape), self.zero.reshape(shape)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; `from_json` reads them back."""
        plain = {"bits": self.bits, "signed": self.signed, "axis": self.axis}
        return {"scale": self.scale.tolist(), "zero": self.zero.tolist(), **plain}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Grid:
        """The Grid that `to_json` wrote."""
        arrays = {"scale": np.array(value["scale"], np.float32), "zero": np.array(value["zero"], np.int64)}
        return cls(**{**value, **arrays})


def of_range(low: float, high: float, *, bits: int = 8) -> Grid:
    """The unsigned grid that holds `low` to `high`, and zero exactly.

    Source: Jacob et al. 2018, "Quantization and training of neural networks for efficient
    integer-arithmetic-only inference", arXiv:1712.05877, section 2.1 and 3.
    """
    low, high, most = min(0.0, float(low)), max(0.0, float(high)), 2**bits - 1
    scale = np.float32((high - low) / most)
    if not scale > TINY:  # nothing but zeros was seen
        return Grid(scale=np.float32(1) + np.zeros((), np.float32), zero=np.zeros((), np.int64), bits=bits)
    zero = np.clip(np.rint(-low / scale), 0, most).astype(np.int64)
    return Grid(scale=np.asarray(scale, np.float32), zero=np.asarray(zero), bits=bits)


def of_weights(weights: npt.NDArray[Any], *, axis: int | None, bits: int = 8, narrow: bool = False) -> Grid:
    """The signed grid, symmetric about zero, that holds a tensor of weights; one scale an index of `axis`.

    Args:
        narrow: keep to one bit less, so that no sum of two products of a u8 with them leaves 16 bits
            (CPUs without VNNI add such pairs in 16 bits, and cut off).
    """
    others = None if axis is None else tuple(d for d in range(weights.ndim) if d != axis)
    largest = np.abs(weights).max(axis=others) if weights.size else np.zeros(())
    most = 2 ** (bits - 2) if narrow else 2 ** (bits - 1) - 1
    scale = np.asarray(largest / most, np.float32)
    scale = np.where(scale > TINY, scale, np.float32(1)).astype(np.float32)
    return Grid(scale=scale, zero=np.zeros(scale.shape, np.int64), bits=bits, signed=True, axis=axis)
