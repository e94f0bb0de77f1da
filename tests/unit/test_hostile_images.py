"""Damaged and malicious input: a DataError with a known code or a Problem, never anything else.

Each case runs on a thread of its own with a time limit, with every warning an error. The first half
must fail (with one of the codes named); bit flips and noise may also decode, but to proper pixels.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from niwaki import data, images
from niwaki.errors import CODES, DataError

LIMIT_S = 10.0
SIDE = 24


def guarded(work: Callable[[], object]) -> object:
    """What `work` returns, or the DataError it raises; fails on anything else, and on a hang."""
    outcome: list[object] = []

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                outcome.append(work())
            except BaseException as error:
                outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    assert not thread.is_alive(), f"still running after {LIMIT_S} s"
    (result,) = outcome
    if isinstance(result, DataError):
        assert result.code in CODES and len(str(result)) > 10
        assert str(result).isprintable(), "control characters in a message"
    elif isinstance(result, BaseException):
        raise AssertionError("not a DataError") from result
    return result


def noise() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image = noise().quantize(64) if form == "GIF" else noise()
    image.save(file, form, **options)
    return file.getvalue()


def png_of(*chunks: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def png_head(width: int, height: int, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    return struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)


def bmp_head(width: int, height: int, depth: int) -> bytes:
    sizes = (54, 0, 0, 54, 40, width, height, 1, depth, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", *sizes)


Image.init()  # all of Pillow's formats
FORMS = {
    "png": encoded("PNG"),
    "jpg": encoded("JPEG"),
    "gif": encoded("GIF"),
    "bmp": encoded("BMP"),
    "webp": encoded("WEBP", lossless=True),
    "tiff": encoded("TIFF"),
    "lzw.tiff": encoded("TIFF", compression="tiff_lzw"),
    "ppm": encoded("PPM"),
    "tga": encoded("TGA"),
    "jp2": encoded("JPEG2000"),
    "ico": encoded("ICO", sizes=[(SIDE, SIDE)]),
    "avif": encoded("AVIF") if "AVIF" in Image.SAVE else b"",
}
FORMS = {name: content for name, content in FORMS.items() if content}
IDAT = (b"IDAT", zlib.compress(b"\0" * 4000))
IEND = (b"IEND", b"")


def must_fail() -> dict[str, bytes]:
    """Files that hold no whole image."""
    cases: dict[str, bytes] = {}
    for name, content in FORMS.items():
        for share in (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5):
            cases[f"cut at {share}: {name}"] = content[: max(1, int(len(content) * share))]
        cases[f"wrong magic: {name}"] = b"\xfe\xed" + content[2:] if name != "tga" else b"\xff" * 40
        cases[f"zeros for bytes: {name}"] = bytes(len(content))
        cases[f"first 16 zeroed: {name}"] = bytes(16) + content[16:] if name != "tga" else bytes(99)
    cases |= {
        "one byte": b"\0",
        "text": b"I am not an image\n" * 20,
        "html": b"<!DOCTYPE html><html>404</html>",
        "json": b'{"error": "not found"}',
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "pdf": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "python pickle": b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x8c\x02os\x94.",
        "zip": b"PK\x03\x04" + bytes(60),
        "elf": b"\x7fELF" + bytes(200),
        "png magic only": b"\x89PNG\r\n\x1a\n",
        "png without IDAT": png_of((b"IHDR", png_head(9, 9)), IEND),
        "png of width 0": png_of((b"IHDR", png_head(0, 9)), IDAT, IEND),
        "png of height 0": png_of((b"IHDR", png_head(9, 0)), IDAT, IEND),
        "png bomb 65535": png_of((b"IHDR", png_head(65535, 65535)), IDAT, IEND),
        "png bomb 2^31": png_of((b"IHDR", png_head(2**31 - 1, 2**31 - 1)), IDAT, IEND),
        "png bomb 2^32": png_of((b"IHDR", png_head(2**32 - 1, 1)), IDAT, IEND),
        "png bomb wide": png_of((b"IHDR", png_head(2**30, 1)), IDAT, IEND),
        "png just over": png_of((b"IHDR", png_head(9460, 9460)), IDAT, IEND),
        "png bad depth": png_of((b"IHDR", png_head(9, 9, depth=7)), IDAT, IEND),
        "png bad colour": png_of((b"IHDR", png_head(9, 9, colour=5)), IDAT, IEND),
        "png short IHDR": png_of((b"IHDR", b"\0\0"), IDAT, IEND),
        "png no palette rows": png_of((b"IHDR", png_head(90, 90)), (b"IDAT", b""), IEND),
        "png bad zlib": png_of((b"IHDR", png_head(9, 9)), (b"IDAT", b"\x78\x9c\xff\xff"), IEND),
        "png few rows": png_of((b"IHDR", png_head(99, 999)), IDAT, IEND),
        "png text bomb": png_of(
            (b"IHDR", png_head(9, 9)), (b"zTXt", b"k\0\0" + zlib.compress(bytes(2**26))), IDAT, IEND
        ),
        "png chunk of 2^31": b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**31) + b"IHDR" + bytes(50),
        "gif bomb": b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x08\x01\0\0;",
        "gif no frame": b"GIF89a\x09\0\x09\0\0\0\0;",
        "bmp bomb": bmp_head(2**30, 2**30, 24),
        "bmp negative": bmp_head(-9, -9, 24),
        "bmp bad depth": bmp_head(9, 9, 77),
        "ppm bomb": b"P6\n99999999 99999999\n255\nabc",
        "ppm huge number": b"P6\n" + b"9" * 5000 + b" 1\n255\nabc",
        "ppm zero": b"P6\n0 0\n255\n",
        "ppm maxval": b"P6\n4 4\n70000\n" + bytes(96),
        "pfm": b"Pf\n2 2\n-1.0\n" + np.ones(4, "<f4").tobytes(),
        "xbm huge": b"#define a_width 99999\n#define a_height 99999\nstatic char a_bits[] = {0x0};",
        "tiff no entries": b"II*\0\x08\0\0\0\0\0\0\0\0\0",
        "tiff loop": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
        "tiff far directory": b"II*\0\xff\xff\xff\xff",
        "webp head only": b"RIFF\x24\0\0\0WEBPVP8 ",
        "jpeg only markers": b"\xff\xd8\xff\xd9",
        "jpeg of 65500": bytes.fromhex("ffd8ffc0001108ffdcffdc03012200021101031101"),
        "qoi bomb": b"qoif" + struct.pack(">IIBB", 2**31, 2**31, 3, 0),
        "ico empty": b"\0\0\1\0\0\0",
        "psd bomb": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 300000, 300000, 8, 3) + bytes(40),
    }
    for name in ("float", "deep"):
        values = np.full((3, 3), 70000, dtype=np.float32 if name == "float" else np.int32)
        file = io.BytesIO()
        Image.fromarray(values).save(file, "TIFF")
        cases[f"{name} tiff"] = file.getvalue()
    return cases


MUST_FAIL = must_fail()


def may_fail() -> dict[str, bytes]:
    """Bit flips, swapped halves and noise behind a true head: some of them still decode."""
    draw = np.random.default_rng(1)
    cases: dict[str, bytes] = {}
    for name, content in FORMS.items():
        for trial in range(12):
            changed = bytearray(content)
            end = len(content) if trial % 2 else min(len(content), 80)  # heads are the richest
            for place in draw.integers(2, end, 1 + trial):
                changed[place] ^= 1 << int(draw.integers(8))
            cases[f"flips {trial}: {name}"] = bytes(changed)
        half = len(content) // 2
        cases[f"swapped halves: {name}"] = content[:32] + content[half:] + content[32:half]
        cases[f"noise after head: {name}"] = content[:32] + draw.bytes(400)
        cases[f"doubled: {name}"] = content + content
    return cases


def test_there_are_enough_cases() -> None:
    assert len(MUST_FAIL) >= 150 and len(MUST_FAIL) + len(may_fail()) >= 300


def test_every_broken_file_is_refused_with_a_code() -> None:
    codes = set()
    for name, content in MUST_FAIL.items():
        result = guarded(lambda content=content: images.decode(content, channels=3))
        assert isinstance(result, DataError), f"{name} was decoded"
        assert result.code.startswith("image-"), name
        codes.add(result.code)
        if "bomb" in name and "text" not in name:
            assert result.code in ("image-oversized", "image-corrupt"), name
    assert codes == {"image-corrupt", "image-oversized", "image-unsupported"}


def test_flipped_bits_give_pixels_or_a_code() -> None:
    decoded = 0
    for name, content in may_fail().items():
        result = guarded(lambda content=content: images.decode(content, channels=3))
        if isinstance(result, np.ndarray):
            assert result.dtype == np.uint8 and result.ndim == 3 and result.shape[2] == 3, name
            decoded += 1
    assert 0 < decoded < len(may_fail())


def sound(folder: Path) -> Path:
    """A data set that is usable as it is: two classes, four pictures each."""
    draw = np.random.default_rng(2)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            pixels = draw.integers(0, 256, (5, 5, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def test_a_folder_with_all_of_them_lists_each_one(tmp_path: Path) -> None:
    sound(tmp_path / "set")
    for i, content in enumerate(MUST_FAIL.values()):
        (tmp_path / "set" / "ab"[i % 2] / f"bad{i}.png").write_bytes(content)
    (tmp_path / "set" / "a" / "nothing.png").write_bytes(b"")
    found = guarded(lambda: data.read(tmp_path / "set"))
    assert isinstance(found, data.DataSet)
    assert len(found.problems) == len(MUST_FAIL) + 1
    assert {p.code for p in found.problems} <= set(CODES)
    assert len({p.path for p in found.problems}) == len(found.problems)
    assert all(p.message.isprintable() for p in found.problems)
    assert len(found.train) + len(found.val) + len(found.test) == 8


ODD_NAMES = [
    "new\nline.png",
    "tab\t.png",
    "木 und Übel.png",
    "\u202egnp.exe.png",
    "esc\x1b[31m.png",
    "'; DROP TABLE x; --.png",
    "%s%n{0}.png",
    "x" * 200 + ".png",
    " .png",
    "-rf.png",
    "e\u0301.png",
    b"\xff\xfe.png",
]


def test_odd_names_are_read_and_stored(tmp_path: Path) -> None:
    sound(tmp_path / "set")
    content = (tmp_path / "set" / "a" / "0.png").read_bytes()
    for i, name in enumerate(ODD_NAMES):
        raw = name if isinstance(name, bytes) else os.fsencode(name)
        with open(os.fsencode(tmp_path / "set" / "b") + b"/" + raw, "wb") as file:  # noqa: PTH123
            file.write(content if i % 2 else b"broken")
    found = guarded(lambda: data.read(tmp_path / "set"))
    assert isinstance(found, data.DataSet)
    stored = json.dumps(found.splits_json(), ensure_ascii=False).encode()  # no lone surrogates
    assert len(found.problems) == len(ODD_NAMES) / 2
    again = data.read(tmp_path / "set", splits=json.loads(stored))
    assert again.fingerprint == found.fingerprint
    assert all(p.path.isprintable() and p.message.isprintable() for p in found.problems)


def odd_entries(folder: Path) -> None:
    (folder / "a" / "folder.png").mkdir()
    (folder / "a" / "loop").symlink_to(folder)
    (folder / "a" / "self.png").symlink_to("self.png")
    (folder / "b" / "gone.png").symlink_to("/nowhere/at/all.png")
    (folder / "b" / "null.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "b" / "pipe.png")
    (folder / "b" / "in" / "in" / "in").mkdir(parents=True)


def test_links_pipes_devices_and_folders_are_listed(tmp_path: Path) -> None:
    odd_entries(sound(tmp_path / "set"))
    found = guarded(lambda: data.read(tmp_path / "set"))
    assert isinstance(found, data.DataSet)
    assert {p.path: p.code for p in found.problems} == {
        "a/folder.png": "folder-nested",
        "a/loop": "folder-nested",
        "a/self.png": "image-unreadable",
        "b/gone.png": "image-missing",
        "b/in": "folder-nested",
        "b/null.png": "image-unreadable",
        "b/pipe.png": "image-unreadable",
    }


def test_a_file_or_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated, so that it holds for root too, whom no permission stops."""
    sound(tmp_path / "set")
    really_open, scandir = Path.open, os.scandir

    def no_open(self: Path, *args: object, **kwargs: object) -> object:
        if self.name == "2.png":
            raise PermissionError(13, "Permission denied")
        return really_open(self, *args, **kwargs)

    def no_list(path: Path) -> object:
        if path.name in locked:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    locked: set[str] = set()
    monkeypatch.setattr(Path, "open", no_open)
    monkeypatch.setattr(os, "scandir", no_list)
    found = guarded(lambda: data.read(tmp_path / "set"))
    assert [p.code for p in found.problems] == ["image-unreadable"] * 2
    locked.add("a")
    refused = guarded(lambda: data.read(tmp_path / "set"))
    assert isinstance(refused, DataError) and refused.code == "data-class-empty"
    assert "folder-unreadable" in str(refused)
    locked.add("set")
    refused = guarded(lambda: data.read(tmp_path / "set"))
    assert isinstance(refused, DataError) and refused.code == "data-unreadable"


