"""The instances task: objects read, learned, decoded, scored, pruned, exported; tiles that lose nothing."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from niwaki import (
    Artifact,
    Instances,
    Plan,
    Spec,
    data,
    evaluate,
    instances,
    job,
    losses,
    nets,
    prune,
    step,
    train,
)
from niwaki.cli import main
from niwaki.data import augment_masks
from niwaki.data.objects import ObjectMask
from niwaki.data.samples import Samples
from niwaki.errors import DataError, PlanError
from niwaki.instances import star_loss, stars
from niwaki.instances.stars import Found
from niwaki.instances.tally import interval, scored
from niwaki.instances.tiled import cores

torch.set_num_threads(1)
TASK = Instances()


def discs(
    seed: int,
    size: tuple[int, int] = (64, 64),
    *,
    count: int = 8,
    radii: tuple[int, int] = (4, 8),
    gap: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """One image u8 `[H, W, 3]` and its label map: bright discs that do not touch, numbers with gaps."""
    draw = np.random.default_rng(seed)
    image = draw.integers(10, 40, (*size, 3), dtype=np.uint8)
    labels = np.zeros(size, np.int32)
    ys, xs = np.mgrid[: size[0], : size[1]]
    for k in range(count):
        y, x, radius = (
            draw.integers(0, size[0]),
            draw.integers(0, size[1]),
            draw.integers(*radii, endpoint=True),
        )
        away = np.hypot(ys - y, xs - x)
        if not labels[away <= radius + gap].any():
            labels[away <= radius] = 3 * k + 2
            image[away <= radius] = draw.integers(120, 200)
    return image, labels


def samples(count: int, *, start: int = 0) -> Samples:
    """Images of discs with label maps, in memory."""
    pairs = [discs(start + k) for k in range(count)]
    return Samples(
        sources=np.stack([image for image, _ in pairs]), names=tuple(f"d{start + k}" for k in range(count)),
        labels=np.zeros(count, np.int64), masks=[labels for _, labels in pairs], objects=True,
    )  # fmt: skip


def perfect(labels: np.ndarray) -> np.ndarray:
    """What a network without error would give for a label map: `[1, 33, h, w]`, before the head."""
    ids = torch.from_numpy(labels[None])
    grid = ids[:, ::2, ::2]
    image, row, column = torch.nonzero(grid > 0, as_tuple=True)
    far = star_loss.distances(ids, image, row * 2, column * 2)
    sure = star_loss.probabilities(far, image, grid[image, row, column])
    out = np.full((1, 33, *grid.shape[1:]), -9, np.float32)
    out[0, 0, row, column] = torch.logit(sure.clamp(1e-4, 1 - 1e-4)).numpy()
    out[0, 1:, row, column] = far.numpy() / star_loss.UNIT
    return out


def same_objects(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two label maps hold the same objects, whatever their numbers."""
    table = instances.pairs(one, other)
    return len(table.truth) == len(table.predicted) == len(table.pair) and bool((table.iou == 1).all())


# --- data


def write(root: Path, count: int = 9, *, folder: str = "instances", suffix: str = ".png") -> Path:
    """`images/` and masks of 16 bits with values above 255."""
    for kind in ("images", folder):
        (root / kind).mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        image, labels = discs(seed)
        Image.fromarray(image).save(root / "images" / f"{seed:03d}.png")
        Image.fromarray((labels * 1000).astype(np.uint16)).save(root / folder / f"{seed:03d}{suffix}")
    return root


@pytest.mark.parametrize(("folder", "suffix"), [("instances", ".png"), ("masks", ".tif")])
def test_objects_from_maps_of_any_numbers(tmp_path: Path, folder: str, suffix: str) -> None:
    read = data.read(write(tmp_path, folder=folder, suffix=suffix), instances=folder != "instances")
    assert read.task == TASK and read.classes == ("object",) and read.problems == ()
    spec = Spec(size_hw=(64, 64))
    place = int(Path(read.train.names[1]).stem)
    image, labels = discs(place)
    target = read.train.targets([1], spec)
    assert target.dtype == np.int32 and target.max() == len(np.unique(labels)) - 1
    assert same_objects(labels, target[0])
    np.testing.assert_array_equal(read.train.batch([1], spec)[0], image)
    again = data.read(tmp_path, splits=read.splits_json(), instances=True)
    assert again.fingerprint == read.fingerprint and again.train.at([0, 1]).objects


