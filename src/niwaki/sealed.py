"""A sealed folder: every file in it is listed with its SHA-256, no other file is allowed, and it
is replaced whole.

`SHA256SUMS` is in the format of `sha256sum -c`. It shows damage; it is no signature, since whoever
can change a file can change the list too. Names are checked against a pattern before anything is
opened, so no path leads out of the folder, and links are refused.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections.abc import Mapping
from pathlib import Path

from niwaki import files
from niwaki.errors import ArtifactError, UnsafeArtifact

SUMS = "SHA256SUMS"
MAX_SUMS_BYTES = 65_536
MAX_FILES = 64
_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9_./-]{1,200})")


def check(path: Path, allowed: re.Pattern[str]) -> dict[str, Path]:
    """The files of a sealed folder by name, after every one was found listed, plain and undamaged.

    Args:
        allowed: what a file's name in the folder may be; matched whole.
    Raises:
        ArtifactError: not there, incomplete or damaged.
            [artifact-missing, artifact-incomplete, artifact-checksum, artifact-sums]
        UnsafeArtifact: a file that does not belong there, or a link. [artifact-extra,
            artifact-link]
    """
    path = recover(path)
    try:
        present = _present(path)
        listed = _listed(path, allowed, present)
        for name, digest in listed.items():
            if files.sha256(path / name) != digest:
                raise ArtifactError(
                    f"{path.name}: {name} is not what was saved (its SHA-256 differs). Fetch or make the "
                    "artifact again.",
                    code="artifact-checksum",
                )
    except OSError as error:
        raise ArtifactError(
            f"{path}: cannot be read ({error.strerror or error}). Check its rights.",
            code="artifact-missing",
        ) from error
    return {name: path / name for name in listed}


def write(path: Path, contents: Mapping[str, bytes | Path]) -> None:
    """Makes `path` a sealed folder of these files, replacing the one there; a crash leaves the old
    or the new.

    Args:
        contents: for each name its bytes, or a file whose content it shares (linked where
            possible).
    Raises:
        ArtifactError: `path` is there and is no sealed folder. [artifact-occupied]
    """
    path = recover(path)
    if path.is_symlink() or (path.exists() and not (path / SUMS).is_file()):
        raise ArtifactError(
            f"{path}: is there already and is no artifact, so it is not replaced. Choose another name.",
            code="artifact-occupied",
        )
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        _fill(fresh, contents)
    except OSError:  # a full disk: what was written of the new one takes room for nothing
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    _swap(fresh, path)


def _fill(folder: Path, contents: Mapping[str, bytes | Path]) -> None:
    sums = []
    for name, content in sorted(contents.items()):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            _share(content, target)
        else:
            files.write_bytes(target, content)
        sums.append(f"{files.sha256(target)}  {name}\n")
    files.write_bytes(folder / SUMS, "".join(sums).encode())


def recover(path: Path) -> Path:
    """`path`, put back from its previous state if a crash struck between the two renames of a
    replacement."""
    previous = _previous(path)
    if previous.exists():
        if not path.exists():
            time.sleep(0.2)  # a replacement in progress is at this point for an instant
        if path.exists():
            shutil.rmtree(previous, ignore_errors=True)
        else:
            previous.rename(path)
    return path


def _previous(path: Path) -> Path:
    return path.with_name(f".{path.name}.previous")


def _swap(fresh: Path, path: Path) -> None:
    if not path.exists():
        fresh.rename(path)
        return
    previous = _previous(path)
    path.rename(previous)
    fresh.rename(path)
    shutil.rmtree(previous, ignore_errors=True)


def _share(source: Path, target: Path) -> None:
    """The same bytes under a second name; files here are never changed in place, so a hard link
    will do."""
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, target)


def _present(path: Path) -> set[str]:
    """Names of the files in the folder; links and what is neither file nor folder are refused."""
    if not path.is_dir():
        raise ArtifactError(
            f"{path}: there is no such folder, expected a NAME.niwaki folder.",
            code="artifact-missing",
        )
    found: set[str] = set()
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        for entry in os.scandir(folder):
            name = Path(entry.path).relative_to(path).as_posix()
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode) and name.count("/") < 4:
                waiting.append(Path(entry.path))
            elif stat.S_ISREG(mode):
                found.add(name)
            else:
                raise UnsafeArtifact(
                    f"{path.name}: {name!r} is a link or no plain file, which is refused. Remove it.",
                    code="artifact-link",
                )
            if len(found) + len(waiting) > MAX_FILES:
                raise UnsafeArtifact(
                    f"{path.name}: holds more than {MAX_FILES} files, so it is no artifact.",
                    code="artifact-extra",
                )
    return found


def _listed(path: Path, allowed: re.Pattern[str], present: set[str]) -> dict[str, str]:
    """Name -> SHA-256 of all files but the list; the list and the folder must name the same
    ones."""
    sums = path / SUMS
    if SUMS not in present:
        raise ArtifactError(
            f"{path.name}: {SUMS} is missing, so it is no whole artifact.",
            code="artifact-incomplete",
        )
    if sums.stat().st_size > MAX_SUMS_BYTES:
        raise ArtifactError(f"{path.name}: {SUMS} is too large to be one.", code="artifact-sums")
    listed: dict[str, str] = {}
    *lines, rest = sums.read_bytes().decode("ascii", errors="replace").split("\n")
    for line in [*lines, rest] if rest else lines:  # a last line without its end was cut
        match = _LINE.fullmatch(line)
        if not match or match[2] in listed or line is rest:
            raise ArtifactError(
                f"{path.name}: {SUMS} has the line {line[:80]!r}, expected a SHA-256, two blanks and a name, "
                "each name once.",
                code="artifact-sums",
            )
        listed[match[2]] = match[1]
    for name in sorted(present - {SUMS} | listed.keys()):
        if not allowed.fullmatch(name) or name not in listed:
            raise UnsafeArtifact(
                f"{path.name}: {name!r} does not belong there. Remove it.", code="artifact-extra"
            )
        if name not in present:
            raise ArtifactError(
                f"{path.name}: {name} is missing. Fetch or make the artifact again.",
                code="artifact-incomplete",
            )
    return listed
