"""Size attributes of the user's own class, set to what they have to be after a cut.

Where a module's forward uses a size that it keeps in an attribute (`num_heads`, a split, a pad), the graph says
which call changed from which size to which, and the attribute of the module that made the call is set to match.
Where several attributes hold the old number, every choice is tried: the one that stays is the first whose
numbers are those of the cut graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from niwaki.errors import ModelError
from niwaki.surgery.axes import Axes, Keep
from niwaki.surgery.inputs import few, outputs
from niwaki.surgery.resize import sizes
from niwaki.surgery.trace import owner_of, quiet, shape_of

Mend = tuple[str, str, Any]
"""Module path, attribute, new value."""
Place = tuple[str, str]
"""Module path, attribute."""
TRIALS = 64
Wanted = Callable[[], Sequence[Tensor] | None]
_AS_IT_IS = object()


def mend(
    small: nn.Module, axes: Axes, keep: Keep, *, example: Any, wanted: Wanted, checked: bool = False
) -> None:
    """Sets attributes of `small` in place until it runs at its new sizes.

    Args:
        example: an input, tuple or dict of inputs to try it on; None: all proposals are set, untried.
        wanted: gives the outputs of the cut graph for the first images of `example`, which the model must
            give too; or None where there is no such graph.
        checked: ask `wanted` even where the first choice is the only one and runs.
    Raises:
        ModelError: no choice of attributes makes it run and agree. [prune-unmendable]
    """
    mends = proposals(small, axes, keep)
    if example is None:
        _apply(small, mends)
        return
    options: dict[Place, list[Any]] = {}
    for path, name, value in mends:
        options.setdefault((path, name), []).append(value)
    first = {place: values[0] for place, values in options.items()}
    only = not any(len(values) > 1 for values in options.values())
    inputs = few(example)
    if only and not (checked and mends) and _trial(small, axes, inputs, None, first) is None:
        return
    for place in options:
        options[place].append(_AS_IT_IS)
    kind = {(path, name): (type(small.get_submodule(path)), name) for path, name in options}
    trial = partial(_trial, small, axes, inputs, wanted() if mends else None, locate=True)
    failure = _search(options, kind, trial)
    if failure is None:
        return
    where = ", ".join(f"{path or 'the model'}.{name}" for path, name in options) or "no attribute"
    raise ModelError(
        f"{type(small).__name__} does not run at its new sizes ({failure}); tried to set {where}. Keep sizes "
        "that forward uses in attributes of the module that uses them, or add the group to skip=.",
        code="prune-unmendable",
    ) from failure.error


def _trial(
    small: nn.Module,
    axes: Axes,
    inputs: Any,
    wanted: Sequence[Tensor] | None,
    chosen: Mapping[Place, Any],
    *,
    locate: bool = False,
) -> _Failure | None:
    """Sets what is chosen; where that fails, everything back, and tells how, and where if it shall."""
    old = _apply(small, [(*place, value) for place, value in chosen.items() if value is not _AS_IT_IS])
    failure = (_located if locate else _failure)(small, axes, inputs, wanted)
    if failure is not None:
        _apply(small, old)
    return failure


@dataclass(frozen=True)
class _Failure:
    """How far a trial came: calls that it made, modules that it entered, and the one in which it ended."""

    error: Exception
    calls: int
    entered: frozenset[str]
    inside: str | None

    def __str__(self) -> str:
        return str(self.error).splitlines()[0] if str(self.error) else type(self.error).__name__

    def near(self, place: Place) -> bool:
        """Whether the attribute is of the module that failed, or of one around it."""
        return self.inside is not None and f"{self.inside}.".startswith(f"{place[0]}." if place[0] else "")


def _search(
    options: Mapping[Place, list[Any]],
    kind: Mapping[Place, Any],
    trial: Callable[[Mapping[Place, Any]], _Failure | None],
) -> _Failure | None:
    """None as soon as a choice passes; else the last failure.

    Whatever comes further than before is kept, and taken for later modules of the same kind. First
    the attributes of the failing module are varied, then those of all modules that had been entered: others can
    have had no part in it.
    """
    chosen = {place: values[0] for place, values in options.items()}
    failure = trial(chosen)
    left = TRIALS
    while failure is not None:
        last = failure
        suspects = [place for place in options if last.near(place)]
        entered = [place for place in options if place[0] in last.entered]
        for choice in itertools.chain(_choices(options, suspects), _choices(options, entered)):
            if (left := left - 1) < 0:
                return last
            failure = trial(chosen | choice)
            if failure is None or failure.calls > last.calls:
                chosen |= choice
                alike = _alike(options, kind, choice, later=set(options) - set(entered))
                if failure is not None and any(chosen[place] is not value for place, value in alike.items()):
                    chosen |= alike
                    failure = trial(chosen)
                break
        else:
            return last
    return None


def _alike(
    options: Mapping[Place, list[Any]],
    kind: Mapping[Place, Any],
    choice: Mapping[Place, Any],
    *,
    later: set[Place],
) -> dict[Place, Any]:
    """The choice made for one module, for those of its kind that were not entered yet."""
    ranks = {kind[place]: options[place].index(value) for place, value in choice.items()}
    return {
        place: options[place][ranks[kind[place]]]
        for place in later
        if kind[place] in ranks and ranks[kind[place]] < len(options[place])
    }


def _choices(options: Mapping[Place, list[Any]], places: Sequence[Place]) -> Iterator[dict[Place, Any]]:
    """Every way to set these attributes; those that leave one as it is come last."""
    new = [[v for v in options[place] if v is not _AS_IT_IS] for place in places]
    every = itertools.product(*(options[place] for place in places))
    for values in itertools.chain(itertools.product(*new), (v for v in every if _AS_IT_IS in v)):
        yield dict(zip(places, values, strict=True))


class _Steps(TorchFunctionMode):
    """Counts the torch calls that end well."""

    calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls += 1
        return out


def _failure(small: nn.Module, axes: Axes, example: Any, wanted: Sequence[Tensor] | None) -> _Failure | None:
    """What goes wrong in a forward pass, None where nothing does."""
    try:
        with quiet():
            _compare(outputs(small, example), axes, wanted)
    except Exception as error:  # the user's forward may raise anything at a wrong size
        return _Failure(error, 0, frozenset(), None)
    return None


def _located(small: nn.Module, axes: Axes, example: Any, wanted: Sequence[Tensor] | None) -> _Failure | None:
    """The same, slower, with how far it came."""
    entered: list[str] = []
    inside: list[str] = []

    def enter(path: str, *_: Any) -> None:
        entered.append(path)
        inside.append(path)

    def leave(*_: Any) -> None:
        if inside:
            inside.pop()

    hooks = []
    for path, module in small.named_modules():
        hooks.append(module.register_forward_pre_hook(partial(enter, path)))
        hooks.append(module.register_forward_hook(leave))
    steps = _Steps()
    try:
        with quiet(), steps:
            got = outputs(small, example)
        inside.clear()
        _compare(got, axes, wanted)
    except Exception as error:  # the user's forward may raise anything at a wrong size
        return _Failure(error, steps.calls, frozenset(entered), inside[-1] if inside else None)
    finally:
        for hook in hooks:
            hook.remove()
    return None


def copy_mends(small: nn.Module, like: nn.Module, axes: Axes, keep: Keep) -> None:
    """Sets the attributes that a cut may change to the values they have in a model that was mended before."""
    places = dict.fromkeys((path, name) for path, name, _ in proposals(small, axes, keep))
    _apply(small, [(path, name, getattr(like.get_submodule(path), name)) for path, name in places])


def _compare(got: Sequence[Tensor], axes: Axes, wanted: Sequence[Tensor] | None) -> None:
    """Raises where outputs are not those of the cut graph, or, without one, not of the original's shape."""
    if wanted is None:
        node = next(iter(axes.traced.graph.find_nodes(op="output"))).args[0][0]
        if tuple(got[0].shape[1:]) != shape_of(node.meta["val"])[1:]:
            raise ValueError(f"its output has shape {tuple(got[0].shape)}")
        return
    for one, other in zip(got, wanted, strict=True):
        if one.shape != other.shape:
            raise ValueError(f"its output has shape {tuple(one.shape)}")
        far = float((one.double() - other.double()).abs().max()) if one.numel() else 0.0
        if not far <= 1e-3 * max(1e-6, float(other.double().abs().max())):
            raise ValueError(f"it runs, but its outputs are {far:.1e} from those of its graph")


