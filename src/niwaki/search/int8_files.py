"""int8 files of one model, a recipe each: made, opened in the runtime that they are for, and scored on val."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from niwaki import evaluate, metrics, runtimes
from niwaki.lazy import require
from niwaki.qdq import sensitivity

if TYPE_CHECKING:
    from torch import nn

    from niwaki.qdq.recipe import Recipe
    from niwaki.spec import Spec
    from niwaki.tally import Tally
    from niwaki.tasks import Task


FEW, BATCH = 1024, 64
"""Images of val on which outputs are compared with float's, at most; and at once."""


class Measured(NamedTuple):
    """What val says of a file: its score 0..1, the standard error of what it loses, how far its outputs are
    from float's, and its bytes."""

    score: float
    noise: float
    distance: float
    bytes: int


class Files:
    """Makes and measures int8 files of a model; the graph is traced once, and only if a file is made.

    Args:
        against: the float model that losses are counted from; None is the model itself.
        calib: images uint8 `[N, H, W, C]` that set ranges; of the train split.
        val: chooses.
        runtime: that the files are for; it must take recipes. A file for TensorRT is run by what proves it.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        spec: Spec,
        task: Task,
        calib: npt.NDArray[np.uint8],
        val: evaluate.Readable,
        against: nn.Module | None = None,
        runtime: str = "onnx",
        threads: int = 1,
    ) -> None:
        self._against = model if against is None else against
        self.model, self.spec, self.task, self.calib, self.val = model, spec, task, calib, val
        self._runtime, self._threads = runtimes.load(runtime), threads
        self._runs = runtimes.load(getattr(self._runtime, "PROVED_BY", runtime))

    @cached_property
    def maker(self) -> Any:
        """What makes int8 graphs of the model (runtimes.onnx_int8.Maker)."""
        export = require("niwaki.runtimes.onnx_export", extra="train")
        return export.maker(self.model, self.spec, task=self.task, calib=self.calib)

    @cached_property
    def reference(self) -> float:
        """The score of the float model that losses are counted from."""
        return metrics.main(self._float.score())

    @cached_property
    def _float(self) -> Tally:
        return self._tally(evaluate.predictor(self._against, self.spec, self.task))

    def measure(self, recipe: Recipe) -> Measured:
        """The file of a recipe on val.

        Its noise is the standard error of the mean difference to float, image by image, as if one image more
        had changed: where none did, a small val is not sure all the same. For masks it is that of the mean over
        images, which is near that of the whole split's score.
        """
        with self._made(recipe) as path:
            session = self._runs.open(path, threads=self._threads)
            found, size = self._tally(session), self._size(path)
            outputs = self._outputs(session)
        change = found.each() - self._float.each()
        noise = float(np.sqrt(change.var() * len(change) + 1) / max(1, len(change)))
        return Measured(
            metrics.main(found.score()), noise, sensitivity.divergence(self._float_outputs, outputs), size
        )

    def _outputs(self, predict: evaluate.Predictor) -> npt.NDArray[np.float32]:
        """Outputs of the first images of val, as many as leave the answers in little memory."""
        count = min(len(self.val), evaluate.rows(self.spec, self.task, at_most=FEW))
        parts = [range(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]
        return np.concatenate([predict(self.val.batch(part, self.spec)) for part in parts])

    @cached_property
    def _float_outputs(self) -> npt.NDArray[np.float32]:
        return self._outputs(evaluate.predictor(self.model, self.spec, self.task))

    def bytes(self, recipe: Recipe) -> int:
        """Of the file of a recipe, which is not run."""
        with self._made(recipe) as path:
            return self._size(path)

    @contextmanager
    def _made(self, recipe: Recipe) -> Iterator[Path]:
        export = require("niwaki.runtimes.onnx_export", extra="train")
        with tempfile.TemporaryDirectory() as folder:
            path = export.save_int8(self.maker, recipe, Path(folder) / "int8.onnx")
            if hasattr(self._runtime, "of_onnx"):
                own = Path(folder) / f"own.{self._runtime.SUFFIX}"
                path = self._runtime.of_onnx(path, own, precision="int8")
            yield path

    def _size(self, path: Path) -> int:
        endings = (self._runtime.SUFFIX, *self._runtime.PARTS)
        return sum(path.with_suffix(f".{end}").stat().st_size for end in endings)

    def _tally(self, predict: evaluate.Predictor) -> Tally:
        return evaluate.tally(predict, self.val, self.spec, self.task, detail=False)
