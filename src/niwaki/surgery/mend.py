"""Size attributes of the user's own class, set to what they have to be after a cut.

Where a module's forward uses a size that it keeps in an attribute (`num_heads`, a split, a pad), the graph says
which call changed from which size to which, and the attribute of the module that made the call is set to match.
Where several attributes hold the old number, every choice is tried: the one that stays is the first whose
numbers are those of the cut graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from niwaki.errors import ModelError
from niwaki.surgery.axes import Axes, Keep
from niwaki.surgery.inputs import few, outputs
from niwaki.surgery.resize import sizes
from niwaki.surgery.trace import owner_of, quiet, shape_of

Mend = tuple[str, str, Any]
"""Module path, attribute, new value."""
Wanted = Callable[[], Sequence[Tensor] | None]
TRIALS = 64


def mend(small: nn.Module, axes: Axes, keep: Keep, *, example: Any, wanted: Wanted) -> None:
    """Sets attributes of `small` in place until it runs at its new sizes.

    Args:
        example: an input, tuple or dict of inputs to try it on; None: all proposals are set, untried.
        wanted: gives the outputs of the cut graph for the first images of `example`, which the model must
            give too; or None where there is no such graph.
    Raises:
        ModelError: no choice of attributes makes it run and agree. [prune-unmendable]
    """
    mends = list(dict.fromkeys(_proposals(small, axes, keep)))
    if example is None:
        _apply(small, mends)
        return
    failure: Exception | None = None
    numbers = wanted() if mends else None
    for chosen in _subsets(mends):
        old = _apply(small, chosen)
        try:
            _try(small, axes, few(example), numbers)
            return
        except Exception as error:  # the user's forward may raise anything at a wrong size
            failure = error
            _apply(small, old)
    where = ", ".join(f"{path or 'the model'}.{name}" for path, name, _ in mends) or "no attribute"
    reason = str(failure).splitlines()[0] if failure and str(failure) else ""
    raise ModelError(
        f"{type(small).__name__} does not run at its new sizes ({reason}); tried to set {where}. Keep sizes "
        "that forward uses in attributes of the module that uses them, or add the group to skip=.",
        code="prune-unmendable",
    ) from failure


def copy_mends(small: nn.Module, like: nn.Module, axes: Axes, keep: Keep) -> None:
    """Sets the attributes that a cut may change to the values they have in a model that was mended before."""
    places = dict.fromkeys((path, name) for path, name, _ in _proposals(small, axes, keep))
    _apply(small, [(path, name, getattr(like.get_submodule(path), name)) for path, name in places])


def _subsets(mends: list[Mend]) -> Iterator[list[Mend]]:
    """All of them where they agree, then every way to choose where one attribute has several proposals, or
    is left as it is."""
    by_place: dict[tuple[str, str], list[Mend | None]] = {}
    for one in mends:
        by_place.setdefault(one[:2], []).append(one)
    choices = [*itertools.islice(itertools.product(*by_place.values()), TRIALS)]
    for options in by_place.values():
        options.append(None)
    left = (c for c in itertools.product(*by_place.values()) if None in c)
    for chosen in itertools.islice(itertools.chain(choices, left), TRIALS):
        yield [one for one in chosen if one is not None]


def _try(small: nn.Module, axes: Axes, example: Any, wanted: Sequence[Tensor] | None) -> None:
    with quiet():
        got = outputs(small, example)
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


def _apply(small: nn.Module, mends: list[Mend]) -> list[Mend]:
    """Set attributes; returns the list that sets them back."""
    old = []
    for path, name, value in mends:
        module = small.get_submodule(path)
        old.append((path, name, getattr(module, name)))
        setattr(module, name, value)
    return old[::-1]


def _proposals(small: nn.Module, axes: Axes, keep: Keep) -> Iterator[Mend]:
    alive = axes.alive(keep)
    modules = dict(small.named_modules())
    for node in axes.traced.graph.nodes:
        if node.op != "call_function":
            continue
        before, after = sizes(node, axes, alive)
        if before != after:
            yield from _attributes(modules, owner_of(node), before, after)


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