def _apply(small: nn.Module, mends: Sequence[Mend]) -> list[Mend]:
    """Set attributes; returns the list that sets them back."""
    old = []
    for path, name, value in mends:
        module = small.get_submodule(path)
        old.append((path, name, getattr(module, name)))
        setattr(module, name, value)
    return old[::-1]


def proposals(small: nn.Module, axes: Axes, keep: Keep) -> list[Mend]:
    """Attributes that hold a size which some call of their module changed, each with its new value."""
    alive = axes.alive(keep)
    modules = dict(small.named_modules())
    found: list[Mend] = []
    for node in axes.traced.graph.nodes:
        if node.op == "call_function":
            before, after = sizes(node, axes, alive)
            if before != after:
                found += (m for m in _attributes(modules, owner_of(node), before, after) if m not in found)
    return found


def _attributes(
    modules: dict[str, nn.Module], owner: str, before: list[int], after: list[int]
) -> Iterator[Mend]:
    """Attributes of the calling module, or else of the nearest module around it, that hold the old sizes."""
    path = owner
    while True:
        found = list(_matches(path, modules[path], before, after)) if path in modules else []
        if found or not path:
            yield from found
            return
        path = path.rpartition(".")[0]


def _matches(path: str, module: nn.Module, before: list[int], after: list[int]) -> Iterator[Mend]:
    changed = [(b, a) for b, a in zip(before, after, strict=True) if b != a]
    for name, value in vars(module).items():
        if name.startswith("_") or isinstance(value, bool):
            continue
        if isinstance(value, int):
            yield from ((path, name, a) for b, a in changed if b == value)
        elif isinstance(value, (tuple, list)) and value and all(type(v) is int for v in value):
            for start in range(len(before) - len(value) + 1):
                span = slice(start, start + len(value))
                if before[span] == list(value) and after[span] != before[span]:
                    yield path, name, type(value)(after[span])
