"""Which image goes to train, val or test, when the source does not say.

Made once, stratified and seeded. The draw is a hash of the seed and the image's bytes: neither the
order nor the names of the files count, equal images stay together, and adding some moves few.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence


def counts(size: int, *, val: float, test: float) -> tuple[int, int]:
    """How many of a class of `size` images go to (val, test), the rest to train.

    Rounded shares, but of three images on at least one each where a share is asked; with two one
    goes to val; one stays in train.
    """
    wanted_val = max(round(size * val), 1 if val > 0 and size >= 2 else 0)
    wanted_test = max(round(size * test), 1 if test > 0 and size >= 3 else 0)
    while wanted_val + wanted_test >= size and wanted_val + wanted_test > 0:
        if wanted_test > wanted_val:
            wanted_test -= 1
        else:
            wanted_val -= 1
    return wanted_val, wanted_test


def divide(labels: Sequence[str], digests: Sequence[str], *, seed: int, val: float, test: float) -> list[str]:
    """A split's name for each image, by its label and the hash of its bytes."""
    groups: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, (label, digest) in enumerate(zip(labels, digests, strict=True)):
        groups[label][digest].append(i)
    split = ["train"] * len(labels)
    for copies in groups.values():
        size = sum(map(len, copies.values()))
        room = dict(zip(("val", "test"), counts(size, val=val, test=test), strict=True))
        for digest in sorted(copies, key=lambda digest: _draw(seed, digest)):
            members = copies[digest]
            # Copies of one image go together, into the first split that has room for all.
            for name in ("test", "val"):
                if len(members) <= room[name]:
                    room[name] -= len(members)
                    for i in members:
                        split[i] = name
                    break
    return split


def _draw(seed: int, digest: str) -> bytes:
    return hashlib.sha256(f"{seed}:{digest}".encode()).digest()
