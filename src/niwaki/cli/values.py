"""Types of arguments: each turns a word into a value, or says what was expected."""

from __future__ import annotations

import argparse


def natural(text: str) -> int:
    """A whole number of at least 0."""
    return _whole(text, least=0)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, least=1)


def share(text: str) -> float:
    """A number in 0..1, or a percentage: `0.01`, `1%`."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share in 0..1 or a percentage, got {text!r}")
    return value


def positive_share(text: str) -> float:
    """A number above 0 and at most 1, or a percentage."""
    value = share(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"expected a share above 0, got {text!r}")
    return value


def size(text: str) -> tuple[int, int]:
    """`64` or `64x48`: (height, width) in pixels."""
    parts = text.lower().split("x")
    if len(parts) > 2:
        raise argparse.ArgumentTypeError(f"expected N or HxW pixels, got {text!r}")
    return positive(parts[0]), positive(parts[-1])


def _whole(text: str, *, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        says = f"expected a whole number of at least {least}, got {text!r}"
        raise argparse.ArgumentTypeError(says)
    return int(text)
