"""Import of optional parts at the moment they are needed, with the install line when they are not there."""

from __future__ import annotations

import importlib
from types import ModuleType

from niwaki.errors import MissingExtra


def require(module: str, *, extra: str) -> ModuleType:
    """The imported module.

    Raises:
        MissingExtra: it is not installed; the message holds the install line. [extra-missing]
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is None or not module.startswith(error.name.split(".")[0]):
            raise
        raise MissingExtra(
            f"{module} is not installed, and this needs it. Install it: pip install 'niwaki[{extra}]'.",
            code="extra-missing",
        ) from error