def test_objects_from_colours(tmp_path: Path) -> None:
    pixels = np.zeros((8, 9, 3), np.uint8)
    pixels[1:3, 1:4], pixels[5:, 5:], pixels[3:5, 1:4] = (255, 0, 0), (0, 255, 0), (255, 0, 1)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = ObjectMask(source=tmp_path / "a.png", name="a").read()
    assert np.unique(found).tolist() == [0, 1, 2, 3] and (found == 3).sum() == 6  # (255, 0, 1) is the largest


def test_objects_from_coco(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    square = [[1, 1, 5, 1, 5, 5, 1, 5]]
    beside = [[5, 1, 9, 1, 9, 5, 5, 5]]  # of the same category, and they touch
    mask = np.zeros((12, 10), np.int32)
    mask[8:, 3:6] = 1
    crowd = instances.rles(mask)[1]
    notes = []
    for k in range(6):
        Image.fromarray(np.full((12, 10, 3), k, np.uint8)).save(tmp_path / "images" / f"{k}.png")
        for n, (what, many) in enumerate(((square, 0), (beside, 0), (crowd, 1))):
            notes.append(
                {"id": 3 * k + n, "image_id": k, "category_id": 4, "segmentation": what, "iscrowd": many}
            )
    pictures = [{"id": k, "file_name": f"{k}.png", "height": 12, "width": 10} for k in range(6)]
    whole = {"images": pictures, "annotations": notes, "categories": [{"id": 4, "name": "cell"}]}
    (tmp_path / "annotations.json").write_text(json.dumps(whole))
    read = data.read(tmp_path, instances=True)
    found = read.train.targets([0], Spec(size_hw=(12, 10)))[0]
    assert np.unique(found).tolist() == [-1, 0, 1, 2]
    assert instances.areas(np.maximum(found, 0)) == {1: 16, 2: 16} and (found == -1).sum() == 12


def test_faults_of_objects_are_named(tmp_path: Path) -> None:
    root = write(tmp_path / "a")
    Image.fromarray(np.zeros((5, 5), np.uint16)).save(root / "instances" / "002.png")
    (root / "instances" / "004.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    read = data.read(root)
    assert {problem.code for problem in read.problems} == {"mask-size", "image-corrupt"}
    for file in (root / "instances").iterdir():
        Image.fromarray(np.zeros((64, 64), np.uint16)).save(file)
    codes = []
    for kind in ("a", "b"):
        (tmp_path / "labels" / kind).mkdir(parents=True)
        for k in range(4):
            Image.fromarray(discs(k)[0]).save(tmp_path / "labels" / kind / f"{k}.png")
    for source in (root, tmp_path / "labels"):
        with pytest.raises(DataError) as found:
            data.read(source, instances=True)
        codes.append(found.value.code)
    assert codes == ["data-class-empty", "mask-none"]
    for file in (root / "instances").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match="not one image with a mask") as found:
        data.read(root)
    assert found.value.code == "data-empty"


def test_windows_at_the_images_own_scale(tmp_path: Path) -> None:
    image, labels = discs(0, (70, 40), count=20)
    whole = Samples(sources=[image], names=("a",), labels=np.zeros(1, np.int64), masks=[labels], objects=True)
    cut = data.windows(whole, (48, 48))
    assert len(cut) == 2 and cut.names == ("a@0,0", "a@22,0") and cut.objects
    np.testing.assert_array_equal(cut.masks[1][:, :40], labels[22:])
    assert (cut.masks[1][:, 40:] == -1).all() and (cut.sources[1][:, :40] == image[22:]).all()
    assert len(data.windows(whole, (16, 16), most=3)) == 3
    with pytest.raises(DataError, match="expected masks"):
        data.windows(Samples(sources=[image], names=("a",), labels=np.zeros(1, np.int64)), (8, 8))


def test_augmentation_keeps_large_numbers() -> None:
    image, labels = discs(1)
    labels[labels > 0] += 70_000
    args = image[None], labels[None], np.array([5])
    moved, numbers = augment_masks.strong(*args, seed=0, epoch=1, flip=True)
    assert numbers.dtype == np.int32 and set(np.unique(numbers)) <= {-1, *np.unique(labels)}
    assert numbers.max() > 70_000 and moved[0][numbers[0] > 0].mean() > 90


# --- what is learned, and what is made of it


def test_distances_are_those_of_single_rays() -> None:
    _, labels = discs(3, (48, 40))
    ids = torch.from_numpy(np.stack((labels, np.flipud(labels).copy())))
    image, row, column = torch.nonzero(ids > 0, as_tuple=True)
    found = star_loss.distances(ids, image, row, column)
    for k in range(0, len(image), 17):
        wanted = stars.outline(ids[image[k]].numpy(), int(row[k]), int(column[k]))
        np.testing.assert_array_equal(found[k].numpy(), wanted)
    sure = star_loss.probabilities(found, image, ids[image, row, column])
    for number in np.unique(labels[labels > 0]).tolist():
        mine = sure[(ids[image, row, column] == number) & (image == 0)]
        assert mine.max() == 1 and 0 < mine.min() < 0.5


@pytest.mark.parametrize("seed", range(4))
def test_perfect_predictions_give_the_objects_back(seed: int) -> None:
    _, labels = discs(seed, (96, 80), count=20, gap=0)
    probabilities = TASK.head(torch.from_numpy(perfect(labels))).numpy()
    (found,) = TASK.decode(probabilities, shape=(96, 80))
    assert found.dtype == np.int32 and found.shape == (96, 80)
    score = scored(instances.pairs(labels, found))
    assert score["ap50"] == 1 and score["sq"] > 0.9
    wrong = scored(instances.pairs(labels, np.roll(found, 9, axis=1)))
    assert wrong["ap50"] < 0.3


def test_an_outline_is_the_polygon_of_its_ends() -> None:
    top, left, mask = stars.drawn(10, 12, np.full(32, 6.0), (40, 40))
    ys, xs = np.mgrid[:40, :40]
    whole = np.zeros((40, 40), bool)
    whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    away = np.hypot(ys - 10, xs - 12)
    assert whole[away < 5.9].all() and not whole[away > 6].any()
    y, x, corner = stars.drawn(0, 39, np.full(32, 6.0), (40, 40))
    assert (y, x + corner.shape[1]) == (0, 40) and corner.sum() == whole[10:, :13].sum()


def test_of_two_that_overlap_the_surer_stays() -> None:
    probability, far = np.zeros((20, 20)), np.full((32, 20, 20), 6.0)
    probability[5, 5], probability[5, 7], probability[15, 15], probability[10, 0] = 0.8, 0.9, 0.7, 0.4
    found = stars.objects(probability, far, stride=2, shape=(40, 40))
    assert found.points.tolist() == [[10, 14], [30, 30]] and found.scores.tolist() == [0.9, 0.7]
    lenient = stars.objects(probability, far, stride=2, shape=(40, 40), threshold=0.3, overlap=1.0)
    assert len(lenient) == 4
    assert len(stars.objects(np.zeros((4, 4)), np.ones((32, 4, 4)), stride=2, shape=(8, 8))) == 0


def test_the_loss_is_least_at_the_truth_and_asks_nothing_of_the_unknown() -> None:
    labels = np.stack([discs(k)[1] for k in range(3)])
    good = torch.from_numpy(np.concatenate([perfect(one) for one in labels]))
    ids = torch.from_numpy(labels)
    at_truth = TASK.loss(good, ids)
    assert at_truth.shape == (3,)
    for change in (good + 0.5, good - 0.5, good.flip(2)):
        assert (TASK.loss(change, ids) > at_truth).all()
    ids[0, :, :20] = -1
    other = good.clone()
    other[0, :, :, :10] = 5
    assert torch.allclose(TASK.loss(other, ids), TASK.loss(good, ids))
    empty = TASK.loss(good, torch.zeros_like(ids))
    assert torch.isfinite(empty).all() and (empty > at_truth).all()
    output = (good + 0.1).requires_grad_()
    TASK.loss(output, ids).sum().backward()
    assert torch.isfinite(output.grad).all() and output.grad[1, 1:].abs().sum() > 0


def test_scores_of_a_tally_are_those_of_its_tables() -> None:
    pairs = [discs(k) for k in range(5)]
    outputs = np.concatenate([TASK.head(torch.from_numpy(perfect(labels))).numpy() for _, labels in pairs])
    outputs[0, 0] = 0  # nothing is found in the first
    truth = np.stack([labels for _, labels in pairs])
    found = TASK.score(outputs, truth)
    tables = [instances.pairs(t, p) for t, p in zip(truth, TASK.decode(outputs), strict=True)]
    assert found["ap50"] == np.mean([instances.mean_precision(t, thresholds=(0.5,)) for t in tables])
    assert found["aji"] == pytest.approx(np.mean([instances.aji(t) for t in tables]))
    assert found["ap50"] < 1 and found["low"] < found["ap50"] < found["high"]
    assert interval(np.ones(4)) == (1.0, 1.0) and interval(np.zeros(0)) == (0.0, 1.0)
    truth[0] = -1  # now nothing is asked of the first
    assert TASK.score(outputs, truth)["ap50"] == 1


def test_the_task_as_json_and_its_faults() -> None:
    task = Instances(("nucleus",), threshold=0.4, overlap=0.3)
    assert Instances.from_json(json.loads(json.dumps(task.to_json()))) == task
    for knob in ({"classes": ("a", "b")}, {"stride": 0}, {"threshold": 1.0}, {"overlap": 2.0}):
        with pytest.raises(PlanError) as found:
            Instances(**knob)
        assert found.value.code == "task-knob"


@pytest.mark.slow
def test_learned_pruned_exported_and_decoded_without_torch(tmp_path: Path) -> None:
    spec = Spec(size_hw=(64, 64))
    torch.manual_seed(0)
    model = nets.build("niwaki:star_unet", classes=1)
    before = evaluate.tally(evaluate.predictor(model, spec, TASK), samples(6, start=900), spec, TASK)
    knobs = {"epochs": 12, "batch": 4, "lr": 4e-2, "flip": True, "augment": "none"}
    model = train.fit(model, task=TASK, spec=spec, train=samples(48), **knobs)
    predict = evaluate.predictor(model, spec, TASK)
    after = evaluate.tally(predict, samples(6, start=900), spec, TASK)
    assert before.score()["ap50"] < 0.2 and after.score()["ap50"] > 0.8
    small = prune.channels(model, example=torch.zeros(1, 3, 64, 64), ratio=0.3)
    saved = Artifact.save(tmp_path / "a.niwaki", small, spec=spec, task=TASK, builder="niwaki:star_unet")
    saved.export("onnx")
    image = discs(901)[0]
    np.save(tmp_path / "image.npy", image)
    program = (
        "import sys, numpy as np; from niwaki import Artifact, instances\n"
        "a = Artifact.open(sys.argv[1]); image = np.load(sys.argv[2])\n"
        "find = instances.finder(a.session('onnx'), a.task)\n"
        "labels = instances.tiled(find, image, tile=64, context=16).labels\n"
        "assert 'torch' not in sys.modules; np.save(sys.argv[2], labels)"
    )
    args = [str(saved.path), str(tmp_path / "image.npy")]
    subprocess.run([sys.executable, "-c", program, *args], check=True)
    direct = TASK.decode(evaluate.predictor(small, spec, TASK)(image[None]))[0]
    assert direct.max() > 0 and same_objects(direct, np.load(tmp_path / "image.npy"))
    from_the_shell(saved, image, direct, tmp_path)


def from_the_shell(saved: Artifact, image: np.ndarray, direct: np.ndarray, folder: Path) -> None:
    """`niwaki predict -o` writes the same objects in each of its formats, and says what it does not take."""
    Image.fromarray(image).save(folder / "scene.png")
    words = ["predict", str(saved.path), str(folder / "scene.png")]
    for ending in ("npy", "png", "json"):
        assert main([*words, "-o", str(folder / f"out.{ending}")]) == 0
    assert same_objects(direct, np.load(folder / "out.npy"))
    with Image.open(folder / "out.png") as file:
        assert same_objects(direct, np.array(file).astype(np.int32))
    results = json.loads((folder / "out.json").read_text())
    assert sorted(one["area"] for one in results) == sorted(instances.areas(direct).values())
    placed_on_the_earth(saved, image, len(results), folder)
    page = folder / "page"
    assert main([*words, "-o", str(folder / "out.npy"), "--viewer", str(page)]) == 0
    assert "outline" in (page / "index.html").read_text() and list((page / "classes").rglob("*.png"))
    large_and_in_bands(saved, image, direct, folder)
    refused_by_name(words, folder)


def large_and_in_bands(saved: Artifact, image: np.ndarray, direct: np.ndarray, folder: Path) -> None:
    """16 bits of more bands, by window: the map of numbers is on disk, as 1 MB does not hold it."""
    wide = np.tile(image[..., ::-1], (4, 6, 1)).astype(np.uint16) * 8
    np.save(folder / "wide.npy", np.concatenate((wide, wide[..., :1]), 2))
    words = ["predict", str(saved.path), str(folder / "wide.npy"), "--memory", "1MB", "--bands", "3,2,1"]
    words += ["--range", "0", "2040", "--tile", "64"]
    assert main([*words, "-o", str(folder / "wide_out.npy")]) == 0
    find = instances.finder(saved.session("onnx"), TASK)
    expected = instances.tiled(find, np.tile(image, (4, 6, 1)), tile=64, context=16).labels
    np.testing.assert_array_equal(np.load(folder / "wide_out.npy"), expected)
    for ending in ("tif", "zarr"):
        assert main([*words, "-o", str(folder / f"wide_out.{ending}")]) == 0
    np.testing.assert_array_equal(pytest.importorskip("tifffile").imread(folder / "wide_out.tif"), expected)
    assert not [path.name for path in folder.glob(".*")]


def refused_by_name(words: list[str], folder: Path) -> None:
    """What a model of objects does not do is no silent word; and the scene is never the output."""
    out = ["-o", str(folder / "new.npy")]
    for wrong, says in (
        ([], "takes one image"),
        (["-o", "out.jpg"], "are written to"),
        (["-o", str(folder / "o.geojson")], "no transform"),
        (["-o", words[2]], "would be lost"),
        ([*out, "--overlap", "64"], "--overlap"),
        ([*out, "--with", words[1]], "--with"),
        ([*out, "--turns", "hflip", "--exact"], "--turns, --exact"),
        ([*out, "--probabilities"], "--probabilities"),
        ([*out, "--nodata", "0"], "--nodata"),
        ([*out, "--tile", "32"], "--tile"),
        ([*out, "--blend", "crop", "--join", "vote", "--weights", "1"], "--weights, --join, --blend"),
        ([*out, "--bands", "9"], "bands 1 to 3"),
    ):
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            assert main([*words, *wrong]) == 1
        assert says in said.getvalue(), wrong
    assert not (folder / "new.npy").exists()


def placed_on_the_earth(saved: Artifact, image: np.ndarray, count: int, folder: Path) -> None:
    """Objects of a scene that says where it lies, 10 m a pixel in UTM zone 33, are polygons in WGS 84."""
    tifffile = pytest.importorskip("tifffile")
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633)
    tags = [
        (33550, "d", 3, (10.0, 10.0, 0.0), True),
        (33922, "d", 6, (0.0, 0.0, 0.0, 500000.0, 5500000.0, 0.0), True),
        (34735, "H", len(keys), keys, True),
    ]
    tifffile.imwrite(folder / "scene.tif", image, photometric="rgb", extratags=tags)
    out = folder / "out.geojson"
    assert main(["predict", str(saved.path), str(folder / "scene.tif"), "-o", str(out)]) == 0
    features = json.loads(out.read_text())["features"]
    assert len(features) == count and all(0 < f["properties"]["score"] <= 1 for f in features)
    longitude, latitude = features[0]["geometry"]["coordinates"][0][0]
    assert 15 <= longitude < 15.01 and 49.64 < latitude < 49.66


