"""The segment task: scores against definitions, the same code path as labels from training to the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix, f1_score, precision_score, recall_score
from tests.unit import shapes
from torch import Tensor, nn

from niwaki import (
    Artifact,
    Plan,
    Segment,
    Spec,
    data,
    evaluate,
    job,
    overlays,
    prune,
    step,
    surgery,
    tally,
    train,
)
from niwaki import dense_metrics as dense
from niwaki.runtimes.limits import compare
from niwaki.tasks import TASKS, Classify

torch.set_num_threads(1)
TASK = Segment(("a", "b", "c", "d"))


def maps(count: int = 5, size: tuple[int, int] = (12, 15), classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities `[N, K, H, W]` and masks `[N, H, W]` with pixels without a class; class 3 is never true."""
    draw = np.random.default_rng(0)
    true = draw.integers(0, 3, (count, *size)).astype(np.uint8)
    scores = draw.random((count, classes, *size)).astype(np.float32)
    scores += 0.6 * (np.arange(classes)[None, :, None, None] == true[:, None])
    true[:, :2, :3] = 255
    return scores / scores.sum(1, keepdims=True), true


def test_scores_against_scikit_learn() -> None:
    probabilities, true = maps()
    found = TASK.score(probabilities, true)
    valid = true != 255
    y, guess = true[valid], probabilities.argmax(1)[valid]
    counts = confusion_matrix(y, guess, labels=range(4))
    hits, union = np.diag(counts), counts.sum(0) + counts.sum(1) - np.diag(counts)
    assert found["miou"] == pytest.approx((hits / union).mean())
    assert list(found["iou"].values()) == pytest.approx((hits / union).tolist())
    assert found["pixel_accuracy"] == pytest.approx((y == guess).mean())
    assert found["precision"] == pytest.approx(precision_score(y, guess, average="macro"))
    # a class without pixels has no recall, where scikit-learn counts a 0
    assert found["recall"] == pytest.approx(recall_score(y, guess, average="macro", labels=[0, 1, 2]))
    assert found["dice"] == pytest.approx(f1_score(y, guess, average="macro", labels=range(4)))
    assert found["low"] < found["miou"] < found["high"]


def test_precision_and_recall_are_not_exchanged() -> None:
    true, guess = np.zeros((1, 4, 4), np.uint8), np.zeros((1, 4, 4), np.uint8)
    true[:, :2] = 1
    guess[:, :1] = 1  # half of class 1 is found, and all that is called 1 is 1
    counts = dense.sums(dense.confusions(guess, true, classes=2))[0]
    assert dense.precision(counts).tolist() == [8 / 12, 1.0] and dense.recall(counts).tolist() == [1.0, 0.5]


def test_a_tally_by_batches_is_the_tally_of_all() -> None:
    probabilities, true = maps()
    whole, parts = TASK.tally(), TASK.tally()
    whole.add(probabilities, true)
    for i in range(5):
        parts.add(probabilities[i : i + 1], true[i : i + 1])
    assert parts.score() == whole.score() and parts.calibration() == pytest.approx(whole.calibration())
    assert (parts.each() == whole.each()).all() and parts.kept == whole.kept
    np.testing.assert_array_equal(tally.unpacked(parts.kept[2]), probabilities[2].argmax(0))
    assert tally.flipped(parts.kept, parts.kept) == 0
    other = TASK.tally()
    other.add(np.roll(probabilities, 1, axis=1), true)
    assert tally.flipped(parts.kept, other.kept) == 1
    quick = TASK.tally(detail=False)
    quick.add(probabilities, true)
    assert quick.score()["miou"] == whole.score()["miou"] and "boundary_f" not in quick.score()


def test_ignored_pixels_count_nowhere() -> None:
    probabilities, true = maps()
    wrong = probabilities.copy()
    wrong[:, :, :2, :3] = wrong[:, ::-1, :2, :3]
    assert TASK.score(wrong, true) == TASK.score(probabilities, true)
    eleven = true.copy()
    eleven[eleven == 255] = 11
    assert Segment(TASK.classes, ignore=11).score(probabilities, eleven) == TASK.score(probabilities, true)


