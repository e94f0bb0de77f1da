"""The behaviour ledger of a run: for each stage what compression changed beside accuracy, on the test split.

Flips, drops by class and calibration are of all test images; corruptions and attacks of a fixed subset, since
they cost many passes. The float stages are attacked white-box, each with its own gradients. An int8 file has
none: it is shown the images made against the float model it was exported from (a transfer attack), which says
less, for an attack on the file itself would be stronger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from niwaki import attack, behaviour, evaluate, runtimes, tally
from niwaki.data import corrupt
from niwaki.job import measure
from niwaki.job.baseline import Baseline, export_path
from niwaki.job.points import Point

if TYPE_CHECKING:
    from torch import nn

    from niwaki.data import Samples
    from niwaki.job.work import Work

ATTACKED = 0.5
"""Share of the ledger's images that are attacked: an attack takes some thirty passes."""
OF = {"int8": "distilled", "unpruned int8": "baseline"}
"""The float stage whose attacks an exported file is shown."""


def ledger(work: Work, base: Baseline, chosen: Point) -> dict[str, Any] | None:
    """Settings and one row a stage, as `niwaki.report` describes it; None where no image was asked for."""
    count = work.arguments.ledger
    if not count or not len(work.data.test):
        return None
    seed = work.arguments.seed
    shown = work.data.test.take(count, seed=seed)
    struck = shown.take(max(1, round(ATTACKED * len(shown))), seed=seed)
    exam = _Exam(work=work, base=base, chosen=chosen, shown=shown, struck=struck)
    return {**_settings(work, shown, struck), "stages": [exam.row(name) for name in exam.scores]}


def _settings(work: Work, shown: Samples, struck: Samples) -> dict[str, Any]:
    size = work.spec.size_hw
    return {
        "images": {"test": len(work.data.test), "corrupted": len(shown), "attacked": len(struck)},
        "bins": tally.BINS,
        "severity": corrupt.SEVERITY,
        "corruptions": {kind: corrupt.describe(kind, size) for kind in corrupt.KINDS},
        "attack": {"eps": attack.EPS, "step": attack.STEP, "steps": attack.STEPS, "of": 255},
    }


@dataclass(frozen=True, kw_only=True)
class _Exam:
    """The stages of a run and the images that they are examined on."""

    work: Work
    base: Baseline
    chosen: Point
    shown: Samples
    struck: Samples
    made: dict[str, dict[str, evaluate.ImagesU8]] = field(default_factory=dict)

    @cached_property
    def scores(self) -> dict[str, Mapping[str, Any]]:
        """Scores by stage, in the order of the table."""
        named = {name: self.chosen.scores[name] for name in ("pruned", "distilled", "int8")}
        return {"baseline": self.base.scores, **named, "unpruned int8": self.base.int8_scores}

    def row(self, name: str) -> dict[str, Any]:
        """A stage's row; stored as stage `ledger-NAME`."""
        kept = name.replace(" ", "-") if name in ("baseline", "unpruned int8") else f"{self.chosen.name}-{name}"
        row: dict[str, Any] = self.work.folder.once(f"ledger-{kept}", lambda: self._examined(name))
        return row

    def _examined(self, name: str) -> dict[str, Any]:
        work, images, true = self.work, self._images(self.shown), self._targets(self.shown)
        predict = self._predictor(name)
        corrupted = behaviour.corrupted(predict, images, true, task=work.task, seed=work.arguments.seed)
        source = OF.get(name, name)
        return {
            "name": name,
            **self._changed(name),
            "calibration": self.scores[name].get("calibration_test"),
            "clean": behaviour.scored(predict, images, true, task=work.task),
            "corrupted": corrupted,
            "corrupted_mean": behaviour.mean_score(corrupted),
            "attack": "white-box" if source == name else f"transfer from {source}",
            "attacked": behaviour.attacked(
                predict, self._attacks(source), self._targets(self.struck), task=work.task
            ),
        }

    def _changed(self, name: str) -> dict[str, Any]:
        """What differs from the baseline's predictions on the whole test split."""
        if name == "baseline":
            return {"flipped": None, "class_drops": None}
        before, after = (s["recalls_test"] for s in (self.base.scores, self.scores[name]))
        drops = behaviour.class_drops(before, after, self.work.task.classes)
        return {"flipped": measure.flipped(self.base.scores, self.scores[name]), "class_drops": drops}

    def _images(self, samples: Samples) -> evaluate.ImagesU8:
        return samples.batch(range(len(samples)), self.work.spec)

    def _targets(self, samples: Samples) -> behaviour.Targets:
        return samples.targets(range(len(samples)), self.work.spec)

    def _predictor(self, name: str) -> evaluate.Predictor:
        files = {
            "int8": export_path(self.chosen.artifact, "int8"),
            "unpruned int8": self.base.exports["int8"],
        }
        if name not in files:
            return evaluate.predictor(self._module(name), self.work.spec, self.work.task)
        threads = self.work.arguments.threads
        opened: evaluate.Predictor = runtimes.load("onnx").open(files[name], threads=threads)
        return opened

    def _module(self, name: str) -> nn.Module:
        """A float stage's model."""
        stages = {"baseline": self.base.model, "pruned": self.chosen.pruned, "distilled": self.chosen.model}
        return stages[name].eval()

    def _attacks(self, name: str) -> dict[str, evaluate.ImagesU8]:
        """The images made against a float stage, once."""
        if name not in self.made:
            images, labels, model = self._images(self.struck), self._targets(self.struck), self._module(name)
            task, spec, seed = self.work.task, self.work.spec, self.work.arguments.seed
            self.made[name] = {
                "fgsm": attack.fgsm(model, images, labels, task=task, spec=spec),
                "pgd": attack.pgd(model, images, labels, task=task, spec=spec, seed=seed),
            }
        return self.made[name]