# --- tiles


def seen(window: np.ndarray) -> Found:
    """Objects of a window by their grey value, at the middle of what is seen of them."""
    numbers, crops = instances.object_crops(window[..., 0].astype(np.int32))
    middles = [np.argwhere(mask).mean(0) + crop[:2] for crop in crops for mask in (crop[2],)]
    points = np.rint(np.array(middles).reshape(-1, 2)).astype(np.int64)
    return Found(scores=0.5 + np.array(numbers, np.float64) / 1000, points=points, crops=crops)


def crowded(seed: int, size: tuple[int, int] = (150, 131)) -> np.ndarray:
    """Discs on and beside the borders of tiles, as an image whose grey value is the object's number."""
    _, labels = discs(seed, size, count=120, radii=(3, 8))
    _, place = np.unique(labels, return_inverse=True)
    return place.reshape(size).astype(np.uint8)[..., None]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("tile", "context"), [(64, 20), (48, 18), (256, 20)])
def test_tiles_give_the_objects_of_the_whole_image(seed: int, tile: int, context: int) -> None:
    image = crowded(seed)
    found = instances.tiled(seen, image, tile=tile, context=context)
    assert found.labels.dtype == np.int64 and found.cut == 0
    assert same_objects(image[..., 0], found.labels)
    numbers = found.labels[tuple(found.points.T)]  # discs are convex: their middle is of them
    np.testing.assert_array_equal(numbers, np.arange(1, len(found.scores) + 1))
    np.testing.assert_array_equal(image[tuple(found.points.T)][:, 0], np.rint((found.scores - 0.5) * 1000))


