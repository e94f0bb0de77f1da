"""What of a model can be pruned, found out by doing it: export, prune, count and prove; no data."""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING, Any

from niwaki.cost import Budget
from niwaki.errors import ModelError, PlanError
from niwaki.lazy import require

if TYPE_CHECKING:
    from torch import nn

    from niwaki.prune import Pruned
    from niwaki.surgery import Axes, Group, Keep

SIDE = 32
"""Pixels of the input, where neither the caller nor the model says."""
_MOST = 0.999


def model(
    what: str | nn.Module,
    *,
    budget: str | None = None,
    channels: float | None = None,
    size: tuple[int, int] | None = None,
    example: Any = None,
) -> dict[str, Any]:
    """What pruning makes of a model: the JSON of `niwaki doctor MODEL`.

    Args:
        what: `timm:NAME`, `niwaki:NAME`, `file.py:function`, or a module. It takes `[B, 3, H, W]`
            unless `example` or its own attribute `example_inputs` says otherwise.
        budget: `macs=50%` (default), `params=1.2M`, ...: pruned to it, widest first.
        channels: instead of a budget, the share of every prunable group that stays, above 0 to 1.
        size: height and width of the input; the model's own when left out, else 32.
        example: an input, a tuple of inputs, or a dict of inputs by name.
    Returns:
        `exported` bool; `prunable`, share of parameters in prunable groups; `proof_error`, the
        larger of the proof's two errors, None when nothing was cut; `macs` {"before", "asked",
        "after"}; `params` {"before", "after"}; `seconds`; `unprunable` [{"operator", "source"}];
        `protected` {"inputs", "whole"}; `groups` [{"name", "before", "after", "members":
        [{"parameter", "axis"}], "secondary", "optional", "reason"}], the reason being why a group
        stays whole; `left`, groups left alone because they fail the proof, with the reason;
        `result`, "module": the model's own class, made smaller, or "graph": its graph, with `why`
        the class does not follow; `lost`, what a graph does not do of what the model does in training.
        A model that cannot be exported gives `exported` False, `result` None and a `reason`.
    Raises:
        ModelError: no such model. [model-unknown, model-user]
        PlanError: the budget is neither macs nor params. [budget-syntax, budget-kind]
        BudgetError: no width costs so little. [budget-unreachable]
        ParityError: the proof fails and no group is to blame alone. [prune-proof]
    """
    require("torch", extra="train")

    from niwaki import prune, surgery

    asked = None if channels is not None else _budget(budget or "macs=50%")
    start = time.monotonic()
    net = _built(what).eval()
    example = _example(net, size) if example is None else example
    try:
        axes = surgery.analyse(net, example)
    except ModelError as error:
        if error.code != "model-export":
            raise
        return _refused(str(error), seconds=time.monotonic() - start)
    keep, limit = _keep(net, axes, asked, channels)
    done = prune.cut(net, axes, keep, example=example) if keep else None
    before, after = axes.cost({}), axes.cost(done.keep if done else {})
    return {
        "exported": True,
        "prunable": axes.prunable,
        "proof_error": done.error if done else None,
        "macs": {"before": before.macs, "asked": limit, "after": after.macs},
        "params": {"before": before.params, "after": after.params},
        "seconds": time.monotonic() - start,
        "unprunable": list(axes.unprunable),
        "protected": axes.protected,
        "groups": [_group(group, keep, done) for group in axes.groups],
        "left": dict(done.left) if done else {},
        "result": done.result if done else "module",
        "why": done.why if done else "",
        "lost": list(getattr(done.model, "lost", ())) if done else [],
    }


def _refused(reason: str, *, seconds: float) -> dict[str, Any]:
    """The answer for a model that torch.export cannot follow: nothing of it can be pruned."""
    return {
        "exported": False,
        "prunable": 0.0,
        "proof_error": None,
        "macs": {"before": None, "asked": None, "after": None},
        "params": {"before": None, "after": None},
        "seconds": seconds,
        "unprunable": [],
        "protected": {"inputs": [], "whole": []},
        "groups": [],
        "left": {},
        "result": None,
        "why": "",
        "lost": [],
        "reason": reason,
    }


def _budget(text: str) -> Budget:
    found = Budget.parse(text)
    if found.kind not in ("macs", "params"):
        raise PlanError(
            f"doctor: --budget {text}: expected macs or params, which can be counted without "
            "an export; latency and size are measured by niwaki fit.",
            code="budget-kind",
        )
    return found


def _built(what: str | nn.Module) -> nn.Module:
    from niwaki import nets

    if not isinstance(what, str):
        return copy.deepcopy(what)
    classes = 1000 if what.startswith("timm:") else 10
    if ".py:" in what:
        return nets.build_user(what, classes=classes)
    return nets.build(what, classes=classes)


def _example(net: nn.Module, size: tuple[int, int] | None) -> Any:
    """What the model says it is called with, else one black image."""
    import torch

    given = getattr(net, "example_inputs", None)
    if given is not None:
        return given() if callable(given) else given
    return torch.zeros(1, 3, *(size or _size(net)))


def _size(net: nn.Module) -> tuple[int, int]:
    """The size that timm says the network was made for, else a small one."""
    config = getattr(net, "pretrained_cfg", None) or {}
    height, width = (config.get("input_size") or (3, SIDE, SIDE))[-2:]
    return int(height), int(width)


def _keep(
    net: nn.Module, axes: Axes, asked: Budget | None, channels: float | None
) -> tuple[Keep, float | None]:
    """The widths to try, and the limit in macs where the budget is of macs."""
    from niwaki import prune, search

    scores = prune.score(net, axes)
    if asked is None:
        share = 1.0 if channels is None else channels
        return prune.choose(axes, scores, ratio=min(1 - share, _MOST), min_width=0.0), None
    baseline = axes.cost({})
    limit = asked.limit(baseline) if asked.kind == "macs" else None
    found = search.meet(asked, axes=axes, scores=scores, baseline=baseline)
    return found.keep, limit


def _group(group: Group, keep: Keep, done: Pruned | None) -> dict[str, Any]:
    kept = done.keep if done else {}
    return {
        "name": group.name,
        "before": group.size,
        "after": len(kept[group.name]) if group.name in kept else group.size,
        "members": [{"parameter": name, "axis": axis} for name, axis in group.members],
        "secondary": group.secondary,
        "optional": group.optional,
        "reason": _reason(group, keep, done),
    }


def _reason(group: Group, keep: Keep, done: Pruned | None) -> str:
    """Why a group stays whole; empty where it does not."""
    if done is not None and group.name in done.left:
        return done.left[group.name]
    if group.name in keep:
        return ""
    if group.secondary:
        return "the smaller factor of a product, cut only when its width is asked for"
    return "whole at this budget"