def hostile_folders(root: Path) -> dict[str, Path]:
    """Folders and paths that are no data set at all."""
    cases = {name: root / name for name in ("absent", "void", "hidden", "looped", "hollow", "bad")}
    for name in ("void", "hidden", "looped", "hollow", "bad"):
        cases[name].mkdir()
    (cases["hidden"] / ".a").mkdir()
    (cases["looped"] / "x").symlink_to(cases["looped"])
    (cases["looped"] / "y").symlink_to(cases["looped"])
    (cases["hollow"] / "a").mkdir()
    (cases["hollow"] / "b").mkdir()
    for name in "ab":
        (cases["bad"] / name).mkdir()
        (cases["bad"] / name / "x.png").write_bytes(b"junk")
    loop = root / "link"
    loop.symlink_to("link")
    nested = sound(root / "nested" / "2024")
    os.mkfifo(root / "pipe.zip")
    text = root / "text.txt"
    text.write_text("x")
    deep = root / "deep"
    (deep / "/".join("abcdefgh" * 8)).mkdir(parents=True)
    return cases | {
        "link to itself": loop,
        "one level too high": nested.parent,
        "pipe": root / "pipe.zip",
        "text": text,
        "image": root / "nested" / "2024" / "a" / "0.png",
        "deep": deep,
        "device": Path("/dev/null"),
        "zero byte": Path("a\0b"),
        "too long": Path("x" * 5000),
        "empty text": root / "",
    }


