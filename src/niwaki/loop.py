"""The training loop: a generator over steps, and `run`, which every training technique calls.

    objective: (model, Batch) -> Tensor [B]        what is minimised: one number a sample

Each step's loss is `sum(objective * weight) / sum(weight)` over the global batch, however many
processes and parts it is cut into. Sample order, augmentation and dropout depend on (seed, epoch,
step, sample) only, so a training that was killed goes on from its checkpoint to the same bits
(CPU, same number of threads). Under torchrun each process normalises by its own share of the batch
in batch norm, and running statistics are averaged over processes after each step; all else is as
in one process. docs/training.md tells more.
Shape letters: B batch.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from niwaki import batches, evaluate, metrics, optim, parallel
from niwaki import checkpoint as kept
from niwaki.batches import Batch, Share
from niwaki.data import cutmix
from niwaki.errors import PlanError
from niwaki.evaluate import Readable
from niwaki.spec import Spec
from niwaki.tasks import Task

Objective = Callable[[nn.Module, Batch], Tensor]
Show = Callable[["Progress"], object]
Augment = Literal["none", "weak", "strong"]
Precision = Literal["auto", "float32", "bfloat16"]
Sampling = Literal["uniform", "classes", "hard"]


class Training(TypedDict, total=False):
    """The knobs that every training step takes, by their names in `Knobs`, which explains them."""

    epochs: int
    batch: int
    lr: float
    weight_decay: float
    seed: int
    ema: float
    accumulate: int
    augment: Augment
    flip: bool
    class_weights: tuple[float, ...] | None
    precision: Precision
    sampling: Sampling
    cutmix: float
    negatives: float
    every_s: float


LEAST_BATCH, MOST_BATCH, LEAST_STEPS = 8, 64, 16
"""Where no batch is given: at most `MOST_BATCH` images, and fewer (a power of two, at least `LEAST_BATCH`)
where an epoch would have less than `LEAST_STEPS` steps: of 42 images in one step an epoch little is learned."""


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """How a training goes.

    Args:
        epochs: passes over the train split; 0 gives the model as it is.
        batch: images a step, over all processes; 0: 64, or fewer where an epoch would have less than 16 steps.
        lr: peak learning rate at a batch of 128; another batch scales it by the root of their ratio.
        weight_decay: of weights; norms and biases do not decay.
        seed: of the order, the augmentation and dropout.
        ema: decay of the weights' average at the end of a long training; 0 is no average.
        accumulate: parts a process cuts its share of a batch into, when memory is short.
        augment: `none`, `weak` (shifts) or `strong`; drawn from (seed, epoch, sample).
        flip: augmentation may mirror images.
        class_weights: a factor above 0 for each class's loss.
        precision: what convolutions and products compute in. `auto`: half precision on a GPU, float32 on a
            CPU; `bfloat16` on a CPU is faster where it has the instructions (avx512_bf16, amx).
        sampling: `uniform`: every image once an epoch; `classes`: as many, drawn so that images with rare
            classes come more often; `hard`: half of the draws go by the loss an image had two epochs before.
        cutmix: share of the images that get a rectangle of another image, mask and all (masks only).
        negatives: share of those rectangles that are of images with nothing but the first class.
        every_s: seconds between checkpoints; one is written after each epoch, too.
    Raises:
        PlanError: one is out of its range. [train-knob]
    """

    epochs: int = 30
    batch: int = 0
    lr: float = 3e-3
    weight_decay: float = 0.05
    seed: int = 0
    ema: float = 0.998
    accumulate: int = 1
    augment: Augment = "weak"
    flip: bool = False
    class_weights: tuple[float, ...] | None = None
    precision: Precision = "auto"
    sampling: Sampling = "uniform"
    cutmix: float = 0.0
    negatives: float = 0.0
    every_s: float = 60.0

    def __post_init__(self) -> None:
        weights = self.class_weights
        checks = {
            "epochs": (self.epochs >= 0, "at least 0"),
            "batch": (self.batch >= 0, "at least 1, or 0 to have it chosen"),
            "lr": (self.lr > 0 and math.isfinite(self.lr), "above 0"),
            "weight_decay": (0 <= self.weight_decay < 1, "in 0..1"),
            "seed": (self.seed >= 0, "at least 0"),
            "ema": (0 <= self.ema < 1, "in 0..1, 1 left out; 0 is no average"),
            "accumulate": (1 <= self.accumulate <= (self.batch or MOST_BATCH), "in 1..batch"),
            "augment": (self.augment in ("none", "weak", "strong"), "none, weak or strong"),
            "precision": (self.precision in ("auto", "float32", "bfloat16"), "auto, float32 or bfloat16"),
            "sampling": (self.sampling in ("uniform", "classes", "hard"), "uniform, classes or hard"),
            "cutmix": (0 <= self.cutmix <= 1, "in 0..1"),
            "negatives": (0 <= self.negatives <= 1, "in 0..1"),
            "every_s": (self.every_s >= 0, "at least 0"),
            "class_weights": (weights is None or min(weights, default=0) > 0, "each above 0"),
        }
        for name, (ok, expected) in checks.items():
            if not ok:
                raise PlanError(
                    f"training: {name} must be {expected}, got {getattr(self, name)!r}.",
                    code="train-knob",
                )

    def for_images(self, count: int) -> Knobs:
        """The same with the batch chosen for so many training images, if none was given."""
        if self.batch:
            return self
        fits = 1 << max(0, (count // LEAST_STEPS).bit_length() - 1)
        batch = min(MOST_BATCH, max(LEAST_BATCH, self.accumulate, fits))
        return replace(self, batch=batch)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a training stands after a step.

    Args:
        stage: what is trained, as the caller named it.
        step, steps: steps done and in all.
        epoch, epochs: the epoch of that step, from 1, and how many there are.
        epoch_ended: the epoch's last step is done and scored; `loss` is then the epoch's mean.
        loss: of that step.
        score: the task's main score 0..1 of the averaged weights on the validation split at the last
            epoch's end.
        lr: learning rate of that step.
        seconds, eta: since the training began (pauses left out), and expected until its end.
    """

    stage: str
    step: int
    steps: int
    epoch: int
    epochs: int
    epoch_ended: bool
    loss: float
    score: float | None
    lr: float
    seconds: float
    eta: float


