"""The file a prediction grows in, and the journal that lets it go on after a crash.

Beside `OUT` a folder `.OUT.part` holds `scene.npy`, pixels row by row at places known beforehand, and a
journal of the rows that are on disk. The file takes its room on disk at the start, so a disk that is too small
is told before hours are spent. `OUT` itself appears only when it is whole. Shape letters: H W pixels, K
classes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.errors import RunError
from niwaki.images import printable
from niwaki.journal import Journal

Pixels = npt.NDArray[Any]
_MB = 1 << 20


class Raw:
    """Pixels `[H, W]` or `[K, H, W]` in a .npy file, written and read by window, never mapped into memory.

    Raises:
        OSError: the disk has not the room, which is taken at once.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        self._head = _head(shape, self.dtype)
        self.size = raw_bytes(shape, self.dtype)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file, 0, self.size)
            os.ftruncate(self._file, self.size)
            os.pwrite(self._file, self._head, 0)
        except OSError:
            self.close()
            raise

    @property
    def planes(self) -> int:
        """K, or 1."""
        return self.shape[0] if len(self.shape) == 3 else 1

    def write(self, y: int, x: int, block: Pixels) -> None:
        """Puts `[n, w]` or `[K, n, w]` at row y, column x."""
        height, width = self.shape[-2:]
        planes = np.ascontiguousarray(block, self.dtype).reshape(-1, *block.shape[-2:])
        for k, plane in enumerate(planes):
            if plane.shape[1] == width:  # whole rows lie in one piece
                self._put(plane.data, (k * height + y) * width)
                continue
            for row, line in enumerate(plane):
                self._put(line.data, (k * height + y + row) * width + x)

    def put_plane(self, plane: int, y: int, rows: Pixels) -> None:
        """Puts whole rows `[n, W]` of one plane from row y on."""
        self._put(np.ascontiguousarray(rows, self.dtype).data, (plane * self.shape[-2] + y) * self.shape[-1])

    def _put(self, data: memoryview, pixel: int) -> None:
        left = data.cast("B")
        place = len(self._head) + pixel * self.dtype.itemsize
        while left:
            done = os.pwrite(self._file, left, place)
            left, place = left[done:], place + done

    def read(self, y0: int, y1: int, x0: int, x1: int, plane: int = 0) -> Pixels:
        """Pixels `[y1 - y0, x1 - x0]` of one plane."""
        height, width = self.shape[-2:]
        item = self.dtype.itemsize
        if (x0, x1) == (0, width):
            data = os.pread(
                self._file, (y1 - y0) * width * item, len(self._head) + (plane * height + y0) * width * item
            )
            return np.frombuffer(data, self.dtype).reshape(y1 - y0, width)
        out = np.empty((y1 - y0, x1 - x0), self.dtype)
        for row in range(y0, y1):
            place = len(self._head) + ((plane * height + row) * width + x0) * item
            out[row - y0] = np.frombuffer(os.pread(self._file, (x1 - x0) * item, place), self.dtype)
        return out

    def sync(self) -> None:
        """Returns when all that was written is on disk."""
        os.fdatasync(self._file)

    def close(self) -> None:
        """Lets go of the file."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


class Scratch:
    """The Raw file that a prediction grows in, with its journal and lock.

    Args:
        out: the file that it will become.
        identity: JSON of all that the pixels depend on; a folder left by another run is not gone on with.
        finishing: bytes on disk that making `out` takes beside the scratch.
        resume: go on with rows that are on disk already; else begin anew.
    Raises:
        RunError: another process writes there, or there is too little room on the disk. [tile-busy, tile-disk]
    """

    def __init__(
        self,
        out: Path,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        *,
        identity: Any,
        finishing: int,
        resume: bool,
    ) -> None:
        self.out = out
        self.folder = out.with_name(f".{out.name}.part")
        self.path = self.folder / "scene.npy"
        size = raw_bytes(shape, np.dtype(dtype))
        self._need = size + finishing
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.folder, out)
        self._begin(identity, size, resume=resume)
        held = self.path.stat().st_blocks * 512 if self.path.exists() else 0
        free = shutil.disk_usage(self.folder).free
        if free < max(0, size - held) + finishing:
            self.close()
            raise full(self.out, need=self._need, free=free + held)
        with self.guarded():
            self.raw = Raw(self.path, shape, dtype)

    def _begin(self, identity: Any, size: int, *, resume: bool) -> None:
        journal = self.folder / "journal.jsonl"
        if journal.exists():
            held = Journal(journal)
            same = "scene" in held and held.decide("scene", dict) == identity
            if not (resume and same and self.path.exists() and self.path.stat().st_size == size):
                journal.unlink()
        self.journal = Journal(journal)
        self.resumed = "scene" in self.journal
        self.journal.decide("scene", lambda: identity)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """What is written inside: a full disk raises RunError, and all that was written stays. [tile-disk]"""
        try:
            yield
        except OSError as error:
            free = shutil.disk_usage(self.folder).free
            self.close()
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise full(self.out, need=self._need, free=free) from error
            raise RunError(
                f"{printable(str(self.out))}: could not be written ({error.strerror}). The same command goes "
                "on.",
                code="tile-disk",
            ) from error

    def mark(self, key: str) -> None:
        """Puts on disk all that was written, then writes the key down in the journal."""
        with self.guarded():
            self.raw.sync()
            self.journal.decide(key, lambda: True)

    def close(self) -> None:
        """Lets go of the files; the folder stays, to go on with."""
        if hasattr(self, "raw"):
            self.raw.close()
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def remove(self) -> None:
        """Takes the folder away, its work being done."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.close()


def raw_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Bytes of a .npy file."""
    return len(_head(shape, dtype)) + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def full(out: Path, *, need: int, free: int) -> RunError:
    """The error of a disk without room. [tile-disk]"""
    return RunError(
        f"{printable(str(out))}: the disk is too small: writing it takes up to {-(-need // _MB)} MB beside "
        f"it for a while, {free // _MB} MB are free. Make room, and the same command goes on where it stopped.",
        code="tile-disk",
    )


def _head(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    head = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, described)
    return head.getvalue()


def _locked(folder: Path, out: Path) -> int:
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise RunError(
            f"{printable(str(out))}: another process is writing it. Wait for it, or give another output.",
            code="tile-busy",
        ) from error
    return handle