def test_the_interval_is_over_images() -> None:
    """Images that are all alike leave nothing to doubt, however many pixels are wrong."""
    probabilities, true = maps(1)
    found = TASK.score(np.repeat(probabilities, 6, 0), np.repeat(true, 6, 0))
    assert found["low"] == pytest.approx(found["miou"]) == pytest.approx(found["high"])
    counts = np.zeros((2, 3, 1), np.int64)
    counts[0], counts[1] = [[10], [10], [10]], [[0], [10], [10]]
    assert dense.interval(counts) == (0.0, 1.0)
    for ends in found["intervals"].values():
        assert ends[0] == pytest.approx(ends[1])


def test_dice_and_boundaries_have_intervals_over_images_too() -> None:
    """Of the images drawn again: by hand for two, and around the score for many that differ."""
    counts = np.zeros((2, 3, 1), np.int64)
    counts[0], counts[1] = [[10], [10], [10]], [[5], [10], [10]]
    assert dense.interval(counts, of=dense.dice) == (0.5, 1.0)  # 5 hits of 10 and 10; IoU is 5 of 15
    assert dense.interval(counts)[0] == pytest.approx(1 / 3)
    edges = np.zeros((2, 4, 1), np.int64)
    edges[0], edges[1] = [[8], [8], [8], [8]], [[8], [4], [8], [4]]
    assert dense.boundary_interval(edges) == (0.5, 1.0) and dense.boundary_f(edges) == 0.75
    assert dense.boundary_interval(edges[:0]) == (0.0, 1.0)
    found = TASK.score(*maps())
    for name, (low, high) in found["intervals"].items():
        assert low < found[name] < high


def test_boundary_scores_by_hand() -> None:
    true, guess = np.zeros((1, 20, 30), np.uint8), np.zeros((1, 20, 30), np.uint8)
    true[:, :, 10:], guess[:, :, 12:] = 1, 1
    found = dense.boundaries(guess, true, classes=2, tolerance=0.01)  # a radius of one pixel
    assert found[0].tolist() == [[20, 20], [0, 0], [20, 20], [0, 0]]
    near = dense.boundaries(guess, true, classes=2, tolerance=3 / np.hypot(20, 30))
    assert dense.boundary_f(near) == 1 and dense.boundary_f(found) == 0
    assert dense.boundary_f(dense.boundaries(true, true, classes=2)) == 1
    empty = np.zeros_like(true)
    assert dense.boundary_f(dense.boundaries(empty, true, classes=2)) == 0
    many = dense.boundaries(guess + 40, true + 40, classes=60, tolerance=3 / np.hypot(20, 30))
    assert many[0][:, 40:42].tolist() == near[0].tolist() and many.sum() == near.sum()


def test_calibration_is_of_pixels() -> None:
    true = np.zeros((1, 10, 10), np.uint8)
    true[0, :3] = 1  # 70 % are of class 0
    probabilities = np.broadcast_to(np.float32([0.9, 0.1])[None, :, None, None], (1, 2, 10, 10))
    counts = Segment(("a", "b")).tally()
    counts.add(probabilities, true)
    assert counts.calibration() == pytest.approx(0.2, abs=1e-6)


def test_parity_counts_pixels() -> None:
    probabilities, _ = maps()
    same = compare(probabilities, probabilities)
    assert (same.error, same.agreement, same.moved, same.images) == (0, 1, 0, 5)
    other = probabilities.copy()
    other[2, :, 3, 4] = np.roll(other[2, :, 3, 4], 1)
    found = compare(probabilities, other)
    assert found.agreement == pytest.approx(1 - 1 / (5 * 12 * 15)) and found.error > 0.01


def test_a_task_is_kept_as_json() -> None:
    task = Segment(("a", "b"), ignore=9)
    assert TASKS["segment"].from_json(task.to_json()) == task and TASKS["classify"] is Classify
    assert task.shape((4, 5)) == (2, 4, 5) and task.fits((1, 2, 3, 3)) and not task.fits((1, 2))


def test_the_head_gives_probabilities_of_every_pixel() -> None:
    given = TASK.head(3 * torch.randn(2, 4, 3, 4), size_hw=(12, 16))
    assert given.shape == (2, 4, 12, 16)
    torch.testing.assert_close(given.sum(1), torch.ones(2, 12, 16))


