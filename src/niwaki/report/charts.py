"""Charts as inline SVG, by small pure functions: data in, markup out. No script, no network.

Colours are CSS variables of the page, so that charts follow light and dark. All text is escaped.
Every chart has a <title>, which screen readers read, and every mark its own, which browsers show
under the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 340
LEFT, RIGHT, TOP, BOTTOM = 88, 24, 30, 52


@dataclass(frozen=True)
class Mark:
    """A point of a scatter: position, label, text under the pointer, and CSS class."""

    x: float
    y: float
    label: str
    says: str
    kind: str = ""


@dataclass(frozen=True)
class Line:
    """A curve: its points (x, y) in order, and its name."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class _Axis:
    """A linear map of values to pixels, with round ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, *, count: int = 5) -> tuple[float, ...]:
    """About `count` round numbers (1, 2, 2.5 or 5 times a power of ten) that take in low..high."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return (0.0, 1.0)
    if high - low <= 1e-9 * max(1.0, abs(low), abs(high)):
        reach = abs(low) * 0.1 or 1.0
        low, high = low - reach, high + reach
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(round(k * step, 12) for k in range(first, last + 1))


def scatter(
    marks: Sequence[Mark],
    *,
    title: str,
    x: str,
    y: str,
    limit: float | None = None,
    limit_says: str = "",
    floor: float | None = None,
    floor_says: str = "",
    stairs: Sequence[tuple[float, float]] = (),
) -> str:
    """Points with labels; `limit` is drawn as a vertical line, `floor` as a horizontal one, `stairs` as the
    most that can be had for each x.

    Args:
        x, y: names of the axes; y is a share 0..1 and is written in percent.
    """
    xs = [mark.x for mark in marks] + ([limit] if limit is not None else [])
    ys = [mark.y for mark in marks] + ([floor] if floor is not None else [])
    across = _axis([0.0, *xs], LEFT, WIDTH - RIGHT)
    up = _axis(ys, HEIGHT - BOTTOM, TOP, most=1.0)
    parts = [_frame(across, up, x=x, y=y, percent=True)]
    if limit is not None:
        parts.append(_limit(across.at(limit), limit_says))
    if floor is not None:
        at = up.at(floor)
        parts.append(f'<line class="floor" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(_text(WIDTH - RIGHT - 4, at - 6, floor_says, "end", "note"))
    if stairs:
        ends = [px for px, _ in stairs[1:]] + [across.high]
        corners = [(across.at(px), up.at(py)) for (a, py), b in zip(stairs, ends, strict=True) for px in (a, b)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in corners)
        parts.append(f'<polyline class="line c1" points="{path}"/>')
    taken: list[tuple[float, float]] = []
    for mark in sorted(marks, key=lambda mark: mark.y):
        parts.append(_mark(mark, across.at(mark.x), up.at(mark.y), taken))
    return _svg(parts, title=title)


def _mark(mark: Mark, px: float, py: float, taken: list[tuple[float, float]]) -> str:
    """A dot and its label (if it has one), moved up or down until it covers no label before it."""
    dot = f'<circle class="dot {escape(mark.kind)}" cx="{px:.1f}" cy="{py:.1f}" r="6">'
    dot += f"<title>{escape(mark.says)}</title></circle>"
    if not mark.label:
        return dot
    end = px > WIDTH * 0.7
    places = [py + 4 + 15 * step * side for step in range(8) for side in (-1, 1)]
    free = (
        place
        for place in places
        if TOP + 6 <= place <= HEIGHT - BOTTOM - 4
        and not any(abs(place - b) < 15 and abs(px - a) < 130 for a, b in taken)
    )
    ty = next(free, py + 4)
    taken.append((px, ty))
    label = _text(px - 11 if end else px + 11, ty, mark.label, "end" if end else "start", "label")
    return dot + label


def _limit(at: float, says: str) -> str:
    line = f'<line class="limit" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
    return line + _text(at, TOP - 10, says, "middle", "note")


def curves(lines: Sequence[Line], *, title: str, x: str, y: str, percent: bool = False) -> str:
    """Lines over a common axis, each with its name at its end and its points marked."""
    points = [point for line in lines for point in line.points if math.isfinite(point[1])]
    across = _axis([px for px, _ in points], LEFT, WIDTH - RIGHT - 80, whole=True)
    up = _axis([py for _, py in points], HEIGHT - BOTTOM, TOP, most=1.0 if percent else None)
    parts = [_frame(across, up, x=x, y=y, percent=percent, right=WIDTH - RIGHT - 80)]
    names: list[tuple[float, float]] = []
    for k, line in enumerate(lines):
        dots = [(across.at(px), up.at(py), py) for px, py in line.points if math.isfinite(py)]
        if not dots:
            continue
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _ in dots)
        parts.append(f'<polyline class="line c{k % 4}" points="{path}"/>')
        for px, py, value in dots:
            says = f"{line.name}: {_number(value, percent)}"
            parts.append(
                f'<circle class="c{k % 4}" cx="{px:.1f}" cy="{py:.1f}" r="2.5">'
                f"<title>{escape(says)}</title></circle>"
            )
        ends_early = dots[-1][0] < WIDTH - RIGHT - 160
        px, py = dots[-1][0] + (0 if ends_early else 8), dots[-1][1] + (-10 if ends_early else 4)
        while any(abs(py - b) < 15 and abs(px - a) < 80 for a, b in names):
            py -= 15
        names.append((px, py))
        anchor = "middle" if ends_early else "start"
        parts.append(_text(px, py, line.name, anchor, f"label c{k % 4}"))
    return _svg(parts, title=title)


