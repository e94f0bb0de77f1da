"""The report: what a record must hold, what its page shows, and how a real browser takes it."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from niwaki import report
from niwaki.errors import RunError
from niwaki.report import charts, pictures, words

HOSTILE = '<script>alert("x")</script>&\'"<img src=http://example.com/x.png>'


def score(value: float) -> dict[str, float]:
    return {"accuracy": value, "low": value - 0.02, "high": min(1.0, value + 0.01)}


def stage(name: str, ms: float, value: float, **more: Any) -> dict[str, Any]:
    cost = {"macs": int(3e7 * ms), "params": int(4e5 * ms), "bytes": int(1e6 * ms), "ms": ms}
    return {"name": name, "cost": cost, "val": score(value), "test": score(value), **more}


def ledger() -> dict[str, Any]:
    kinds = ("noise", "blur", "jpeg")

    def row(name: str, value: float, **more: Any) -> dict[str, Any]:
        corrupted = {kind: score(value - 0.1 * k) for k, kind in enumerate(kinds)}
        attacked = {"fgsm": score(value / 2), "pgd": score(value / 4)}
        mean = value - 0.1
        return {"name": name, "clean": score(value), "corrupted": corrupted, "corrupted_mean": mean,
                "attacked": attacked, "attack": "white-box", **more}  # fmt: skip

    drops = {"oak": 0.02, "pine": -0.01}
    return {
        "images": {"test": 270, "corrupted": 128, "attacked": 64},
        "bins": 15,
        "severity": 3,
        "corruptions": {kind: f"{kind} of some strength" for kind in kinds},
        "attack": {"eps": 8, "step": 2, "steps": 10, "of": 255},
        "stages": [
            row("baseline", 0.96, flipped=None, class_drops=None, calibration=0.013),
            row("int8", 0.91, flipped=0.04, class_drops=drops, calibration=None, attack="transfer from x"),
        ],
    }


def sensitivity() -> dict[str, Any]:
    kinds = ("alone", "weights", "inputs")
    rows = [{"name": f"layer{k}.tender", **{kind: {"kl": 0.1 / (k + 1)} for kind in kinds}} for k in range(20)]
    return {"images": 16, "rows": [*rows, {**rows[0], "name": "sum", "weights": None}]}


def record() -> dict[str, Any]:
    draw = np.random.default_rng(0)
    return {
        "name": "demo",
        "data": {"source": "digits", "train": 1257, "val": 270, "test": 270},
        "model": "niwaki:small",
        "budget": {"asked": "latency=50%", "got": 0.48, "met": True, "max_drop": 0.01},
        "default": "int8",
        "stages": [
            stage("baseline", 0.4, 0.978, flipped=None),
            stage("pruned", 0.25, 0.93, flipped=0.06),
            stage("distilled", 0.25, 0.975, flipped=0.01),
            stage("int8", 0.192, 0.974, flipped=0.015),
        ],
        "points": [
            {"name": "baseline", "cost": {"ms": 0.4}, "accuracy": 0.978, "outcome": "baseline"},
            {"name": "keep 0.50", "cost": {"ms": 0.192}, "accuracy": 0.975, "outcome": "chosen"},
        ],
        "widths": [{"layer": f"layer{k}.conv", "before": 64, "after": 31 + k} for k in range(6)],
        "histories": {
            stage: [{"epoch": k, "loss": 2.0 / k, "val_score": 1 - 0.5 / k} for k in range(1, last)]
            for stage, last in (("train", 9), ("distill", 5))
        },
        "confusion": {
            "classes": ["oak", "pine", "fir"],
            "counts": [[9, 1, 0], [0, 8, 2], [0, 0, 10]],
        },
        "wrong": [
            {
                "image": draw.integers(0, 256, (8, 8, 1)).astype(np.uint8),
                "name": "digits/7",
                "true": "oak",
                "predicted": "pine",
                "probability": 0.93,
            }
        ],
        "ledger": ledger(),
        "sensitivity": sensitivity(),
        "proof_error": 2e-7,
        "machine": {"cpu": "some CPU", "isa": ["avx2"], "threads": 1},
        "versions": {"niwaki": "0.1.0"},
        "problems": [{"path": "a/b.jpg", "code": "image-corrupt", "message": "truncated"}],
        "warnings": ["class elm has one image"],
        "seconds": 118.0,
    }


class Tags(HTMLParser):
    """Tags and text of a page, and whether every tag is closed in order."""

    VOID = frozenset(["meta", "link", "img"])

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(value: dict[str, Any], folder: Path) -> Tags:
    tags = Tags(report.build(value, folder).read_text())
    assert tags.open == []
    return tags


def test_page_holds_every_part(tmp_path: Path) -> None:
    page = page_of(record(), tmp_path)
    for words_ in (
        "0.48 of the latency, accuracy 97.8 % → 97.4 %, budget met",
        "oak",
        "layer3.conv",
        "image-corrupt",
        "class elm has one image",
        "2.0 points oak",
        "layer0.tender",
        "16 images of val",
        "transfer from x",
        "jpeg of some strength",
        "some CPU",
        "keep 0.50",
        "2e-07",
    ):
        assert words_ in page.text.replace("\n", " "), words_
    kinds = [tag for tag, _ in page.tags]
    assert kinds.count("svg") == 7
    assert kinds.count("img") == 1


def test_page_asks_for_nothing_and_runs_nothing(tmp_path: Path) -> None:
    page = page_of(record(), tmp_path)
    assert "script" not in [tag for tag, _ in page.tags]
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    text = (tmp_path / "report.html").read_text()
    assert "url(" not in text
    assert "@import" not in text


@pytest.mark.parametrize("minimal", [True, False])
def test_missing_parts_are_left_out(tmp_path: Path, minimal: bool) -> None:
    value: dict[str, Any] = {"name": "x", "stages": [{"name": "baseline"}]}
    if not minimal:
        value = {key: part if key in ("name", "stages") else None for key, part in record().items()}
    page = page_of(value, tmp_path)
    assert "Confusion" not in page.text
    assert "nan" not in page.text.lower()


def hostile(value: Any) -> Any:
    """The same record with every free text replaced by markup."""
    if isinstance(value, dict):
        keep = ("asked", "image")
        return {key: item if key in keep else hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    page = page_of(hostile(record()), tmp_path)
    assert [tag for tag, _ in page.tags].count("img") == 1
    assert "script" not in [tag for tag, _ in page.tags]
    assert HOSTILE in page.text


def test_hostile_class_of_a_dot_cannot_leave_its_attribute() -> None:
    mark = charts.Mark(1, 0.5, "a", "b", '"><script>')
    tags = Tags(charts.scatter([mark], title="t", x="x", y="y"))
    assert "script" not in [tag for tag, _ in tags.tags]


def test_report_json_draws_the_same_page_again(tmp_path: Path) -> None:
    page = report.build(record(), tmp_path).read_bytes()
    (tmp_path / "report.html").unlink()
    assert report.rebuild(tmp_path).read_bytes() == page
    assert json.loads((tmp_path / "report.json").read_text())["wrong"][0]["image"].startswith("data:image/png")


def damage(value: dict[str, Any], how: str) -> dict[str, Any]:
    value = copy.deepcopy(value)
    match how:
        case "no name":
            del value["name"]
        case "no stages":
            value["stages"] = []
        case "stages are text":
            value["stages"] = "baseline"
        case "confusion not square":
            value["confusion"]["counts"][1].pop()
        case "picture from the network":
            value["wrong"][0]["image"] = "https://example.com/x.png"
        case "picture of floats":
            value["wrong"][0]["image"] = np.zeros((4, 4))
        case "width is a word":
            value["widths"][0]["before"] = "many"
    return value


DAMAGES = (
    "no name",
    "no stages",
    "stages are text",
    "confusion not square",
    "picture from the network",
    "picture of floats",
    "width is a word",
)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_record_that_does_not_fit_is_an_error(tmp_path: Path, how: str) -> None:
    with pytest.raises(RunError) as caught:
        report.build(damage(record(), how), tmp_path)
    assert caught.value.code == "report-record"
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (None, "report-missing"),
        ("{", "report-record"),
        ("[]", "report-record"),
        ("{}", "report-record"),
        ("\x00", "report-record"),
    ],
)
def test_rebuild_of_a_damaged_folder_is_an_error(tmp_path: Path, text: str | None, code: str) -> None:
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    with pytest.raises(RunError) as caught:
        report.rebuild(tmp_path)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("ms", "met", "says"),
    [
        (0.192, True, "0.48 of the latency, accuracy 97.8 % → 97.4 %, budget met."),
        (0.3, False, "0.75 of the latency, accuracy 97.8 % → 97.4 %, budget NOT met."),
        (0.5, False, "No gain: 1.25 of the latency, accuracy 97.8 % → 97.4 %, budget NOT met."),
    ],
)
def test_headline(ms: float, met: bool, says: str) -> None:
    value = record()
    value["stages"][-1]["cost"]["ms"] = ms
    value["budget"] |= {"met": met, "got": ms / 0.4}
    assert words.headline(value) == says


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.961, 0.981), (3, 3), (0, 0), (-5, 7e9), (1e-9, 2e-9)])
def test_ticks_take_in_the_range_and_are_few(low: float, high: float) -> None:
    marks = charts.ticks(low, high)
    assert marks[0] <= low <= high <= marks[-1]
    assert 2 <= len(marks) <= 9
    steps = np.diff(marks)
    assert np.allclose(steps, steps[0])


def test_marks_lie_inside_the_chart() -> None:
    marks = [charts.Mark(x, y, f"p{k}", "", "") for k, (x, y) in enumerate([(0.1, 0.2), (9, 1.0), (4, 0.999)])]
    svg = charts.scatter(marks, title="t", x="x", y="y", limit=5.0, limit_says="b", floor=0.1)
    places = [(float(x), float(y)) for x, y in re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', svg)]
    assert len(places) == 3
    for x, y in places:
        assert charts.LEFT <= x <= charts.WIDTH - charts.RIGHT
        assert charts.TOP <= y <= charts.HEIGHT - charts.BOTTOM
    assert places[0][1] > places[-1][1], "higher accuracy is drawn higher"


def test_bars_are_as_long_as_the_widths() -> None:
    svg = charts.widths([("a", 64, 32), ("b", 32, 32)], title="t")
    before, after = (
        [float(w) for w in re.findall(rf'class="{kind}"[^>]*? width="([\d.]+)"', svg)]
        for kind in ("before", "after")
    )
    assert after[0] == pytest.approx(before[0] / 2, abs=0.1)
    assert before[1] == after[1] == pytest.approx(before[0] / 2, abs=0.1)


def test_many_classes_become_a_list_of_pairs(tmp_path: Path) -> None:
    value = record()
    counts = np.diag(np.full(200, 5))
    counts[3, 7] = 4
    value["confusion"] = {"classes": [f"c{k}" for k in range(200)], "counts": counts}
    page = page_of(value, tmp_path)
    assert "4 of 9" in page.text
    assert (tmp_path / "report.html").stat().st_size < 100_000


def test_pictures_keep_their_pixels() -> None:
    import base64
    import io

    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    data = base64.b64decode(pictures.uri(pixels).partition(",")[2])
    back = np.asarray(Image.open(io.BytesIO(data)))
    assert (back[::16, ::16] == pixels).all()


BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
PROBE = """<script>
addEventListener("load", () => {
  const loaded = performance.getEntriesByType("resource").map(e => e.name);
  const asked = loaded.filter(n => !n.startsWith("data:"));
  const found = {pictures: [...document.images].map(i => i.naturalWidth),
    charts: [...document.querySelectorAll("svg")].map(s => s.getBoundingClientRect().height),
    wide: document.documentElement.scrollWidth > innerWidth, asked};
  document.title = "PROBE" + JSON.stringify(found);
});
</script>"""


def browse(page: Path, folder: Path, *, size: str = "1280,1000") -> tuple[dict[str, Any], list[str]]:
    """What a probe inside the page found, and the browser's console lines."""
    copy_ = folder / "probed.html"
    copy_.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={size}",
            "--virtual-time-budget=2000",
            "--dump-dom",
            copy_.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r"<title>PROBE(.*?)</title>", done.stdout)
    assert found, done.stdout[:500]
    return json.loads(found[1].replace("&amp;", "&")), re.findall(r".*CONSOLE.*", done.stderr)


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
@pytest.mark.parametrize("size", ["1280,1000", "500,900"])
def test_a_browser_shows_all_without_complaint(tmp_path: Path, size: str) -> None:
    page = report.build(record(), tmp_path)
    found, console = browse(page, tmp_path, size=size)
    assert console == []
    assert found["asked"] == []
    assert found["pictures"] == [128]
    assert len(found["charts"]) == 7
    assert min(found["charts"]) > 50
    assert not found["wide"], "the page must not scroll sideways"


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_the_browser_check_can_fail(tmp_path: Path) -> None:
    page = tmp_path / "broken.html"
    page.write_text(
        '<!DOCTYPE html><html><body><img src="data:image/png;base64,AAAA">'
        '<script>console.error("seen")</script></body></html>'
    )
    found, console = browse(page, tmp_path)
    assert found["pictures"] == [0]
    assert any("seen" in line for line in console)
