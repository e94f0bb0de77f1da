"""Images of any number of bands: Spec, reading, resizing, augmentation; photographs keep every bit."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from niwaki import Spec, bands, images
from niwaki.bands import Stack
from niwaki.data import augment, augment_masks, corrupt
from niwaki.errors import DataError, SpecError

tifffile = pytest.importorskip("tifffile")
FIVE = Spec(size_hw=(6, 8), mean=(0.5,) * 5, std=(0.2,) * 5, channels=5, scale=((0, 1000),) * 5)


def pixels(
    *shape: int, high: int = 256, kind: type[np.generic] = np.uint8, seed: int = 0
) -> npt.NDArray[np.generic]:
    return np.random.default_rng(seed).integers(0, high, shape).astype(kind)


def tiff(array: npt.NDArray[np.generic], **more: object) -> bytes:
    held = io.BytesIO()
    tifffile.imwrite(held, array, **{"photometric": "minisblack", "planarconfig": "contig", **more})
    return held.getvalue()


def npy(array: npt.NDArray[np.generic]) -> bytes:
    held = io.BytesIO()
    np.save(held, array)
    return held.getvalue()


def test_a_spec_of_bands_is_a_value() -> None:
    spec = Spec(
        size_hw=(6, 8),
        mean=(0.5, 0.4),
        std=(0.2, 0.1),
        channels=2,
        scale=((0, 10000), (-20.5, 3)),
        bands=("VV", "VH"),
    )
    assert Spec.from_json(spec.to_json()) == spec
    assert hash(spec) == hash(Spec.from_json(spec.to_json()))
    assert spec != Spec(size_hw=(6, 8), mean=(0.5, 0.4), std=(0.2, 0.1), channels=2)
    assert spec.example(3).shape == (3, 2, 6, 8)


def test_a_manifest_of_before_still_loads_and_photographs_keep_theirs() -> None:
    before = {
        "size_hw": [4, 5],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "channels": 3,
        "resize": "pillow-bilinear-antialias-stretch",
    }
    assert Spec.from_json(before) == Spec(size_hw=(4, 5))
    assert Spec(size_hw=(4, 5)).to_json() == before


@pytest.mark.parametrize(
    ("knobs", "code"),
    [
        ({"channels": 0, "mean": (), "std": ()}, "spec-channels"),
        ({"channels": 4}, "spec-channels"),
        ({"scale": ((0, 1),) * 2}, "spec-scale"),
        ({"scale": ((0, 1), (0, 1), (1, 1))}, "spec-scale"),
        ({"scale": ((0, 1), (0, 1), (0, float("inf")))}, "spec-scale"),
        ({"bands": ("a", "b")}, "spec-bands"),
        ({"bands": ("a", "b", "a")}, "spec-bands"),
    ],
)
def test_bad_values_of_a_spec(knobs: dict[str, object], code: str) -> None:
    with pytest.raises(SpecError) as caught:
        Spec(size_hw=(4, 4), **knobs)  # type: ignore[arg-type]
    assert caught.value.code == code


def test_a_manifest_whose_scale_is_no_list_of_pairs() -> None:
    for scale in (3, [[0, 1, 2]] * 3, "abc", [["a", "b"]] * 3):
        with pytest.raises(SpecError) as caught:
            Spec.from_json(Spec(size_hw=(4, 4)).to_json() | {"scale": scale})
        assert caught.value.code == "spec-scale"


@pytest.mark.parametrize("size", [(13, 9), (60, 31), (7, 80), (24, 30)])
def test_bands_are_resized_as_a_colour_picture_is(size: tuple[int, int]) -> None:
    image = pixels(24, 30, 3)
    whole = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    assert (bands.resized(image, size) == whole).all()
    assert (Spec(size_hw=size).pack(image) == whole).all()
    with_more = np.concatenate([image, pixels(24, 30, 2, seed=1)], axis=2)
    assert (bands.resized(with_more, size)[..., :3] == whole).all()


def test_stretching_is_the_formula_and_bits_are_photographs() -> None:
    raw = pixels(7, 9, 5, high=1200, kind=np.uint16)
    expected = np.rint(np.clip(raw.astype(np.float64) / 1000, 0, 1) * 255)
    assert np.abs(FIVE.adapted(raw).astype(int) - expected).max() <= 1  # float32 may round a half the other way
    assert (FIVE.adapted(raw) == expected).mean() > 0.999
    eight = pixels(7, 9, 5)
    assert (bands.stretched(eight, ((0, 255),) * 5) == eight).all()
    full = pixels(7, 9, 1, high=65536, kind=np.uint16)
    photograph = images.to_channels(((full.astype(np.uint32) + 128) // 257).astype(np.uint8), 1)
    assert (bands.stretched(full, None) == photograph).all()
    holes = np.array([[[np.nan, -5.0, 2000.0]]], np.float32)
    assert bands.stretched(holes, ((0, 1000),) * 3).tolist() == [[[0, 0, 255]]]
    with pytest.raises(DataError) as caught:
        bands.stretched(holes, None)
    assert caught.value.code == "image-unsupported"


@pytest.mark.parametrize(
    "more",
    [{}, {"compression": "zlib", "predictor": 2}, {"tile": (16, 16)}, {"byteorder": ">"}, {"rowsperstrip": 3}],
)
def test_a_tiff_and_an_array_of_five_bands_are_the_same(more: dict[str, object], tmp_path: Path) -> None:
    raw = pixels(21, 34, 5, high=4000, kind=np.uint16)
    (tmp_path / "a.tif").write_bytes(tiff(raw, **more))
    (tmp_path / "a.npy").write_bytes(npy(raw))
    for source in (tmp_path / "a.tif", str(tmp_path / "a.npy"), tiff(raw, **more), npy(raw)):
        found, nodata = bands.read(source)
        assert found.dtype == np.uint16 and (found == raw).all() and nodata is None
    assert (FIVE.read(tmp_path / "a.tif") == FIVE.pack(FIVE.adapted(raw))).all()


@pytest.mark.parametrize(
    "more", [{}, {"imagej": True}, {"ome": True}, {"tile": (16, 16)}, {"compression": "zlib"}]
)
def test_pages_that_are_channels_are_bands(more: dict[str, object]) -> None:
    raw = pixels(5, 21, 34, high=4000, kind=np.uint16)
    held = io.BytesIO()
    tifffile.imwrite(held, raw, **more)
    assert (bands.read(held.getvalue())[0] == np.moveaxis(raw, 0, -1)).all()
    seen = bands.kind(held.getvalue())
    assert seen is not None and (seen.channels, seen.photograph) == (5, False)


def test_pages_that_are_no_channels() -> None:
    raw = pixels(5, 21, 34)
    held = io.BytesIO()
    tifffile.imwrite(held, raw, metadata=None)  # pages and nothing said of them: the first, as of photographs
    assert (bands.read(held.getvalue())[0] == raw[0, :, :, None]).all()
    held = io.BytesIO()
    tifffile.imwrite(held, pixels(64, 64, 5, high=4000, kind=np.uint16))  # a page a row
    with pytest.raises(DataError, match=r"64 pages of 5 x 64 pixels.*planarconfig") as caught:
        bands.read(held.getvalue())
    assert caught.value.code == "tile-format"


def test_several_files_are_one_image_coarser_ones_repeated() -> None:
    fine, coarse = pixels(12, 18, high=4000, kind=np.uint16), pixels(4, 6, high=4000, kind=np.uint16, seed=1)
    stack = Stack(files=(tiff(fine), tiff(coarse)), names=("B2", "B1"))
    found, _ = bands.read(stack)
    assert (found[..., 0] == fine).all()
    assert (found[..., 1] == np.kron(coarse, np.ones((3, 3), np.uint16))).all()
    with pytest.raises(DataError, match="multiple") as caught:
        bands.read(Stack(files=(tiff(fine), tiff(pixels(5, 6))), names=("B2", "B1")))
    assert caught.value.code == "bands-size"


def test_the_wrong_number_of_bands_is_named_both_ways() -> None:
    with pytest.raises(DataError, match=r"has 4 bands, the model takes 5\.") as caught:
        FIVE.read(tiff(pixels(8, 8, 4)))
    assert caught.value.code == "bands-count"
    named = Spec(size_hw=(4, 4), mean=(0.5,) * 2, std=(0.5,) * 2, channels=2, bands=("VV", "VH"))
    with pytest.raises(DataError, match=r"has 3 bands, the model takes 2 \(VV, VH\)"):
        named.read(npy(pixels(8, 8, 3)))
    with pytest.raises(DataError, match="has 5 bands, the model takes 3") as caught:
        Spec(size_hw=(4, 4)).read(tiff(pixels(8, 8, 5)))
    assert caught.value.code == "bands-count"
    with pytest.raises(DataError, match="has 4 bands, the model takes 3"):  # infrared is no alpha
        Spec(size_hw=(4, 4)).read(tiff(pixels(8, 8, 4), photometric="rgb", extrasamples=["unspecified"]))


def test_photographs_in_tiff_are_read_as_before() -> None:
    for image, more in ((pixels(9, 11, 3), {"photometric": "rgb"}), (pixels(9, 11), {})):
        content = tiff(image, **more)
        assert (Spec(size_hw=(9, 11)).read(content) == images.decode(content, channels=3)).all()
    colours = pixels(
        9, 11, 3
    )  # an array, or a file a colour, is no format of Pillow's and is read all the same
    single = Stack(files=tuple(tiff(colours[..., k]) for k in range(3)), names=("r", "g", "b"))
    for source in (npy(colours), single):
        assert (Spec(size_hw=(9, 11)).read(source) == colours).all()
    alpha = tiff(pixels(9, 11, 4), photometric="rgb", extrasamples=["unassalpha"])
    assert (Spec(size_hw=(9, 11)).read(alpha) == images.decode(alpha, channels=3)).all()


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (npy(pixels(5, 60, 70)), "image-unsupported"),  # [C, h, w]
        (npy(np.zeros((2, 3, 4, 5), np.uint8)), "image-unsupported"),
        (npy(np.zeros((4, 4), np.complex64)), "image-unsupported"),
        (npy(pixels(8, 8, 5))[:-40], "image-corrupt"),
        (b"\x93NUMPY\x01\x00", "image-corrupt"),
        (tiff(pixels(64, 64, 5))[:-9000], "image-corrupt"),
        (tiff(pixels(64, 64, 5))[:30], "image-corrupt"),
        (b"", "image-empty"),
    ],
)
def test_damaged_files_of_bands(content: bytes, code: str) -> None:
    with pytest.raises(DataError) as caught:
        FIVE.read(content)
    assert caught.value.code == code


@pytest.mark.parametrize("write", [tiff, npy])
def test_whatever_a_damaged_byte_does_is_an_error_with_a_code(
    write: object, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, draw, seen = write(pixels(20, 30, 5, high=4000, kind=np.uint16)), np.random.default_rng(1), set()  # type: ignore[operator]
    for _ in range(150):
        damaged = bytearray(whole)
        for place in draw.integers(6, 300, 3):
            damaged[place] = draw.integers(0, 256)
        try:
            bands.read(bytes(damaged))
        except DataError as error:
            seen.add(error.code)
    assert "image-corrupt" in seen and seen <= {
        *("image-corrupt", "image-unsupported", "image-oversized", "image-empty", "tile-format")
    }
    assert capfd.readouterr().err == ""


def test_an_array_of_objects_is_not_unpickled() -> None:
    held = io.BytesIO()
    np.save(held, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(DataError) as caught:
        FIVE.read(held.getvalue())
    assert caught.value.code == "image-corrupt"


def test_a_picture_shows_the_named_bands_stretched() -> None:
    image = pixels(20, 20, 4, high=100)
    assert bands.shown(4, ("B02", "B03", "B04", "B08")) == (2, 1, 0)
    assert bands.shown(5) == (0, 1, 2) and bands.shown(2) == (0, 1, 0) and bands.shown(1) == (0, 0, 0)
    shown = bands.picture(image, ("blue", "green", "red", "nir"))
    assert shown.shape == (20, 20, 3) and shown.max() == 255 and shown.min() == 0
    assert np.corrcoef(shown[..., 0].ravel(), image[..., 2].ravel())[0, 1] > 0.99
    photograph = pixels(4, 4, 3)
    assert Spec(size_hw=(4, 4)).picture(photograph) is photograph


def test_augmentation_moves_bands_as_it_moves_colours() -> None:
    three, index = pixels(4, 24, 20, 3), np.arange(4)
    five = np.concatenate([three, pixels(4, 24, 20, 2, seed=5)], axis=3)
    given = {"seed": 0, "epoch": 1, "flip": True}
    assert (augment.weak(five, index, **given)[..., :3] == augment.weak(three, index, **given)).all()
    draws = augment.uniforms(index, seed=0, epoch=1, count=15)
    assert (augment._warp(five, draws, True)[..., :3] == augment._warp(three, draws, True)).all()
    masks = pixels(4, 24, 20, high=3)
    moved, classes = augment_masks.weak(five, masks, index, **given)
    colours, same = augment_masks.weak(three, masks, index, **given)
    assert (moved[..., :3] == colours).all() and (classes == same).all()
    assert augment.strong(five, index, **given).shape == five.shape
    assert augment_masks.strong(five, masks, index, **given)[0].shape == five.shape


def test_tones_keep_bands_apart() -> None:
    """One factor for all bands; contrast about each band's own mean, so a flat band is only made brighter."""
    images_u8 = np.zeros((1, 8, 8, 2), np.uint8)
    images_u8[..., 0], images_u8[..., 1] = 100, pixels(8, 8, high=200)
    low_contrast = augment.toned(images_u8, np.array([[0.5, 0.0, 0.5]]))
    assert (low_contrast[..., 0] == 100).all()
    assert low_contrast[..., 1].std() < 0.8 * images_u8[..., 1].std()
    brighter = augment.toned(images_u8, np.array([[1.0, 0.5, 0.5]]))
    assert (brighter[..., 0] == 130).all()


@pytest.mark.parametrize("kind", corrupt.KINDS)
def test_corruptions_take_bands(kind: str) -> None:
    five = pixels(2, 16, 16, 5)
    changed = corrupt.corrupt(five, np.arange(2), kind=kind)
    assert changed.shape == five.shape and (changed != five).any()