def test_overlays_show_what_is_wrong() -> None:
    image, mask = shapes.scene(0)
    guess = mask.copy()
    guess[:5, :5] = 2
    row = overlays.side_by_side(image, mask, guess, count=3)
    assert row.shape == (48, 256, 3)
    red = (row[:, 192:] == overlays.WRONG).all(2)
    np.testing.assert_array_equal(red, guess != mask)
    assert len({tuple(c) for c in overlays.palette(200).tolist()}) == 200


def test_contours_are_lines_between_values() -> None:
    true, guess = np.zeros((6, 8), np.uint8), np.zeros((6, 8), np.uint8)
    true[:, 4:], guess[:, 6:] = 1, 1
    guess[0, 4:] = 1
    assert overlays.borders(true).nonzero()[1].tolist() == [3] * 6
    drawn = overlays.contours(np.full((6, 8, 1), 9, np.uint8), true, guess)
    assert (drawn[1:, 3] == overlays.TRUE).all() and (drawn[1:, 5] == overlays.GUESSED).all()
    assert (drawn[0, 3] == 255).all() and (drawn[:, 7] == 9).all()


def test_objects_are_numbered_and_what_was_found_is_told() -> None:
    true, guess = np.zeros((30, 40), np.int32), np.zeros((30, 40), np.int32)
    true[2:12, 2:12], true[18:28, 2:12] = 7, 9  # one is found, one is missed
    guess[3:12, 2:12], guess[2:10, 25:35] = 1, 2  # and one is none
    true[:, 38:] = -1
    image = np.full((30, 40, 3), 100, np.uint8)
    told = overlays.object_errors(image, true, guess, found=[1])
    assert (told[8, 6] == overlays.FOUND).all() and (told[5, 30] == overlays.WRONG).all()
    assert (told[23, 6] == overlays.MISSED).all() and (told[0, 39] == overlays.MISSING).all()
    bare, scored = (overlays.objects(image, guess, scores=s, zoom=4) for s in ((), (0.91, 0.5)))
    assert bare.shape == (120, 160, 3) and (bare != scored).any() and (bare[0, 0] == 100).all()
    assert (bare > 225).all(2).any()  # white numbers
    row = overlays.objects_side_by_side(image, true, guess, scores=[0.9, 0.5], found=[1])
    assert row.shape == (8 * 30, 3 * 8 * 40, 3)


