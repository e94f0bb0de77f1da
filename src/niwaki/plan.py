"""Plan: a list of Steps, a record to replay. A Step is a public function plus knobs; its signature
is its schema.

A step function reads `(model, *, needs..., knobs=...) -> nn.Module` and leaves its input untouched. Its
keyword-only parameters named as fields of `Bench`, or without default, are needs: the Bench gives them when
the plan is run. The others are knobs, and so are those of `loop.Knobs` where it takes
`**training: Unpack[loop.Training]`. They are checked when the step is made, so that a typo is found before
an hour of training.

In TOML a plan is flat, and only functions of niwaki.train, niwaki.prune, niwaki.distill and
niwaki.quantize can be named:

    [[step]]
    do = "prune.channels"
    score = "l2"

    [[step]]
    do = "distill.logits"
    epochs = 10

Torch is imported when a step's function is looked up or run, not before.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import itertools
import math
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import tomlkit

from niwaki.errors import PlanError

if TYPE_CHECKING:
    from torch import nn

    from niwaki.spec import Spec
    from niwaki.tasks import Task

FAMILIES = ("train", "prune", "distill", "quantize")
"""Packages whose step functions a plan in TOML may name."""

StepFunction = Callable[..., "nn.Module"]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What steps work with: a value, filled once and handed to `Plan.run`.

    Args:
        spec, task: what enters the model and what its outputs mean.
        train, val, calib: `data.Samples`; calib is what exports calibrate int8 on.
        teacher: the model to distill from.
        example: float32 `[1, C, H, W]`, what the graph is traced with; made from `spec` when left
            out.
        show: called with each training step's `Progress`.
        checkpoint: a folder; each training step keeps its own checkpoint file in it.
    """

    spec: Spec | None = None
    task: Task | None = None
    train: Any = None
    val: Any = None
    calib: Any = None
    teacher: nn.Module | None = None
    example: Any = None
    show: Callable[[Any], object] | None = None
    checkpoint: Path | None = None


NEEDS = tuple(item.name for item in fields(Bench))


@dataclass(frozen=True)
class Step:
    """One function and its knobs; made by `step(...)`. `do` is its name, such as `prune.channels`."""

    do: str
    function: StepFunction = field(compare=False, repr=False)
    knobs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "knobs", MappingProxyType(dict(self.knobs)))

    def __hash__(self) -> int:
        return hash((self.do, tuple(sorted(self.knobs.items()))))

    def with_(self, **knobs: Any) -> Step:
        """The same step with some knobs set otherwise, checked again."""
        return step(self.function, **{**self.knobs, **knobs})

    def run(self, model: nn.Module, bench: Bench, *, index: int = 0) -> nn.Module:
        """The model the function makes of `model`, its needs taken from the Bench.

        Args:
            index: the step's place in its plan, part of its checkpoint's name.
        Raises:
            PlanError: the Bench lacks something it needs. [plan-need]
        """
        return self.function(model, **self._needs(bench, index), **self.knobs)

    def _needs(self, bench: Bench, index: int) -> dict[str, Any]:
        given: dict[str, Any] = {}
        for name, parameter in _keywords(self.function).items():
            if name in NEEDS:
                value = _supply(bench, name, f"{index}-{self.do}")
                if value is not None:
                    given[name] = value
                elif parameter.default is inspect.Parameter.empty:
                    raise PlanError(
                        f"step {self.do}: needs {name}=, and the Bench has none. Give it: Bench({name}=...).",
                        code="plan-need",
                    )
        return given


