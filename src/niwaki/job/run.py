"""`fit`: the arguments made whole, the run folder opened, the stages walked, the result kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from niwaki import data
from niwaki.cost import Budget
from niwaki.errors import BudgetError
from niwaki.job import work as works
from niwaki.job.folder import opened
from niwaki.job.work import Arguments, Work
from niwaki.lazy import require
from niwaki.plan import Plan

if TYPE_CHECKING:
    from niwaki.data import DataSet

EPOCHS = {"digits": (15, 15)}
"""Epochs of training and of recovery by source; the rest get `USUAL`."""
USUAL = (30, 10)
SMALL = 32
"""Pixels of images that are trained on one thread. A second gains little there, and torch 2.14.1's oneDNN
crashed with two in the backward pass of a cut network of 16 pixels (batches of 9 and 41)."""


def fit(
    source: str | Path = "digits",
    *,
    model: Any = None,
    budget: str = "latency=50%",
    max_drop: float = 0.01,
    out: str | Path | None = None,
    weights: str | Path | None = None,
    epochs: int | None = None,
    recover_epochs: int | None = None,
    seed: int = 0,
    val: float = 0.15,
    threads: int = 1,
    size: int | tuple[int, int] | None = None,
    pretrained: bool = False,
    plan: str | Path | Plan | None = None,
    ledger: int = 128,
    show: Callable[[Any], object] | None = None,
) -> dict[str, Any]:
    """The result of the main job, as JSON data; artifacts, points and report lie in the run folder.

    The same call goes on where an earlier one stopped; a finished run returns its result at once. Under
    `torchrun` all processes train, and the first does the rest.

    Args:
        source: what `data.read` takes: a folder (of classes, or of images with masks), zip, .npz or manifest;
            `digits`, `cifar10` or `camvid`.
        model: `timm:NAME`, `niwaki:NAME`, `smp:unet-ENCODER`, `file.py:function`, a function
            `(classes=, channels=)`, or an `nn.Module`. Default: `niwaki:small` below 64 pixels, else
            `timm:resnet18`; of masks `niwaki:fast_scnn`.
        budget: `latency=50%`, `latency=4ms`, `macs=40%`, `params=1.2M`, `size=3MB`; a share is what remains.
        val: share of the images that chooses, where the data names no split for it.
        max_drop: val accuracy that may be lost, 0..1.
        out: the run folder; default `runs/NAME` of the source.
        weights: a file to start from; with `epochs=0` the model is used as it is.
        epochs, recover_epochs: of training, and of recovery after pruning (where the plan does not say).
        seed: of every draw.
        threads: of the latency that is measured.
        size: pixels of the model's input, one number or (height, width).
        pretrained: start from the builder's published weights.
        plan: a Plan, or the path of one in TOML. Default: prune.channels, then distill.logits.
        ledger: test images that the behaviour ledger corrupts, half of which it attacks; 0: no ledger.
        show: called with each training step's `loop.Progress`.
    Returns:
        `artifact`, `baseline` (paths); `scores` {stage: {val, test: {accuracy or miou, low, high}}};
        `cost` {stage: {macs, params, bytes, ms}}; `budget` {asked, got, met}; `default`,
        `flipped`, `drop`, `proof_error`, `ledger`, `ladder` (of int8, where plain int8 lost too much),
        `points`, `notes`. Stages: baseline, pruned, distilled, int8, and unpruned int8 for comparison.
    Raises:
        BudgetError: no width costs so little, or no point tried holds the accuracy (exit 3).
            [budget-unreachable, budget-drop]
        RunError: the folder is another run's or in use. [run-differs, run-locked, run-damaged, run-foreign]
        DataError, ModelError, PlanError: what was given cannot be used.
    """
    require("torch", extra="train")
    from niwaki.job.walk import walk

    asked = Budget.parse(budget)
    read = data.read(source, seed=seed, val=val)
    spec = works.choose_spec(str(source), read, size)
    epochs, recover = _epochs(source, epochs, recover_epochs)
    given = works.choose_plan(plan)
    model = works.choose_model(spec, read.task) if model is None else model
    arguments = Arguments(
        source=Path(source).name,
        model=works.model_name(model),
        budget=asked.text,
        max_drop=max_drop,
        weights=None if weights is None else Path(weights).name,
        epochs=epochs,
        recover_epochs=recover,
        seed=seed,
        val=val,
        threads=threads,
        size=spec.size_hw,
        pretrained=pretrained,
        plan=works.plan_text(given),
        ledger=ledger,
        contents=works.contents(weights, model if isinstance(model, str) else None),
    )
    path = Path(out) if out is not None else Path("runs") / (Path(source).stem or "run")
    with opened(path, identity(arguments, read)) as folder:
        if (done := folder.result) is not None:
            return _finished(done)
        with torch_threads(folder.run["threads"]):
            fresh, builder = works.builder_of(model, weights, arguments, read, spec)
            works.check_output(fresh(), spec, read.task)
            work = Work(
                arguments=arguments, folder=folder, data=read, spec=spec,
                fresh=fresh, builder=builder, show=show,
                plan=works.filled(given, epochs=recover, seed=seed, flip=read.flip),
            )  # fmt: skip
            return _finished(walk(work))


def _epochs(source: str | Path, epochs: int | None, recover: int | None) -> tuple[int, int]:
    usual = EPOCHS.get(str(source), USUAL)
    return usual[0] if epochs is None else epochs, usual[1] if recover is None else recover


def identity(arguments: Any, read: DataSet) -> dict[str, Any]:
    """What a run folder belongs to: its arguments (with a `to_json`), data, versions and threads."""
    import torch

    return {
        "arguments": arguments.to_json(),
        "data": read.fingerprint,
        "versions": works.versions(),
        "threads": 1 if max(arguments.size) <= SMALL else torch.get_num_threads(),
    }


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch on as many threads as the run began with: sums come out the same bits on a resume."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _finished(stored: dict[str, Any]) -> dict[str, Any]:
    if "error" in stored:
        raise BudgetError(stored["error"]["message"], code=stored["error"]["code"])
    return stored
