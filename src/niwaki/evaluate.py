"""What a predictor says about a split of images. Numpy only; `predictor` alone needs torch.

Predictor: uint8 `[N, H, W, C]` to float32 `[N, K]`, or `[N, K, H, W]` where the task is dense; modules and
opened runtimes share that one shape.
Shape letters: N images, H W pixels, C channels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import nn

    from niwaki.spec import Spec
    from niwaki.tally import Tally
    from niwaki.tasks import Task

ImagesU8 = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Predictor = Callable[[ImagesU8], Floats]

ANSWERS = 2**24
"""Numbers a batch of answers may have: 64 MB."""


class Readable(Protocol):
    """The half of `data.Samples` that is read here and by the training loop."""

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """int64 `[N]`; all 0 where images have masks."""

    @property
    def counts(self) -> npt.NDArray[np.int64] | None:
        """Where images have masks: pixels of each class, int64 `[N, K]`."""

    @property
    def names(self) -> tuple[str, ...]:
        """A path or id for each image."""

    def __len__(self) -> int: ...

    def batch(self, index: Sequence[int], spec: Spec) -> ImagesU8:
        """Those images, decoded and resized: uint8 `[B, H, W, C]`."""

    def targets(self, index: Sequence[int], spec: Spec) -> npt.NDArray[np.integer]:
        """What is true of them: labels int64 `[B]`, or masks uint8 `[B, H, W]`."""


def probabilities(predict: Predictor, samples: Readable, spec: Spec, *, batch: int = 64) -> Floats:
    """What `predict` says of each sample, in order: float32 `[N, K]`; `[0, 0]` for no samples."""
    rows = [
        predict(samples.batch(range(start, min(start + batch, len(samples))), spec))
        for start in range(0, len(samples), batch)
    ]
    return np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)


def tally(
    predict: Predictor, samples: Readable, spec: Spec, task: Task, *, batch: int = 64, detail: bool = True
) -> Tally:
    """The task's tally of what `predict` says of all samples; only one batch is in memory at a time.

    Args:
        batch: images at once; fewer where their answers are large.
        detail: count what only a report needs, too.
    """
    counts = task.tally(detail=detail)
    size = rows(spec, task, at_most=batch)
    for start in range(0, len(samples), size):
        index = range(start, min(start + size, len(samples)))
        counts.add(predict(samples.batch(index, spec)), samples.targets(index, spec))
    return counts


def rows(spec: Spec, task: Task, *, at_most: int = 64) -> int:
    """How many images to predict at once, so that their answers stay below `ANSWERS` numbers."""
    return max(1, min(at_most, ANSWERS // math.prod(task.shape(spec.size_hw))))


def predictor(model: nn.Module, spec: Spec, task: Task) -> Predictor:
    """A module and its task's head as a predictor; it runs in eval mode and is left as it was."""
    import torch

    def predict(images: ImagesU8) -> Floats:
        modes = [(module, module.training) for module in model.modules()]
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        model.eval()
        try:
            with torch.inference_mode():
                batch = torch.from_numpy(spec.normalise(images)).to(device)
                found = task.head(model(batch), size_hw=spec.size_hw)
        finally:
            for module, training in modes:
                module.training = training
        return np.asarray(found.float().cpu().numpy(), dtype=np.float32)

    return predict
