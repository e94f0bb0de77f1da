"""Task: what a model's outputs mean. One class a task; `TASKS` is the list a manifest's name is looked up in.

No torch at import: decoding and scoring are numpy, so the runtime side needs nothing else; `loss` and `head`
import torch when they are called, because only training and export call them.
Shape letters: B batch, N images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from niwaki.metrics import accuracy

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Classify:
    """One label an image. `classes` are the labels' names in output order."""

    kind: ClassVar[str] = "classify"
    output: ClassVar[str] = "probabilities"
    classes: tuple[str, ...]

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of logits `[B, K]` and labels int64 `[B]`: `[B]`, unreduced, in nats."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(output, target, reduction="none")

    def head(self, output: Tensor) -> Tensor:
        """What is exported behind the model: logits `[B, K]` to probabilities float32 `[B, K]`."""
        return output.float().softmax(dim=1)

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


Task = Classify
TASKS: dict[str, type[Task]] = {task.kind: task for task in (Classify,)}
