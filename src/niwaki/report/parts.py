"""Parts that every page is made of: the shell around it, a section, a table. HTML text in, HTML text out."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from niwaki.report.style import CSS


def shell(title: str, body: str) -> str:
    """A whole self-contained page around its body; the title is escaped."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        # an icon of its own: without one, browsers ask for /favicon.ico
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{CSS}</style></head>'
        f"<body><main>{body}</main></body></html>\n"
    )


def section(title: str, body: str, *, says: str = "", wide: bool = False) -> str:
    """A titled section; nothing where the body is empty. `says` and the body are HTML already."""
    if not body:
        return ""
    words_ = f'<p class="say">{says}</p>' if says else ""
    return f"<section{' class=wide' if wide else ''}><h2>{escape(title)}</h2>{words_}{body}</section>"


def table(head: Sequence[str], rows: Sequence[str]) -> str:
    """A table of column names and of rows that are HTML already; it scrolls by itself when it is wide."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(rows)
    table = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'
