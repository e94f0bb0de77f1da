"""The front of a supernet on the digits, and beside each of its paths the same network trained alone.

    python benchmarks/search.py --epochs 40 --trials 12 --seeds 0 1 2

For every path on the front: val and test accuracy as cut out of the supernet, and test accuracy of the same
widths trained alone for as many epochs from random weights. The supernet was trained once for all of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

from niwaki import job, surgery, train
from niwaki.job.tries import Tries
from niwaki.search import supernet


def alone(result: dict[str, Any], trial: dict[str, Any], *, epochs: int, seed: int) -> float:
    """Test accuracy of a path's widths trained by themselves."""
    from niwaki import data
    from niwaki.job import work

    read = data.read("digits", seed=seed)
    tries = Tries(
        data=read, spec=work.choose_spec("digits", read, None), model=result["model"], weights=None, seed=seed,
        pretrained=False, folder=Path("unused"),
    )  # fmt: skip
    model, _ = tries.fresh({})
    axes = surgery.analyse(model, tries.example)
    space = supernet.widths(model, axes)
    small = surgery.shrink(model, axes, space.keep(trial["setting"]["widths"]), example=tries.example)
    trained = train.fit(
        small, task=tries.task, spec=tries.spec, train=read.train, epochs=epochs, seed=seed, flip=read.flip
    )
    return float(tries.scores(trained)["test"]["accuracy"])


def main() -> None:
    """One line a path of the front, then the mean difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/search"))
    given = parser.parse_args()
    differences = []
    for seed in given.seeds:
        out = given.out / f"e{given.epochs}-t{given.trials}-s{seed}"
        result = job.explore(
            "digits", by="widths", trials=given.trials, epochs=given.epochs, seed=seed, out=out
        )
        for trial in result["front"]:
            test, by_itself = trial["test"]["accuracy"], alone(result, trial, epochs=given.epochs, seed=seed)
            differences.append(test - by_itself)
            macs, val = trial["cost"]["macs"] / 1e6, trial["val"]["accuracy"]
            print(
                f"seed {seed}  {macs:6.2f} M MACs  val {100 * val:5.1f}  test {100 * test:5.1f}  "
                f"alone {100 * by_itself:5.1f}"
            )
    print(
        f"supernet minus alone, mean of {len(differences)} paths: {100 * mean(differences):+.2f} points of test"
    )


if __name__ == "__main__":
    main()
