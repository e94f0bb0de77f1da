"""Field: what a dense network sees around each pixel, and how far its grid repeats."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """What one output pixel of a network depends on.

    Args:
        before, after: pixels to the upper left and to the lower right of it.
        period: moving the input by so many pixels moves the output, and changes nothing else.
    """

    before: int
    after: int
    period: int

    @property
    def halo(self) -> int:
        """Pixels at an inner edge of a tile that are not those of the whole image."""
        return max(self.before, self.after)

    def overlap(self, least: int = 0) -> int:
        """Pixels that neighbouring tiles must share to be cut where both are right."""
        return max(least, 2 * self.halo)
