"""Files of scenes: what is read, what is refused, and what is written is what was predicted."""

from __future__ import annotations

import itertools
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from niwaki import tile
from niwaki.errors import DataError, NiwakiError
from niwaki.images import decode
from niwaki.rasters.raster import Geo, Windows
from niwaki.tile import cog, geojson
from niwaki.tile.readers import open_source
from niwaki.tile.scratch import Raw

tifffile = pytest.importorskip("tifffile")
zarr = pytest.importorskip("zarr")

UTM = {
    33550: (12, (10.0, 10.0, 0.0)),
    33922: (12, (0.0, 0.0, 0.0, 500000.0, 5000000.0, 0.0)),
    34735: (3, (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633)),
}
TRANSFORM = (10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0)


def draw(*shape: int, dtype: Any = np.uint16, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 4000, shape).astype(dtype)


def odds(images: Any) -> Any:
    """Three classes by the brightness of the first channel."""
    value = images[..., 0].astype(np.float32)
    return np.stack([value < 80, (value >= 80) & (value < 160), value >= 160], 1).astype(np.float32)


def whole(path: Path, **knobs: Any) -> Any:
    raster = open_source(path, memory=1 << 30, **knobs)
    assert raster.block[0] * raster.block[1] <= 300 * 400
    got = Windows(raster, keep=1 << 20).read(0, 0, *raster.shape[:2])
    raster.close()
    return got


def raw(folder: Path, array: Any) -> Raw:
    made = Raw(folder / "raw.npy", array.shape, array.dtype)
    made.write(0, 0, array)
    return made


@pytest.mark.parametrize(
    "knobs",
    [
        {"tile": (64, 80), "compression": "zlib"},
        {"tile": (64, 64), "compression": "zlib", "predictor": True},
        {"rowsperstrip": 7, "compression": "zlib"},
        {"rowsperstrip": 7},
        {"tile": (64, 64), "planarconfig": "separate"},
        {"tile": (64, 64), "bigtiff": True, "byteorder": ">"},
        {"tile": (64, 64), "compression": "lzma"},
        {"tile": (64, 64), "compression": "packbits", "dtype": np.uint8},
        {"tile": (64, 64), "dtype": np.float32},
        {"tile": (64, 64), "dtype": np.int16, "byteorder": ">"},
    ],
)
def test_tiffs_are_read_by_block(tmp_path: Path, knobs: dict[str, Any]) -> None:
    array = draw(3, 200, 330, dtype=knobs.pop("dtype", np.uint16))
    head = {name: knobs.pop(name) for name in ("bigtiff", "byteorder") if name in knobs}
    planar = knobs.get("planarconfig") == "separate"
    data = array if planar else np.ascontiguousarray(array.transpose(1, 2, 0))
    try:
        with tifffile.TiffWriter(tmp_path / "a.tif", **head) as file:
            file.write(data, photometric="minisblack", **({"planarconfig": "contig"} | knobs))
    except (KeyError, RuntimeError, ValueError, ImportError) as error:
        pytest.skip(f"tifffile cannot write it here: {error}")
    got = whole(tmp_path / "a.tif")
    assert got.dtype == array.dtype
    assert (got == array.transpose(1, 2, 0)).all()


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "raw"])
@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_compressions_that_pillow_writes(tmp_path: Path, compression: str, mode: str) -> None:
    array = draw(100, 120, 3) if mode != "RGB" else draw(100, 120, 3, dtype=np.uint8)
    array = array if mode == "RGB" else array[..., 0].astype(np.uint8 if mode == "L" else np.uint16)
    try:
        Image.fromarray(array).save(tmp_path / "a.tif", compression=compression)
    except (OSError, RuntimeError, KeyError) as error:
        pytest.skip(f"libtiff of Pillow cannot write it: {error}")
    assert (whole(tmp_path / "a.tif").squeeze() == array).all()


@pytest.mark.parametrize("transfer", [True, False])
def test_jpeg_in_tiff_has_the_colours_that_pillow_reads(tmp_path: Path, transfer: bool) -> None:
    ramp = (np.add.outer(np.arange(96), np.arange(128)) % 256).astype(np.uint8)
    image = Image.fromarray(np.stack([ramp, 255 - ramp, ramp[::-1]], -1))
    image = image.convert("YCbCr") if transfer else image
    image.save(tmp_path / "a.tif", compression="jpeg", quality=95)
    with Image.open(tmp_path / "a.tif") as opened:
        wanted = np.asarray(opened.convert("RGB")).astype(int)
    assert np.abs(whole(tmp_path / "a.tif").astype(int) - wanted).mean() < 2


