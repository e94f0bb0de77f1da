"""Searches: a budget turned into widths (`budget.py`)."""

from niwaki.search.budget import EXPORTS, MULTIPLES, WITHIN, Found, Keep, meet, unreachable, widest

__all__ = ["EXPORTS", "MULTIPLES", "WITHIN", "Found", "Keep", "meet", "unreachable", "widest"]