def run(
    model: nn.Module,
    objective: Objective,
    *,
    stage: str,
    task: Task,
    spec: Spec,
    train: Readable,
    val: Readable | None,
    knobs: Knobs,
    checkpoint: Path | None,
    show: Show | None,
    settings: dict[str, Any] | None = None,
) -> nn.Module:
    """A trained copy of `model` in eval mode: the last epoch's averaged weights, on its device.

    Args:
        settings: JSON that a checkpoint must agree in, beside the knobs, the data and the model.
    """
    origin = next((p.device for p in model.parameters()), torch.device("cpu"))
    learner = copy.deepcopy(model)
    if knobs.epochs == 0:
        return learner.eval()
    learner.to(device=parallel.device(), memory_format=torch.channels_last)  # type: ignore[call-overload]

    def score(average: nn.Module) -> float | None:
        if val is None or not len(val):
            return None
        counts = evaluate.tally(evaluate.predictor(average, spec, task), val, spec, task, detail=False)
        return metrics.main(counts.score())

    walk = steps(
        learner, objective, spec=spec, train=train, knobs=knobs, score=score, stage=stage,
        checkpoint=checkpoint,
        settings={**(settings or {}), "task": task.to_json()},
    )  # fmt: skip
    with contextlib.closing(walk):
        for progress in walk:
            if show is not None:
                show(progress)
    learner.to(device=origin, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return learner.eval()


def steps(
    model: nn.Module,
    objective: Objective,
    *,
    train: Readable,
    spec: Spec,
    knobs: Knobs,
    score: Callable[[nn.Module], float | None] = lambda average: None,
    checkpoint: Path | None = None,
    stage: str = "train",
    settings: dict[str, Any] | None = None,
) -> Generator[Progress, None, None]:
    """One Progress after each optimiser step; `model` is trained in place where it lies.

    When the generator is exhausted `model` holds the averaged weights. With a checkpoint, a
    training that
    was broken off goes on where it was: the file is written every `knobs.every_s` seconds, at each
        epoch's end,
    on Ctrl-C (the step in hand is finished first) and when the generator is closed early.

    Raises:
        PlanError: nothing to train or to train on, or the loss is no number.
            [train-knob, train-nonfinite]
        RunError: the checkpoint is damaged or another training's.
            [checkpoint-damaged, checkpoint-other]
    """
    knobs = knobs.for_images(len(train))
    _check(model, train, knobs)
    rank, world = parallel.join()
    parallel.from_first_(optim.tensors(model))
    saved = {**_settings(model, train, spec, knobs), **(settings or {})}
    state = _State(model, knobs, count=len(train))
    keeper = _Keeper(checkpoint, knobs.every_s, saved)
    keeper.resume(state)
    began = time.perf_counter() - state.seconds
    make = functools.partial(_share, train, spec, knobs, rank, world, state)
    shares = batches.ahead(make, state.step, state.total)
    try:
        while True:
            loss = state.close_epoch(score, began) if state.epoch_full else None
            if loss is not None:
                keeper.write(state)
                yield state.progress(stage, loss, ended=True)
            share = next(shares, None)
            if share is None:
                break
            with _uninterrupted():
                loss = _step(state, objective, share, spec, knobs)
            if not math.isfinite(loss):
                raise _nonfinite(loss, state, knobs)
            state.seconds = time.perf_counter() - began
            if not state.epoch_full:
                keeper.write_if_due(state)
                yield state.progress(stage, loss, ended=False)
    except (KeyboardInterrupt, GeneratorExit):
        keeper.write(state)
        raise
    finally:
        shares.close()
    state.average.give(model)
    model.zero_grad(set_to_none=True)


def history(path: Path) -> list[dict[str, Any]]:
    """Epochs of the training that wrote a checkpoint: `epoch loss val_score seconds` of each.

    Raises:
        RunError: there is no such file or it is damaged. [checkpoint-damaged]
    """
    epochs: list[dict[str, Any]] = kept.facts(path)["history"]
    return epochs


class _State:
    """What changes while a training runs, all of it kept in a checkpoint."""

    def __init__(self, model: nn.Module, knobs: Knobs, *, count: int) -> None:
        self.model, self.epochs = model, knobs.epochs
        self.per_epoch = -(-count // knobs.batch)
        self.total = knobs.epochs * self.per_epoch
        self.average = optim.Average(model, decay=knobs.ema)
        self.optimiser = optim.make(model, weight_decay=knobs.weight_decay)
        self.device = next(model.parameters()).device
        self.dtype = precision(self.device, knobs.precision)
        half = self.dtype is torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        self.step, self.seconds = 0, 0.0
        self.loss_sum = self.weight_sum = 0.0
        self.history: list[dict[str, Any]] = []
        self.hardness = batches.Hardness(count if knobs.sampling == "hard" else 0)

    @property
    def epoch_full(self) -> bool:
        """All steps of an epoch are done and it is not yet in the history."""
        return self.step == self.per_epoch * (len(self.history) + 1)

    def close_epoch(self, score: Callable[[nn.Module], float | None], began: float) -> float:
        """The epoch's mean loss, after the first process scored it; it is in the history then."""
        score_of = score(self.average.module) if parallel.join()[0] == 0 else None
        loss = self.loss_sum / self.weight_sum
        self.seconds = time.perf_counter() - began
        with _uninterrupted():
            if self.hardness.count:
                self.hardness.close(len(self.history))
            self.history.append(
                {
                    "epoch": len(self.history) + 1,
                    "loss": loss,
                    "val_score": score_of,
                    "seconds": round(self.seconds, 3),
                }
            )
            self.loss_sum = self.weight_sum = 0.0
        return loss

    def progress(self, stage: str, loss: float, *, ended: bool) -> Progress:
        """The Progress of the step just done."""
        return Progress(
            stage=stage,
            step=self.step,
            steps=self.total,
            epoch=(self.step - 1) // self.per_epoch + 1,
            epochs=self.epochs,
            epoch_ended=ended,
            loss=loss,
            score=self.history[-1].get("val_score") if self.history else None,
            lr=self.optimiser.param_groups[0]["lr"],
            seconds=self.seconds,
            eta=self.seconds / self.step * (self.total - self.step),
        )


class _Keeper:
    """When and where a state is written down; a `path` of None keeps nothing."""

    def __init__(self, path: Path | None, every_s: float, settings: dict[str, Any]) -> None:
        self.path, self.every_s, self.settings = path, every_s, settings
        self.written = time.monotonic()

    def write(self, state: _State) -> None:
        if self.path is None:
            return
        facts = {
            "settings": self.settings,
            **{name: getattr(state, name) for name in _FACTS},
            "scaler": state.scaler.state_dict(),
        }
        if state.hardness.count:
            facts["hardness"] = state.hardness.to_json()
        kept.write(self.path, **_objects(state), facts=facts)
        self.written = time.monotonic()

    def write_if_due(self, state: _State) -> None:
        if time.monotonic() - self.written >= self.every_s:
            self.write(state)

    def resume(self, state: _State) -> None:
        if self.path is None:
            return
        facts = kept.read(self.path, **_objects(state), settings=self.settings)
        if facts is not None:
            for name in _FACTS:
                setattr(state, name, facts[name])
            state.scaler.load_state_dict(facts["scaler"])
            if state.hardness.count:
                state.hardness.take(facts["hardness"])


_FACTS = ("step", "seconds", "loss_sum", "weight_sum", "history")


def _objects(state: _State) -> dict[str, Any]:
    return {"model": state.model, "average": state.average.module, "optimiser": state.optimiser}


def _step(state: _State, objective: Objective, share: Share, spec: Spec, knobs: Knobs) -> float:
    """One optimiser step over the global batch: its loss."""
    device, rate = state.device, optim.rate(state.step, state.total, knobs.lr, knobs.batch)
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    state.optimiser.zero_grad(set_to_none=True)
    state.model.train()
    loss = torch.zeros((), device=device)
    with _seeded(knobs.seed, state.step, device):
        for batch in batches.tensors(share, spec, parts=knobs.accumulate, device=device):
            half = state.dtype is not torch.float32
            with torch.autocast(device.type, dtype=state.dtype, enabled=half):
                each = objective(state.model, batch)
            if state.hardness.count:
                state.hardness.add(batch.index, each)
            part = (each.float() * batch.weight).sum() / share.total
            torch.autograd.backward(state.scaler.scale(part))
            loss += part.detach()
    if state.hardness.count:
        state.hardness.step()
    _across_processes(state.model, loss)
    state.scaler.unscale_(state.optimiser)
    nn.utils.clip_grad_norm_(state.model.parameters(), optim.CLIP)
    state.scaler.step(state.optimiser)
    state.scaler.update()
    state.average.update(state.step)
    state.step += 1
    state.loss_sum += float(loss) * share.total
    state.weight_sum += share.total
    return float(loss)


def _across_processes(model: nn.Module, loss: Tensor) -> None:
    """Gradients and loss summed over processes; running statistics averaged, each step."""
    _, world = parallel.join()
    if world == 1:
        return
    learning = [p for p in model.parameters() if p.requires_grad]
    reached = torch.tensor([float(p.grad is not None) for p in learning], device=loss.device)
    for parameter in learning:
        if parameter.grad is None:  # unused, or this process's share of a small batch is empty
            parameter.grad = torch.zeros_like(parameter)
    running = [b for b in model.buffers() if b.is_floating_point()]
    parallel.sum_([p.grad for p in learning if p.grad is not None] + [loss, reached, *running])
    for buffer in running:
        buffer.div_(world)
    for parameter, count in zip(learning, reached.tolist(), strict=True):
        if not count:  # unused in all processes: as in one alone it must not even decay
            parameter.grad = None


@contextlib.contextmanager
def _seeded(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Inside, torch draws (dropout, ...) from (seed, step, process); the outer stream is kept."""
    rank, _ = parallel.join()
    drawn = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(drawn))
        yield


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block's end, so that a checkpoint never holds half a step.

    A second Ctrl-C does not wait. Outside the main thread nothing is interrupted anyway.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []

    def wait(number: int, frame: FrameType | None) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def precision(device: torch.device, asked: Precision = "auto") -> torch.dtype:
    """What a training computes in there: as asked, else half precision on a GPU and float32 on a CPU."""
    if asked != "auto":
        return torch.bfloat16 if asked == "bfloat16" else torch.float32
    if device.type != "cuda":
        return torch.float32
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def _share(train: Readable, spec: Spec, knobs: Knobs, rank: int, world: int, state: _State, step: int) -> Share:
    """What this process sees of a step: a function of its arguments, and of losses of two epochs before."""
    epoch, place = divmod(step, state.per_epoch)
    chances = batches.by_class(train) if knobs.sampling == "classes" else state.hardness.chances(epoch)
    chosen = batches.order(len(train), batch=knobs.batch, seed=knobs.seed, epoch=epoch, chances=chances)[place]
    return batches.share(
        train,
        chosen,
        spec,
        rank=rank,
        world=world,
        class_weights=knobs.class_weights,
        change=functools.partial(batches.mixed, train, spec, knobs, epoch=epoch),
    )


def _check(model: nn.Module, train: Readable, knobs: Knobs) -> None:
    weights = knobs.class_weights
    problems = {
        "the model has no parameter that learns": not any(p.requires_grad for p in model.parameters()),
        "the train split is empty, expected images": not len(train),
    }
    if len(train) and weights is not None and train.counts is not None:
        problems["class_weights weighs images, and these have masks; use loss='balanced*...' instead"] = True
    elif len(train) and weights is not None:
        short = len(weights) <= int(train.labels.max())
        problems[f"class_weights has {len(weights)} numbers, expected one a class"] = short
    if knobs.cutmix and len(train):
        maps = train.counts is not None and not getattr(train, "objects", False)
        problems["cutmix is of class maps, and these images have none; leave it out"] = not maps
    if knobs.cutmix and knobs.negatives and train.counts is not None:
        none = not len(cutmix.negatives(train.counts))
        problems["negatives= asks for images with nothing but the first class, and there are none"] = none
    for problem, found in problems.items():
        if found:
            raise PlanError(f"training: {problem}.", code="train-knob")


def _settings(model: nn.Module, train: Readable, spec: Spec, knobs: Knobs) -> dict[str, Any]:
    """What must be the same when a checkpoint is taken up again."""
    data = hashlib.sha256("\0".join(train.names).encode())
    data.update(np.asarray(train.labels, np.int64).tobytes())
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    known = {name: value for name, value in asdict(knobs).items() if name != "every_s"}
    for name, plain in (("sampling", "uniform"), ("cutmix", 0.0), ("negatives", 0.0)):
        if known[name] == plain:
            del known[name]  # checkpoints of before there was a choice stay good
    return {
        **known,
        "data": data.hexdigest()[:16],
        "spec": spec.to_json(),
        "model shapes": hashlib.sha256(repr(shapes).encode()).hexdigest()[:16],
        "starting weights": kept.sizes(model),
    }


def _nonfinite(loss: float, state: _State, knobs: Knobs) -> PlanError:
    return PlanError(
        f"training: the loss is {loss} at step {state.step} of {state.total}, expected a number. "
        f"Lower lr (now {knobs.lr}), or look for images or weights that are not finite.",
        code="train-nonfinite",
    )
