"""The chart of `niwaki bench --all-runtimes`: one bar a runtime and precision, as an SVG. No torch."""

from __future__ import annotations

from html import escape
from typing import Any

WIDTH_PX, ROW_PX, LEFT_PX, RIGHT_PX = 760, 26, 170, 210


def svg(result: dict[str, Any]) -> str:
    """Median milliseconds as bars from the fastest down, the 90 % quantile as a tick, accuracy beside them.

    Args:
        result: what `bench_runtimes.measure` gives.
    """
    rows = sorted(result["runtimes"].items(), key=lambda item: item[1]["ms"])
    most = max(row["p90_ms"] for _, row in rows)
    scale = (WIDTH_PX - LEFT_PX - RIGHT_PX) / most
    height = ROW_PX * len(rows) + 58
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH_PX} {height}" width="{WIDTH_PX}" '
        f'height="{height}" font-family="sans-serif" font-size="13" role="img">',
        f'<rect width="{WIDTH_PX}" height="{height}" fill="#fff"/>',
        f'<text x="12" y="20" font-weight="bold">ms for one image, {threads}; bar: median, tick: 90 %</text>',
    ]
    for place, (name, row) in enumerate(rows):
        parts += _bar(name, row, y=34 + ROW_PX * place, scale=scale, best=name == result["fastest"]["name"])
    parts.append(
        f'<text x="12" y="{height - 8}" font-size="11" fill="#555">{escape(result["cpu"])}</text></svg>'
    )
    return "\n".join(parts) + "\n"


def _bar(name: str, row: dict[str, Any], *, y: int, scale: float, best: bool) -> list[str]:
    width, tick = scale * row["ms"], LEFT_PX + scale * row["p90_ms"]
    middle, end = y + ROW_PX * 0.62, LEFT_PX + max(width, scale * row["p90_ms"]) + 8
    says = f"{row['ms']:.3g} ms, agrees {100 * row['agreement']:.1f} %"
    if row["accuracy"] is not None:
        says += f", right {100 * row['accuracy']:.1f} %"
    return [
        f'<text x="{LEFT_PX - 8}" y="{middle:.0f}" text-anchor="end">{escape(name)}</text>',
        f'<rect x="{LEFT_PX}" y="{y + 4}" width="{width:.1f}" height="{ROW_PX - 9}" '
        f'fill="{"#1a7f5a" if best else "#7aa6c2"}"/>',
        f'<line x1="{tick:.1f}" x2="{tick:.1f}" y1="{y + 2}" y2="{y + ROW_PX - 3}" stroke="#333"/>',
        f'<text x="{end:.1f}" y="{middle:.0f}" font-size="11" fill="#333">{escape(says)}</text>',
    ]