@dataclass(frozen=True, init=False)
class Plan:
    """Steps in order. `Plan(step("prune.channels", ratio=0.4), step("distill.logits"))`."""

    steps: tuple[Step, ...]

    def __init__(self, *steps: Step) -> None:
        object.__setattr__(self, "steps", tuple(steps))

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def run(self, model: nn.Module, bench: Bench) -> nn.Module:
        """The model after all steps, each given the one before; `model` itself is untouched.

        Raises:
            PlanError: a step changed nothing, or lacks a need. [step-no-effect, plan-need]
        """
        for index, item in enumerate(self.steps):
            changed = item.run(model, bench, index=index)
            check_effect(item.do, model, changed)
            model = changed
        return model

    def to_toml(self) -> str:
        """The plan as TOML that `from_toml` reads back equal.

        Raises:
            PlanError: a step is no function of niwaki, or a knob's value cannot be written.
                [plan-toml]
        """
        document = tomlkit.document()
        tables = tomlkit.aot()
        for item in self.steps:
            table = tomlkit.table()
            table.add("do", _named(item))
            for name, value in item.knobs.items():
                if value is not None or _knobs(item.function)[name] is not None:
                    table.add(name, _plain(item.do, name, value))
            tables.append(table)
        document.add("step", tables)
        return tomlkit.dumps(document)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """The plan in a TOML file.

        Raises:
            PlanError: the file cannot be read, or is no plan. [plan-file, plan-toml, plan-step,
                plan-knob]
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"plan: {path} cannot be read: {error}.", code="plan-file") from error
        return cls.from_toml(text)

    @classmethod
    def from_toml(cls, text: str) -> Plan:
        """The plan that a TOML text describes.

        Raises:
            PlanError: it is no TOML, or holds a key, step or knob that does not exist. [plan-toml,
                plan-step, plan-knob]
        """
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise PlanError(f"plan: this is not TOML: {error}.", code="plan-toml") from error
        for key in tables:
            if key != "step":
                raise PlanError(f"plan: unknown key {key!r}, expected only [[step]] tables.", code="plan-toml")
        entries = tables.get("step", [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise PlanError("plan: 'step' must be tables: [[step]].", code="plan-toml")
        return cls(*(_from_table(entry, place) for place, entry in enumerate(entries, start=1)))


def default() -> Plan:
    """What `fit` does unless told otherwise: prune channels, then distill from the uncompressed model."""
    return Plan(step("prune.channels"), step("distill.logits"))


def step(what: str | StepFunction, **knobs: Any) -> Step:
    """A Step of that function, its knobs checked against the function's signature.

    Args:
        what: `"prune.channels"`, or the function itself (then any function of a step's shape will
            do).
        knobs: keyword-only parameters of the function that have a default.
    Raises:
        PlanError: there is no such step or no such knob. [plan-step, plan-knob]
    """
    function = _lookup(what) if isinstance(what, str) else what
    name = what if isinstance(what, str) else _name(function)
    if not is_step(function):
        raise PlanError(
            f"step {name}: its signature must read (model, *, needs, knobs=...), got "
            f"{inspect.signature(function)}.",
            code="plan-step",
        )
    known = _knobs(function)
    for knob in knobs:
        if knob not in known:
            raise PlanError(_unknown_knob(name, knob, known), code="plan-knob")
    return Step(name, function, {knob: _frozen(value) for knob, value in knobs.items()})


def rounds(prune: Step, *train: Step, times: int = 3, to: float = 0.5, pace: str = "geometric") -> Plan:
    """A Plan that prunes a little and trains, `times` over, until the share `to` of the channels is gone.

    Each pruning step's ratio is a share of what the round before left, so that the shares gone of the original
    rise to `to`. The Plan is the plain list of steps, and stands in TOML as such.

    Args:
        prune: a step with a knob `ratio`, such as `step("prune.channels")`; its own ratio is replaced.
        train: the steps after each pruning, in order.
        times: rounds.
        to: share of the original's channels that goes in all, 0 to 1, both left out.
        pace: what the share gone follows: "linear" (equal parts), "geometric" (equal ratios) or "cubic" (most
            at first; Zhu & Gupta 2017, arXiv:1710.01878, eq. 1).
    Raises:
        PlanError: the step has no ratio, or a number is out of range. [plan-knob, plan-rounds]
    """
    gone = {
        "linear": lambda share: to * share,
        "geometric": lambda share: 1 - (1 - to) ** share,
        "cubic": lambda share: to * (1 - (1 - share) ** 3),
    }
    if times < 1 or not 0 < to < 1 or pace not in gone:
        raise PlanError(
            f"plan.rounds: expected times of at least 1, to between 0 and 1, and a pace of {', '.join(gone)}; "
            f"got times={times}, to={to}, pace={pace!r}.",
            code="plan-rounds",
        )
    shares = [gone[pace](done / times) for done in range(times + 1)]
    steps: list[Step] = []
    for before, after in itertools.pairwise(shares):
        steps += [prune.with_(ratio=(after - before) / (1 - before)), *train]
    return Plan(*steps)


def knobs(what: str | StepFunction) -> dict[str, Any]:
    """The knobs of a step function and their defaults, in the order of its signature."""
    return _knobs(_lookup(what) if isinstance(what, str) else what)


def is_step(function: object) -> bool:
    """Whether a function has a step's shape: one positional parameter, the model; all others keyword-only."""
    if not inspect.isfunction(function):
        return False
    parameters = list(inspect.signature(function).parameters.values())
    keyword = inspect.Parameter.KEYWORD_ONLY
    return (
        bool(parameters)
        and parameters[0].name == "model"
        and all(p.kind is keyword or _is_training(p) for p in parameters[1:])
        and "Module" in str(inspect.signature(function).return_annotation)
    )