def test_tiles_without_context_cut_and_it_is_told() -> None:
    image = crowded(0)
    found = instances.tiled(seen, image, tile=64, context=0, slack=0)
    assert found.cut > 0 and not same_objects(image[..., 0], found.labels)


def test_objects_whose_point_wavers_are_neither_lost_nor_doubled() -> None:
    """Two tiles see a point up to 3 pixels apart, as networks do."""

    def wavering(window: np.ndarray) -> Found:
        one = seen(window)
        shift = np.random.default_rng(int(window.sum())).integers(-3, 4, one.points.shape)
        return Found(scores=one.scores, points=one.points + shift, crops=one.crops)

    for seed in range(6):
        image = crowded(seed)
        good = instances.tiled(wavering, image, tile=64, context=24, slack=8)
        assert same_objects(image[..., 0], good.labels) and len(good.scores) == image.max()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("where", [-(10**6), 10**6, 0, 63, None])
def test_no_object_is_lost_wherever_its_points_are_said_to_lie(seed: int, where: int | None) -> None:
    """Each tile puts the points on the other's side, far off, in one corner, or anywhere."""
    draw = np.random.default_rng(seed)

    def adverse(window: np.ndarray) -> Found:
        one = seen(window)
        points = draw.integers(-64, 128, one.points.shape) if where is None else np.full_like(one.points, where)
        return Found(scores=one.scores, points=points, crops=one.crops)

    image = crowded(seed)
    found = instances.tiled(adverse, image, tile=64, context=20, slack=0)
    assert same_objects(image[..., 0], found.labels) and len(found.scores) == image.max()


