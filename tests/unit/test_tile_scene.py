"""A scene end to end: budget, strips, no data, crashes, full disks, what is refused."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from niwaki import tile
from niwaki.errors import BudgetError, DataError, NiwakiError, RunError, RuntimeFailed

CODE = """
import sys, time
import numpy as np
import niwaki.tile as tile

def odds(images):
    bright = images.astype(np.float32).mean(3)[:, None] / 255
    return np.concatenate([bright, 1 - bright], 1)
"""


def odds(images: Any) -> Any:
    """Two classes: how bright a pixel is, and how dark."""
    bright = images.astype(np.float32).mean(3)[:, None] / 255
    return np.concatenate([bright, 1 - bright], 1)


@pytest.fixture
def scene() -> Any:
    return np.random.default_rng(0).integers(0, 256, (300, 420, 3)).astype(np.uint8)


def python(code: str, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CODE + textwrap.dedent(code), *map(str, words)],
        capture_output=True,
        text=True,
        check=check,
    )


def test_strips_give_the_same_bits_as_the_whole_width(scene: Any) -> None:
    got = {}
    for memory in (200, 2.35):
        out = np.zeros((2, 300, 420), np.float32)
        stats = tile.predict(odds, scene, out, tile=64, overlap=40, memory_mb=memory, output="probabilities")
        got[stats.strips] = out
    assert len(got) == 2
    assert min(got) == 1
    one, other = got.values()
    assert (one == other).all()


def test_batches_and_calls_do_not_change_the_result(scene: Any) -> None:
    outs = []
    for batch in (1, 3, 50):
        outs.append(np.zeros((2, 300, 420), np.float32))
        tile.predict(odds, scene, outs[-1], tile=64, batch=batch, output="probabilities")
    assert (outs[0] == outs[1]).all()
    assert (outs[0] == outs[2]).all()


def test_a_scene_smaller_than_a_tile_and_tiles_that_are_not_square() -> None:
    scene = np.random.default_rng(0).integers(0, 256, (17, 1, 1)).astype(np.uint8)
    out = np.full((17, 1), 7, np.uint8)
    tile.predict(odds, scene, out, tile=(8, 32), overlap=3)
    assert (out == odds(scene[None])[0].argmax(0)).all()


def test_too_little_memory_names_what_is_needed_and_that_is_enough(scene: Any) -> None:
    out = np.zeros((300, 420), np.uint8)
    with pytest.raises(BudgetError, match=r"need (\d+) MB") as caught:
        tile.predict(odds, scene, out, tile=256, memory_mb=1)
    assert caught.value.code == "tile-memory"
    need = int(str(caught.value).split(" need ")[1].split()[0])
    tile.predict(odds, scene, out, tile=256, memory_mb=need)


def test_memory_is_bounded_whatever_the_height(tmp_path: Path) -> None:
    """Peak memory of a fresh process, at two heights: the budget holds, and ten times the rows cost nothing."""
    code = """
        height, path = int(sys.argv[1]), sys.argv[2]
        row = np.random.default_rng(0).integers(0, 256, (1, 3000, 3)).astype(np.uint8)
        scene = np.broadcast_to(row, (height, 3000, 3))
        stats = tile.predict(odds, scene, path, tile=128, memory_mb=24, overlap=32, batch=2)
        print(stats.first_mb, stats.peak_mb, stats.strips)
    """
    peaks = {}
    for height in (600, 6000):
        first, peak, strips = map(float, python(code, height, tmp_path / "m.npy").stdout.split())
        assert peak < first + 1.5 * 24
        assert strips >= 1
        peaks[height] = peak
    assert peaks[6000] < peaks[600] + 8
    assert peaks[6000] < 2 * 4 * 6000 * 3000 / 2**20  # the canvas alone would be more


def test_no_data_is_skipped_and_marked() -> None:
    scene = np.full((256, 256, 2), 200, np.uint8)
    scene[:150, :] = 0
    scene[200:, 200:, 0] = 0  # one channel alone is data
    calls = []

    def counted(images: Any) -> Any:
        calls.append(len(images))
        return odds(images)

    counted.classes = 2  # type: ignore[attr-defined]
    out = np.zeros((256, 256), np.uint8)
    stats = tile.predict(counted, scene, out, tile=64, overlap=16, nodata=0)
    assert stats.skipped > 0
    assert sum(calls) == stats.tiles
    assert stats.tiles + stats.skipped == 25
    assert (out[:150] == 255).all()
    assert (out[150:, :200] == 0).all()
    assert (out[200:, 200:] == 1).all()
    floats = np.zeros((2, 256, 256), np.float32)
    assert (
        tile.predict(odds, scene, floats, tile=64, nodata=0, output="probabilities", skip_empty=False).skipped
        == 0
    )
    assert np.isnan(floats[:, :150]).all()
    assert np.isfinite(floats[:, 150:]).all()


@pytest.mark.parametrize(
    "given",
    [
        lambda images: np.zeros((len(images), 2, 8, 8), np.float32),
        lambda images: np.zeros((len(images), 2), np.float32),
        lambda images: odds(images).astype(np.int64),
        lambda images: odds(images) * np.nan,
        lambda images: "no array",
    ],
)
def test_a_predictor_that_gives_something_else_is_refused(scene: Any, given: Any) -> None:
    with pytest.raises(RuntimeFailed) as caught:
        tile.predict(given, scene, np.zeros((300, 420), np.uint8), tile=64)
    assert caught.value.code == "tile-output"


def test_sixteen_bits_are_scaled_by_the_rule_or_range() -> None:
    scene = np.array([[[0], [128], [129], [65535]]], np.uint16)
    seen: list[Any] = []

    def looks(images: Any) -> Any:
        seen.append(images[0, :1, :, 0].tolist()[0][:4])
        return odds(images)

    for scale in ("bits", (100, 151), None):
        tile.predict(looks, scene, np.zeros((1, 4), np.uint8), tile=4, overlap=0, scale=scale)
    assert seen[1::2] == [[0, 0, 1, 255], [0, 140, 145, 255], [0, 128, 129, 65535]]
    with pytest.raises(NiwakiError, match="range of their own"):
        tile.predict(looks, scene.astype(np.float32), np.zeros((1, 4), np.uint8), scale="bits")


KILLED = """
    class Slow:
        classes = 2
        def __call__(self, images):
            time.sleep(0.006)
            return odds(images)

    knobs = dict(tile=64, overlap=16, memory_mb=2.45, batch=1, resume="m1", output="probabilities")
    tile.scene._SYNC_S = 0.0
    stats = tile.predict(Slow() if sys.argv[3] == "slow" else odds, sys.argv[1], sys.argv[2], **knobs)
    print(stats.resumed, stats.tiles, stats.strips)
