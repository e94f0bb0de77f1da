"""The instances task: which objects are in an image, each as a mask, from star-convex predictions.

No torch at import, as in `tasks`, whose list this class is in. Shape letters: B batch, N images, H W pixels,
h w points of the grid (every `stride`-th pixel), R rays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from niwaki.errors import PlanError
from niwaki.instances import regions, stars
from niwaki.instances.overlaps import Labels, resolve_overlaps
from niwaki.instances.tally import Objects

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float32]

SCALE = 64.0
"""Pixels that a distance of 1 stands for in what `head` gives: all of it is near 0..1, as int8 needs."""


@dataclass(frozen=True)
class Instances:
    """Objects of one kind, each with its mask.

    Args:
        classes: the kind's name.
        stride: pixels between two points that a network answers for.
        threshold: probability from which on a point is an object's.
        overlap: objects that share more than this with a surer one go.
        boxes: objects that a two-stage detector (`torchvision:maskrcnn_resnet50_fpn`) gives of an image at
            most, each a box and a mask; 0: outputs are stars.
    Raises:
        PlanError: several kinds, or a number out of its range. [task-knob]
    """

    kind: ClassVar[str] = "instances"
    output: ClassVar[str] = "stars"
    metric: ClassVar[str] = "ap50"
    dense: ClassVar[bool] = True
    classes: tuple[str, ...] = ("object",)
    stride: int = 2
    threshold: float = 0.5
    overlap: float = 0.4
    boxes: int = 0

    def __post_init__(self) -> None:
        checks = {
            "classes": (len(self.classes) == 1, "one name"),
            "stride": (self.stride >= 1, "at least 1"),
            "threshold": (0 < self.threshold < 1, "in 0..1, both left out"),
            "overlap": (0 <= self.overlap <= 1, "in 0..1"),
            "boxes": (self.boxes >= 0, "at least 0"),
        }
        for name, (ok, expected) in checks.items():
            if not ok:
                raise PlanError(
                    f"Instances: {name} must be {expected}, got {getattr(self, name)!r}.", code="task-knob"
                )

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """`star_loss.loss` of outputs `[B, 1 + R, h, w]` and label maps `[B, H, W]`: `[B]`, unreduced.

        Raises:
            PlanError: outputs are boxes, whose losses only the detector knows. [task-knob]
        """
        if self.boxes:
            raise PlanError(
                "Instances: a two-stage detector is trained by train.fit alone; its outputs have no loss of "
                "their own. Distil and prune niwaki:star_unet instead.",
                code="task-knob",
            )
        from niwaki.instances import star_loss

        return star_loss.loss(output, target, stride=self.stride)

    def head(self, output: Tensor, *, size_hw: tuple[int, int] | None = None) -> Tensor:
        """What is exported behind the model: probability and distances float32 `[B, 1 + R, h, w]`, the latter
        in units of `SCALE` pixels; of boxes the `boxes` surest, `[B, boxes, regions.WIDTH]`."""
        import torch

        if self.boxes:
            return output[:, : self.boxes].float()  # torchvision gives the surest first

        from niwaki.instances.star_loss import UNIT

        out = output.float()
        return torch.cat([out[:, :1].sigmoid(), out[:, 1:] * (UNIT / SCALE)], dim=1)

    def tally(self, *, detail: bool = True) -> Objects:
        """What predictions are added to, to be scored."""
        return Objects(self.decode, detail=detail)

    def shape(self, size_hw: tuple[int, int]) -> tuple[int, ...]:
        """What an export gives for one image: `[1 + R, h, w]`, or `[boxes, regions.WIDTH]`."""
        if self.boxes:
            return (self.boxes, regions.WIDTH)
        return (1 + stars.RAYS, *(-(-side // self.stride) for side in size_hw))

    def fits(self, output: tuple[int, ...]) -> bool:
        """Whether a model's output for one image is of the right shape."""
        if self.boxes:
            return len(output) == 3 and output[0] == 1 and output[2] == regions.WIDTH
        return len(output) == 4 and output[:2] == (1, 1 + stars.RAYS) and min(output) > 0

    def score(self, output: Floats, labels: npt.NDArray[np.integer[Any]]) -> dict[str, Any]:
        """Scores of what `head` gave `[N, 1 + R, h, w]` against label maps `[N, H, W]`, as `Objects.score`
        lists them."""
        counts = self.tally()
        counts.add(output, labels)
        return counts.score()

    def found(self, output: Floats, shape: tuple[int, int]) -> stars.Found:
        """The objects of one image, surest first, from what `head` gave of it `[1 + R, h, w]`; their masks may
        overlap a little.

        Args:
            shape: (H, W) of the image.
        """
        if self.boxes:
            return regions.objects(output, shape=shape, threshold=self.threshold, overlap=self.overlap)
        return stars.objects(
            output[0], output[1:] * SCALE, stride=self.stride, shape=shape, threshold=self.threshold,
            overlap=self.overlap,
        )  # fmt: skip

    def decode(self, output: Floats, *, shape: tuple[int, int] | None = None) -> list[Labels]:
        """A label map int32 `[H, W]` of each image, from what `head` gave `[N, 1 + R, h, w]`: 0 background,
        then objects by falling probability; where two overlap the surer one has the pixel.

        Args:
            shape: (H, W) of the images; the grid times `stride` unless given; boxes need it.
        """
        if shape is None and self.boxes:
            raise PlanError(
                "Instances: boxes do not tell the image's size; give shape=(H, W).", code="task-knob"
            )
        shape = shape or (output.shape[2] * self.stride, output.shape[3] * self.stride)
        found = [self.found(one, shape) for one in output]
        return [resolve_overlaps(one.crops, one.scores, shape=shape) for one in found]

    def to_json(self) -> dict[str, Any]:
        """What a manifest holds; `from_json` reads it back."""
        return {
            "kind": self.kind, "classes": list(self.classes), "stride": self.stride,
            "threshold": self.threshold, "overlap": self.overlap,
            **({"boxes": self.boxes} if self.boxes else {}),
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Instances:
        """The task that `to_json` wrote."""
        return cls(
            tuple(map(str, value["classes"])), stride=int(value["stride"]),
            threshold=float(value["threshold"]), overlap=float(value["overlap"]),
            boxes=int(value.get("boxes", 0)),
        )  # fmt: skip
