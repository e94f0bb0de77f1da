"""Time of overlap fixing, `resolve_overlaps` beside the loops in common use; one interleaved run.

    python benchmarks/overlaps.py [--objects 400] [--rounds 20]

Random discs on 520 x 704 pixels. Prints medians in ms and ratios:
  crops            resolve_overlaps from crops
  dense            resolve_overlaps from bool [N, H, W]
  one pass         masks.any(2), one look at every pixel of the dense masks
  used canvas      label[m & ~used] = k; used |= m, in score order, over dense bool masks
  used canvas int  the same in its common integer form, m * (1 - used)
Every label map is checked to be the same.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from niwaki import instances, timing

SHAPE = (520, 704)


def discs(count: int, seed: int = 0) -> tuple[np.ndarray, list, np.ndarray]:
    """Overlapping discs of radius 6 to 20 as dense masks and as crops, and their scores."""
    random = np.random.default_rng(seed)
    rows, columns = np.arange(SHAPE[0])[:, None], np.arange(SHAPE[1])
    dense = np.zeros((count, *SHAPE), bool)
    for mask in dense:
        y, x, r = random.integers(0, SHAPE[0]), random.integers(0, SHAPE[1]), random.integers(6, 21)
        mask[:] = (rows - y) ** 2 + (columns - x) ** 2 < r * r
    crops = [(y, x, mask.copy()) for y, x, mask in instances.crops(dense)[0]]
    return dense, crops, random.random(count)


def used_canvas(dense: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The bool loop."""
    label, used = np.zeros(SHAPE, np.int32), np.zeros(SHAPE, bool)
    for k in np.argsort(-scores, kind="stable"):
        mask = dense[k]
        label[mask & ~used] = k + 1
        used |= mask
    return label


def used_canvas_int(dense: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The integer loop."""
    label, used = np.zeros(SHAPE, np.int64), np.zeros(SHAPE, np.int64)
    for k in np.argsort(-scores, kind="stable"):
        mask = dense[k] * (1 - used)
        label += mask * (k + 1)
        used |= mask
    return label


def main() -> None:
    """Prints the table and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    dense, crops, scores = discs(given.objects)
    calls = {
        "crops": lambda: instances.resolve_overlaps(crops, scores, shape=SHAPE),
        "dense": lambda: instances.resolve_overlaps(dense, scores),
        "one pass": lambda: dense.any(2),
        "used canvas": lambda: used_canvas(dense, scores),
        "used canvas int": lambda: used_canvas_int(dense, scores),
    }
    wanted = used_canvas(dense, scores)
    for name in ("crops", "dense", "used canvas int"):
        assert np.array_equal(calls[name](), wanted), name
    taken = timing.interleave(calls, rounds=given.rounds, calls_per_sample=1)
    ms = {name: float(np.median(samples)) for name, samples in taken.items()}
    for name, value in ms.items():
        print(f"{name:16s} {value:9.2f} ms   {value / ms['crops']:7.1f} x crops")
    print(json.dumps({"objects": given.objects, "ms": ms, "dense / one pass": ms["dense"] / ms["one pass"]}))


if __name__ == "__main__":
    main()
