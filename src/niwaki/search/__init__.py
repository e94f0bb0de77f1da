"""Searches: a budget turned into widths, by one ratio for all (`budget.py`), or by a knapsack over measured
costs and sensitivities (`allocate.py`, of `counts.py`, `table.py` and `knapsack.py`)."""

from niwaki.search.allocate import SENSITIVITY, allocate, along
from niwaki.search.budget import EXPORTS, MULTIPLES, WITHIN, Found, Keep, meet, unreachable, widest

__all__ = [
    "EXPORTS",
    "MULTIPLES",
    "SENSITIVITY",
    "WITHIN",
    "Found",
    "Keep",
    "allocate",
    "along",
    "meet",
    "unreachable",
    "widest",
]
