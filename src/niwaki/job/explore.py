"""`explore`, the job behind `niwaki search`: settings or widths tried on one data set, and the front of them.

A run folder as `fit` has one: every finished trial is journaled, so the same call goes on after a crash and
loses at most what the running trial did since its last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from niwaki import data, files, report
from niwaki.cost import Budget, Cost
from niwaki.errors import BudgetError, PlanError
from niwaki.job import work as works
from niwaki.job.folder import Folder, opened
from niwaki.job.run import EPOCHS, USUAL, identity, torch_threads
from niwaki.lazy import require
from niwaki.search import shared, trials
from niwaki.search.trials import Range, Setting, Trial

if TYPE_CHECKING:
    from niwaki.job.tries import Tries

WAYS = ("widths", "grid", "random", "halving", "optuna")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """`explore`'s arguments as its run folder remembers them."""

    source: str
    by: str
    model: str
    space: dict[str, Any]
    trials: int
    epochs: int
    tune: int
    cost: str
    budget: str | None
    weights: str | None
    seed: int
    val: float
    size: tuple[int, int]
    pretrained: bool
    contents: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """What run.json holds."""
        return asdict(self)


def explore(
    source: str | Path = "digits",
    *,
    by: str | None = None,
    model: Any = None,
    space: Sequence[str] | Mapping[str, Sequence[Any] | Range] = (),
    trials: int = 16,
    epochs: int | None = None,
    tune: int = 0,
    cost: str = "macs",
    budget: str | None = None,
    out: str | Path | None = None,
    weights: str | Path | None = None,
    seed: int = 0,
    val: float = 0.15,
    size: int | tuple[int, int] | None = None,
    pretrained: bool = False,
    storage: str | None = None,
    cluster: str | None = None,
    show: Callable[[Any], object] | None = None,
) -> dict[str, Any]:
    """Trials, their front of cost and accuracy, the best of them and a chart, as JSON data.

    Val chooses; test is reported for the trials on the front alone.

    Args:
        source, model, weights, seed, val, size, pretrained, show: as `fit` takes them.
        by: `widths` (one supernet, `trials` paths of it), `grid`, `random`, `halving` (successive), `optuna`
            (needs `storage`). Default: `widths` without a space, else `grid`, or `random` where it has a range.
        space: `["lr=1e-4..1e-2", "width=0.5,1"]`, or that as a mapping; `search.trials.NAMES` are the names.
        trials: paths, or settings drawn; a grid has its own number.
        epochs: of each training; of the longest in halving.
        tune: epochs that the best path is trained further.
        cost: `macs` or `params`, the other axis of the front.
        budget: `macs=50%` or `params=1M`: the best trial must be within; a share is of `model` as it is.
        out: the run folder; default `runs/NAME-search` of the source.
        storage: a file or URL that several processes share; each has its own `out`.
        cluster: a Ray cluster's address (`auto`, `local`, ...) that runs the trials; all must see `out`.
    Returns:
        `trials`, `front`: lists of {name, setting, epochs, cost {macs, params}, val, test, seconds};
        `best`: one of them or None; `chart`: path of the page; `artifact`, `by`, `cost`, `budget`, `notes`.
    Raises:
        PlanError: what was asked does not fit together. [search-space, search-by, search-budget]
        BudgetError: even the narrowest path costs more. [budget-unreachable]
    """
    require("torch", extra="train")
    given = _space(space)
    way = _way(by, given, storage, cluster)
    if budget is not None:
        _budget(budget, cost)
    read = data.read(source, seed=seed, val=val)
    spec = works.choose_spec(str(source), read, size)
    model = works.choose_model(spec, read.task) if model is None else model
    usual = EPOCHS.get(str(source), USUAL)[0]
    asked = Asked(
        source=Path(source).name, by=way, model=works.model_name(model), space=_plain(given), trials=trials,
        epochs=usual if epochs is None else epochs, tune=tune, cost=cost, budget=budget,
        weights=None if weights is None else Path(weights).name, seed=seed, val=val, size=spec.size_hw,
        pretrained=pretrained, contents=works.contents(weights, model if isinstance(model, str) else None),
    )  # fmt: skip
    path = Path(out) if out is not None else Path("runs") / f"{Path(source).stem or 'run'}-search"
    with opened(path, identity(asked, read)) as folder, torch_threads(folder.run["threads"]):
        from niwaki.job.tries import Tries

        tries = Tries(
            data=read, spec=spec, model=_anywhere(model), seed=seed, pretrained=pretrained, show=show,
            weights=None if weights is None else Path(weights).resolve(), folder=path.resolve() / "trials",
        )  # fmt: skip
        return folder.result or _Search(asked, given, folder, tries, storage, cluster).run()


