"""From the budget to widths: the uncompressed model laid open, and the search, journaled where it measures."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from niwaki import files, prune, runtimes, search, surgery
from niwaki.cost import Cost
from niwaki.job import measure
from niwaki.search import Found, Keep

if TYPE_CHECKING:
    from torch import nn

    from niwaki.job.work import Work
    from niwaki.plan import Step

_NEAR = 0.04
"""A quick timing this close to what was asked is repeated at full length before it decides."""
_GIVE_UP = 2
"""int8 is not exported any more once it was slower than float for so many candidates: the thinner a network,
the less it gains."""
_CALIB = 32
"""Images that a candidate is calibrated on; how long it takes does not depend on them."""


class Widths:
    """The axes and scores of the uncompressed model, and the networks within a budget."""

    def __init__(self, work: Work, model: nn.Module, exports: dict[str, Path]) -> None:
        """`exports`: the uncompressed model's files by precision."""
        self.work, self.model, self.exports = work, model, exports
        self.example = torch.from_numpy(work.spec.example(seed=work.arguments.seed))
        self.axes = surgery.analyse(model, self.example)
        self.knobs = _knobs(prune_step(work))
        self.scores = self._scored(self.knobs.pop("score"), self.knobs.pop("normalise"))
        self.ratio = self.knobs.pop("ratio")
        self.multiple = self.knobs.pop("multiple")
        self.compensate: str = self.knobs.pop("compensate")
        self.slower = 0
        self.baseline = self.axes.cost({}).with_(bytes=work.folder.bytes_of(exports["float32"]))

    def _scored(self, by: str, normalise: str) -> prune.Scores:
        """Scores of the uncompressed network; those made from data see the calibration images."""
        work = self.work
        samples = work.calib if by in prune.DATA else None
        evidence = prune.evidence_for(
            by, self.model, self.axes, task=work.task, spec=work.spec, samples=samples
        )
        return prune.score(self.model, self.axes, by=by, normalise=normalise, evidence=evidence)

    def find(self, precisions: Sequence[str], baseline_ms: float | None) -> Found:
        """The plan's own widths where it names a ratio, else the widest network within the budget.

        Args:
            precisions: what may be served. A size is asked of the last of them; a latency of the fastest, which
                another width may change.
            baseline_ms: median latency of the uncompressed float export.
        """
        if prune_step(self.work) is None:
            return self._found({}, 1)
        if self.ratio is not None:
            return self._found(self._cut(self.ratio), self.multiple or 1)
        self.baseline = self.baseline.with_(ms=baseline_ms)
        found = search.meet(
            self.work.budget,
            axes=self.axes,
            scores=self.scores,
            baseline=self.baseline,
            measure=lambda keep: self._ask(keep, precisions),
            multiples=(self.multiple,) if self.multiple else search.MULTIPLES,
            **self.knobs,
        )
        shutil.rmtree(self.work.folder.stage("candidates"), ignore_errors=True)
        return found

    def milder(self, found: Found, share: float) -> Found:
        """Widths with that share of the removed multiply-adds given back."""
        full, small = self.baseline.macs or 0, found.cost.macs or 0
        limit = small + share * (full - small)
        return search.widest(
            self.axes, self.scores, kind="macs", limit=limit, multiple=found.multiple, **self.knobs
        )

    def _cut(self, ratio: float) -> Keep:
        keep: Keep = prune.choose(
            self.axes, self.scores, ratio=ratio, multiple=self.multiple or 1, **self.knobs
        )
        return keep

    def _found(self, keep: Keep, multiple: int) -> Found:
        return Found(keep=keep, cost=self.axes.cost(keep), got=float("nan"), multiple=multiple)

    def _ask(self, keep: Keep, precisions: Sequence[str]) -> float:
        """The size or latency of a candidate in the budget's own terms, by real exports."""
        if self.work.budget.kind == "latency":
            asked = [p for p in precisions if p == "float32" or self.slower < _GIVE_UP]
            got = {p: self._latency(keep, p) for p in asked}
            self.slower += bool(keep) and got.get("int8", 0.0) > got["float32"]
            return min(got.values())
        precision = precisions[-1]
        key = f"bytes:{precision}:{_digest(keep)}"
        size = self.work.folder.journal.decide(key, lambda: self._export(keep, precision).stat().st_size)
        return self.work.budget.got(Cost(bytes=int(size)), self.baseline)

    def _latency(self, keep: Keep, precision: str) -> float:
        key = f"latency:{precision}:{_digest(keep)}"
        decided = self.work.folder.journal.decide(key, lambda: self._time(keep, precision))
        return float(decided)

    def _time(self, keep: Keep, precision: str) -> float:
        paths = {
            measure.REFERENCE: self.exports["float32"],
            "candidate": self._export(keep, precision),
        }
        asked = self.work.budget.value
        for seconds in (measure.QUICK, measure.FULL):
            timed = measure.interleaved(self.work, paths, seconds=seconds)["candidate"]
            got = measure.got(self.work.budget, Cost(ms=timed["ms"]), self.baseline, timed)
            if abs(got / asked - 1) > _NEAR:
                break
        return got

    def _export(self, keep: Keep, precision: str) -> Path:
        """The candidate's file; its weights are not recovered, which time and size do not see."""
        if not keep:
            return self.exports[precision]
        path = self.work.folder.stage("candidates") / f"{precision}-{_digest(keep)}.onnx"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            calib = self.work.calibration()[:_CALIB] if precision == "int8" else None
            runtimes.load("onnx").export(
                surgery.shrink(self.model, self.axes, keep),
                self.work.spec,
                path,
                task=self.work.task,
                precision=precision,
                calib=calib,
                prove=False,
            )
        return path


def prune_step(work: Work) -> Step | None:
    """The plan's step that the budget becomes the widths of, if it has one."""
    return next((item for item in work.plan if item.do == "prune.channels"), None)


def _knobs(item: Step | None) -> dict[str, Any]:
    """The prune step's knobs with their defaults; ratio and multiple are None where the budget decides."""
    from niwaki import plan

    knobs = plan.knobs("prune.channels")
    given = dict(item.knobs) if item is not None else {}
    knobs = {**knobs, "ratio": None, "multiple": None, **given}
    knobs["keep"] = knobs.pop("widths")
    return knobs


def _digest(keep: Keep) -> str:
    return hashlib.sha256(files.dump_json(keep)).hexdigest()[:16]