def widths(rows: Sequence[tuple[str, int, int]], *, title: str) -> str:
    """Bars of (layer, before, after): a pale one for before, a full one for after, and numbers."""
    most = max((before for _, before, _ in rows), default=1) or 1
    high, left, right = 22, 190, 110
    scale = (WIDTH - left - right) / most
    parts = []
    for k, (layer, before, after) in enumerate(rows):
        top = 8 + k * high
        says = escape(f"{layer}: {before} channels before, {after} after")
        parts.append(_text(left - 10, top + 13, _shorten(layer, 27), "end", "tick"))
        parts.append(
            f'<g><title>{says}</title><rect class="before" x="{left}" y="{top}" height="17" rx="2" '
            f'width="{max(1.0, before * scale):.1f}"/><rect class="after" x="{left}" y="{top + 3}" '
            f'height="11" rx="2" width="{max(1.0, after * scale):.1f}"/></g>'
        )
        where = left + before * scale + 8
        parts.append(_text(where, top + 13, f"{before} → {after}", "start", "tick"))
    return _svg(parts, title=title, height=16 + high * len(rows))


def conditions(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], *, title: str) -> str:
    """A row for each condition with one dot for each (name, share 0..1), on one axis from 0 to 100 %.

    Colours go by a name's place in the first row, which the legend above follows.
    """
    high, left, top = 30, 170, 44
    across = _Axis(0.0, 1.0, left, WIDTH - 30, (0.0, 0.25, 0.5, 0.75, 1.0))
    bottom = top + high * len(rows)
    names = [name for name, _ in rows[0][1]] if rows else []
    parts = [*_grid(across, top, bottom, percent=True), *_legend(names, left)]
    for row, (condition, found) in enumerate(rows):
        y = top + high * row + high / 2
        parts.append(_text(left - 12, y + 4, condition, "end", "tick"))
        shares = [across.at(value) for _, value in found]
        if shares:
            ends = f'x1="{min(shares):.1f}" x2="{max(shares):.1f}" y1="{y}" y2="{y}"'
            parts.append(f'<line class="axis" {ends}/>')
        for name, value in found:
            k = names.index(name) if name in names else len(names)
            at_y = y + 3 * (k - (len(names) - 1) / 2)  # or equal values would hide each other
            says = escape(f"{condition}, {name}: {_number(value, percent=True)}")
            dot = f'<circle class="c{k % 5}" cx="{across.at(value):.1f}" cy="{at_y}" r="5">'
            parts.append(f"{dot}<title>{says}</title></circle>")
    return _svg(parts, title=title, height=bottom + 28)


def bars(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], *, title: str, x: str) -> str:
    """For each (name, [(kind, value from 0 on), ...]) a bar of each kind, on one axis.

    The first row's kinds are the legend.
    """
    left, top, thin = 230, 44, 7
    kinds = [kind for kind, _ in rows[0][1]] if rows else []
    high = thin * max(1, len(kinds)) + 8
    most = max((value for _, found in rows for _, value in found), default=0.0)
    across = _axis([0.0, most], left, WIDTH - 40)
    bottom = top + high * len(rows)
    parts = [*_grid(across, top, bottom), *_legend(kinds, left)]
    for row, (name, found) in enumerate(rows):
        y = top + high * row + 4
        parts.append(_text(left - 10, y + high / 2, _shorten(name, 34), "end", "tick"))
        for k, (kind, value) in enumerate(found):
            says = escape(f"{name}, {kind}: {_number(value)}")
            width = max(1.0, across.at(value) - left)
            box = f'x="{left}" y="{y + thin * k}" width="{width:.1f}" height="{thin - 1}"'
            parts.append(f'<g><title>{says}</title><rect class="c{k % 5}" {box}/></g>')
    parts.append(_text((left + WIDTH - 40) / 2, bottom + 38, x, "middle", "name"))
    return _svg(parts, title=title, height=bottom + 48)


def _grid(across: _Axis, top: float, bottom: float, *, percent: bool = False) -> list[str]:
    """A vertical line and its number at each tick."""
    parts = []
    for mark in across.ticks:
        at = f"{across.at(mark):.1f}"
        parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{top}" y2="{bottom}"/>')
        parts.append(_text(across.at(mark), bottom + 18, _number(mark, percent=percent), "middle", "tick"))
    return parts