def names() -> list[str]:
    """Every step that a plan can name, sorted."""
    found = []
    for family in FAMILIES:
        module = importlib.import_module(f"niwaki.{family}")
        public = getattr(module, "__all__", None) or [n for n in dir(module) if n[0] != "_"]
        found += [f"{family}.{name}" for name in public if is_step(getattr(module, name))]
    return sorted(found)


def check_effect(name: str, before: nn.Module, after: nn.Module) -> None:
    """Nothing, when a step changed the model's parameters or buffers, or their shapes.

    Raises:
        PlanError: both state dicts are equal: the step did nothing. [step-no-effect]
    """
    old, new = before.state_dict(), after.state_dict()
    same = old.keys() == new.keys() and all(
        old[key].shape == new[key].shape and bool((old[key].cpu() == new[key].cpu()).all()) for key in old
    )
    if same:
        raise PlanError(
            f"step {name}: it changed nothing in the model. Change its knobs or take it out of the plan.",
            code="step-no-effect",
        )


def _lookup(name: str) -> StepFunction:
    family, _, function = name.partition(".")
    if family in FAMILIES and function.isidentifier() and not function.startswith("_"):
        found = getattr(importlib.import_module(f"niwaki.{family}"), function, None)
        if found is not None and is_step(found):
            return found  # type: ignore[no-any-return]
    known = names()
    raise PlanError(
        f"plan: there is no step {name!r}.{_nearest(name, known)} Steps: {', '.join(known)}.",
        code="plan-step",
    )


def _name(function: StepFunction) -> str:
    """`prune.channels` for niwaki's own, else module and name."""
    for family in FAMILIES:
        if function.__module__.startswith(f"niwaki.{family}"):
            return f"{family}.{function.__name__}"
    return f"{function.__module__}.{function.__qualname__}"


def _named(item: Step) -> str:
    if item.do not in names():
        raise PlanError(
            f"step {item.do}: only steps of niwaki ({', '.join(names())}) can be written as "
            "TOML; keep this plan in Python.",
            code="plan-toml",
        )
    return item.do


def _keywords(function: StepFunction) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters
    return {n: p for n, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _knobs(function: StepFunction) -> dict[str, Any]:
    empty = inspect.Parameter.empty
    own = {
        name: parameter.default
        for name, parameter in _keywords(function).items()
        if parameter.default is not empty and name not in NEEDS
    }
    if not any(map(_is_training, inspect.signature(function).parameters.values())):
        return own
    from niwaki.loop import Knobs

    return {**own, **{item.name: item.default for item in fields(Knobs)}}


def _is_training(parameter: inspect.Parameter) -> bool:
    """Whether it is `**training: Unpack[loop.Training]`: the knobs that all training steps share."""
    return parameter.kind is inspect.Parameter.VAR_KEYWORD and "Training" in str(parameter.annotation)


def _supply(bench: Bench, name: str, label: str) -> Any:
    """What the Bench gives for a need; an example is drawn from the spec, a checkpoint gets the
    step's own name."""
    value = getattr(bench, name)
    if name == "checkpoint" and value is not None:
        return value / label
    if name == "example" and value is None and bench.spec is not None:
        import torch

        return torch.from_numpy(bench.spec.example())
    return value


def _unknown_knob(name: str, knob: str, known: Iterable[str]) -> str:
    if knob in NEEDS:
        return f"step {name}: {knob}= is given by the Bench when the plan runs; it is no knob."
    known = list(known)
    return f"step {name}: unknown knob {knob!r}.{_nearest(knob, known)} Its knobs: {', '.join(known)}."


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def _from_table(entry: Mapping[str, Any], place: int) -> Step:
    if not isinstance(entry.get("do"), str):
        raise PlanError(
            f'plan: step {place} has no do, expected a line such as do = "prune.channels".',
            code="plan-toml",
        )
    knobs = {name: value for name, value in entry.items() if name != "do"}
    for name, value in knobs.items():
        _plain(entry["do"], name, _frozen(value))
    return step(entry["do"], **knobs)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def _plain(name: str, knob: str, value: Any) -> Any:
    """A knob's value as TOML holds it: text, whole number, finite number, truth, or a list of those."""
    if isinstance(value, tuple):
        return [_plain(name, knob, item) for item in value]
    finite = not isinstance(value, float) or math.isfinite(value)
    if isinstance(value, str | bool | int | float) and finite:
        return value
    raise PlanError(
        f"step {name}: {knob}={value!r} cannot stand in TOML: expected text, a finite number, "
        "true, false or a list of those.",
        code="plan-toml",
    )