def test_hostile_folders(tmp_path: Path) -> None:
    for name, path in hostile_folders(tmp_path).items():
        result = guarded(lambda path=path: data.read(path))
        assert isinstance(result, DataError), name
        assert result.code.startswith("data-"), name


def zip_bytes(entries: dict[str, bytes], **options: object) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content, **options)
    return file.getvalue()


def encrypted(content: bytes) -> bytes:
    """The same zip with the encryption bit set in every header."""
    changed = bytearray(content)
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = changed.find(magic)
        while place >= 0:
            changed[place + offset] |= 1
            place = changed.find(magic, place + 4)
    return bytes(changed)


def hostile_zips() -> dict[str, bytes]:
    png = FORMS["png"]
    whole = zip_bytes({f"{c}/{i}.png": png for c in "ab" for i in range(3)})
    cases = {f"zip cut at {i}": whole[: len(whole) * i // 10] for i in range(10)}
    cases |= {
        "no zip": b"hello",
        "empty zip": zip_bytes({}),
        "locked": encrypted(whole),
        "only junk": zip_bytes({"a/1.txt": b"x", "b/2.txt": b"y"}),
        "only climbing": zip_bytes({"../a/1.png": png, "../b/1.png": png}),
        "absolute": zip_bytes({"/a/1.png": png, "/b/1.png": png}),
        "backslashes": zip_bytes({"a\\1.png": png, "b\\1.png": png}),
        "bomb": zip_bytes({"a/1.png": bytes(80 * 2**20), "b/1.png": png}),
        "no folders": zip_bytes({"1.png": png, "2.png": png}),
        "one class": zip_bytes({"a/1.png": png, "a/2.png": png}),
        "folders only": zip_bytes({"a/": b"", "b/": b""}),
        "a zip in a zip": zip_bytes({"a/1.zip": whole, "b/1.zip": whole}),
        "empty names": zip_bytes({"//": b"", "./a": b"x"}),
    }
    return cases


def test_hostile_zips(tmp_path: Path) -> None:
    for name, content in hostile_zips().items():
        path = tmp_path / "case.zip"
        path.write_bytes(content)
        result = guarded(lambda path=path: data.read(path))
        assert isinstance(result, DataError), name
        assert result.code in ("data-zip", "data-empty", "data-few-classes", "data-class-empty"), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["case.zip"], "something was unpacked"


def test_flipped_bits_in_a_zip(tmp_path: Path) -> None:
    file = io.BytesIO()
    draw = np.random.default_rng(4)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(sound(tmp_path / "set").rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path / "set"))
    whole, problems = file.getvalue(), 0
    for trial in range(60):
        changed = bytearray(whole)
        for place in draw.integers(0, len(whole), 1 + trial // 10):
            changed[place] ^= 1 << int(draw.integers(8))
        (tmp_path / "case.zip").write_bytes(changed)
        result = guarded(lambda: data.read(tmp_path / "case.zip", val=0.3, test=0))
        problems += isinstance(result, data.DataSet) and len(result.problems) > 0
    assert problems > 10, "damaged entries must be listed"


def npz_bytes(**arrays: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def claiming(shape: str, descr: str = "|u1") -> bytes:
    """An .npy whose head claims this shape and that has no more than ten bytes."""
    head = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + bytes(10)


def hostile_npz() -> dict[str, bytes]:
    x, y = np.zeros((6, 4, 4, 3), dtype=np.uint8), np.arange(6) % 2
    whole = npz_bytes(x=x, y=y)
    good_y = io.BytesIO()
    np.save(good_y, y)
    cases = {f"cut at {i}": whole[: len(whole) * i // 10] for i in range(10)}
    cases |= {
        "text": b"hello",
        "no arrays": npz_bytes(),
        "other names": npz_bytes(foo=x, bar=y),
        "x alone": npz_bytes(x=x),
        "y alone": npz_bytes(y=y),
        "lengths differ": npz_bytes(x=x, y=y[:5]),
        "floats": npz_bytes(x=x.astype(np.float32), y=y),
        "uint16": npz_bytes(x=x.astype(np.uint16), y=y),
        "objects": npz_bytes(x=x, y=np.array([{}] * 6, dtype=object)),
        "flat images": npz_bytes(x=x.reshape(6, -1), y=y),
        "channels first": npz_bytes(x=x.transpose(0, 3, 1, 2), y=y),
        "five channels": npz_bytes(x=np.zeros((6, 4, 4, 5), dtype=np.uint8), y=y),
        "no pixels": npz_bytes(x=x[:, :0], y=y),
        "no images": npz_bytes(x=x[:0], y=y[:0]),
        "float labels": npz_bytes(x=x, y=y + 0.5),
        "one-hot labels": npz_bytes(x=x, y=np.eye(6)),
        "complex labels": npz_bytes(x=x, y=y * 1j),
        "one class": npz_bytes(x=x, y=y * 0),
        "label beyond classes": npz_bytes(x=x, y=y, classes=np.array(["a"])),
        "negative label": npz_bytes(x=x, y=y - 1, classes=np.array(["a", "b"])),
        "class twice": npz_bytes(x=x, y=y, classes=np.array(["a", "a"])),
        "class unused": npz_bytes(x=x, y=y, classes=np.array(["a", "b", "c"])),
        "classes not texts": npz_bytes(x=x, y=y, classes=np.arange(2)),
        "x and x_train": npz_bytes(x=x, y=y, x_train=x, y_train=y),
        "val and valid": npz_bytes(x_val=x, y_val=y, x_valid=x, y_valid=y),
        "only test": npz_bytes(x_test=x, y_test=y),
        "scalar": npz_bytes(x=np.uint8(1), y=np.int64(1)),
        "huge claim": zip_bytes({"x.npy": claiming("(99999999999,)"), "y.npy": good_y.getvalue()}),
        "2^62 claim": zip_bytes({"x.npy": claiming("(4611686018427387904, 4)"), "y.npy": b""}),
        "negative claim": zip_bytes({"x.npy": claiming("(-5, 4)"), "y.npy": good_y.getvalue()}),
        "code for a head": zip_bytes({"x.npy": claiming("__import__('os').system('false')")}),
        "deep head": zip_bytes({"x.npy": claiming("(" * 50 + ")" * 50)}),
        "no npy": zip_bytes({"x.npy": b"hello", "y.npy": b"hello"}),
        "pickled": zip_bytes({"x.npy": b"\x80\x04\x95", "y.npy": b"\x80\x04\x95"}),
        "locked": encrypted(whole),
    }
    return cases


def test_hostile_npz(tmp_path: Path) -> None:
    path = tmp_path / "case.npz"
    for name, content in hostile_npz().items():
        path.write_bytes(content)
        result = guarded(lambda: data.read(path))
        assert isinstance(result, DataError), name
        assert result.code.startswith("data-"), name


def hostile_manifests() -> dict[str, bytes]:
    return {
        "empty.csv": b"",
        "empty.jsonl": b"",
        "header.csv": b"path,label\n",
        "columns.csv": b"file,class\na.png,x\n",
        "twice.csv": b"path,path,label\na,b,c\n",
        "utf16.csv": "path,label\na.png,x\n".encode("utf-16"),
        "latin.csv": b"path,label\n\xe9.png,x\n",
        "quote.csv": b'path,label\n"a.png,x\n',
        "nul.csv": b"path,label\na\0.png,x\nb\0.png,y\n",
        "long.csv": b"path,label\n" + b"a" * 200_000 + b",x\n",
        "missing.csv": b"path,label\nnone.png,x\nnone2.png,y\n",
        "fields.csv": b"path,label\na,b,c,d\n",
        "short.csv": b"path,label\na\nb\n",
        "traverse.csv": b"path,label\n../../../etc/passwd,x\n/etc/shadow,y\n",
        "device.csv": b"path,label\n/dev/zero,x\n/dev/random,y\n",
        "self.csv": b"path,label\nself.csv,x\n.,y\n",
        "binary.csv": bytes(range(256)) * 4,
        "text.jsonl": b"hello\n",
        "list.jsonl": b"[1, 2]\n",
        "number.jsonl": b"17\n",
        "torn.jsonl": b'{"path": "a.png", "label": "x"}\n{"path": "b.p',
        "types.jsonl": b'{"path": 5, "label": "x"}\n{"path": "a", "label": null}\n{"path": []}\n',
        "labels.jsonl": b'{"path": "a", "label": true}\n{"path": "b", "label": 1.5}\n',
        "split.jsonl": b'{"path": "a", "label": "x", "split": ["train"]}\n',
        "deep.jsonl": b"[" * 200_000 + b"\n",
        "digits.jsonl": b'{"path": "a", "label": ' + b"9" * 10_000 + b"}\n",
        "surrogate.jsonl": b'{"path": "\\ud800.png", "label": "\\udfff"}\n',
        "nan.jsonl": b'{"path": "a", "label": NaN}\n',
    }


def test_hostile_manifests(tmp_path: Path) -> None:
    for name, content in hostile_manifests().items():
        path = tmp_path / name
        path.write_bytes(content)
        result = guarded(lambda path=path: data.read(path))
        assert isinstance(result, DataError), name
        assert result.code in ("data-manifest", "data-empty"), name


def test_the_guard_can_fail() -> None:
    """Each thing that `guarded` is to catch is caught."""
    with pytest.raises(AssertionError, match="not a DataError"):
        guarded(lambda: 1 / 0)
    with pytest.raises(AssertionError, match="not a DataError"):
        guarded(lambda: warnings.warn("x", stacklevel=1))
    with pytest.raises(AssertionError):
        guarded(lambda: (_ for _ in ()).throw(DataError("a long message", code="no-such-code")))
    assert guarded(lambda: 5) == 5


@pytest.fixture(autouse=True)
def clean(tmp_path: Path) -> object:
    """Some of these trees would trip other tools later: remove them at once."""
    yield
    shutil.rmtree(tmp_path, ignore_errors=True)
