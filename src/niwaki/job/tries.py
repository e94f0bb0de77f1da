"""What a search asks: a setting trained and scored, or a path of a supernet cut out and scored. Needs torch.

Files of a trial lie in the run folder's `trials/`, by the setting's hash: a checkpoint while it trains, from
which a killed trial goes on, then its weights.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

from niwaki import evaluate, files, prune, surgery, train
from niwaki.cost import Cost
from niwaki.data import DataSet
from niwaki.errors import ModelError, PlanError
from niwaki.job import work
from niwaki.search import supernet
from niwaki.search.trials import Setting, Trial
from niwaki.spec import Spec
from niwaki.tasks import Task

TRAINING = ("augment", "batch", "ema", "lr", "seed", "weight_decay")
"""Names of a setting that are knobs of the training loop."""


@dataclass(frozen=True, kw_only=True)
class Tries:
    """What all trials share. Plain data, so that another process or machine can run a trial too.

    Args:
        model: where a setting names none.
        weights: a file to start from, or None.
        folder: where trials keep their files.
        known: the analysis of each model, once it was made.
    """

    data: DataSet
    spec: Spec
    model: Any
    weights: str | Path | None
    seed: int
    pretrained: bool
    folder: Path
    show: Callable[[Any], object] | None = None
    known: dict[str, surgery.Axes] = field(default_factory=dict, init=False, repr=False)

    @property
    def task(self) -> Task:
        """What the model's outputs mean."""
        return self.data.task

    @property
    def example(self) -> torch.Tensor:
        """An input of two images."""
        return torch.from_numpy(self.spec.example(2, seed=self.seed))

    def fresh(self, setting: Mapping[str, Any]) -> tuple[nn.Module, str | None]:
        """The uncut model of a setting before training, the same each time, and its builder's name."""
        model = setting.get("model", self.model)
        make, builder = work.builder_of(model, self.weights, self, self.data, self.spec)
        return make(), builder

    def network(self, setting: Mapping[str, Any]) -> tuple[nn.Module, Cost]:
        """The model that a setting trains, narrowed to its width, and its cost."""
        model, _ = self.fresh(setting)
        name = str(setting.get("model", ""))
        if name not in self.known:  # the export takes longer than a small training
            self.known[name] = surgery.analyse(model, self.example)
        axes = self.known[name]
        width = float(setting.get("width", 1.0))
        if width == 1:
            return model, axes.cost({})
        keep = prune.choose(axes, prune.score(model, axes, by="l2"), ratio=1 - width, min_width=0)
        return surgery.smaller(model, axes, keep, example=self.example), axes.cost(keep)

    def file(self, setting: Mapping[str, Any], epochs: int, kind: str) -> Path:
        """Where a trial keeps its file of a kind: `checkpoint` or `safetensors`."""
        digest = hashlib.sha256(key(setting, epochs).encode()).hexdigest()[:16]
        return self.folder / f"{digest}.{kind}"

    def measure(self, setting: Setting, epochs: int) -> Trial:
        """A setting trained and scored: `setting epochs cost seconds`, and `val test` or, where the training
        broke down, `error`; its weights are stored."""
        began = time.perf_counter()
        try:
            network, cost = self.network(setting)
        except ModelError as error:  # the other settings may do
            if not error.code.startswith(("prune-", "program-")):
                raise
            failed: Trial = {"setting": setting, "epochs": epochs, "cost": cost_of(Cost())}
            return {**failed, "val": None, "test": None, "error": str(error), **_seconds(began)}
        trial: Trial = {"setting": setting, "epochs": epochs, "cost": cost_of(cost)}
        knobs: dict[str, Any] = {"seed": self.seed, **{k: setting[k] for k in TRAINING if k in setting}}
        checkpoint = self.file(setting, epochs, "checkpoint")
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        try:
            model = train.fit(
                network, task=self.task, spec=self.spec, train=self.data.train, val=self.data.val,
                epochs=epochs, flip=self.data.flip, checkpoint=checkpoint, show=self.show, **knobs,
            )  # fmt: skip
        except PlanError as error:
            if error.code != "train-nonfinite":
                raise
            return {**trial, "val": None, "test": None, "error": str(error), **_seconds(began)}
        files.write_bytes(self.file(setting, epochs, "safetensors"), save(tensors_of(model)))
        checkpoint.unlink(missing_ok=True)
        return {**trial, **self.scores(model), **_seconds(began)}

    def trained(self, trial: Trial) -> nn.Module:
        """The model of a finished trial, from its stored weights, in eval mode.

        Where another process with its own folder ran it, it is trained here again, to the same bits.
        """
        network, _ = self.network(trial["setting"])
        path = self.file(trial["setting"], trial["epochs"], "safetensors")
        if not path.exists():
            self.measure(trial["setting"], trial["epochs"])
        network.load_state_dict(load(path.read_bytes()))
        return network.eval()

    def scores(self, model: nn.Module) -> dict[str, Any]:
        """`val` and `test`: the task's score with its interval."""
        predict = evaluate.predictor(model, self.spec, self.task)
        return {
            split: evaluate.tally(predict, getattr(self.data, split), self.spec, self.task).score()
            for split in ("val", "test")
        }

    def path(self, net: nn.Module, space: supernet.Widths, path: Mapping[str, int]) -> Trial:
        """A path of a trained supernet, cut out and scored: `setting` (its widths), `cost val test seconds`."""
        began = time.perf_counter()
        small = supernet.cut(net, space, path, spec=self.spec, train=self.data.train)
        trial: Trial = {"setting": {"widths": dict(path)}, "cost": cost_of(space.cost(path))}
        return {**trial, **self.scores(small), **_seconds(began)}


def key(setting: Mapping[str, Any], epochs: int) -> str:
    """A trial's name in the journal: the same for the same setting and epochs."""
    return json.dumps([setting, epochs], sort_keys=True)


def cost_of(cost: Cost) -> dict[str, float]:
    """The counted part of a cost."""
    return {"macs": cost.macs or 0, "params": cost.params or 0}


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A model's tensors, each with its own memory, as safetensors wants them."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}


def _seconds(began: float) -> dict[str, float]:
    return {"seconds": round(time.perf_counter() - began, 3)}