class Small(nn.Module):
    """A segmentation network with a skip, at half the image's size."""

    def __init__(self, classes: int = 3, channels: int = 3) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(channels, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(16, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.back = nn.Conv2d(24, 16, 1)
        self.head = nn.Conv2d(16, classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down(x)
        up = nn.functional.interpolate(self.back(self.deep(fine)), size=fine.shape[-2:], mode="bilinear")
        return self.head(torch.relu(fine + up))


def small(*, classes: int, channels: int) -> nn.Module:
    return Small(classes, channels)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, data.DataSet, Path]:
    """One run of the main job on 40 scenes."""
    root = tmp_path_factory.mktemp("segment")
    source = shapes.folder(root / "set", 40)
    plan = Plan(
        step("train.fit", epochs=10, batch=4, lr=0.02, flip=True, loss="cross-entropy + dice"),
        step("prune.channels", multiple=1, min_width=0),
        step("distill.logits", epochs=3, batch=4, lr=0.01),
    )
    arguments = {
        "model": small,
        "size": shapes.SIZE,
        "plan": plan,
        "epochs": 0,
        "budget": "macs=60%",
        "max_drop": 0.3,
    }
    result = job.fit(source, **arguments, out=root / "run", ledger=4)
    assert job.fit(source, **arguments, out=root / "run", ledger=4) == result  # a finished run returns at once
    return result, data.read(source), root / "run"


@pytest.mark.slow
def test_the_main_job_takes_masks(finished: tuple[dict, data.DataSet, Path]) -> None:
    result, read, _ = finished
    base, out = (result["scores"][name]["test"] for name in ("baseline", "int8"))
    assert base["miou"] > 0.6 and out["miou"] > 0.5 and set(base["iou"]) == set(shapes.CLASSES)
    assert base["low"] <= base["miou"] <= base["high"] and result["budget"]["met"]
    assert result["cost"]["pruned"]["macs"] <= 0.6 * result["cost"]["baseline"]["macs"]
    assert result["proof_error"] < 1e-4 and 0 <= result["flipped"] < 0.3
    artifact = Artifact.open(result["artifact"])
    assert artifact.task == read.task == Segment(shapes.CLASSES)
    for precision in ("float32", "int8"):
        run = artifact.session("onnx", precision=precision)
        assert run.answer == (3, *shapes.SIZE)
        counts = evaluate.tally(run, read.test, artifact.spec, artifact.task)
        if precision == "int8":
            assert counts.score() == result["scores"]["int8"]["test"]
    reloaded = evaluate.predictor(artifact.model(lambda: Small()), artifact.spec, artifact.task)
    pixels = read.test.batch([0, 1], artifact.spec)
    np.testing.assert_allclose(
        reloaded(pixels), artifact.session("onnx", precision="float32")(pixels), atol=1e-4
    )


@pytest.mark.slow
def test_the_report_shows_masks(finished: tuple[dict, data.DataSet, Path]) -> None:
    result, _, folder = finished
    page = (folder / "report.html").read_text()
    for said in ("test mIoU", "Worst images", "mIoU by what was", "truth, prediction, errors", "Confusion"):
        assert said in page
    ledger = {row["name"]: row for row in result["ledger"]["stages"]}
    assert set(ledger["int8"]["class_drops"]) == set(shapes.CLASSES)
    row = ledger["baseline"]
    assert row["attacked"]["pgd"]["miou"] <= row["attacked"]["fgsm"]["miou"] + 0.02 < row["clean"]["miou"]
    assert 0 <= row["calibration"] < 0.5 and result["cost"]["int8"]["ms"] > 0


@pytest.mark.slow
def test_scores_of_data_and_other_steps_take_masks(tmp_path: Path) -> None:
    read, spec = data.read(shapes.folder(tmp_path, 12)), Spec(size_hw=shapes.SIZE)
    torch.manual_seed(0)
    model, example = Small().eval(), torch.from_numpy(spec.example(2))
    axes = surgery.analyse(model, example)
    seen = prune.gather(model, axes, task=read.task, spec=spec, samples=read.train)
    scores = prune.score(model, axes, by="taylor", evidence=seen)
    keep = prune.choose(axes, scores, ratio=0.5)
    assert prune.cut(model, axes, keep, example=example).error < 1e-4
    trained = train.fit(model, task=read.task, spec=spec, train=read.train, val=read.val, epochs=1, batch=4)
    assert train.statistics(trained, spec=spec, train=read.train) is not None


def test_a_mask_set_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from niwaki.cli import main

    root = shapes.folder(tmp_path, 3)
    Image.fromarray(shapes.scene(0)[1][:5]).save(root / "masks" / "000.png")
    assert main(["fit", str(root), "--epochs", "0", "--out", str(tmp_path / "run")]) != 0
    assert "few-images" in capsys.readouterr().err


def test_objects_agree_by_what_is_an_object_and_not_by_their_longest_ray() -> None:
    draw = np.random.default_rng(0)
    wanted = draw.random((2, 33, 4, 5), np.float32)
    other = wanted.copy()
    other[:, 1:] += draw.normal(0, 1e-3, other[:, 1:].shape).astype(np.float32)
    found = compare(wanted, other, threshold=0.5)
    assert found.agreement == 1 and found.moved == 0 and 1e-3 < found.error < 0.01
    other[0, 0, :2] = np.where(wanted[0, 0, :2] > 0.5, 0.2, 0.8)
    found = compare(wanted, other, threshold=0.5)
    assert found.agreement == 0.75
    assert found.moved == pytest.approx(np.abs(wanted - other)[:, 0].mean(), abs=1e-6)
    close = np.full((1, 33, 1, 1), 0.5, np.float32)
    assert compare(close + np.float32(1e-5), close - np.float32(1e-5), threshold=0.5).agreement == 1
