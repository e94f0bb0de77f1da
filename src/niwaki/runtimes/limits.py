"""How far an export may be from its model, and the figures that say how far it is. Numpy only.

`LIMITS` is the table of docs/parity.md, held equal by a test. Shape letters: N images, K classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from niwaki.errors import ParityError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a precision must keep to.

    Args:
        error: largest allowed difference of one probability, on any image.
        agreement: smallest allowed share of images on which the file's best class is a best class
            of the model's, where classes closer than `error` count as equal.
        moved: largest allowed mean of the probability mass that changes place, 0..1.
    """

    error: float
    agreement: float
    moved: float


LIMITS = {
    "float32": Limits(error=1e-4, agreement=0.999, moved=1e-4),
    "bfloat16": Limits(error=0.2, agreement=0.75, moved=0.1),
    "float16": Limits(error=0.02, agreement=0.9, moved=0.01),
    "int8": Limits(error=1.0, agreement=0.0, moved=0.5),
}


@dataclass(frozen=True, kw_only=True)
class Parity:
    """What a comparison found: largest and moved difference, agreement 0..1, over `images`
    images."""

    error: float
    agreement: float
    moved: float
    images: int

    def to_json(self) -> dict[str, float]:
        """The four figures by name."""
        return asdict(self)


def compare(
    wanted: npt.NDArray[np.float32], got: npt.NDArray[np.float32], precision: str = "float32"
) -> Parity:
    """Two tables of probabilities `[N, K]`, the model's and the file's, compared."""
    if wanted.shape != got.shape:
        raise ParityError(
            f"the model gives probabilities {wanted.shape}, the file {got.shape}. It was exported "
            "from another model.",
            code="parity",
        )
    error = np.abs(wanted.astype(np.float64) - got)
    best = got.argmax(1)
    tie = LIMITS["float32"].error
    agrees = wanted[np.arange(len(wanted)), best] >= wanted.max(1) - tie
    return Parity(
        error=float(error.max()),
        agreement=float(agrees.mean()),
        moved=float(error.sum(1).mean() / 2),
        images=len(wanted),
    )
