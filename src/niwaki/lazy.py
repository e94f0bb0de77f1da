"""Import of optional parts at the moment they are needed, with the install line when they are not there."""

from __future__ import annotations

import importlib
from types import ModuleType

from niwaki.errors import MissingExtra


def require(module: str, *, extra: str) -> ModuleType:
    """The imported module; of niwaki's own it is what they import that may not be there.

    Raises:
        MissingExtra: it is not installed; the message holds the install line. [extra-missing]
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or "").split(".")[0]
        own = module.split(".")[0] == "niwaki"
        if missing in ("", "niwaki") or not (own or module.split(".")[0] == missing):
            raise
        raise MissingExtra(
            f"{missing if own else module} is not installed, and this needs it. Install it: pip install "
            f"'niwaki[{extra}]'.",
            code="extra-missing",
        ) from error
