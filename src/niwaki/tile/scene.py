"""A scene of any size predicted within a stated memory: tiles read, predicted, blended, and written row by row.

Order of all sums is that of the tiles, so the result does not depend on threads. A strip of columns is walked
from the top down, then the next; see windows, budget, stitch and scratch for the parts.
Shape letters: N images, T pixels of a tile, C channels, K classes, H W pixels of the scene.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.bands import counted, empty
from niwaki.errors import DataError, RuntimeFailed, SpecError
from niwaki.rasters.raster import Raster, Windows
from niwaki.tile import pixels, windows, writers
from niwaki.tile.budget import MB, Layout, Strip, layout
from niwaki.tile.memory import peak_mb, resident_mb
from niwaki.tile.readers import Source, chosen, open_source
from niwaki.tile.receptive import Field, within
from niwaki.tile.stitch import Band, best

Predictor = Callable[[Any], Any]
"""Pixels `[N, T, T, C]` to probabilities float32 `[N, K, T, T]`."""

OUTPUTS = ("classes", "probabilities")
_SYNC_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a scene is: tiles done of all, seconds since the start and those left, 0 while unknown."""

    done: int
    tiles: int
    seconds: float
    eta: float


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What a prediction took.

    Args:
        tiles, skipped: tiles predicted, and those left out for holding no data.
        resumed: pixels that a run before had written.
        need_mb: what the budget counted; `first_mb` what the process held after the first batch, `peak_mb` the
            most it ever held.
        model_s: seconds inside the predictor.
    """

    tiles: int
    skipped: int
    strips: int
    batch: int
    resumed: int
    need_mb: float
    first_mb: float
    peak_mb: float
    seconds: float
    model_s: float


def predict(
    predictor: Predictor,
    source: Source,
    sink: str | Path | npt.NDArray[Any],
    *,
    memory_mb: float = 512,
    tile: int | tuple[int, int] | None = None,
    overlap: int | None = None,
    blend: str = "hann",
    output: str = "classes",
    batch: int = 4,
    scale: pixels.Scale = None,
    nodata: float | None = None,
    bands: Sequence[int] = (),
    skip_empty: bool = True,
    level: int = 0,
    exact: Field | None = None,
    resume: str = "",
    palette: tuple[tuple[int, int, int], ...] = (),
    show: Callable[[Progress], None] | None = None,
) -> Stats:
    """Writes the prediction of a whole scene to `sink` and returns what it took.

    Args:
        predictor: pixels `[N, T, T, C]` to probabilities float32 `[N, K, T, T]`; its own working memory is not
            in the budget.
        source: GeoTIFF or any TIFF, a slide, .zarr, .npy, an array `[H, W]` or `[H, W, C]`; a `bands.Stack` of
            files of one grid; JPEG and PNG that fit.
        sink: .tif (Cloud-Optimised GeoTIFF), .zarr, .npy, .png, .geojson; or an array to write into, `[H, W]`
            of classes or `[K, H, W]` of probabilities.
        memory_mb: all that is held beside the predictor and the interpreter.
        tile: height and width in pixels; the predictor's `size_hw`, else 512.
        overlap: pixels that neighbours share; a quarter of the tile unless given.
        blend: "hann", "gauss", "linear", "mean", or "crop" (docs/tiles.md).
        output: "classes" uint8 (uint16 above 255 classes; no data is their largest number) or "probabilities"
            float32 (no data is nan).
        batch: the most tiles at a time.
        scale: None passes the pixels as they are; "bits", (low, high) or such a pair for each band
            (`Spec.scale`) bring them to uint8.
        nodata: the value of pixels without data; the file's own unless given.
        bands: of the scene, those that the model takes, the first being 1; all unless given.
        skip_empty: tiles in which no pixel holds data are not predicted.
        level: of a pyramid.
        exact: what the network sees (`tile.receptive_field`): then tiles give what the whole scene would.
        resume: what tells this model from others, such as a checksum: rows that a killed run of the same
            scene, model and knobs left on disk are gone on with. Empty: begun anew.
        palette: colours of the classes, for TIFF and PNG.
        show: called after each batch.
    Raises:
        SpecError: a knob is out of range. [tile-window, tile-scale, tile-knob]
        DataError: the scene cannot be read, has other bands, or the sink is of no kind that is written.
            [image-missing, bands-count, bands-size, tile-*]
        BudgetError: the memory is too little; the message says what is needed. [tile-memory]
        RunError: the disk is too small, or another process writes there. [tile-disk, tile-busy]
        ModelError: exact tiles of a scene that is smaller than a tile of the model's. [tile-exact]
        RuntimeFailed: the predictor gives something else than it should. [tile-output]
    Source: partition of unity as in windows.py; sums are taken out once final, so argmax equals that of a full
    canvas.
    """
    if output not in OUTPUTS or batch < 1 or memory_mb <= 0:
        raise SpecError(
            f"tile.predict: got output={output!r}, batch={batch}, memory_mb={memory_mb}; expected output "
            f"{' or '.join(OUTPUTS)}, and numbers above 0.",
            code="tile-knob",
        )
    writers.check(sink, output=output, source=source)
    raster = chosen(open_source(source, memory=int(memory_mb * MB / 2), level=level), bands)
    with contextlib.closing(_Job(raster)) as job:
        if nodata is not None:
            job.raster = replace(job.raster, nodata=nodata)
        job.plan(predictor, tile, overlap, blend, exact, scale, memory=int(memory_mb * MB), batch=batch)
        knobs = [
            job.rows.tile,
            job.columns.tile,
            job.overlap,
            job.blend,
            output,
            str(scale),
            job.raster.nodata,
            list(bands),
        ]
        identity = [job.raster.identity, [*knobs, skip_empty], resume] if resume else None
        shape, dtype = job.shape(output)
        with writers.opened(sink, shape, dtype, raster=job.raster, identity=identity, palette=palette) as out:
            stats = job.run(predictor, out, output=output, skip_empty=skip_empty, show=show)
            out.finish(job.layout.need)
    return replace(stats, peak_mb=peak_mb(), seconds=time.perf_counter() - job.began)


class _Job:
    """One scene on its way: what it is cut into, and what was counted."""

    layout: Layout
    rows: windows.Axis
    columns: windows.Axis

    def __init__(self, raster: Raster) -> None:
        self.raster = raster
        self.began = time.perf_counter()
        self.tiles = self.skipped = self.resumed = 0
        self.model_s = self.first_mb = 0.0

    def close(self) -> None:
        self.raster.close()

    def plan(
        self,
        predictor: Predictor,
        tile: int | tuple[int, int] | None,
        overlap: int | None,
        blend: str,
        exact: Field | None,
        scale: pixels.Scale,
        *,
        memory: int,
        batch: int,
    ) -> None:
        """Sets windows, number of classes and layout."""
        size = tile if tile is not None else getattr(predictor, "size_hw", None) or 512
        high, wide = (size, size) if isinstance(size, int) else size
        # a file that leaves its size open says None
        high, wide = high or 512, wide or 512
        held = getattr(predictor, "size_hw", None) or (None, None)
        if any(given not in (None, wanted) for given, wanted in zip(held, (high, wide), strict=True)):
            raise SpecError(
                f"tile.predict: the model takes tiles of {held[0]} x {held[1]} pixels, got tile={tile}. "
                "Leave tile out, or export the model for that size.",
                code="tile-knob",
            )
        self.overlap = min(high, wide) // 4 if overlap is None else overlap
        multiple = 1
        if exact is not None:
            self.overlap, blend, multiple = exact.overlap(self.overlap), "crop", exact.period
            high, wide = within(
                self.raster.name, self.raster.shape[:2], (high, wide), own=held, period=multiple
            )
        self.blend = blend
        height, width, channels = self.raster.shape
        check_bands(predictor, self.raster)
        shared = [
            0 if exact and tile >= side else self.overlap for tile, side in ((high, height), (wide, width))
        ]
        self.rows = windows.axis(height, tile=high, overlap=shared[0], blend=blend, multiple=multiple)
        self.columns = windows.axis(width, tile=wide, overlap=shared[1], blend=blend, multiple=multiple)
        self.scaled = pixels.scaler(self.raster.dtype, scale)
        self.classes = getattr(predictor, "classes", None) or self._ask(predictor, (high, wide, channels))
        self.layout = layout(
            self.raster,
            self.rows,
            self.columns,
            classes=self.classes,
            memory=memory,
            batch=batch,
            void=self.raster.nodata is not None,
        )

    def _ask(self, predictor: Predictor, shape: tuple[int, int, int]) -> int:
        """How many classes a predictor gives that does not say."""
        given = predictor(self.scaled(np.zeros((1, *shape), self.raster.dtype)))
        return int(checked(given, 1, shape[:2], None).shape[1])

    def shape(self, output: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and type of what is written."""
        scene = self.raster.shape[:2]
        if output == "probabilities":
            return (self.classes, *scene), np.dtype(np.float32)
        return scene, np.dtype(np.uint8 if self.classes <= 255 else np.uint16)

    def run(
        self,
        predictor: Predictor,
        out: writers.Sink,
        *,
        output: str,
        skip_empty: bool,
        show: Callable[[Progress], None] | None,
    ) -> Stats:
        """All strips, one after the other."""
        whole = len(self.rows.starts) * sum(len(strip.windows) for strip in self.layout.strips)
        done = 0
        for strip in self.layout.strips:
            walk = _Strip(self, strip, out, output)
            done += walk.first * len(strip.windows)
            at_start = done
            batches = _ahead(self._batches(strip, walk.first, skip_empty))
            asked = ((entries, self._predicted(predictor, entries, images)) for entries, images in batches)
            for entries in _behind(asked, walk.add):
                done += len(entries)
                if show is not None:
                    seconds = time.perf_counter() - self.began
                    left = seconds / max(1, done - at_start) * (whole - done)
                    show(Progress(done=done, tiles=whole, seconds=seconds, eta=left))
            walk.end()
        return Stats(
            tiles=self.tiles,
            skipped=self.skipped,
            strips=len(self.layout.strips),
            batch=self.layout.batch,
            resumed=self.resumed,
            need_mb=self.layout.need / MB,
            first_mb=self.first_mb,
            peak_mb=peak_mb(),
            seconds=time.perf_counter() - self.began,
            model_s=self.model_s,
        )

    def _batches(self, strip: Strip, first: int, skip_empty: bool) -> Iterator[tuple[list[Any], Any]]:
        """Entries (row, column, place in the batch or None, pixels without data) and images of each batch."""
        reader = Windows(self.raster, keep=self.layout.cache)
        entries: list[Any] = []
        images: list[Any] = []
        for row in range(first, len(self.rows.starts)):
            for column in strip.windows:
                image = reader.read(
                    self.rows.starts[row], self.columns.starts[column], self.rows.tile, self.columns.tile
                )
                void = empty(image, self.raster.nodata)
                if skip_empty and void is not None and void.all():
                    entries.append((row, column, None, None))
                else:
                    entries.append((row, column, len(images), void))
                    images.append(self.scaled(image))
                if len(images) == self.layout.batch or len(entries) >= 4096:
                    yield entries, np.stack(images) if images else None
                    entries, images = [], []
        if entries:
            yield entries, np.stack(images) if images else None

    def _predicted(self, predictor: Predictor, entries: list[Any], images: Any) -> Any:
        """What the model gives for the images of a batch, in the caller's own thread."""
        if images is None:
            return None
        count = sum(entry[2] is not None for entry in entries)
        began = time.perf_counter()
        given = predictor(images)
        self.model_s += time.perf_counter() - began
        if not self.first_mb:
            self.first_mb = resident_mb()
        return checked(given, count, (self.rows.tile, self.columns.tile), self.classes)


