"""Losses by text: `"2*ohem(sure=0.8) + dice"`, which a Plan records as it stands. Needs torch.

mix       term + term + ...
term      [weight *] name [(knob=number, ...)]
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from niwaki.dense_metrics import IGNORE
from niwaki.errors import PlanError
from niwaki.losses import regions, terms
from niwaki.tasks import Segment, Task

Loss = Callable[[Tensor, Tensor], Tensor]

NAMES: dict[str, Callable[..., Tensor]] = {
    "adjusted": terms.adjusted,
    "balanced": terms.balanced,
    "boundary": terms.boundary,
    "cross-entropy": terms.cross_entropy,
    "dice": regions.dice,
    "focal": terms.focal,
    "lovasz": regions.lovasz,
    "ohem": terms.ohem,
    "ohem-images": terms.ohem_images,
}
"""Losses that a text can name."""
_TERM = re.compile(r"\s*(?:([0-9.e-]+)\s*\*)?\s*([a-z-]+)\s*(?:\(([^()]*)\))?\s*")
_PLUS = re.compile(r"\+(?![^(]*\))")


def mix(text: str, *, task: Task, counts: npt.NDArray[np.int64] | None = None) -> Loss:
    """The loss that a text describes: model outputs and targets, as `task.loss` takes them, to `[B]`.

    Args:
        counts: labels or pixels of each class in the training split, `[K]`; `balanced` and `adjusted` need
            them.
    Raises:
        PlanError: it cannot be read, or names what there is not. [loss-text]
    """
    if task.kind == "instances":
        raise _unreadable(text, "objects have one loss, their own; leave loss= out")
    parts = [_term(part, text, task, counts) for part in _PLUS.split(text)]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        logits, true = output.float(), target.long()
        if isinstance(task, Segment):
            true = task.valid(target)
            true = true.masked_fill(true == IGNORE, terms.VOID)
            logits = task.resized(logits, (true.shape[1], true.shape[2]))
        else:  # a label is a map of one entry
            logits, true = logits[..., None], true[..., None]
        return torch.stack([weight * term(logits, true) for weight, term in parts]).sum(0)

    return loss


def _term(
    part: str, text: str, task: Task, counts: npt.NDArray[np.int64] | None
) -> tuple[float, Callable[[Tensor, Tensor], Tensor]]:
    """A term's weight and function, its knobs bound."""
    found = _TERM.fullmatch(part)
    if found is None:
        raise _unreadable(text, f"{part.strip()!r} is no term")
    number, name, inside = found.groups()
    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, n=1)
        raise _unreadable(text, f"there is no loss {name!r}{f', did you mean {close[0]!r}' if close else ''}")
    if name == "boundary" and not task.dense:
        raise _unreadable(text, "'boundary' is of masks, and these images have labels")
    known = {p.name: p for p in inspect.signature(NAMES[name]).parameters.values() if p.kind is p.KEYWORD_ONLY}
    knobs = _knobs(inside or "", text, set(known) - {"counts"})
    if "counts" in known:
        if counts is None:
            raise _unreadable(text, f"{name!r} needs how often each class is there")
        knobs["counts"] = torch.from_numpy(np.asarray(counts, np.float64)).float()
    return _number(number or "1", text), partial(NAMES[name], **knobs)


def _knobs(inside: str, text: str, known: set[str]) -> dict[str, Any]:
    knobs: dict[str, Any] = {}
    for pair in filter(None, map(str.strip, inside.split(","))):
        name, equals, value = (word.strip() for word in pair.partition("="))
        if not equals or name not in known:
            listed = ", ".join(sorted(known)) or "it has none"
            raise _unreadable(text, f"{pair!r} is none of its knobs ({listed})")
        number = _number(value, text)
        knobs[name] = int(number) if name == "width" else number
    return knobs


def _number(value: str, text: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise _unreadable(text, f"{value!r} is no number") from None
    if not 0 <= number < float("inf"):
        raise _unreadable(text, f"{value} is below 0 or not finite")
    return number


def _unreadable(text: str, why: str) -> PlanError:
    return PlanError(
        f"loss {text!r}: {why}. Expected terms such as '2*ohem(sure=0.8) + dice', of {', '.join(NAMES)}.",
        code="loss-text",
    )
