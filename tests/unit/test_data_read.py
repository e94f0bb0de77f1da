"""`data.read`: each source's layout, the splits, what becomes a Problem, a warning or an error."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from niwaki import data
from niwaki.data import DataSet
from niwaki.data.splits import counts
from niwaki.errors import DataError
from niwaki.spec import Spec


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def fill(folder: Path, classes: dict[str, int], *, first: int = 0) -> Path:
    """Class folders with so many different pictures each."""
    seed = first
    for name, count in classes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (folder / name / f"{i:03d}.png").write_bytes(picture(seed))
            seed += 1
    return folder


def error_of(path: str | Path, **knobs: object) -> DataError:
    with pytest.raises(DataError) as caught:
        data.read(path, **knobs)
    return caught.value


def names(found: DataSet) -> tuple[set[str], set[str], set[str]]:
    return set(found.train.names), set(found.val.names), set(found.test.names)


def test_folder_of_classes(tmp_path: Path) -> None:
    fill(tmp_path, {"dog": 20, "cat": 40, "Zebra": 10})
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"x")
    found = data.read(tmp_path)
    assert found.classes == ("Zebra", "cat", "dog")
    assert not found.problems and not found.warnings and found.flip
    assert [np.bincount(s.labels).tolist() for s in (found.train, found.val, found.test)] == [
        [6, 28, 14],
        [2, 6, 3],
        [2, 6, 3],
    ]
    train, val, test = names(found)
    assert len(train | val | test) == 70 and not train & val and not val & test
    for name, label in zip(found.test.names, found.test.labels, strict=True):
        assert name.startswith(found.classes[label] + "/")
    assert found.train.batch([0, 1], Spec(size_hw=(6, 6))).shape == (2, 6, 6, 3)


def test_splits_are_stable_seeded_and_free_of_place_and_name(tmp_path: Path) -> None:
    fill(tmp_path / "a", {"x": 30, "y": 30})
    one = data.read(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert data.read(tmp_path / "b").fingerprint == one.fingerprint
    assert names(data.read(tmp_path / "a", seed=1)) != names(one)
    (tmp_path / "b" / "x" / "000.png").rename(tmp_path / "b" / "x" / "zzz.png")
    renamed = data.read(tmp_path / "b")
    assert {n.replace("zzz", "000") for n in renamed.test.names} == set(one.test.names)
    assert renamed.fingerprint != one.fingerprint
    (tmp_path / "b" / "x" / "new.png").write_bytes(picture(999))
    assert len(names(data.read(tmp_path / "b"))[2] ^ set(renamed.test.names)) <= 2


def test_the_order_in_which_the_system_lists_files_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, {"x": 12, "y": 12})
    before = data.read(tmp_path)
    scandir = os.scandir

    class Backwards:
        def __init__(self, path: Path) -> None:
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda e: e.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Backwards)
    after = data.read(tmp_path)
    assert after.fingerprint == before.fingerprint and after.train.names == before.train.names


def test_given_splits_are_respected_and_missing_ones_are_cut_from_train(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"x": 20, "y": 20})
    fill(tmp_path / "valid", {"x": 3, "y": 4}, first=100)
    found = data.read(tmp_path)
    assert set(found.val.names) == {f"valid/x/{i:03d}.png" for i in range(3)} | {
        f"valid/y/{i:03d}.png" for i in range(4)
    }
    assert len(found.test) == 6 and all(n.startswith("train/") for n in found.test.names)
    fill(tmp_path / "test", {"x": 2, "y": 2}, first=200)
    found = data.read(tmp_path)
    assert (len(found.train), len(found.val), len(found.test)) == (40, 7, 4)


def test_layout_errors(tmp_path: Path) -> None:
    assert error_of(tmp_path / "none").code == error_of("").code == "data-missing"
    assert "digits" in str(error_of(tmp_path / "none"))
    (tmp_path / "void").mkdir()
    assert error_of(tmp_path / "void").code == "data-empty"
    fill(tmp_path / "flat", {"": 3})
    assert error_of(tmp_path / "flat").code == "data-empty"
    assert error_of(fill(tmp_path / "one", {"x": 5})).code == "data-few-classes"
    assert error_of(fill(tmp_path / "hollow", {"x": 5, "y": 5, "z": 0})).code == "data-class-empty"
    fill(tmp_path / "mixed", {"x": 5, "train/x": 5})
    assert error_of(tmp_path / "mixed").code == "data-layout"
    fill(tmp_path / "twice", {"train/x": 5, "val/x": 1, "valid/x": 1})
    assert error_of(tmp_path / "twice").code == "data-layout"
    fill(tmp_path / "untrained", {"test/x": 5, "test/y": 5})
    assert error_of(tmp_path / "untrained").code == "data-no-train"
    fill(tmp_path / "unlearned", {"train/x": 5, "train/y": 5, "test/x": 1, "test/z": 1})
    assert error_of(tmp_path / "unlearned").code == "data-class-empty"
    fill(tmp_path / "small", {"x": 2, "y": 2})
    assert error_of(tmp_path / "small").code == "data-few-images"
    (tmp_path / "a.txt").write_text("x")
    assert error_of(tmp_path / "a.txt").code == "data-format"
    assert error_of(tmp_path / "one" / "x" / "000.png").code == "data-format"
    for shares in ({"val": 0.5, "test": 0.5}, {"val": -0.1}, {"test": 1.0}, {"val": float("nan")}):
        assert error_of(tmp_path / "one", **shares).code == "data-shares"


def test_everything_left_out_is_named(tmp_path: Path) -> None:
    fill(tmp_path, {"x": 8, "y": 8})
    (tmp_path / "x" / "broken.png").write_bytes(picture(0)[:60])
    (tmp_path / "x" / "empty.png").write_bytes(b"")
    (tmp_path / "x" / "notes.txt").write_text("a text")
    (tmp_path / "x" / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "y" / "deeper").mkdir()
    (tmp_path / "y" / "deeper" / "a.png").write_bytes(picture(77))
    (tmp_path / "README.md").write_text("about")
    found = data.read(tmp_path)
    assert {p.path: p.code for p in found.problems} == {
        "README.md": "file-stray",
        "x/broken.png": "image-corrupt",
        "x/empty.png": "image-empty",
        "x/gone.png": "image-missing",
        "x/notes.txt": "image-unsupported",
        "y/deeper": "folder-nested",
    }
    assert all(p.path in p.message for p in found.problems)
    assert len(found.train) + len(found.val) + len(found.test) == 16


def test_thin_classes_are_warned_of(tmp_path: Path) -> None:
    found = data.read(fill(tmp_path, {"x": 10, "only": 1, "two": 2}))
    single, no_test = found.warnings
    assert "one image" in single and "only" in single
    assert "test has no image of: two" in no_test
    assert "only/000.png" in found.train.names


def test_duplicates(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"x": 10, "y": 10})
    fill(tmp_path / "test", {"x": 2, "y": 2}, first=100)
    assert not data.read(tmp_path).warnings
    shutil.copy(tmp_path / "train" / "x" / "003.png", tmp_path / "test" / "x" / "copy.png")
    (across,) = data.read(tmp_path).warnings
    assert across.startswith("duplicates across splits: 1 images")
    assert "test/x/copy.png" in across and "train/x/003.png" in across
    shutil.copy(tmp_path / "train" / "x" / "004.png", tmp_path / "train" / "y" / "same.png")
    labels = data.read(tmp_path).warnings[0]
    assert labels.startswith("duplicates with different labels: 1 images")
    assert "train/x/004.png = train/y/same.png" in labels


def test_copies_stay_together_when_splits_are_made(tmp_path: Path) -> None:
    fill(tmp_path, {"x": 15, "y": 15})
    for i in range(15):
        shutil.copy(tmp_path / "x" / f"{i:03d}.png", tmp_path / "x" / f"copy{i:03d}.png")
    found = data.read(tmp_path)
    for part in names(found):
        originals = {n for n in part if n.startswith("x/") and "copy" not in n}
        assert {n.replace("x/", "x/copy") for n in originals} <= part
    assert [w.split(":")[0] for w in found.warnings] == ["duplicates"]
    assert len(found.test) == 4 + 2 and len(found.val) == 4 + 2


def test_stored_splits_are_made_again_or_refused(tmp_path: Path) -> None:
    fill(tmp_path, {"x": 20, "y": 20})
    first = data.read(tmp_path, seed=5)
    stored = json.loads(json.dumps(first.splits_json()))
    again = data.read(tmp_path, seed=0, splits=stored)
    assert names(again) == names(first) and again.fingerprint == first.fingerprint
    (tmp_path / "x" / "000.png").unlink()
    (tmp_path / "x" / "new.png").write_bytes(picture(555))
    error = error_of(tmp_path, splits=stored)
    assert error.code == "data-changed"
    assert "x/000.png" in str(error) and "x/new.png" in str(error)
    for damaged in ({}, {"train": []}, stored | {"val": None}, stored | {"test": "x/001.png"}):
        assert error_of(tmp_path, splits=damaged).code == "data-changed"


def zipped(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def test_zip_is_read_like_the_folder_it_holds(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", {"x": 9, "y": 9})
    entries = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.png")}
    plain = data.read(zipped(tmp_path / "a.zip", entries))
    assert plain.fingerprint == data.read(folder).fingerprint
    wrapped = {f"photos/{name}": content for name, content in entries.items()}
    wrapped |= {"__MACOSX/photos/x/._000.png": b"junk", "photos/.DS_Store": b"junk"}
    assert data.read(zipped(tmp_path / "b.zip", wrapped)).fingerprint == plain.fingerprint
    split = {f"train/{name}": content for name, content in entries.items()}
    assert set(data.read(zipped(tmp_path / "c.zip", split)).classes) == {"x", "y"}
    batch = plain.train.batch(range(3), Spec(size_hw=(6, 6)))
    assert np.array_equal(batch, data.read(folder).train.batch(range(3), Spec(size_hw=(6, 6))))


def test_zip_entries_that_leave_the_archive_are_left_out(tmp_path: Path) -> None:
    entries = {f"{c}/{i}.png": picture(i + 50 * (c == "y")) for c in "xy" for i in range(5)}
    entries |= {"../x/evil.png": picture(90), "/abs/x/evil.png": picture(91)}
    found = data.read(zipped(tmp_path / "a.zip", entries))
    assert [p.code for p in found.problems] == ["zip-entry", "zip-entry"]
    assert not (tmp_path.parent / "x").exists()


def test_npz_in_its_forms(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    x = draw.integers(0, 256, (60, 5, 5, 3), dtype=np.uint8)
    y = np.arange(60) % 12
    np.savez(tmp_path / "a.npz", x=x, y=y)
    found = data.read(tmp_path / "a.npz")
    assert found.classes == tuple(str(i) for i in range(12))
    for part in (found.train, found.val, found.test):
        assert isinstance(part.sources, np.ndarray)
        for i, (name, label) in enumerate(zip(part.names, part.labels, strict=True)):
            row = int(name.split("/")[1])
            assert y[row] == label and np.array_equal(part.sources[i], x[row])
    np.savez(tmp_path / "b.npz", images=x[..., 0], labels=np.array(["b", "a"])[y % 2])
    found = data.read(tmp_path / "b.npz")
    assert found.classes == ("a", "b")
    assert found.train.batch([0], Spec(size_hw=(5, 5))).shape == (1, 5, 5, 3)
    given = {"x_train": x[:40], "y_train": y[:40] % 2, "x_test": x[40:], "y_test": y[40:, None] % 2}
    np.savez(tmp_path / "c.npz", **given, classes=np.array(["even", "odd"]))
    found = data.read(tmp_path / "c.npz")
    assert found.classes == ("even", "odd") and (len(found.train), len(found.test)) == (34, 20)
    np.savez(
        tmp_path / "d.npz",
        **{f"{k[2:]}_{'images' if k[0] == 'x' else 'labels'}": v for k, v in given.items()},
    )
    assert len(data.read(tmp_path / "d.npz").test) == 20


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_manifests(tmp_path: Path) -> None:
    fill(tmp_path / "pics", {"p": 20})
    outside = fill(tmp_path.parent / f"{tmp_path.name}-outside", {"q": 1}, first=500)
    rows = [{"path": f"pics/p/{i:03d}.png", "label": "ab"[i % 2]} for i in range(20)]
    rows.append({"path": str(outside / "q" / "000.png"), "label": "a"})
    plain = data.read(write_csv(tmp_path / "m.csv", rows))
    assert plain.classes == ("a", "b") and not plain.problems
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, reversed(rows))))
    assert data.read(tmp_path / "m.jsonl").fingerprint == plain.fingerprint
    for i, row in enumerate(rows):
        row["split"] = ["train", "valid", "test", "train", ""][i % 5]
    rows.append({"path": "pics/p/none.png", "label": "a", "split": "train"})
    rows.append({"path": "pics/p/001.png", "label": "b", "split": "holdout"})
    rows.append({"path": "pics/p/001.png", "label": "a", "split": "train"})
    rows.append({"path": "", "label": "a", "split": "train"})
    rows.append({"path": "pics/p/002.png", "label": "  ", "split": "train"})
    found = data.read(write_csv(tmp_path / "s.csv", rows))
    assert (len(found.train), len(found.val), len(found.test)) == (13, 4, 4)
    assert sorted(p.code for p in found.problems) == [
        "file-repeated",
        "image-missing",
        "row-bad",
        "row-bad",
        "row-bad",
    ]
    assert any(p.path.endswith("s.csv:24") for p in found.problems)


def test_digits() -> None:
    found = data.read("digits")
    assert found.classes == tuple("0123456789") and not found.flip and not found.problems
    assert len(found.train) + len(found.val) + len(found.test) == 1797
    assert abs(len(found.test) - 0.15 * 1797) < 5 and abs(len(found.val) - 0.15 * 1797) < 5
    batch = found.train.batch(
        range(len(found.train)), Spec(size_hw=(8, 8), mean=(0.5,), std=(0.5,), channels=1)
    )
    assert batch.max() == 255 and batch.min() == 0
    assert data.read("digits").fingerprint == found.fingerprint
    assert data.read("digits", seed=1).fingerprint != found.fingerprint


def test_a_path_object_is_never_a_built_in_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert error_of(Path("digits")).code == "data-missing"


def test_cifar10_without_the_files_says_where_they_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIWAKI_DATA", raising=False)
    assert error_of("cifar10").code == "data-unset"
    monkeypatch.setenv("NIWAKI_DATA", str(tmp_path))
    assert error_of("cifar10").code == "data-unset"
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "labels.npz").write_bytes(b"no zip")
    assert error_of("cifar10").code == "data-npz"


@pytest.mark.skipif(
    not (Path(os.environ.get("NIWAKI_DATA", "/none")) / "cifar10").is_dir(),
    reason="needs NIWAKI_DATA with cifar10/ (docs/data.md)",
)
def test_cifar10() -> None:
    found = data.read("cifar10", val=0.1)
    assert (len(found.train), len(found.val), len(found.test)) == (45_000, 5_000, 10_000)
    assert np.bincount(found.val.labels).tolist() == [500] * 10
    assert found.classes[0] == "airplane" and found.flip and not found.problems
    assert found.test.names[0] == "test/00000" and found.test.labels[:4].tolist() == [3, 8, 8, 0]
    pixels = found.train.batch(range(0, 45_000, 50), Spec(size_hw=(32, 32)))
    assert np.abs(pixels.mean(axis=(0, 1, 2)) / 255 - [0.491, 0.482, 0.447]).max() < 0.02


@pytest.mark.parametrize(
    ("size", "want"),
    [(1, (0, 0)), (2, (1, 0)), (3, (1, 1)), (7, (1, 1)), (20, (3, 3)), (100, (15, 15))],
)
def test_counts(size: int, want: tuple[int, int]) -> None:
    assert counts(size, val=0.15, test=0.15) == want
    assert counts(size, val=0, test=0) == (0, 0)