"""


def wait_for_rows(journal: Path, process: Any, rows: int) -> None:
    import time

    for _ in range(2000):
        if journal.exists() and journal.read_bytes().count(b"\n") > rows:
            return
        assert process.poll() is None
        time.sleep(0.01)
    raise AssertionError("the journal did not grow")


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "s.npy", rng.integers(0, 256, (700, 640, 3)).astype(np.uint8))
    out, whole = tmp_path / "o.npy", tmp_path / "whole.npy"
    process = subprocess.Popen(
        [sys.executable, "-c", CODE + textwrap.dedent(KILLED), tmp_path / "s.npy", out, "slow"]
    )
    wait_for_rows(tmp_path / ".o.npy.part" / "journal.jsonl", process, 6)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    resumed, tiles, strips = map(int, python(KILLED, tmp_path / "s.npy", out, "quick").stdout.split())
    _, all_tiles, _ = map(int, python(KILLED, tmp_path / "s.npy", whole, "quick").stdout.split())
    assert resumed > 0
    assert tiles < all_tiles
    assert strips > 1
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.npy", "s.npy", "whole.npy"]


def test_what_another_model_left_is_not_gone_on_with(scene: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", scene)

    def breaks(images: Any) -> Any:
        if (images == 7).all():
            raise KeyboardInterrupt
        return odds(images)

    scene[230:] = 7
    np.save(tmp_path / "s.npy", scene)
    knobs: dict[str, Any] = {"tile": 64, "memory_mb": 2.45, "batch": 1}
    with pytest.raises(KeyboardInterrupt):
        tile.predict(breaks, tmp_path / "s.npy", tmp_path / "o.npy", resume="one", **knobs)
    assert (tmp_path / ".o.npy.part").exists()
    assert tile.predict(odds, tmp_path / "s.npy", tmp_path / "o.npy", resume="two", **knobs).resumed == 0
    assert (np.load(tmp_path / "o.npy") == odds(scene[None])[0].argmax(0)).all()
    with pytest.raises(KeyboardInterrupt):  # without a name for the model nothing is kept
        tile.predict(breaks, tmp_path / "s.npy", tmp_path / "p.npy", **knobs)
    assert not (tmp_path / ".p.npy.part").exists()
    assert not (tmp_path / "p.npy").exists()


def test_two_writers_of_one_file(scene: Any, tmp_path: Path) -> None:
    def again(images: Any) -> Any:
        with pytest.raises(RunError) as caught:
            tile.predict(odds, scene, tmp_path / "o.npy", tile=64)
        assert caught.value.code == "tile-busy"
        return odds(images)

    again.classes = 2  # type: ignore[attr-defined]
    tile.predict(again, scene[:64, :64], tmp_path / "o.npy", tile=64)
    assert (tmp_path / "o.npy").exists()


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_a_disk_that_is_full_is_told_and_nothing_half_is_left(tmp_path: Path, suffix: str) -> None:
    """A limit on the size of files stands for the disk's end: the kernel refuses the write in both cases."""
    code = """
        import resource
        from niwaki.errors import RunError
        scene = np.random.default_rng(0).integers(0, 256, (600, 600, 3)).astype(np.uint8)
        limit = int(sys.argv[2])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            tile.predict(odds, scene, sys.argv[1], tile=128, resume="x", palette=())
        except RunError as error:
            print(error.code)
    """
    out = tmp_path / f"o{suffix}"
    assert python(code, out, 300_000).stdout.strip() == "tile-disk"
    assert not out.exists()


