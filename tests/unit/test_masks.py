"""Data sets of images with masks: layouts, codings, faults by name, and augmentation that moves both alike."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.unit import shapes

from niwaki import Segment, Spec, data, instances
from niwaki.data import augment_masks
from niwaki.data.class_names import coded, from_file, of_values
from niwaki.data.masks import Outlines, inside, painted, resized
from niwaki.errors import DataError

SPEC = Spec(size_hw=shapes.SIZE)


def write(path: Path, pixels: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    image.save(path)


def code(path: Path | str) -> str:
    with pytest.raises(DataError) as found:
        data.read(path)
    return found.value.code


def test_a_folder_of_images_and_masks(tmp_path: Path) -> None:
    read = data.read(shapes.folder(tmp_path))
    assert read.classes == shapes.CLASSES and read.task == Segment(shapes.CLASSES) and read.problems == ()
    assert len(read.train) + len(read.val) + len(read.test) == 24 and len(read.val) == len(read.test) == 4
    place = int(Path(read.train.names[2]).stem)
    image, mask = shapes.scene(place)
    np.testing.assert_array_equal(read.train.batch([2], SPEC)[0], image)
    np.testing.assert_array_equal(read.train.targets([2], SPEC)[0], mask)
    np.testing.assert_array_equal(read.train.counts[2], np.bincount(mask.ravel(), minlength=3))
    again = data.read(tmp_path, splits=json.loads(json.dumps(read.splits_json())))
    assert again.fingerprint == read.fingerprint and again.val.names == read.val.names
    few = read.train.take(3)
    np.testing.assert_array_equal(
        few.targets([0], SPEC), read.train.targets([read.train.names.index(few.names[0])], SPEC)
    )


def test_masks_are_not_kept_beyond_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("niwaki.data.samples.CACHE_BYTES", 2 * 48 * 64)
    read = data.read(shapes.folder(tmp_path))
    one, two = (read.train.targets(range(len(read.train)), SPEC) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert [len(cache.store) for cache in read.train._cache.values()] == [2]


@pytest.mark.parametrize("layout", ["{kind}/{split}/{name}", "{split}/{kind}/{name}"])
def test_given_splits(tmp_path: Path, layout: str) -> None:
    for seed in range(6):
        split = ("train", "train", "train", "train", "valid", "test")[seed]
        for kind, pixels in zip(("images", "masks"), shapes.scene(seed), strict=True):
            write(tmp_path / layout.format(kind=kind, split=split, name=f"{seed}.png"), pixels)
    read = data.read(tmp_path)
    assert (len(read.train), len(read.val), len(read.test)) == (4, 1, 1) and read.classes == ("0", "1", "2")


def test_camvids_layout(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for place in range(2):
            mask = draw.integers(0, 12, (10, 12), dtype=np.uint8)
            mask[0] = np.arange(12)
            write(tmp_path / split / f"{place}.png", draw.integers(0, 256, (10, 12, 3), dtype=np.uint8))
            write(tmp_path / f"{split}annot" / f"{place}.png", mask)
    read = data.read(tmp_path)
    assert read.classes[0] == "Sky" and len(read.classes) == 11
    masks = read.val.targets([0], Spec(size_hw=(10, 12)))
    assert masks[0, 0].tolist() == [*range(11), 255]


def test_pascals_layout_and_palettes(tmp_path: Path) -> None:
    for seed in range(6):
        image, mask = shapes.scene(seed)
        mask[0] = 255
        write(tmp_path / "JPEGImages" / f"{seed}.jpg", image)
        write(tmp_path / "SegmentationClass" / f"{seed}.png", mask, palette=True)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, names in (("train", "0\n1\n2\n3\n"), ("val", "4\n"), ("test", "5\n")):
        (lists / f"{split}.txt").write_text(names)
    read = data.read(tmp_path)
    assert (len(read.train), len(read.val), len(read.test)) == (4, 1, 1) and read.problems == ()
    found = read.test.targets([0], SPEC)[0]
    np.testing.assert_array_equal(found[1:], shapes.scene(5)[1][1:])
    assert (found[0] == 255).all()


def test_colours_and_void(tmp_path: Path) -> None:
    colours = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0]], np.uint8)
    for seed in range(6):
        image, mask = shapes.scene(seed)
        write(tmp_path / "images" / f"{seed}.png", image)
        write(tmp_path / "masks" / f"{seed}_L.png", colours[mask])
    (tmp_path / "classes.txt").write_text("void 10 20 30\ndisc,200,0,0\n0 200 0\tblue square\n")
    read = data.read(tmp_path)
    assert read.classes == ("disc", "blue square") and read.problems == ()
    seed = int(Path(read.test.names[0]).stem)
    np.testing.assert_array_equal(read.test.targets([0], SPEC)[0], np.array([255, 0, 1])[shapes.scene(seed)[1]])


def test_coco_polygons_runs_and_crowds(tmp_path: Path) -> None:
    full = np.zeros((20, 30), bool)
    full[2:5, 3:9] = True
    dense = instances.rles(full.astype(np.int32))
    run = dense[0] if isinstance(dense, list) else next(iter(dense.values()))
    annotations = [
        {"category_id": 7, "segmentation": [[10, 4, 20, 4, 20, 14, 10, 14]], "area": 100},
        {"category_id": 3, "segmentation": [[12, 6, 15, 6, 15, 9, 12, 9]], "area": 9},
        {"category_id": 3, "segmentation": run, "area": 18},
        {"category_id": 3, "segmentation": [[0, 17, 30, 17, 30, 20, 0, 20]], "area": 90, "iscrowd": 1},
    ]
    whole = {
        "categories": [{"id": 7, "name": "box"}, {"id": 3, "name": "dot"}],
        "images": [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in range(6)],
        "annotations": [
            {**one, "image_id": i, "id": 9 * i + k} for i in range(6) for k, one in enumerate(annotations)
        ],
    }
    for i in range(6):
        write(
            tmp_path / "images" / f"{i}.png",
            np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8),
        )
    (tmp_path / "annotations.json").write_text(json.dumps(whole))
    read = data.read(tmp_path)
    assert read.classes == ("background", "dot", "box")
    mask = read.train.targets([0], Spec(size_hw=(20, 30)))[0]
    assert mask[5, 11] == 2 and mask[7, 13] == 1 and mask[0, 0] == 0 and (mask[18] == 255).all()
    assert (mask[full] == 1).all() and (mask == 2).sum() + (mask[6:9, 12:15] == 1).sum() == pytest.approx(
        100, abs=25
    )
    (tmp_path / "annotations.json").write_text('{"images": 3}')
    assert code(tmp_path) == "mask-outlines"


def coco_files(root: Path, **kinds: dict[int, str]) -> Path:
    """A file of annotations for each split, whose images have an object of each of its categories."""
    for part, (split, categories) in enumerate(kinds.items()):
        pictures, notes = [], []
        for k in range(4):
            name = f"{split}{k}.png"
            grey = np.random.default_rng(10 * part + k).integers(0, 256, (20, 30, 3), dtype=np.uint8)
            write(root / "images" / name, grey)
            pictures.append({"id": k, "file_name": name, "height": 20, "width": 30})
            for number, kind in categories.items():
                x = 4 * (ord(kind[0]) - ord("a"))  # where it lies tells which it is
                box = [x, 2, x + 3, 2, x + 3, 9, x, 9]
                notes.append(
                    {"id": len(notes), "image_id": k, "category_id": number, "segmentation": [box], "area": 21}
                )
        whole = {
            "images": pictures,
            "annotations": notes,
            "categories": [{"id": number, "name": kind} for number, kind in categories.items()],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(whole))
    return root


def test_categories_of_several_coco_files_are_one_by_name(tmp_path: Path) -> None:
    """The files list other categories, one under another id: each class is the same in train, val and test."""
    root = coco_files(
        tmp_path, train={1: "a", 2: "b", 5: "c"}, val={2: "b", 3: "c"}, test={2: "b", 7: "a", 9: "background"}
    )
    read = data.read(root)
    assert read.classes == ("background", "a", "b", "c")
    for samples in (read.train, read.val, read.test):
        for mask in samples.targets(range(4), Spec(size_hw=(20, 30))):
            for x in (0, 4, 8):
                assert mask[5, x + 1] in (0, 1 + x // 4)
    assert (read.val.counts > 0).all(0).tolist() == [True, False, True, True]
    assert read.val.targets([0], Spec(size_hw=(20, 30)))[0][5, 5] == 2


def test_one_id_for_two_names_is_refused(tmp_path: Path) -> None:
    root = coco_files(tmp_path, train={1: "a", 2: "b"}, val={1: "b"})
    with pytest.raises(DataError, match="category 1 is 'b', and 'a' in"):
        data.read(root)
    assert code(root) == "mask-outlines"


def test_more_values_than_classes(tmp_path: Path) -> None:
    for k in range(6):
        image, _ = shapes.scene(k)
        write(tmp_path / "images" / f"{k}.png", image)
        ids = np.arange(image.shape[0] * image.shape[1], dtype=np.uint16).reshape(image.shape[:2]) % 300
        write(tmp_path / "masks" / f"{k}.png", ids.astype(np.uint16))
    with pytest.raises(DataError, match="hold 299 values"):  # 255 is no class
        data.read(tmp_path)
    assert code(tmp_path) == "mask-many"
    (tmp_path / "classes.txt").write_text("0 none\n1 one\n" + "".join(f"{k} void\n" for k in range(2, 300)))
    assert data.read(tmp_path).classes == ("none", "one")
    assert len(of_values(range(256)).classes) == 255
    with pytest.raises(DataError) as found:
        coded([str(k) for k in range(256)], "here")
    assert found.value.code == "mask-many"


def test_a_polygon_has_the_pixels_whose_centres_lie_in_it() -> None:
    mask = painted(Outlines(size_hw=(8, 9), items=((4, [[2, 1, 6, 1, 6, 5, 2, 5]]),)))
    assert (mask[1:5, 2:6] == 4).all() and (mask == 4).sum() == 16
    ys, xs = np.mgrid[:40, :50] + 0.5
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    circle = np.stack([25 + 15 * np.cos(angle), 18 + 15 * np.sin(angle)], 1).ravel()
    away = np.hypot(xs - 25, ys - 18)
    found = inside(circle.tolist(), (40, 50))
    assert found[away < 14.9].all() and not found[away > 15].any()
    outside = inside([-10, -10, 60, -10, 60, 60, -10, 60], (40, 50))
    assert outside.all() and not inside([60, 0, 70, 0, 70, 9], (40, 50)).any()


@pytest.mark.parametrize("around", ["", "one/"])
def test_an_archive(tmp_path: Path, around: str) -> None:
    root = shapes.folder(tmp_path / "set")
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*.*")):
            archive.write(file, f"{around}{file.relative_to(root)}")
    one, two = data.read(path), data.read(root)
    assert one.fingerprint == two.fingerprint
    np.testing.assert_array_equal(one.val.targets([0], SPEC), two.val.targets([0], SPEC))


def test_faults_are_named_and_left_out(tmp_path: Path) -> None:
    root = shapes.folder(tmp_path)
    write(root / "masks" / "001.png", np.zeros((10, 10), np.uint8))
    bad = shapes.scene(2)[1]
    bad[3, 3] = 77
    write(root / "masks" / "002.png", bad)
    whole = (root / "masks" / "003.png").read_bytes()
    (root / "masks" / "003.png").write_bytes(whole[: len(whole) // 2])
    (root / "masks" / "004.png").unlink()
    (root / "images" / "005.png").unlink()
    (root / "masks" / "006.png").write_bytes(b"")
    write(
        root / "masks" / "007.png", np.random.default_rng(0).integers(0, 256, (*shapes.SIZE, 3), dtype=np.uint8)
    )
    read = data.read(root)
    found = {problem.path: problem.code for problem in read.problems}
    assert found == {
        "masks/001.png": "mask-size",
        "masks/002.png": "mask-value",
        "images/003.png": "image-corrupt",
        "images/004.png": "mask-missing",
        "masks/005.png": "mask-stray",
        "images/006.png": "image-empty",
        "images/007.png": "mask-value",
    }
    assert len(read.train) + len(read.val) + len(read.test) == 17
    says = {problem.path: problem.message for problem in read.problems}
    assert (
        "10 x 10" in says["masks/001.png"]
        and "64 x 48" in says["masks/001.png"]
        and "77" in says["masks/002.png"]
    )


def test_what_cannot_be_used_at_all(tmp_path: Path) -> None:
    root = shapes.folder(tmp_path / "a", 4, classes=False)
    for place in range(4):
        write(root / "masks" / f"{place:03d}.png", np.zeros(shapes.SIZE, np.uint8))
    assert code(root) == "data-few-classes"
    (root / "classes.txt").write_text("ground\ndisc\nunseen\n")
    assert code(root) == "data-class-empty"
    (root / "classes.txt").write_text("ground\nground\n")
    assert code(root) == "mask-classes"
    for file in (root / "masks").iterdir():
        file.write_bytes(b"no image")
    (root / "classes.txt").unlink()
    assert code(root) == "data-empty"


@pytest.mark.parametrize(
    "text", ["", "road\nroad", "a 1 2 3\nb", "a 1 2 3\nb 1 2 3", "255 full", "0 a\n0 b", b"\xff\xfe\x00bad"]
)
def test_classes_files_that_are_none(text: str | bytes) -> None:
    with pytest.raises(DataError) as found:
        from_file(text if isinstance(text, bytes) else text.encode(), "here")
    assert found.value.code == "mask-classes"


def test_codings() -> None:
    assert from_file(b"road\nside walk\nvoid\ncar\n", "x").places == {255: 255, 0: 0, 1: 1, 2: 255, 3: 2}
    assert from_file(b"7 road\n9 tree\n255 void\n", "x").places == {255: 255, 7: 0, 9: 1}
    head = from_file(b"name,r,g,b\nroad,1,2,3\nsky,4,5,6", "x")
    assert head.colours and head.places == {0x010203: 0, 0x040506: 1}
    assert of_values({0, 1, 9}).classes == ("0", "1", "9") and of_values({0, 255}).places == {0: 0, 255: 1}
    assert of_values({0, 1, 255}).places == {0: 0, 1: 1, 255: 255}


def test_sixteen_bit_ids(tmp_path: Path) -> None:
    ids = np.array([3, 700, 40000], np.uint16)
    for seed in range(6):
        image, mask = shapes.scene(seed)
        write(tmp_path / "images" / f"{seed}.png", image)
        write(tmp_path / "masks" / f"{seed}.png", ids[mask])
    read = data.read(tmp_path)
    assert read.classes == ("3", "700", "40000") and read.train.targets([0], SPEC).max() == 2


def test_masks_are_resized_by_nearest_centres() -> None:
    mask = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 255, 255], [2, 2, 255, 255]], np.uint8)
    np.testing.assert_array_equal(resized(mask, (2, 2)), [[0, 1], [2, 255]])
    np.testing.assert_array_equal(resized(resized(mask, (8, 8)), (4, 4)), mask)


@pytest.mark.parametrize("kind", ["weak", "strong"])
def test_augmentation_moves_image_and_mask_alike(kind: str) -> None:
    """The image shows its own mask's classes as grey levels: after any move they must still agree."""
    scenes = [shapes.scene(seed)[1] for seed in range(8)]
    masks = np.stack(scenes)
    levels = np.array([40, 130, 220], np.uint8)
    images = np.repeat(levels[masks][..., None], 3, axis=3)
    before = images.copy(), masks.copy()
    change = getattr(augment_masks, kind)
    moved, classes = change(images, masks, np.arange(8), seed=3, epoch=1, flip=True)
    assert (images == before[0]).all() and (masks == before[1]).all()
    assert not (classes == masks).all((1, 2)).any()
    for image, mask in zip(moved, classes, strict=True):
        if kind == "strong":  # brightness and contrast are other, but classes keep their order
            means = [image[mask == k].mean() for k in range(3) if (mask == k).any()]
            assert means == sorted(means)
            continue
        valid = mask != 255
        guess = abs(image[..., :1].astype(int) - levels).argmin(2)
        assert (guess == mask)[valid].mean() > 0.97  # bilinear mixes at the borders
    again = change(images[5:6], masks[5:6], np.array([5]), seed=3, epoch=1, flip=True)
    np.testing.assert_array_equal(again[0][0], moved[5])
    np.testing.assert_array_equal(again[1][0], classes[5])
    other = change(images, masks, np.arange(8), seed=3, epoch=2, flip=True)[1]
    assert not (other == classes).all()


def test_camvid_itself() -> None:
    import os

    if not (Path(os.environ.get("NIWAKI_DATA", "")) / "camvid" / "trainannot").is_dir():
        with pytest.raises(DataError) as found:
            data.read("camvid")
        assert found.value.code == "data-unset"
        pytest.skip("NIWAKI_DATA has no camvid here")
    from niwaki.data import named

    found = named.camvid()
    assert len(found.pairs) == 701 and found.given == {"train", "val", "test"} and not found.problems


def test_bytes_of_an_image_that_is_a_mask() -> None:
    file = io.BytesIO()
    Image.fromarray(shapes.scene(0)[1]).save(file, format="PNG")
    from niwaki.data.masks import values

    np.testing.assert_array_equal(values(file.getvalue(), "mask", colours=False), shapes.scene(0)[1])
