"""What this process holds in memory, in MB."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_MB = 1 << 20


def peak_mb() -> float:
    """The most that was ever resident."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / _MB if sys.platform == "darwin" else most / 1024


def resident_mb() -> float:
    """What is resident now; the peak where the system does not say."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return peak_mb()
    return int(statm.read_text().split()[1]) * resource.getpagesize() / _MB
