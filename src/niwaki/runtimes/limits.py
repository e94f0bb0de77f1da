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
            of the model's, where classes that the model holds closer than `tie` count as equal.
        moved: largest allowed mean of the probability mass that changes place, 0..1.
    """

    error: float
    agreement: float
    moved: float
    tie: float = 1e-4


TRAINED = "trained"
"""int8 of a model that was trained with fake quantizers, where the runtime keeps its scales: the same numbers,
but for the order of sums and what stays float."""
LIMITS = {
    "float32": Limits(error=1e-4, agreement=0.999, moved=1e-4),
    "bfloat16": Limits(error=0.2, agreement=0.75, moved=0.1),
    "float16": Limits(error=0.02, agreement=0.9, moved=0.01),
    "int8": Limits(error=1.0, agreement=0.0, moved=0.5),
    TRAINED: Limits(error=0.5, agreement=0.99, moved=0.05, tie=0.02),
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
    wanted: npt.NDArray[np.float32],
    got: npt.NDArray[np.float32],
    precision: str = "float32",
    *,
    threshold: float | None = None,
) -> Parity:
    """Two tables of probabilities `[N, K]` or `[N, K, H, W]`, the model's and the file's, compared; where there
    is one answer a pixel, agreement and what moved are means over pixels.

    Args:
        threshold: of answers whose first channel alone is a probability (objects; the others are distances, and
            count in the error only): from which on a point is an object's.
    """
    if wanted.shape != got.shape:
        raise ParityError(
            f"the model gives probabilities {wanted.shape}, the file {got.shape}. It was exported "
            "from another model.",
            code="parity",
        )
    tie = LIMITS[precision].tie
    found = []
    for one, other in zip(wanted, got, strict=True):  # maps of many images as float64 would be large
        error = np.abs(one.astype(np.float64) - other)
        if threshold is None:
            best = np.take_along_axis(one, other.argmax(0, keepdims=True), 0)[0]
            same, moved = best >= one.max(0) - tie, error.sum(0).mean() / 2
        else:
            same = (one[0] >= threshold) == (other[0] >= threshold)
            same, moved = same | (np.abs(one[0] - threshold) <= tie), error[0].mean()
        found.append((error.max(), np.mean(same), moved))
    largest, agreement, mass = np.array(found).reshape(-1, 3).T
    return Parity(
        error=float(largest.max()),
        agreement=float(agreement.mean()),
        moved=float(mass.mean()),
        images=len(wanted),
    )