def _legend(names: Sequence[str], left: float) -> list[str]:
    """A dot and a name for each colour, in a row at the top."""
    parts, at = [], float(left)
    for k, name in enumerate(names):
        parts.append(f'<circle class="c{k % 5}" cx="{at + 6:.1f}" cy="16" r="5"/>')
        parts.append(_text(at + 16, 20, name, "start", "tick"))
        at += 40 + 6.6 * len(name)
    return parts


def heatmap(names: Sequence[str], counts: Sequence[Sequence[int]], *, title: str) -> str:
    """A confusion matrix: rows true, columns predicted, shade by the share of the row."""
    size = len(names)
    longest = min(16, max(map(len, names), default=1))
    left, top = max(82, 24 + 7 * longest), 34 + 5 * longest
    cell = max(7.0, min(44.0, (WIDTH - left - 10) / max(1, size)))
    parts = []
    for i, row in enumerate(counts):
        total = sum(row) or 1
        y = top + i * cell
        if cell >= 10:
            parts.append(_text(left - 8, y + cell / 2 + 4, _shorten(names[i], 17), "end", "tick"))
        for j, value in enumerate(row):
            parts.append(
                _cell(
                    left + j * cell,
                    y,
                    cell,
                    value,
                    value / total,
                    i == j,
                    f"{value} of {names[i]} taken for {names[j]}",
                )
            )
    if cell >= 10:
        for j, name in enumerate(names):
            x = left + j * cell + cell / 2 + 4
            parts.append(
                f'<g transform="translate({x:.1f},{top - 8}) rotate(-45)">'
                + _text(0, 0, _shorten(name, 16), "start", "tick")
                + "</g>"
            )
    parts.append(_text(left - 8, top - 22, "predicted →", "end", "note"))
    parts.append(_text(left - 8, top - 7, "true ↓", "end", "note"))
    return _svg(parts, title=title, height=top + cell * size + 10, width=left + cell * size + 5 * longest)


def _cell(x: float, y: float, size: float, value: int, share: float, right: bool, says: str) -> str:
    kind = "right" if right else "off"
    opacity = 0.0 if value == 0 else 0.12 + 0.88 * share
    box = f'x="{x:.1f}" y="{y:.1f}" width="{size - 1:.1f}" height="{size - 1:.1f}"'
    text = ""
    if value and size >= 20:
        shade = "on" if opacity > 0.55 else "tick"
        text = _text(x + size / 2 - 0.5, y + size / 2 + 4, str(value), "middle", shade)
    return (
        f'<g><title>{escape(says)}</title><rect class="cell" {box}/>'
        f'<rect class="{kind}" {box} fill-opacity="{opacity:.3f}"/>{text}</g>'
    )


def _axis(
    values: Sequence[float],
    start: float,
    end: float,
    *,
    most: float | None = None,
    whole: bool = False,
) -> _Axis:
    low, high = min(values, default=0.0), max(values, default=1.0)
    marks = ticks(low, high, count=6)
    if whole:
        marks = tuple(mark for mark in marks if mark == int(mark)) or (low, high)
        if len(marks) == 1:
            marks = (marks[0], marks[0] + 1)
    if most is not None and high <= most:
        marks = tuple(mark for mark in marks if mark <= most + 1e-9)
    if len(marks) < 2:
        marks = (marks[0] - 1, marks[0]) if marks else (0.0, 1.0)
    return _Axis(min(marks[0], low), max(marks[-1], high), start, end, marks)


def _frame(across: _Axis, up: _Axis, *, x: str, y: str, percent: bool, right: float = WIDTH - RIGHT) -> str:
    parts = []
    for mark in up.ticks:
        at = up.at(mark)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(_text(LEFT - 10, at + 4, _number(mark, percent), "end", "tick"))
    for mark in across.ticks:
        parts.append(_text(across.at(mark), HEIGHT - BOTTOM + 18, _number(mark), "middle", "tick"))
    base = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{base}" y2="{base}"/>')
    parts.append(_text((LEFT + right) / 2, HEIGHT - 10, x, "middle", "name"))
    turn = f"translate(14,{(TOP + base) / 2:.0f}) rotate(-90)"
    parts.append(f'<g transform="{turn}">{_text(0, 0, y, "middle", "name")}</g>')
    return "".join(parts)


def _number(value: float, percent: bool = False) -> str:
    return f"{100 * value:.4g} %" if percent else f"{value:.4g}"


def _shorten(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most // 2 - 1] + "…" + text[-(most - most // 2) :]


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'


def _svg(parts: Sequence[str], *, title: str, width: float = WIDTH, height: float = HEIGHT) -> str:
    head = f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" style="max-width:{width:.0f}px">'
    return f"{head}<title>{escape(title)}</title>{''.join(parts)}</svg>"
