"""Every error niwaki raises on purpose, the exit code each leads to, and the list of stable codes.

    NiwakiError
    ├── SpecError (ValueError)        an image or its description does not fit
    ├── DataError (ValueError)        a data set cannot be used as given
    ├── ModelError (ValueError)       a model cannot be built, loaded or exported
    ├── PlanError (ValueError)        a plan or one of its knobs is wrong
    ├── RunError (ValueError)         a run folder does not belong to this command
    ├── ArtifactError (ValueError)    an artifact is damaged or not one
    │   └── UnsafeArtifact            an artifact asks for something that is refused
    ├── RuntimeFailed (RuntimeError)  a runtime refused or failed
    ├── BudgetError (RuntimeError)    a budget cannot be met           exit 3
    ├── ParityError (RuntimeError)    an export or a surgery differs   exit 3
    └── MissingExtra (ImportError)    an optional part is not there    exit 4

A message says: what happened where, what came, what was expected, how to fix it; `code` is stable and
explained in docs/errors.md, which a test holds equal to `CODES`.
"""

from __future__ import annotations

from typing import ClassVar


class NiwakiError(Exception):
    """Base of all errors raised on purpose. `code` is one of `CODES`."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class SpecError(NiwakiError, ValueError):
    """An image, or what a Spec says of it, does not fit."""


class DataError(NiwakiError, ValueError):
    """A data set cannot be used as given."""


class ModelError(NiwakiError, ValueError):
    """A model cannot be built, loaded or exported."""


class PlanError(NiwakiError, ValueError):
    """A plan, a step or one of its knobs is wrong."""


class RunError(NiwakiError, ValueError):
    """A run folder does not belong to this command, or is in use."""


class ArtifactError(NiwakiError, ValueError):
    """An artifact is damaged, incomplete or not one."""


class UnsafeArtifact(ArtifactError):
    """An artifact asks for something that niwaki refuses to do for a file."""


class RuntimeFailed(NiwakiError, RuntimeError):
    """A runtime refused a model or failed while it ran."""


class BudgetError(NiwakiError, RuntimeError):
    """A budget cannot be met."""

    exit_code: ClassVar[int] = 3


class ParityError(NiwakiError, RuntimeError):
    """What was exported or pruned does not compute what it should."""

    exit_code: ClassVar[int] = 3


class MissingExtra(NiwakiError, ImportError):
    """An optional part of niwaki is needed and not installed."""

    exit_code: ClassVar[int] = 4


# code -> what it means and what to do. Keep sorted; docs/errors.md lists exactly these.
CODES: dict[str, str] = {
    "budget-syntax": "A budget reads KIND=VALUE: latency=50%, latency=4ms, macs=40%, params=1.2M, size=3MB.",
    "budget-unreachable": "Even the narrowest network allowed costs more than the budget. Ask for more, or lower --min-width.",
    "extra-missing": "An optional part is needed; the message holds the install line.",
    "spec-channels": "A Spec has 1 (grey) or 3 (RGB) channels, and one mean and std for each.",
    "spec-resize": "The resize rule in a manifest is not one this version knows.",
    "spec-size": "A Spec's size_hw is two whole numbers of at least 1 pixel.",
    "spec-std": "A Spec's std must be above zero.",
}