def test_a_palette_becomes_its_colours_and_white_is_zero_is_turned(tmp_path: Path) -> None:
    numbers = draw(40, 50, dtype=np.uint8) % 4
    image = Image.fromarray(numbers, "P")
    image.putpalette([10, 20, 30, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "p.tif")
    assert (whole(tmp_path / "p.tif") == np.asarray(image.convert("RGB"))).all()
    tifffile.imwrite(tmp_path / "w.tif", numbers, photometric="miniswhite")
    assert (whole(tmp_path / "w.tif")[..., 0] == 255 - numbers).all()


def test_levels_of_a_pyramid(tmp_path: Path) -> None:
    full = draw(256, 320, 3, dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "s.svs") as file:
        file.write(full, tile=(64, 64), subifds=1, photometric="rgb")
        file.write(full[::2, ::2], tile=(64, 64), subfiletype=1, photometric="rgb")
    assert (whole(tmp_path / "s.svs") == full).all()
    assert (whole(tmp_path / "s.svs", level=1) == full[::2, ::2]).all()
    with pytest.raises(DataError, match="2 levels"):
        whole(tmp_path / "s.svs", level=2)


def test_each_block_is_decoded_once(tmp_path: Path, monkeypatch: Any) -> None:
    tifffile.imwrite(tmp_path / "a.tif", draw(300, 400, dtype=np.uint8), tile=(64, 64), compression="zlib")
    from niwaki.rasters import codecs

    decoded = []
    plain = codecs.unpack
    monkeypatch.setattr(codecs, "unpack", lambda *args: decoded.append(1) or plain(*args))
    stats = tile.predict(odds, tmp_path / "a.tif", np.zeros((300, 400), np.uint8), tile=96, overlap=40)
    assert stats.strips == 1
    assert len(decoded) == 5 * 7


@pytest.mark.parametrize("axes", ["yx", "yxc", "cyx", "tczyx"])
def test_zarr_is_read_by_chunk(tmp_path: Path, axes: str) -> None:
    array = draw(120, 150, 3, dtype=np.uint8)
    stored = {"yx": array[..., 0], "yxc": array, "cyx": array.transpose(2, 0, 1)}.get(axes)
    if stored is None:
        stored = array.transpose(2, 0, 1)[None, :, None]
    chunks = tuple(min(n, 64) for n in stored.shape)
    zarr.create_array(tmp_path / "a.zarr", data=np.ascontiguousarray(stored), chunks=chunks)
    assert (whole(tmp_path / "a.zarr") == (array[..., :1] if axes == "yx" else array)).all()


def test_memmaps_are_read_from_their_file(tmp_path: Path) -> None:
    array = draw(60, 70, 2)
    np.save(tmp_path / "a.npy", array)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    for source in (tmp_path / "a.npy", mapped, mapped[10:], array[:, ::-1]):
        raster = open_source(source, memory=0)
        wanted = array if isinstance(source, Path) else np.asarray(source)
        assert (Windows(raster, keep=0).read(3, 5, 20, 30) == wanted[3:23, 5:35]).all()
        raster.close()


def test_windows_beyond_the_scene_are_mirrored() -> None:
    array = draw(5, 7, 1)
    got = Windows(open_source(array, memory=0), keep=0).read(1, 2, 9, 11)
    assert (got == np.pad(array[1:, 2:], [(0, 5), (0, 6), (0, 0)], mode="reflect")).all()


def test_pictures_that_do_not_fit_are_refused_with_the_command(tmp_path: Path) -> None:
    Image.fromarray(draw(600, 700, 3, dtype=np.uint8)).save(tmp_path / "a.png")
    out = np.zeros((600, 700), np.uint8)
    with pytest.raises(DataError, match=r"takes 5 MB .* gdal_translate -of COG a.png a.tif") as caught:
        tile.predict(odds, tmp_path / "a.png", out, tile=32, memory_mb=4)
    assert caught.value.code == "tile-whole"
    tile.predict(odds, tmp_path / "a.png", out, tile=32, memory_mb=12)
    assert out.any()


def test_large_pictures_are_read_where_they_fit(tmp_path: Path, monkeypatch: Any) -> None:
    """Beyond images.MAX_PIXELS the budget alone decides, and Pillow's own limit stays as it was."""
    pixels = draw(1200, 1000, 3, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    monkeypatch.setattr("niwaki.images.MAX_PIXELS", 100_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    assert (whole(tmp_path / "a.png") == pixels).all()
    assert Image.MAX_IMAGE_PIXELS == 100_000
    with pytest.raises(DataError, match="12 MB") as caught:
        open_source(tmp_path / "a.png", memory=10 << 20)
    assert caught.value.code == "tile-whole"
    with pytest.raises(DataError, match="too large"):  # elsewhere the limit holds
        decode(tmp_path / "a.png", channels=3)


@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_sixteen_bits_of_a_picture_are_scaled_by_the_spec(tmp_path: Path, suffix: str) -> None:
    """The same numbers reach the model from PNG and from .npy."""
    pixels = np.full((32, 32), 4000, np.uint16)
    path = tmp_path / f"a{suffix}"
    np.save(path, pixels) if suffix == ".npy" else Image.fromarray(pixels).save(path)
    seen: dict[Any, set[int]] = {}
    for scale in ((0, 4000), "bits"):

        def looks(images: Any, scale: Any = scale) -> Any:
            seen[scale] = set(np.unique(images[-1]).tolist())
            return odds(images)

        tile.predict(looks, path, np.zeros((32, 32), np.uint8), tile=32, overlap=0, scale=scale)
    assert seen == {(0, 4000): {255}, "bits": {16}}


def damaged(kind: str, path: Path) -> None:
    tifffile.imwrite(path, draw(200, 200, dtype=np.uint8), tile=(64, 64), compression="zlib")
    data = bytearray(path.read_bytes())
    if kind == "short":
        del data[len(data) // 2 :]
    elif kind == "empty":
        data.clear()
    elif kind == "no tiff":
        data = bytearray(b"II*\0 and no more")
    elif kind == "pixels":
        middle = len(data) // 2
        data[middle : middle + 400] = bytes(400)
    elif kind == "far":  # a directory beyond the end
        data[4:8] = struct.pack("<I", 10**9)
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["short", "empty", "no tiff", "pixels", "far"])
def test_damaged_tiffs_are_told_and_leave_nothing(tmp_path: Path, kind: str) -> None:
    damaged(kind, tmp_path / "a.tif")
    with pytest.raises(DataError) as caught:
        tile.predict(odds, tmp_path / "a.tif", tmp_path / "o.tif", tile=64)
    assert caught.value.code == "tile-corrupt"
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_what_is_not_read_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "c.tif", draw(32, 32).astype(np.complex64))
    Image.fromarray(np.zeros((8, 8), bool)).save(tmp_path / "bits.tif")
    (tmp_path / "text.png").write_text("no picture")
    np.save(tmp_path / "f.npy", np.asfortranarray(draw(8, 9)))
    np.save(tmp_path / "four.npy", draw(2, 2, 2, 2))
    zarr.create_array(tmp_path / "v.zarr", data=draw(5, 6, 7, 8))
    for name in ("c.tif", "bits.tif", "text.png", "f.npy", "four.npy", "v.zarr"):
        with pytest.raises(DataError) as caught:
            open_source(tmp_path / name, memory=1 << 30)
        assert caught.value.code == "tile-format", name
    (tmp_path / "b.npy").write_bytes(b"\x93NUMPY but no more")
    (tmp_path / "n.zarr").mkdir()
    for name in ("b.npy", "n.zarr"):
        with pytest.raises(DataError) as caught:
            open_source(tmp_path / name, memory=1 << 30)
        assert caught.value.code == "tile-corrupt", name


def geotiff(path: Path, array: Any, **knobs: Any) -> None:
    extra = [(number, kind, len(value), value, True) for number, (kind, value) in UTM.items()]
    tifffile.imwrite(
        path, array, photometric="minisblack", extratags=[*extra, (42113, 2, 2, "0", True)], **knobs
    )


def test_a_geotiff_keeps_its_place_and_is_a_valid_cog(tmp_path: Path) -> None:
    array = draw(700, 1100, dtype=np.uint8) + 1
    array[:100, :100] = 0
    geotiff(tmp_path / "a.tif", array, tile=(256, 256), compression="zlib")
    red = ((0, 0, 0), (255, 0, 0), (0, 255, 0))
    tile.predict(odds, tmp_path / "a.tif", tmp_path / "o.tif", tile=128, palette=red)
    assert cog.faults(tmp_path / "o.tif") == []
    with tifffile.TiffFile(tmp_path / "o.tif") as file:
        page = file.pages[0]
        assert {number: tuple(page.tags[number].value) for number in UTM} == {n: v for n, (_, v) in UTM.items()}
        assert page.tags[42113].value == "255"
        assert page.colormap[:, 1].tolist() == [65535, 0, 0]
        assert [p.shape for p in file.pages] == [(700, 1100), (350, 550), (175, 275)]
        got = page.asarray()
    wanted = odds(array[None, ..., None])[0].argmax(0)
    assert (got[:100, :100] == 255).all()
    wanted[array == 0] = 255
    assert (got == wanted).all()
    geo = open_source(tmp_path / "o.tif", memory=0).geo
    assert geo is not None
    assert (geo.epsg, geo.transform) == (32633, TRANSFORM)


@pytest.mark.parametrize("big", [False, True])
def test_probabilities_as_a_cog_of_planes(tmp_path: Path, big: bool) -> None:
    array = np.random.default_rng(0).random((3, 600, 700)).astype(np.float32)
    array[:, :9, :9] = np.nan
    cog.write(raw(tmp_path, array), tmp_path / "o.tif", nodata=float("nan"), big=big)
    assert cog.faults(tmp_path / "o.tif") == []
    with tifffile.TiffFile(tmp_path / "o.tif") as file:
        assert file.is_bigtiff == big
        assert np.array_equal(file.pages[0].asarray(), array, equal_nan=True)
        half = file.pages[1].asarray()
    assert np.allclose(half[:, 100, 100], array[:, 200:202, 200:202].mean((1, 2)))
    assert np.isnan(half[:, :4, :4]).all()
    assert np.allclose(half[:, 4, 4], np.nanmean(array[:, 8:10, 8:10], (1, 2)))


def test_the_check_of_cogs_sees_what_is_wrong(tmp_path: Path) -> None:
    array = draw(600, 700, dtype=np.uint8)
    tifffile.imwrite(tmp_path / "strips.tif", array)
    assert any("tiled" in fault for fault in cog.faults(tmp_path / "strips.tif"))
    with tifffile.TiffWriter(tmp_path / "order.tif") as file:
        file.write(array, tile=(256, 256), subfiletype=0)
        file.write(array[::2, ::2], tile=(256, 256), subfiletype=1)
    faults = cog.faults(tmp_path / "order.tif")
    assert any("directories" in fault for fault in faults)
    assert any("before" in fault for fault in faults)
    tifffile.imwrite(tmp_path / "none.tif", array, tile=(256, 256))
    assert any("overview" in fault for fault in cog.faults(tmp_path / "none.tif"))


def test_large_files_are_bigtiff() -> None:
    assert not cog.is_big(3_900_000_000)
    assert cog.is_big(4_000_000_000)


def test_halves_of_classes_are_the_most_frequent() -> None:
    block = np.array([[1, 2, 3, 4, 5], [2, 2, 4, 4, 5], [7, 8, 6, 6, 9]], np.uint8)
    assert cog.halved(block).tolist() == [[2, 4, 5], [7, 6, 9]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_and_zarr_hold_the_classes(tmp_path: Path, dtype: Any) -> None:
    from niwaki.tile import png

    array = (draw(90, 70) % 300).astype(dtype)
    png.write(
        raw(tmp_path, array), tmp_path / "o.png", palette=((1, 2, 3), (4, 5, 6)) if dtype == np.uint8 else ()
    )
    with Image.open(tmp_path / "o.png") as image:
        assert image.mode == ("P" if dtype == np.uint8 else "I;16")
        assert (np.asarray(image) == array).all()
    tile.predict(odds, draw(90, 70, 1, dtype=np.uint8), tmp_path / "o.zarr", tile=64, output="probabilities")
    assert zarr.open(tmp_path / "o.zarr").shape == (3, 90, 70)
    assert (zarr.open(tmp_path / "o.zarr")[:].sum(0) == 1).all()


def filled(rings: Any, shape: tuple[int, int]) -> Any:
    mask = np.zeros(shape, bool)
    for ring in rings:
        for (xa, ya), (xb, yb) in zip(ring, [*ring[1:], ring[0]], strict=True):
            assert (xa == xb) != (ya == yb)
            if xa == xb:
                mask[min(ya, yb) : max(ya, yb), xa:] ^= True
    return mask


@pytest.mark.parametrize("seed", range(30))
def test_polygons_cover_each_region_once(tmp_path: Path, seed: int) -> None:
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    array = rng.integers(0, 3, rng.integers(1, 18, 2)).astype(np.uint8)
    again = np.zeros_like(array)
    count = 0
    for number, runs in geojson.regions(raw(tmp_path, array)):
        rings = geojson.outlines(runs)
        turns = [
            sum(xa * yb - xb * ya for (xa, ya), (xb, yb) in zip(r, [*r[1:], r[0]], strict=True)) for r in rings
        ]
        assert sum(turn > 0 for turn in turns) == 1  # one ring is outside, the others are holes
        mask = filled(rings, array.shape)
        assert not again[mask].any()
        again[mask] = number
        count += 1
    assert (again == array).all()
    assert count == sum(ndimage.label(array == k)[1] for k in (1, 2))


def test_geojson_lies_where_the_scene_lies(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("pyproj")
    array = np.full((40, 60), 200, np.uint8)
    array[10:20, 10:30] = 100
    array[12:15, 15:20] = 1
    geotiff(tmp_path / "a.tif", array)
    tile.predict(odds, tmp_path / "a.tif", tmp_path / "o.geojson", tile=32)
    features = json.loads((tmp_path / "o.geojson").read_text())["features"]
    assert sorted(feature["properties"]["class"] for feature in features) == [1, 2]
    outer = next(f for f in features if f["properties"]["class"] == 2)["geometry"]["coordinates"]
    assert [len(ring) for ring in outer] == [5, 5]
    corner = max(outer[0], key=lambda point: point[1] - point[0])
    assert np.allclose(
        corner, (15, 45.15350), atol=1e-4
    )  # easting 500000 is the meridian of the zone, 15 degrees
    area = [sum(a[0] * b[1] - b[0] * a[1] for a, b in itertools.pairwise(r)) for r in np.array(outer[0])[None]]
    assert area[0] > 0
    monkeypatch.setattr(geojson, "MOST_RUNS", 12)
    tile.predict(odds, tmp_path / "a.tif", tmp_path / "cut.geojson", tile=32)
    assert len(json.loads((tmp_path / "cut.geojson").read_text())["features"]) > 2


@pytest.mark.parametrize(
    "geo", [None, Geo(transform=TRANSFORM), Geo(epsg=32633), Geo(transform=TRANSFORM, epsg=1)]
)
def test_geojson_without_a_place_is_refused(geo: Geo | None) -> None:
    pytest.importorskip("pyproj")
    with pytest.raises(NiwakiError) as caught:
        geojson.projection(geo)
    assert caught.value.code == "tile-geo"


def test_viewer_pictures_are_those_of_scene_and_classes(tmp_path: Path) -> None:
    scene, classes = draw(300, 700, 3, dtype=np.uint8), draw(300, 700, dtype=np.uint8) % 3
    names = ["sea", "<b>land</b>", "ice"]
    page = tile.viewer(scene, classes, tmp_path / "v", classes=names)
    text = page.read_text()
    assert "http" not in text.replace("http-equiv", "")
    assert "<b>land" not in text
    with Image.open(tmp_path / "v" / "scene" / "2" / "1_0.png") as image:
        assert (np.asarray(image) == scene[:256, 256:512]).all()
    with Image.open(tmp_path / "v" / "classes" / "2" / "2_1.png") as image:
        assert np.asarray(image).shape == (44, 188, 3)
        colours = np.array(tile.colours(3), np.uint8)
        assert (np.asarray(image) == colours[classes[256:, 512:]]).all()
    with Image.open(tmp_path / "v" / "scene" / "0" / "0_0.png") as image:
        assert image.size == (175, 75)
    with pytest.raises(DataError):
        tile.viewer(scene, classes[1:], tmp_path / "v", classes=names)
    small = tile.viewer(scene.astype(np.uint16) * 9, classes, tmp_path / "w", classes=names, side=200)
    assert '"step": 4' in small.read_text()
    assert zlib.crc32((tmp_path / "w" / "scene" / "0" / "0_0.png").read_bytes())
