"""Field: what a dense network sees around each pixel, and how far its grid repeats."""

from __future__ import annotations

from dataclasses import dataclass

from niwaki.errors import ModelError


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


def within(
    name: str,
    scene: tuple[int, int],
    size: tuple[int, int],
    *,
    own: tuple[int | None, ...],
    period: int,
) -> tuple[int, int]:
    """Height and width of tiles that reach beyond a scene no farther than to a multiple of the network's
    stride: what is mirrored beyond that, the whole image would not have.

    Args:
        name, scene: the scene's, and its height and width.
        size: tiles that are asked for.
        own: the size that the model takes and no other, None where it takes any.
    Raises:
        ModelError: the model takes larger tiles only. [tile-exact]
    """
    whole = [-(-side // period) * period for side in scene]
    if any(side < tile for side, tile, fixed in zip(whole, size, own, strict=True) if fixed is not None):
        raise ModelError(
            f"exact: {name}: has {scene[0]} x {scene[1]} pixels, the model takes tiles of {size[0]} x {size[1]}"
            ". What it gives for a scene mirrored up to them is not what it gives for the scene. Export it for "
            f"at most {whole[0]} x {whole[1]} pixels, or leave out --exact.",
            code="tile-exact",
        )
    return min(size[0], whole[0]), min(size[1], whole[1])