def _anywhere(model: Any) -> Any:
    """A user's file by its whole path: a cluster's processes have another working directory."""
    return str(Path(model).resolve()) if isinstance(model, str) and not works.by_name(model) else model


def _space(space: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(space, Mapping):
        return dict(trials.parse(space))
    trials.check(space)
    return dict(space)


def _plain(space: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asdict(v) if isinstance(v, Range) else list(v) for name, v in space.items()}


def _way(by: str | None, space: Mapping[str, Any], storage: str | None, cluster: str | None) -> str:
    """The way that was asked for, or that fits what was given."""
    usual = "optuna" if storage else "random" if any(isinstance(v, Range) for v in space.values()) else "grid"
    way = by or (usual if space or storage else "widths")
    faults = {
        f"there is no way {way!r}": way not in WAYS,
        "widths come from a supernet, which takes no space": way == "widths" and bool(space),
        f"{way} needs a space to try": way != "widths" and not space,
        "storage goes with optuna, and optuna with storage": (way == "optuna") != (storage is not None),
        "a cluster runs grid, random and halving": cluster is not None and way in ("widths", "optuna"),
    }
    for fault, found in faults.items():
        if found:
            raise PlanError(
                f"search: {fault}. Expected --by {', '.join(WAYS)}; all but widths with --set NAME=VALUES.",
                code="search-by",
            )
    return way


def _budget(text: str, cost: str) -> Budget:
    budget = Budget.parse(text)
    if budget.kind != cost:
        raise PlanError(
            f"search: --budget {text} with --cost {cost}: a search counts, so expected a budget of macs or "
            "params, the same as --cost.",
            code="search-budget",
        )
    return budget


class _Search:
    """One search in an open run folder."""

    def __init__(
        self,
        asked: Asked,
        space: dict[str, Any],
        folder: Folder,
        tries: Tries,
        storage: str | None,
        cluster: Any,
    ) -> None:
        self.asked, self.space, self.folder, self.tries = asked, space, folder, tries
        self.storage, self.cluster = storage, cluster

    def run(self) -> dict[str, Any]:
        """All trials, then what came of them; result.json comes last."""
        from niwaki import surgery

        began = time.perf_counter()
        model, _ = self.tries.fresh({})
        axes = self.tries.known[""] = surgery.analyse(model, self.tries.example)
        limit = self._limit(axes.cost({}))
        if self.asked.by == "widths":
            found, make = self._widths(model, axes, limit)
        else:
            found, make = self._settings(), self.tries.trained
        for place, trial in enumerate(found):
            trial["name"] = f"t{place + 1:02d}"
        return self._finished(found, make, limit, time.perf_counter() - began)

    def _limit(self, whole: Cost) -> float | None:
        if self.asked.budget is None:
            return None
        return _budget(self.asked.budget, self.asked.cost).limit(whole)

    def _widths(self, model: Any, axes: Any, limit: float | None) -> tuple[list[Trial], Callable[[Trial], Any]]:
        """Paths of a supernet, and how to cut one out for good."""
        from niwaki.search import supernet

        tries, asked = self.tries, self.asked
        space = supernet.widths(model, axes)
        paths = supernet.paths(space, count=asked.trials, seed=asked.seed, limit=limit, cost=asked.cost)
        if not paths:
            least = getattr(space.cost(space.at(0.0)), asked.cost)
            raise BudgetError(
                f"search: the narrowest path costs {least} {asked.cost}, above {asked.budget}. Ask for more.",
                code="budget-unreachable",
            )
        net = self.folder.weights(
            "supernet",
            lambda: tries.fresh({})[0],
            lambda: supernet.train(
                model, space, task=tries.task, spec=tries.spec, train=tries.data.train, val=tries.data.val,
                epochs=asked.epochs, seed=asked.seed, flip=tries.data.flip, show=tries.show,
                checkpoint=self.folder.stage("supernet.checkpoint"),
            ),
        ).eval()  # fmt: skip
        decide = self.folder.journal.decide
        found = [
            decide(f"path:{json.dumps(path, sort_keys=True)}", partial(tries.path, net, space, path))
            for path in paths
        ]
        return [{**trial, "epochs": asked.epochs} for trial in found], partial(self._cut, net, space)

    def _cut(self, net: Any, space: Any, trial: Trial) -> Any:
        """The smaller model of a path, trained further where that was asked."""
        from niwaki import train
        from niwaki.search import supernet

        tries, path = self.tries, trial["setting"]["widths"]
        small = supernet.cut(net, space, path, spec=tries.spec, train=tries.data.train, example=tries.example)
        if self.asked.tune:
            small = train.fit(
                small, task=tries.task, spec=tries.spec, train=tries.data.train, val=tries.data.val,
                epochs=self.asked.tune, seed=self.asked.seed, flip=tries.data.flip, show=tries.show,
                checkpoint=self.folder.stage("tuned.checkpoint"),
            )  # fmt: skip
            trial["tuned"] = tries.scores(small)
        return small

    def _settings(self) -> list[Trial]:
        """Trials of a space, in the way that was asked for."""
        asked, space = self.asked, self.space
        if asked.by == "optuna":
            study = hashlib.sha256(json.dumps([asked.source, asked.model, asked.epochs]).encode()).hexdigest()[
                :12
            ]
            found = shared.optuna(
                space, self._journaled, storage=str(self.storage), study=f"niwaki-{study}",
                trials=asked.trials, epochs=asked.epochs, seed=asked.seed,
            )  # fmt: skip
            return list({json.dumps(trial["setting"], sort_keys=True): trial for trial in found}.values())
        if asked.by == "grid":
            settings = trials.grid(space)
        else:
            settings = trials.sampled(space, count=asked.trials, seed=asked.seed)
        if asked.by == "halving":
            return trials.halving(settings, self._run, epochs=asked.epochs, cost=asked.cost)
        return self._run(settings, asked.epochs)

    def _run(self, settings: Sequence[Setting], epochs: int) -> list[Trial]:
        """Trials of these settings: read back, or measured here, or by the cluster."""
        from niwaki.job import tries

        if self.cluster is not None:
            new = [s for s in settings if f"trial:{tries.key(s, epochs)}" not in self.folder.journal]
            if new:
                measure = replace(self.tries, show=None).measure
                folder = self.folder.stage("ray")
                done = shared.ray(new, measure, epochs=epochs, address=self.cluster, folder=folder)
                for trial in done:
                    self._decided(trial["setting"], epochs, partial(dict, trial))
        return [self._journaled(setting, epochs) for setting in settings]

    def _journaled(self, setting: Setting, epochs: int) -> Trial:
        return self._decided(setting, epochs, lambda: self.tries.measure(setting, epochs))

    def _decided(self, setting: Setting, epochs: int, measure: Callable[[], Trial]) -> Trial:
        from niwaki.job import tries

        trial: Trial = dict(self.folder.journal.decide(f"trial:{tries.key(setting, epochs)}", measure))
        return trial

    def _finished(
        self, found: list[Trial], make: Callable[[Trial], Any], limit: float | None, seconds: float
    ) -> dict[str, Any]:
        """The front, the best as an artifact, the page, and the result."""
        front = trials.front(found, cost=self.asked.cost)
        best = trials.best(found, cost=self.asked.cost, limit=limit)
        for trial in found:  # test reports: what cannot be chosen has no need of it
            if not any(trial is other for other in front):
                trial.pop("test", None)
        artifact = None if best is None else self._delivered(best, make(best))
        result = {
            "name": self.folder.path.resolve().name, "by": self.asked.by, "model": self.asked.model,
            "data": self.asked.source, "cost": self.asked.cost,
            "budget": None if limit is None else {"asked": self.asked.budget, "limit": limit},
            "trials": found, "front": front, "best": best, "artifact": artifact,
            "seconds": seconds, "notes": list(self.folder.notes),
        }  # fmt: skip
        result["chart"] = str(report.search(result, self.folder.path))
        files.write_json(self.folder.path / "result.json", result)
        self._sweep(front)
        return result

    def _delivered(self, trial: Trial, model: Any) -> str:
        """The best trial's model as `model.niwaki`, with a float export."""
        from niwaki.artifact import Artifact

        fresh, builder = self.tries.fresh(trial["setting"])
        path = self.folder.path / "model.niwaki"
        own = builder is not None and not works.by_name(builder)
        facts = {
            "search": {name: trial[name] for name in ("setting", "epochs", "cost", "val")},
            "splits": {"seed": self.asked.seed, "val": self.asked.val},
        }
        artifact = Artifact.save(
            path, model, spec=self.tries.spec, task=self.tries.task, builder=builder,
            fresh=fresh if own else None, extra=facts,
        )  # fmt: skip
        artifact.export("onnx", builder=(lambda: self.tries.fresh(trial["setting"])[0]) if own else None)
        return str(path)

    def _sweep(self, front: Sequence[Trial]) -> None:
        """Weights of trials that are not on the front go; other processes of a study may need theirs."""
        if self.asked.by in ("widths", "optuna"):
            return
        kept = {self.tries.file(trial["setting"], trial["epochs"], "safetensors") for trial in front}
        for path in self.tries.folder.glob("*.safetensors"):
            if path not in kept:
                path.unlink()