class _Strip:
    """A strip on its way: sums, and the row down to which all is written."""

    def __init__(self, job: _Job, strip: Strip, out: writers.Sink, output: str) -> None:
        self.job, self.strip, self.out, self.output = job, strip, out, output
        tile = (job.rows.tile, job.columns.tile)
        self.band = Band(job.classes, tile, strip.x0, strip.x1, mask=job.raster.nodata is not None)
        finals = [job.rows.final(row) for row in range(len(job.rows.starts))]
        self.written = next((y for y in reversed(finals) if out.done(strip.x0, strip.x1, y)), 0)
        job.resumed += self.written * (strip.x1 - strip.x0)
        # the first row of tiles that still weighs on a row that is not written
        self.row = self.first = (
            job.rows.reach(self.written, job.raster.shape[0])[0]
            if self.written < job.raster.shape[0]
            else len(finals)
        )
        self.taken = job.rows.starts[self.first] if self.first < len(finals) else 0
        self._synced = time.perf_counter()

    def add(self, entries: list[Any], given: Any) -> None:
        """Adds a batch; rows of tiles that are complete are written."""
        job = self.job
        for row, column, place, void in entries:
            while self.row < row:
                self._finish_row()
            y, x = job.rows.starts[row], job.columns.starts[column]
            if place is None:
                self.band.void(np.ones((job.rows.tile, job.columns.tile), bool), y, x)
                job.skipped += 1
                continue
            if void is not None:
                self.band.void(void, y, x)
            weights = job.rows.weights[row], job.columns.weights[column]
            job.tiles += 1
            if not self.band.add(given[place], y, x, *weights):
                raise RuntimeFailed(
                    f"tile.predict: the model gives numbers that are not finite for the tile at row {y}, "
                    f"column {x}. Look at the pixels there, or give nodata=.",
                    code="tile-output",
                )

    def end(self) -> None:
        """Writes what is left of the strip."""
        while self.row < len(self.job.rows.starts):
            self._finish_row()

    def _finish_row(self) -> None:
        final = self.job.rows.final(self.row)
        self.row += 1
        whole = max(self.taken, self.written)
        for _ in self.band.take(self.taken, min(final, whole)):
            continue  # a run before has written these rows; their sums here are not whole
        self.taken = final
        for y, sums, void in self.band.take(whole, final):
            block: Any = best(sums) if self.output == "classes" else sums
            if void is not None and void.any():
                block = np.where(void, np.iinfo(block.dtype).max if block.dtype.kind == "u" else np.nan, block)
            self.out.write(y, self.strip.x0, block)
        self.written = max(self.written, final)
        if time.perf_counter() - self._synced > _SYNC_S or final == self.job.raster.shape[0]:
            self.out.mark(self.strip.x0, self.strip.x1, final)
            self._synced = time.perf_counter()