@pytest.mark.parametrize("seed", range(4))
def test_no_object_is_lost_that_is_longer_than_the_context(seed: int) -> None:
    """Bars across several tiles, whole in none: each is drawn, in part at least, and told of as cut."""
    image = np.zeros((200, 200, 1), np.uint8)
    draw = np.random.default_rng(seed)
    for k in range(12):
        start = int(draw.integers(0, 60))
        image[5 + 16 * k : 9 + 16 * k, start : start + int(draw.integers(90, 140))] = k + 1
    for turned in (image, image.transpose(1, 0, 2)):
        found = instances.tiled(seen, turned, tile=64, context=16)
        assert set(np.unique(turned[found.labels > 0]).tolist()) == set(range(1, 13))
        assert found.cut >= 12 and not (found.labels[turned[..., 0] == 0]).any()


@pytest.mark.parametrize(("slack", "count"), [(0, 0), (4, 2)])
def test_slack_is_how_far_two_tiles_see_an_edge_apart(slack: int, count: int) -> None:
    """Two pixels beside the border of two cores, which each tile sees two pixels on the other's side."""
    image = np.zeros((64, 100, 1), np.uint8)
    image[0, :, 0] = np.arange(100)

    def shifted(window: np.ndarray) -> Found:
        start = int(window[0, 0, 0])
        left = (46 if start == 0 else 42) - start  # cores meet at column 44
        crops = [(30, left, np.ones((2, 2), bool))]
        return Found(scores=np.ones(1), points=np.array([[30, left]]), crops=crops)

    found = instances.tiled(shifted, image, tile=64, context=20, slack=slack)
    assert len(found.scores) == count  # they do not overlap, so there are two, or none


