"""What this process holds in memory, in MB."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

_MB = 1 << 20
_STATUS = Path("/proc/self/status")


def peak_mb() -> float:
    """The most that was ever resident."""
    if _STATUS.exists():
        # not getrusage: what it says of a started process begins at what its parent held
        return _kilobytes("VmHWM") / 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / _MB if sys.platform == "darwin" else most / 1024


def resident_mb() -> float:
    """What is resident now; the peak where the system does not say."""
    return _kilobytes("VmRSS") / 1024 if _STATUS.exists() else peak_mb()


def _kilobytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    return int(found[1]) if found else 0
