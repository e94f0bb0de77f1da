"""Session: an opened file of any runtime, called with raw pixels. Numpy only.

Every runtime's `open` returns one, so that all check their input alike, loop alike over the batch where their
format is fixed to one, and fail alike. Shape letters: N images, H W pixels, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.errors import RuntimeFailed, SpecError

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class Session:
    """An opened file; calling it with uint8 `[N, H, W, C]` returns float32 `[N, K]`, or `[N, K, H, W]` where it
    answers for each pixel.

    Args:
        run: one call of the runtime, `[B, H, W, C]` to `[B, K]` or `[B, K, H, W]`.
        shape: height, width and channels of its images, None where the file leaves one open.
        classes: K, None where the file leaves it open.
        map_hw: height and width of the answer, None where it is one for an image.
        batch: the only B that `run` takes; None for any. A last batch that is short is filled up and cut.
        at_most: the largest B that `run` takes; None for any.
        name: the runtime's name, for messages.
    """

    def __init__(
        self,
        run: Callable[[Images], npt.NDArray[np.generic]],
        *,
        shape: Sequence[int | None],
        classes: int | None,
        map_hw: Sequence[int | None] | None = None,
        batch: int | None = None,
        at_most: int | None = None,
        name: str,
    ) -> None:
        self._run, self._name, self.batch = run, name, batch
        self._step = batch or at_most
        height, width, channels = shape
        self.size_hw, self.channels, self.classes = (height, width), channels, classes
        self.answer = (classes,) if map_hw is None else (classes, *map_hw)

    def __call__(self, images: Images) -> Floats:
        """Probabilities float32 `[N, K]` or `[N, K, H, W]` of uint8 images `[N, H, W, C]`.

        Raises:
            SpecError: the images are of another shape or type. [runtime-input]
            RuntimeFailed: the runtime failed while it ran. [runtime-failed]
        """
        self._check(images)
        whole = np.ascontiguousarray(images)
        try:
            rows = [self._batch(part) for part in self._parts(whole)]
        except Exception as error:  # the runtimes' exceptions share no base but Exception
            raise RuntimeFailed(f"{self._name} failed: {first_line(error)}", code="runtime-failed") from error
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def _parts(self, images: Images) -> list[Images]:
        if self._step is None:
            return [images]
        return [images[start : start + self._step] for start in range(0, len(images), self._step)]

    def _batch(self, images: Images) -> Floats:
        missing = 0 if self.batch is None else self.batch - len(images)
        full = np.concatenate([images, np.repeat(images[-1:], missing, 0)]) if missing else images
        # a copy: some runtimes hand out memory that their next call writes over
        return np.array(self._run(full)[: len(images)], dtype=np.float32)

    def _check(self, images: Images) -> None:
        wanted = [*self.size_hw, self.channels]
        fits = (
            isinstance(images, np.ndarray)
            and images.dtype == np.uint8
            and images.ndim == 4
            and len(images) > 0
            and all(w in (None, n) for w, n in zip(wanted, images.shape[1:], strict=True))
        )
        if not fits:
            shape, kind = getattr(images, "shape", None), getattr(images, "dtype", type(images).__name__)
            size = ", ".join("any" if w is None else str(w) for w in wanted)
            raise SpecError(
                f"images: got {kind} {shape}, expected a numpy array uint8 [N, {size}] with N of "
                "at least 1. Spec.read gives one image of that kind; numpy.stack makes them a batch.",
                code="runtime-input",
            )


def of_answer(shape: Sequence[object]) -> dict[str, Any]:
    """`classes` and `map_hw` of a Session whose file says that it answers `[N, *shape]`."""
    known = [n if isinstance(n, int) else None for n in shape]
    return {"classes": known[0], "map_hw": tuple(known[1:]) if len(known) == 3 else None}


def read(path: Path, *, most: int = 2**31 - 1) -> bytes:
    """The bytes of an exported file.

    Raises:
        RuntimeFailed: it is not there, cannot be read, or is larger than `most` bytes.
            [runtime-missing, runtime-refused]
    """
    try:
        size = path.stat().st_size
        if size <= most:
            return path.read_bytes()
    except OSError as error:
        raise RuntimeFailed(
            f"{path}: cannot be read ({error.strerror}). Export it first.", code="runtime-missing"
        ) from error
    raise RuntimeFailed(
        f"{path.name}: {size} bytes, and such a file holds at most {most}.", code="runtime-refused"
    )


def refused(path: Path, runtime: str, error: Exception | str) -> RuntimeFailed:
    """The error of a file that a runtime does not load. [runtime-refused]"""
    reason = first_line(error) if isinstance(error, Exception) else error
    return RuntimeFailed(
        f"{path.name}: {runtime} refused it: {reason}. Export it again.", code="runtime-refused"
    )


def first_line(error: Exception) -> str:
    """What an exception says, in one line of at most 300 characters."""
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