def test_two_objects_that_one_tile_tells_of_both_stay() -> None:
    """One lies upon the other, as a network's threshold allows: that is no double from another tile."""

    def both(window: np.ndarray) -> Found:
        crops = [(10, 10, np.ones((20, 20), bool)), (12, 12, np.ones((6, 6), bool))]
        return Found(scores=np.array([0.6, 0.9]), points=np.array([[20, 20], [14, 14]]), crops=crops)

    found = instances.tiled(both, np.zeros((64, 64, 3), np.uint8), tile=64, context=16)
    assert found.scores.tolist() == [0.6, 0.9]
    assert np.bincount(found.labels.ravel()).tolist()[1:] == [400 - 36, 36]


def test_what_is_found_in_the_padding_is_none() -> None:
    def beyond(window: np.ndarray) -> Found:
        crops = [(20, 40, np.ones((5, 5), bool)), (5, 28, np.ones((4, 4), bool))]
        return Found(scores=np.ones(2), points=np.array([[22, 42], [6, 29]]), crops=crops)

    found = instances.tiled(beyond, np.zeros((30, 30, 3), np.uint8), tile=64, context=16)
    assert len(found.scores) == 1 and (found.labels > 0).sum() == 4 * 2


def test_progress_of_tiles_reaches_the_end() -> None:
    said: list[tuple[int, int]] = []
    instances.tiled(seen, crowded(0), tile=64, context=16, show=lambda done, of: said.append((done, of)))
    assert [done for done, _ in said] == list(range(1, said[-1][1] + 1))


