"""Data sets of bands: every layout, what is measured of them, and what is named as wrong."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from niwaki import data
from niwaki.bands import Stack
from niwaki.errors import DataError
from niwaki.job.work import choose_spec

tifffile = pytest.importorskip("tifffile")
COUNT, SIDE = 12, 16
Array = npt.NDArray[np.generic]


def scene(seed: int, bands: int = 5, *, kind: str = "uint16") -> Array:
    """Bands whose levels are far from one another, as reflectances are."""
    draw = np.random.default_rng(seed)
    levels = draw.normal(0, 20, (SIDE, SIDE, bands)) + 100 * np.arange(1, bands + 1)
    return np.clip(levels, 0, 255 if kind == "uint8" else None).astype(kind)


def save(path: Path, array: Array, **more: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, array, **{"photometric": "minisblack", "planarconfig": "contig", **more})
    else:
        Image.fromarray(array).save(path)


def mask(seed: int) -> Array:
    return np.random.default_rng(seed + 100).integers(0, 2, (SIDE, SIDE)).astype(np.uint8)


def masked(root: Path, write: Callable[[int], None], folder: str = "masks") -> data.DataSet:
    """A set of masks whose images `write` makes."""
    for seed in range(COUNT):
        write(seed)
        save(root / folder / f"{seed}.png", mask(seed))
    return data.read(root)


def check_scenes(found: data.DataSet, bands: int = 5) -> None:
    """All images are there, and their bands in order: the levels measured rise by 100."""
    assert not found.problems and found.bands is not None
    assert sum(map(len, (found.train, found.val, found.test))) == COUNT
    middle = [(low + high) / 2 for low, high in found.bands.scale]
    assert np.abs(np.array(middle) - 100 * np.arange(1, bands + 1)).max() < 25
    spec = choose_spec("set", found, SIDE)
    assert (spec.channels, spec.scale, spec.bands) == (bands, found.bands.scale, found.bands.names)
    batch = found.train.batch(range(len(found.train)), spec)
    assert batch.shape == (len(found.train), SIDE, SIDE, bands) and batch.dtype == np.uint8
    levels = batch.reshape(-1, bands) / 255
    assert np.abs(levels.mean(0) - spec.mean).max() < 0.01 and np.abs(levels.std(0) - spec.std).max() < 0.01


@pytest.mark.parametrize("ending", [".tif", ".npy"])
def test_images_of_five_bands(ending: str, tmp_path: Path) -> None:
    check_scenes(masked(tmp_path, lambda seed: save(tmp_path / "images" / f"{seed}{ending}", scene(seed))))


def test_a_folder_an_image_a_file_a_band(tmp_path: Path) -> None:
    def write(seed: int) -> None:
        for k, name in enumerate(("B2", "B3", "B8A", "B11", "B12")):
            save(tmp_path / "images" / f"{seed}" / f"T31_2024_{name}.tif", scene(seed)[..., k])
        (tmp_path / "images" / f"{seed}" / "metadata.json").write_text("{}")

    found = masked(tmp_path, write)
    check_scenes(found)
    assert found.bands is not None and found.bands.names == ("B2", "B3", "B8A", "B11", "B12")


def test_coarser_bands_are_brought_to_the_finest(tmp_path: Path) -> None:
    def write(seed: int) -> None:
        save(tmp_path / "images" / str(seed) / "B02.tif", scene(seed)[..., 0])
        save(tmp_path / "images" / str(seed) / "B11.tif", scene(seed)[::2, ::2, 1])

    found = masked(tmp_path, write)
    check_scenes(found, 2)


@pytest.mark.parametrize("folders", [("images_t1", "images_t2", "masks"), ("A", "B", "label")])
def test_two_dates(folders: tuple[str, str, str], tmp_path: Path) -> None:
    def write(seed: int) -> None:
        for folder, date in zip(folders, (0, 1), strict=False):
            save(tmp_path / folder / f"{seed}.tif", scene(seed, 4)[..., 2 * date : 2 * date + 2])

    found = masked(tmp_path, write, folders[2])
    check_scenes(found, 4)
    assert isinstance(found.train.sources[0], Stack)


def test_two_dates_of_a_file_a_band(tmp_path: Path) -> None:
    def write(seed: int) -> None:
        for k, name in enumerate(("B02", "B08")):
            for date in (0, 1):
                file = tmp_path / f"images_{2020 + date}" / str(seed) / f"{name}.tif"
                save(file, scene(seed, 4)[..., 2 * k + date])

    found = masked(tmp_path, write)
    check_scenes(found, 4)
    assert found.bands is not None and found.bands.names == ("B02.2020", "B02.2021", "B08.2020", "B08.2021")


def test_several_files_are_no_mask(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        for seed in range(4):
            save(tmp_path / part / f"{seed}.png", scene(seed, 3, kind="uint8"))
            save(tmp_path / f"{part}annot" / f"{seed}.png", mask(seed))
    (tmp_path / "classes.txt").write_text("a\nb\n")
    for name in ("a", "b"):
        save(tmp_path / "trainannot/0" / f"{name}.tif", mask(0))
    assert not data.read(tmp_path).problems


def test_two_dates_of_photographs_with_splits(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("val", 3), ("test", 3)):
        for seed in range(count):
            for date in "AB":
                save(tmp_path / part / date / f"{seed}.png", scene(seed + ord(date), 3, kind="uint8"))
            save(tmp_path / part / "label" / f"{seed}.png", mask(seed))
    found = data.read(tmp_path)
    assert (len(found.train), len(found.val), len(found.test)) == (6, 3, 3) and not found.problems
    assert found.bands is not None and found.bands.scale == ((0.0, 255.0),) * 6


def test_class_folders_of_bands(tmp_path: Path) -> None:
    for seed in range(COUNT):
        for k, name in enumerate(("B02", "B03", "B08")):
            save(
                tmp_path / "ab"[seed % 2] / f"patch_{seed}" / f"patch_{seed}_{name}.tif", scene(seed, 3)[..., k]
            )
    found = data.read(tmp_path)
    check_scenes(found, 3)
    assert (
        found.classes == ("a", "b") and found.bands is not None and found.bands.names == ("B02", "B03", "B08")
    )


def test_a_zip_and_a_manifest_are_the_folder(tmp_path: Path) -> None:
    rows = ["path,label"]
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for seed in range(COUNT):
            rows.append(f"set/{'ab'[seed % 2]}/{seed},{'ab'[seed % 2]}")
            for k, name in enumerate(("B02", "B03")):
                file = Path("set", "ab"[seed % 2], str(seed), f"{name}.tif")
                save(tmp_path / file, scene(seed, 2)[..., k])
                archive.write(tmp_path / file, file)
    (tmp_path / "set.csv").write_text("\n".join(rows))
    folder, packed, listed = (data.read(tmp_path / name) for name in ("set", "set.zip", "set.csv"))
    check_scenes(folder, 2)
    assert packed.bands == folder.bands and packed.fingerprint == folder.fingerprint
    check_scenes(listed, 2)


def test_npz_of_bands(tmp_path: Path) -> None:
    x = np.stack([scene(seed) for seed in range(COUNT)])
    np.savez(tmp_path / "set.npz", x=x, y=np.arange(COUNT) % 2)
    check_scenes(data.read(tmp_path / "set.npz"))
    np.savez(tmp_path / "first.npz", x=np.moveaxis(np.tile(x, (1, 2, 2, 1)), -1, 1), y=np.arange(COUNT) % 2)
    with pytest.raises(DataError, match="channels last"):
        data.read(tmp_path / "first.npz")


def test_bands_txt_chooses_orders_and_states_ranges(tmp_path: Path) -> None:
    (tmp_path / "bands.txt").write_text("B11 0 2000\n\nB02\n")

    def write(seed: int) -> None:
        for k, name in enumerate(("B02", "B03", "B11")):
            save(tmp_path / "images" / str(seed) / f"{name}.tif", scene(seed)[..., k])

    found = masked(tmp_path, write)
    assert found.bands is not None and found.bands.names == ("B11", "B02")
    assert found.bands.scale[0] == (0, 2000) and 50 < sum(found.bands.scale[1]) / 2 < 150
    assert found.bands.mean[0] == pytest.approx(300 / 2000, abs=0.01)


def test_four_bands_that_gdal_calls_alpha(tmp_path: Path) -> None:
    def write(seed: int) -> None:
        more = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
        save(tmp_path / "images" / f"{seed}.tif", scene(seed, 4, kind="uint8"), **more)

    found = masked(tmp_path, write)
    assert found.bands is None and any("fourth band alpha" in text for text in found.warnings)
    (tmp_path / "bands.txt").write_text("red\ngreen\nblue\nnir")
    named = data.read(tmp_path)
    assert named.bands is not None and named.bands.scale == ((0.0, 255.0),) * 4 and not named.warnings
    assert named.fingerprint != found.fingerprint  # other names or ranges are another set
    (tmp_path / "bands.txt").write_text("red\ngreen\nblue\nnir 0 100")
    assert data.read(tmp_path).fingerprint != named.fingerprint


@pytest.mark.parametrize(
    ("text", "what"),
    [("B02\nB02", "twice"), ("\n", "none"), ("B02 1", "line 1"), ("B02 5 1", "line 1"), ("B x y", "line")],
)
def test_a_bands_txt_that_is_none(text: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "bands.txt").write_text(text)
    with pytest.raises(DataError, match=what) as caught:
        masked(tmp_path, lambda seed: save(tmp_path / "images" / f"{seed}.tif", scene(seed)))
    assert caught.value.code == "bands-file"


def test_files_that_differ_are_named(tmp_path: Path) -> None:
    odd = {0: scene(0, 4), 1: scene(1, kind="uint8"), 2: scene(2, 3, kind="uint8")}
    found = masked(tmp_path, lambda seed: save(tmp_path / "images" / f"{seed}.tif", odd.get(seed, scene(seed))))
    assert {problem.path: problem.code for problem in found.problems} == {
        f"images/{seed}.tif": "bands-differ" for seed in odd
    }
    assert "has 4 bands of more than 8 bits, expected 5 bands" in str(found.problems[0].message)


def test_a_band_or_date_that_is_missing(tmp_path: Path) -> None:
    def write(seed: int) -> None:
        for name in ("B02", "B03") if seed else ("B03", "B05"):
            save(tmp_path / "images" / str(seed) / f"{name}.tif", scene(seed, 1)[..., 0])

    found = masked(tmp_path, write)
    by_code = {problem.code: problem for problem in found.problems}
    assert set(by_code) == {"bands-missing", "mask-stray"} and "band B02" in by_code["bands-missing"].message


def test_a_few_bands_among_photographs_are_problems(tmp_path: Path) -> None:
    def write(seed: int) -> None:
        path = tmp_path / "images" / f"{seed}.png"
        save(path if seed else path.with_suffix(".npy"), scene(seed, 3, kind="uint8"))

    found = masked(tmp_path, write)
    assert found.bands is None and [problem.code for problem in found.problems] == ["bands-differ"]


def test_16_bit_grey_in_png_stays_a_photograph_and_in_tiff_is_stretched(tmp_path: Path) -> None:
    png = masked(
        tmp_path / "a", lambda seed: save(tmp_path / "a/images" / f"{seed}.png", scene(seed, 1)[..., 0])
    )
    tif = masked(
        tmp_path / "b", lambda seed: save(tmp_path / "b/images" / f"{seed}.tif", scene(seed, 1)[..., 0])
    )
    assert png.bands is None
    check_scenes(tif, 1)


def test_pixels_without_data_are_neither_measured_nor_learned(tmp_path: Path) -> None:
    def write(seed: int) -> None:
        image = scene(seed)
        image[: SIDE // 2] = 60000
        tag = [(42113, "s", 0, "60000", True)]
        save(tmp_path / "images" / f"{seed}.tif", image, extratags=tag)

    found = masked(tmp_path, write)
    check_void = found.bands
    assert check_void is not None and max(high for _, high in check_void.scale) < 1000
    spec = choose_spec("set", found, SIDE)
    targets = found.train.targets(range(len(found.train)), spec)
    assert (targets[:, : SIDE // 2] == 255).all() and (targets[:, SIDE // 2 :] != 255).all()
    assert found.train.counts is not None and found.train.counts.sum() == len(found.train) * SIDE * SIDE // 2


def test_the_order_of_files_and_the_cache_change_nothing(tmp_path: Path) -> None:
    found = masked(tmp_path, lambda seed: save(tmp_path / "images" / f"{seed}.tif", scene(seed)))
    spec = choose_spec("set", found, 8)
    first = found.train.batch([0, 1, 2], spec)
    assert (found.train.batch([2, 1, 0], spec) == first[::-1]).all()
    other = type(spec)(size_hw=(8, 8), mean=spec.mean, std=spec.std, channels=5, scale=((0, 60000),) * 5)
    assert found.train.batch([0], other).max() < 4 < first.max()
    assert data.read(tmp_path, splits=found.splits_json()).bands == found.bands


def test_objects_in_images_of_bands(tmp_path: Path) -> None:
    found = masked(tmp_path, lambda seed: save(tmp_path / "images" / f"{seed}.tif", scene(seed)), "instances")
    check_scenes(found)
    assert found.task.kind == "instances" and found.bands is not None
    cut = data.windows(found.train, (8, 8), most=2, spec=found.bands.spec((8, 8)))
    batch = cut.batch([0, 1], found.bands.spec((8, 8)))
    assert batch.shape == (2, 8, 8, 5) and batch.std() > 20
    assert cut.targets([0], found.bands.spec((8, 8))).dtype == np.int32


@pytest.mark.parametrize(
    "name", ["niwaki:fast_scnn", "niwaki:bisenet_v2", "niwaki:lednet", "niwaki:sfnet", "niwaki:light_context"]
)
def test_networks_take_any_number_of_bands(name: str) -> None:
    torch = pytest.importorskip("torch")
    from niwaki import nets

    net = nets.build(name, classes=3, channels=5).eval()
    with torch.no_grad():
        assert net(torch.zeros(1, 5, 64, 64)).shape[:2] == (1, 3)
