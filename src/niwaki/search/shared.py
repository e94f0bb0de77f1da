"""Trials that several processes or machines share, by the tools of others: Optuna's storage, Ray Tune.

Both are optional and imported when called; `trials.py` needs neither.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from niwaki import metrics
from niwaki.errors import PlanError
from niwaki.lazy import require
from niwaki.search.trials import Range, Setting, Space, Trial

Measure = Callable[[Setting, int], Trial]


def optuna(
    space: Space, measure: Measure, *, storage: str, study: str, trials: int, epochs: int, seed: int = 0
) -> list[Trial]:
    """All finished trials of a study, after this process has helped until there are `trials` of them.

    Each process that calls this with the same storage and study takes trials that the others have not; Optuna's
    sampler (TPE) draws them from what all have found so far. A killed process loses the trial in hand.

    Args:
        storage: a file, which Optuna appends to (local or NFS), or the URL of a database that it knows.
    Raises:
        MissingExtra: Optuna is not installed. [extra-missing]
        PlanError: the study exists with another space. [search-storage]
    """
    tool = require("optuna", extra="search")
    tool.logging.set_verbosity(tool.logging.WARNING)
    held = tool.create_study(
        study_name=study, storage=_storage(tool, storage), direction="maximize", load_if_exists=True
    )
    # a process that joins later must not draw again what the first one drew
    held.sampler = tool.samplers.TPESampler(seed=seed + len(held.get_trials(deepcopy=False)))
    _same_space(held, space, study)
    states = tool.trial.TrialState

    def value(trial: Any) -> float:
        found = measure({name: _suggest(trial, name, space[name]) for name in space}, epochs)
        trial.set_user_attr("trial", json.dumps(found))
        if not found.get("val"):
            raise tool.TrialPruned
        return metrics.main(found["val"])

    enough = tool.study.MaxTrialsCallback(trials, states=(states.COMPLETE, states.PRUNED))
    if len(held.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED))) < trials:
        held.optimize(value, callbacks=[enough])
    done = held.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED))
    return [json.loads(trial.user_attrs["trial"]) for trial in done if "trial" in trial.user_attrs]


def _storage(tool: Any, where: str) -> Any:
    if "://" in where:
        return where
    Path(where).parent.mkdir(parents=True, exist_ok=True)
    return tool.storages.JournalStorage(tool.storages.journal.JournalFileBackend(where))


def _same_space(study: Any, space: Space, name: str) -> None:
    """Optuna would mix trials of two spaces; the first process writes its own down, the rest compare."""
    mine = repr(sorted((key, repr(values)) for key, values in space.items()))
    theirs = study.user_attrs.get("space")
    if theirs is None:
        study.set_user_attr("space", mine)
    elif theirs != mine:
        raise PlanError(
            f"search: the study {name!r} in this storage has the space {theirs}, this command {mine}. Give the "
            "same --set, or another --storage.",
            code="search-storage",
        )


def _suggest(trial: Any, name: str, values: Sequence[Any] | Range) -> Any:
    if isinstance(values, Range):
        return float(f"{trial.suggest_float(name, values.low, values.high, log=True):.4g}")
    return trial.suggest_categorical(name, list(values))


def ray(
    settings: Sequence[Setting], measure: Measure, *, epochs: int, address: str, folder: Path
) -> list[Trial]:
    """A trial of each setting, in their order, run wherever the Ray cluster has a free processor.

    Args:
        address: of the cluster, `auto` for the one this machine belongs to, `local` to start one here.
        folder: where Ray Tune keeps its state; on a cluster it must be storage that all nodes share.
    Raises:
        MissingExtra: Ray is not installed. [extra-missing]
        PlanError: Ray finished without a result for a setting; the message holds its reason. [search-cluster]
    """
    tool = require("ray", extra="cluster")
    tune = require("ray.tune", extra="cluster")
    if not tool.is_initialized():
        where: dict[str, Any] = {"address": address}
        if address == "local":
            where = {"address": "local", "include_dashboard": False}
        tool.init(**where, log_to_driver=False)

    def trainable(config: dict[str, Any]) -> None:
        tune.report({"trial": json.dumps(measure(settings[config["index"]], epochs)), "index": config["index"]})

    tuner = tune.Tuner(
        trainable,
        param_space={"index": tune.grid_search(list(range(len(settings))))},
        run_config=tune.RunConfig(name="trials", storage_path=str(folder.resolve()), verbose=0),
    )
    found = {}
    for result in tuner.fit():
        if result.error is not None:
            raise PlanError(f"search: a trial failed on the cluster: {result.error}", code="search-cluster")
        found[result.metrics["index"]] = json.loads(result.metrics["trial"])
    return [found[index] for index in range(len(settings))]
