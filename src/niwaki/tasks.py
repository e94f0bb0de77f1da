"""Task: what a model's outputs mean. One class a task; `TASKS` is the list a manifest's name is looked up in.

All tasks have the same parts: `loss` (training), `head` (export), `tally` and `score` (numbers), `decode`
(answers), `metric` (the main score's name) and `dense` (whether there is an answer for each pixel).

No torch at import: decoding and scoring are numpy, so the runtime side needs nothing else; `loss` and `head`
import torch when they are called, because only training and export call them.
Shape letters: B batch, N images, H W pixels, h w of a model's output, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from niwaki import tally
from niwaki.dense_metrics import IGNORE
from niwaki.instances.task import Instances as Instances
from niwaki.metrics import accuracy

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Classify:
    """One label an image. `classes` are the labels' names in output order."""

    kind: ClassVar[str] = "classify"
    output: ClassVar[str] = "probabilities"
    metric: ClassVar[str] = "accuracy"
    dense: ClassVar[bool] = False
    classes: tuple[str, ...]

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of logits `[B, K]` and labels int64 `[B]`: `[B]`, unreduced, in nats."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(output, target, reduction="none")

    def head(self, output: Tensor, *, size_hw: tuple[int, int] | None = None) -> Tensor:
        """What is exported behind the model: logits `[B, K]` to probabilities float32 `[B, K]`."""
        return output.float().softmax(dim=1)

    def tally(self, *, detail: bool = True) -> tally.Labels:
        """What predictions are added to, to be scored."""
        return tally.Labels(self.classes)

    def shape(self, size_hw: tuple[int, int]) -> tuple[int, ...]:
        """What an export gives for one image: `[K]`."""
        return (len(self.classes),)

    def fits(self, output: tuple[int, ...]) -> bool:
        """Whether a model's output for one image is of the right shape."""
        return output == (1, len(self.classes))

    def score(self, probabilities: Floats, labels: npt.NDArray[np.int64]) -> dict[str, float]:
        """`accuracy` with the ends `low`, `high` of its 95 % Wilson interval, all 0..1."""
        return accuracy(probabilities.argmax(1), labels)

    def decode(self, probabilities: Floats, *, top: int = 1) -> list[list[tuple[str, float]]]:
        """For each row of `[N, K]` the `top` best (label, probability), best first."""
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        rows = zip(order, probabilities, strict=True)
        return [[(self.classes[k], float(row[k])) for k in best] for best, row in rows]

    def to_json(self) -> dict[str, Any]:
        """What a manifest holds; `from_json` reads it back."""
        return {"kind": self.kind, "classes": list(self.classes)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Classify:
        """The task that `to_json` wrote."""
        return cls(tuple(map(str, value["classes"])))


@dataclass(frozen=True)
class Segment:
    """A class for each pixel.

    Args:
        classes: their names in output order.
        ignore: a value of mask pixels that is left out, beside `IGNORE` (255), which always is.
    """

    kind: ClassVar[str] = "segment"
    output: ClassVar[str] = "probabilities"
    metric: ClassVar[str] = "miou"
    dense: ClassVar[bool] = True
    classes: tuple[str, ...]
    ignore: int = IGNORE

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of logits `[B, K, h, w]` and masks `[B, H, W]`: `[B]`, the mean over an image's pixels
        that have a class, in nats; the logits are resized to the mask first. 0 for an image without such
        pixels."""
        from torch.nn.functional import cross_entropy

        target = self.valid(target)
        logits = self.resized(output, (target.shape[1], target.shape[2]))
        each = cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
        return each.sum((1, 2)) / (target != IGNORE).sum((1, 2)).clamp_min(1)

    def valid(self, target: Tensor) -> Tensor:
        """Masks as int64 `[B, H, W]` in which only `IGNORE` is left out."""
        target = target.long()
        return target if self.ignore == IGNORE else target.masked_fill(target == self.ignore, IGNORE)

    def head(self, output: Tensor, *, size_hw: tuple[int, int] | None = None) -> Tensor:
        """What is exported behind the model: logits `[B, K, h, w]` to probabilities float32 `[B, K, H, W]`.

        Probabilities are what is interpolated, not logits: the softmax of a map an eighth as high and wide
        costs a 64th, and at full size it would take longer than a small network.

        Args:
            size_hw: the images' height and width; None leaves the size as it is.
        """
        return self.resized(output.float().softmax(dim=1), size_hw)

    def resized(self, output: Tensor, size_hw: tuple[int, int] | None) -> Tensor:
        """Maps `[B, K, h, w]` at that size, bilinear with half-pixel centres; untouched where they have it."""
        from torch.nn.functional import interpolate

        if size_hw is None or (output.shape[-2] == size_hw[0] and output.shape[-1] == size_hw[1]):
            return output
        return interpolate(output, size=list(size_hw), mode="bilinear", align_corners=False)

    def tally(self, *, detail: bool = True) -> tally.Maps:
        """What predictions are added to, to be scored."""
        return tally.Maps(self.classes, ignore=self.ignore, detail=detail)

    def shape(self, size_hw: tuple[int, int]) -> tuple[int, ...]:
        """What an export gives for one image: `[K, H, W]`."""
        return (len(self.classes), *size_hw)

    def fits(self, output: tuple[int, ...]) -> bool:
        """Whether a model's output for one image is of the right shape: a map of any size."""
        return len(output) == 4 and output[:2] == (1, len(self.classes)) and min(output) > 0

    def score(self, probabilities: Floats, masks: npt.NDArray[np.integer]) -> dict[str, Any]:
        """Scores of probabilities `[N, K, H, W]` against masks `[N, H, W]`, as `tally.Maps.score` lists
        them."""
        counts = self.tally()
        counts.add(probabilities, masks)
        return counts.score()

    def decode(self, probabilities: Floats) -> npt.NDArray[np.uint8]:
        """Class maps uint8 `[N, H, W]` of probabilities `[N, K, H, W]`: each pixel's best class."""
        return np.asarray(probabilities.argmax(1), np.uint8)

    def to_json(self) -> dict[str, Any]:
        """What a manifest holds; `from_json` reads it back."""
        return {"kind": self.kind, "classes": list(self.classes), "ignore": self.ignore}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Segment:
        """The task that `to_json` wrote."""
        return cls(tuple(map(str, value["classes"])), int(value["ignore"]))


Task = Classify | Segment | Instances
TASKS: dict[str, type[Classify] | type[Segment] | type[Instances]] = {
    task.kind: task for task in (Classify, Segment, Instances)
}