def test_the_surer_object_has_the_pixel_across_tiles(tmp_path: Path) -> None:
    image = np.zeros((40, 100, 1), np.uint8)

    def two(window: np.ndarray) -> Found:
        """A square at columns 36..55 and a surer one at 52..71, wherever the window lies."""
        start = int(window[0, 0, 0])
        crops = [(10, left - start, np.ones((20, 20), bool)) for left in (36, 52)]
        points = np.array([[20, 46 - start], [20, 62 - start]])
        return Found(scores=np.array([0.6, 0.9]), points=points, crops=[c for c in crops if c[1] >= 0])

    image[0, :, 0] = np.arange(100)
    out = np.lib.format.open_memmap(tmp_path / "labels.npy", "w+", np.int64, (40, 100))
    found = instances.tiled(two, image, tile=90, context=30, slack=4, out=out)
    assert found.scores.tolist() == [0.6, 0.9] and found.labels is out
    assert np.bincount(found.labels.ravel()).tolist() == [4000 - 16 * 20 - 400, 16 * 20, 400]


def test_cores_tile_an_axis() -> None:
    for side in (1, 63, 64, 65, 100, 257):
        parts = list(cores(side, 64, 20))
        covered = [place for (begin, end), _ in parts for place in range(begin, end)]
        assert covered == list(range(side))
        for (begin, end), start in parts:
            assert start >= 0 and (start == 0 or begin - start >= 20)
            assert start + 64 >= side or start + 64 - end >= 20


def test_faults_of_tiles() -> None:
    image = crowded(0)
    for knobs in ({"tile": 40, "context": 20}, {"slack": 99}, {"out": np.zeros((3, 3), np.int64)}):
        with pytest.raises(PlanError) as found:
            instances.tiled(seen, image, **{"tile": 64, "context": 20, **knobs})
        assert found.value.code == "instances-tile"


@pytest.mark.slow
def test_the_main_job_takes_objects(tmp_path: Path) -> None:
    """Read, train, prune, distil, int8, ledger, report: what labels and class maps go through."""
    plan = Plan(
        step("train.fit", epochs=1, batch=4, lr=0.02),
        step("prune.channels"),
        step("distill.logits", epochs=1, batch=4, lr=0.01),
    )
    given = {"plan": plan, "size": 64, "epochs": 0, "budget": "macs=60%", "max_drop": 1.0, "ledger": 2}
    result = job.fit(write(tmp_path / "set", 20), **given, out=tmp_path / "run")
    artifact = Artifact.open(result["artifact"])
    assert artifact.task == TASK and artifact.manifest["builder"] == "niwaki:star_unet"
    assert result["cost"]["pruned"]["macs"] <= 0.6 * result["cost"]["baseline"]["macs"]
    assert {"ap50", "low", "high", "pq", "aji"} <= set(result["scores"]["baseline"]["test"])
    assert (tmp_path / "run" / "report.html").exists()
    output = artifact.session("onnx", precision="int8")(discs(0)[0][None])
    assert output.shape == (1, 33, 32, 32) and output[:, 0].min() >= 0 and output[:, 0].max() <= 1


def test_a_student_is_nearest_where_it_gives_what_the_teacher_gives() -> None:
    teacher = torch.from_numpy(np.concatenate([perfect(discs(k)[1]) for k in range(2)]))
    same = star_loss.apart(teacher, teacher)
    assert same.shape == (2,) and (star_loss.apart(teacher + 0.3, teacher) > same).all()
    with pytest.raises(PlanError, match="one loss, their own"):
        losses.mix("dice", task=TASK)