@pytest.mark.parametrize("suffix", [".npy", ".tif", ".png", ".zarr"])
def test_a_disk_that_is_full_while_the_file_is_made(
    scene: Any, tmp_path: Path, suffix: str, monkeypatch: Any
) -> None:
    """The scratch is whole, the second pass fails: it stays, and the same call makes the file from it."""
    out = tmp_path / f"o{suffix}"
    calls: list[int] = []

    def counted(images: Any) -> Any:
        calls.append(len(images))
        return odds(images)

    counted.classes = 2  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:

        def no_room(*args: Any, **knobs: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr("niwaki.tile.writers._moved", no_room)
        with pytest.raises(RunError) as caught:
            tile.predict(counted, scene, out, tile=64, resume="x")
        assert caught.value.code == "tile-disk"
    assert not out.exists()
    assert calls
    calls.clear()
    stats = tile.predict(counted, scene, out, tile=64, resume="x")
    assert stats.resumed == 300 * 420
    assert not calls
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_too_small_is_told_before_a_tile_is_predicted(small_disk: Path) -> None:
    def never(images: Any) -> Any:
        raise AssertionError

    never.classes = 2  # type: ignore[attr-defined]
    scene = np.broadcast_to(np.zeros((1, 2000, 1), np.uint8), (2000, 2000, 1))
    with pytest.raises(RunError) as caught:
        tile.predict(never, scene, small_disk / "o.npy", tile=64)
    assert caught.value.code == "tile-disk"
    assert list(small_disk.glob("*.npy")) == []


@pytest.mark.parametrize(
    ("knobs", "code"),
    [
        ({"sink": "o.jpg"}, "tile-sink"),
        ({"sink": "none/o.tif"}, "tile-sink"),
        ({"sink": "o.png", "output": "probabilities"}, "tile-sink"),
        ({"output": "masks"}, "tile-knob"),
        ({"batch": 0}, "tile-knob"),
        ({"memory_mb": 0}, "tile-knob"),
        ({"blend": "x"}, "tile-window"),
        ({"overlap": 64}, "tile-window"),
        ({"scale": (5, 5)}, "tile-scale"),
        ({"source": "none.tif"}, "image-missing"),
    ],
)
def test_wrong_knobs(scene: Any, tmp_path: Path, knobs: dict[str, Any], code: str) -> None:
    source, sink = knobs.pop("source", scene), tmp_path / knobs.pop("sink", "o.npy")
    with pytest.raises(NiwakiError) as caught:
        tile.predict(odds, source, sink, **({"tile": 64} | knobs))
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_an_array_of_another_shape_is_no_sink(scene: Any) -> None:
    with pytest.raises(DataError) as caught:
        tile.predict(odds, scene, np.zeros((300, 421), np.uint8), tile=64)
    assert caught.value.code == "tile-sink"


def test_progress_reaches_the_end(scene: Any) -> None:
    seen: list[tile.Progress] = []
    tile.predict(odds, scene, np.zeros((300, 420), np.uint8), tile=64, show=seen.append)
    assert [now.done for now in seen] == sorted(now.done for now in seen)
    assert seen[-1].done == seen[-1].tiles
    assert json.dumps(seen[-1].eta) == "0.0"