def check_bands(predictor: Any, raster: Raster) -> None:
    """Nothing, where a scene has as many bands as the predictor says that it takes.

    Raises:
        DataError: it has more or fewer. [bands-count]
    """
    wanted, channels = getattr(predictor, "channels", None), raster.shape[2]
    if wanted in (None, channels):
        return
    mend = "Name those that it takes, in its order: --bands 1,2,... (bands= in Python)."
    raise DataError(
        f"{raster.name}: has {counted(channels)}, the model takes {wanted}. "
        f"{mend if channels > wanted else 'Give a scene that has all of them.'}",
        code="bands-count",
    )


def checked(given: Any, count: int, size: tuple[int, int], classes: int | None) -> Any:
    """What a predictor gave, `[count, K, T, T]` of floats.

    Raises:
        RuntimeFailed: it is something else. [tile-output]
    """
    shape: tuple[int, ...] = getattr(given, "shape", ())
    kind = getattr(given, "dtype", None)
    right = len(shape) == 4 and shape[0] == count and tuple(shape[2:]) == tuple(size)
    if not right or np.dtype(kind).kind != "f" or (classes is not None and shape[1] != classes):
        wanted = "K" if classes is None else classes
        raise RuntimeFailed(
            f"tile.predict: the predictor gives {kind} {list(shape)}, "
            f"expected floats [{count}, {wanted}, {size[0]}, {size[1]}]: a probability for each class and "
            "pixel.",
            code="tile-output",
        )
    return given


def _behind(asked: Iterator[tuple[Any, Any]], use: Callable[[Any, Any], None]) -> Iterator[Any]:
    """The first of each pair, once a thread has used it: one after the other, while the next is asked for."""
    with ThreadPoolExecutor(1) as pool:
        before: tuple[Any, Future[None]] | None = None
        for first, second in asked:
            if before is not None:
                before[1].result()
                yield before[0]
            before = first, pool.submit(use, first, second)
        if before is not None:
            before[1].result()
            yield before[0]


def _ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """The batches, each made by a thread while the one before is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch
