"""niwaki: train, prune and fit vision models to where they must run.

Public names are loaded when first used, so that `import niwaki` stays light and free of torch.
"""

from __future__ import annotations

import importlib
from typing import Any

from niwaki._version import __version__ as __version__

_FROM = {
    "Artifact": "niwaki.artifact",
    "Budget": "niwaki.cost",
    "Classify": "niwaki.tasks",
    "Cost": "niwaki.cost",
    "Instances": "niwaki.tasks",
    "NiwakiError": "niwaki.errors",
    "Plan": "niwaki.plan",
    "Segment": "niwaki.tasks",
    "Spec": "niwaki.spec",
    "fit": "niwaki.job",
    "step": "niwaki.plan",
}
_MODULES = (
    "bench",
    "cost",
    "data",
    "distill",
    "evaluate",
    "instances",
    "nets",
    "prune",
    "quantize",
    "runtimes",
    "search",
    "tile",
    "train",
)

__all__ = sorted([*_FROM, *_MODULES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _FROM:
        return getattr(importlib.import_module(_FROM[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"niwaki.{name}")
    raise AttributeError(f"module 'niwaki' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
