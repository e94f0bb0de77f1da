"""From the budget to widths: the uncompressed model laid open, and the search, journaled where it measures."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from niwaki import files, prune, runtimes, search, surgery
from niwaki.cost import Cost
from niwaki.job import measure
from niwaki.prune.sensitivity import SHARES, sensitivity
from niwaki.search import Found, Keep

if TYPE_CHECKING:
    from torch import nn

    from niwaki.data import Samples
    from niwaki.job.work import Work
    from niwaki.plan import Step

_NEAR = 0.04
"""A quick timing of at most this share above what was asked is repeated at full length before it decides."""
_QUIET = 0.3
"""So is one with fewer undisturbed rounds than this share."""
_GIVE_UP = 2
"""int8 is not exported any more once it was slower than float for so many candidates: the thinner a network,
the less it gains."""
_SENSED = (32, 256)
"""Images of val that sensitivities are taken on, at least and at most; ..."""
_SENSED_MACS = 1e12
"""... so that all passes together count about so many multiply-adds: a minute or so on one core."""
_BATCH = 64
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
        self.each = self.knobs["scope"] == search.SENSITIVITY
        self.knobs["scope"] = "local" if self.each else self.knobs["scope"]
        self.compensate: str = self.knobs.pop("compensate")
        self.ratio = self.knobs.pop("ratio")
        self.multiple = self.knobs.pop("multiple")
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
        found = self._allocated(precisions) if self.each else self._met(precisions)
        shutil.rmtree(self.work.folder.stage("candidates"), ignore_errors=True)
        return found

    def _met(self, precisions: Sequence[str]) -> Found:
        """One ratio for all groups."""
        return search.meet(
            self.work.budget,
            axes=self.axes,
            scores=self.scores,
            baseline=self.baseline,
            measure=lambda keep: self._ask(keep, precisions),
            multiples=(self.multiple,) if self.multiple else search.MULTIPLES,
            **self.knobs,
        )

    def _allocated(self, precisions: Sequence[str]) -> Found:
        """A width for each group, by what it costs and what it loses on val."""
        return search.allocate(
            self.work.budget,
            axes=self.axes,
            scores=self.scores,
            baseline=self.baseline,
            measure=lambda keep: self._ask(keep, precisions),
            probe=lambda keep: self._probe(keep, precisions),
            losses=self._losses,
            multiple=self.multiple,
            **self.knobs,
        )

    def milder(self, found: Found, share: float) -> Found:
        """Widths with that share of the removed multiply-adds given back."""
        full, small = self.baseline.macs or 0, found.cost.macs or 0
        limit = small + share * (full - small)
        if self.each:
            return search.along(found, axes=self.axes, scores=self.scores, macs=limit)
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

    def _probe(self, keep: Keep, precisions: Sequence[str]) -> float:
        """`_ask` for the table of costs: in one precision, the fastest of the uncompressed network."""
        if self.work.budget.kind != "latency":
            return self._ask(keep, precisions)
        return self._latency(keep, min(precisions, key=lambda precision: self._latency({}, precision)))

    def _losses(self, levels: dict[str, list[int]]) -> dict[str, list[float]]:
        """What each group loses at each of its widths, on images of val."""
        key = f"sensitivity:{_digest(levels)}"
        passes = 1 + len(SHARES) * len(levels)
        most = _SENSED_MACS / (passes * max(1, self.baseline.macs or 1))
        images = int(min(max(most, _SENSED[0]), _SENSED[1]))
        loss = _loss_on(self.work, self.work.data.val.take(images, seed=self.work.arguments.seed))
        found: dict[str, list[float]] = self.work.folder.journal.decide(
            key, lambda: sensitivity(self.model, self.axes, self.scores, levels, loss=loss)
        )
        return found

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
            if got / asked - 1 > _NEAR and timed["quiet"] >= _QUIET:
                break  # too slow by far; whatever may be chosen is timed at length
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
                surgery.smaller(self.model, self.axes, keep),
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


def _loss_on(work: Work, samples: Samples) -> Callable[[nn.Module], float]:
    """The mean loss of a model on these images."""
    pixels = samples.batch(range(len(samples)), work.spec)
    labels = torch.from_numpy(samples.targets(range(len(samples)), work.spec))

    @torch.no_grad()
    def loss(model: nn.Module) -> float:
        total = 0.0
        for first in range(0, len(labels), _BATCH):
            inputs = torch.from_numpy(work.spec.normalise(pixels[first : first + _BATCH]))
            total += float(work.task.loss(model(inputs), labels[first : first + _BATCH]).sum())
        return total / len(labels)

    return loss


def _digest(keep: Any) -> str:
    return hashlib.sha256(files.dump_json(keep)).hexdigest()[:16]
