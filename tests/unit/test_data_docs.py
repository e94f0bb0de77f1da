"""docs/data.md against the program, and the script for the CIFAR-10 folder against `read`."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from niwaki import data, images
from niwaki.data import archive
from niwaki.errors import CODES, DataError

ROOT = Path(__file__).parents[2]
PREFIXES = (
    "data-", "image-", "file-stray", "file-repeated", "folder-", "row-", "zip-",
    "bands-differ", "bands-file", "bands-missing", "bands-size",
)  # fmt: skip


def test_the_page_lists_exactly_the_codes_of_data() -> None:
    page = (ROOT / "docs" / "data.md").read_text()
    rows = "\n".join(line for line in page.split("## Codes")[1].split("\n") if line.startswith("| `"))
    listed = set(re.findall(r"`([a-z]+-[a-z-]+)`", rows))
    assert listed == {code for code in CODES if code.startswith(PREFIXES)}


def test_every_code_of_data_is_used_in_the_source() -> None:
    folder = ROOT / "src" / "niwaki"
    source = "".join(p.read_text() for p in (folder / "data").glob("*.py"))
    source += "".join((folder / name).read_text() for name in ("images.py", "bands.py"))
    unused = {c for c in CODES if c.startswith(PREFIXES) and f'"{c}"' not in source}
    assert not unused


def test_the_numbers_of_the_page_are_the_programs() -> None:
    page = (ROOT / "docs" / "data.md").read_text()
    assert f"{images.MAX_PIXELS:,}".replace(",", " ") in page
    assert f"{images.MAX_BYTES >> 20} MiB" in page
    assert f"{archive.MAX_UNPACKED >> 30} GiB" in page and f"{archive.MAX_RATIO}-fold" in page


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray]:
    """A CIFAR-10 of 1210 noise images in the published form, made a folder by the script."""
    records = np.random.default_rng(0).integers(0, 256, (1210, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(1210) % 10
    for i, part in enumerate(np.split(records, [120, 240, 360, 480, 600]), start=1):
        name = f"data_batch_{i}.bin" if i < 6 else "test_batch.bin"
        (tmp_path / name).write_bytes(part.tobytes())
    (tmp_path / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    script = runpy.run_path(str(ROOT / "examples" / "cifar10_folder.py"))
    script["main"](tmp_path, tmp_path / "data" / "cifar10")
    monkeypatch.setenv("NIWAKI_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "cifar10", records


def test_the_script_makes_what_read_reads(cifar: tuple[Path, np.ndarray]) -> None:
    _, records = cifar
    found = data.read("cifar10", val=0.1)
    assert (len(found.train), len(found.val), len(found.test)) == (540, 60, 610)
    assert found.classes == tuple("abcdefghij") and not found.problems and not found.warnings
    for part, offset in ((found.train, 0), (found.val, 0), (found.test, 600)):
        for i, name in enumerate(part.names):
            record = records[offset + int(name.split("/")[1])]
            assert part.labels[i] == record[0]
            planes = np.asarray(part.sources[i]).transpose(2, 0, 1)
            assert np.array_equal(planes.reshape(-1), record[1:])


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda f: (f / "train_001.webp").unlink(), "image-missing"),
        (lambda f: (f / "test_000.webp").write_bytes(b"x"), "image-corrupt"),
        (lambda f: (f / "test_001.webp").rename(f / "train_001.webp"), "data-npz"),
        (
            lambda f: (f / "train_000.webp").write_bytes((f / "test_001.webp").read_bytes()),
            "data-npz",
        ),
        (lambda f: np.savez(f / "labels.npz", train_y=np.zeros(600, int)), "data-npz"),
        (lambda f: relabel(f, np.full(600, 77)), "data-npz"),
        (lambda f: relabel(f, np.zeros(600)), "data-npz"),
        (lambda f: relabel(f, np.zeros((600, 2), int)), "data-npz"),
    ],
)
def test_a_damaged_cifar_folder(cifar: tuple[Path, np.ndarray], damage, code: str) -> None:
    damage(cifar[0])
    with pytest.raises(DataError) as caught:
        data.read("cifar10")
    assert caught.value.code == code


def relabel(folder: Path, train_y: np.ndarray) -> None:
    with np.load(folder / "labels.npz") as labels:
        arrays = dict(labels) | {"train_y": train_y}
    np.savez(folder / "labels.npz", **arrays)
