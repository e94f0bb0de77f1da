"""What surgery changed in a model, as JSON data: how a smaller model is saved without saving code.

    difference = diff(build(), changed)        # JSON
    patch(build(), difference)                 # the changed structure again; weights are loaded
    after

A difference holds sizes and plain numbers only: new shapes and types of parameters and buffers,
and attributes of modules that are numbers or tuples of whole numbers. Modules that were added,
removed or replaced are no difference of this kind and are refused by name. Layout: {"tensors":
{name: [shape, dtype]}, "attributes": {module: {name: value}}, "training": {module: bool},
"frozen": [parameter]}.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from niwaki.errors import ArtifactError, ModelError

MAX_ELEMENTS = 2**33
"""A tensor of more elements is refused: nothing that fits a file of an artifact has as many."""

_INTERNAL = frozenset(vars(nn.Module()))
_PLAIN = (int, float, bool)


def diff(fresh: nn.Module, changed: nn.Module) -> dict[str, Any]:
    """What turns `fresh` into the structure of `changed`, as JSON. Neither is modified.

    Raises:
        ModelError: they differ in more than sizes and plain numbers. [difference-unsupported]
    """
    old, new = dict(fresh.named_modules()), dict(changed.named_modules())
    _same_names("modules", set(old), set(new))
    for name, module in new.items():
        if _kind(module) != _kind(old[name]):
            raise _unsupported(name, f"is a {_kind(module)}, was a {_kind(old[name])}")
    _same_ties(fresh, changed)
    out: dict[str, Any] = {
        "tensors": _tensors(fresh, changed),
        "attributes": {},
        "training": _modes(changed),
        "frozen": [name for name, p in changed.named_parameters() if not p.requires_grad],
    }
    for name, module in new.items():
        if found := _attributes(name, old[name], module):
            out["attributes"][name] = found
    return out


def patch(fresh: nn.Module, difference: dict[str, Any]) -> nn.Module:
    """`fresh`, changed in place to the structure that `diff` described; new tensors hold zeros.

    Raises:
        ArtifactError: the difference names what `fresh` has not, or is no difference.
            [difference-mismatch]
    """
    modules = dict(fresh.named_modules())
    sections = {"tensors": dict, "attributes": dict, "training": dict, "frozen": list}
    if not isinstance(difference, dict) or difference.keys() != sections.keys():
        raise _mismatch("a difference", "has the parts tensors, attributes, training, frozen")
    for key, kind in sections.items():
        if not isinstance(difference[key], kind):
            raise _mismatch(key, f"is no {kind.__name__}")
    for name, values in difference["attributes"].items():
        _patch_attributes(name, modules.get(name), values)
    _patch_modes(modules, difference["training"])
    _patch_tensors(fresh, difference["tensors"])
    _patch_frozen(fresh, difference["frozen"])
    return fresh


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, buffers that a state dict leaves out among them; shared
    ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def to_bytes(values: dict[str, Tensor]) -> bytes:
    """Tensors by name as the bytes of a safetensors file; the same tensors give the same bytes."""
    own = {name: value.detach().cpu().contiguous().clone() for name, value in values.items()}
    return bytes(save(own))


def check_sizes(difference: Any, values: dict[str, Tensor]) -> None:
    """Raises unless the new tensors of a difference are those of the weights: nothing larger is
    ever made.

    Raises:
        ArtifactError: they differ. [difference-mismatch]
    """
    changes = difference.get("tensors") if isinstance(difference, dict) else None
    for name, change in changes.items() if isinstance(changes, dict) else ():
        value = values.get(name)
        if value is None or not isinstance(change, list) or change[:1] != [list(value.shape)]:
            raise _mismatch(name, f"has another size in the weights than {change!r:.80}")


def load(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Copies `values`, as `tensors` gave them, into a model of the same structure.

    Raises:
        ArtifactError: names, shapes or types differ. [difference-mismatch]
    """
    own = tensors(model)
    if odd := sorted(own.keys() ^ values.keys()):
        raise _mismatch(odd[0], "is not in both the model and its weights")
    with torch.no_grad():
        for name, tensor in own.items():
            value = values[name]
            if value.shape != tensor.shape or value.dtype != tensor.dtype:
                raise _mismatch(
                    name,
                    f"is {value.dtype} {tuple(value.shape)} in the weights, {tensor.dtype} "
                    f"{tuple(tensor.shape)} in the model",
                )
            tensor.copy_(value)


def _kind(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _same_names(what: str, old: set[str], new: set[str]) -> None:
    if old != new:
        added, gone = sorted(new - old), sorted(old - new)
        raise _unsupported(
            (added or gone)[0], f"{what} {'added' if added else 'removed'}: {(added or gone)[:5]}"
        )


def _all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """By every name, shared ones under each."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _same_ties(fresh: nn.Module, changed: nn.Module) -> None:
    old, new = _all_tensors(fresh), _all_tensors(changed)
    _same_names("tensors", set(old), set(new))
    if old.keys() - tensors(fresh).keys() != new.keys() - tensors(changed).keys():
        raise _unsupported("the model", "shares other tensors between modules than a fresh one")


def _tensors(fresh: nn.Module, changed: nn.Module) -> dict[str, Any]:
    old, new = tensors(fresh), tensors(changed)
    return {
        name: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
        for name, tensor in new.items()
        if tensor.shape != old[name].shape or tensor.dtype != old[name].dtype
    }


def _modes(model: nn.Module) -> dict[str, bool]:
    """Train or eval: of the root, and of each module that differs from the one it is in."""
    modes = {name: module.training for name, module in model.named_modules()}
    return {name: mode for name, mode in modes.items() if not name or mode != modes[name.rpartition(".")[0]]}


def _attributes(name: str, old: nn.Module, new: nn.Module) -> dict[str, Any]:
    before, after = ({k: v for k, v in vars(m).items() if k not in _INTERNAL} for m in (old, new))
    out = {}
    for key in sorted(before.keys() | after.keys()):
        was, now = before.get(key), after.get(key)
        if _equal(was, now):
            continue
        if key not in before or not _patchable(was, now):
            raise _unsupported(f"{name}.{key}".lstrip("."), f"was {was!r:.80}, is {now!r:.80}")
        out[key] = now
    return out


def _equal(was: Any, now: Any) -> bool:
    """Whether two attributes are the same, as far as plain data goes; functions and objects are
    not compared."""
    if isinstance(was, Tensor) and isinstance(now, Tensor):
        return was.dtype == now.dtype and torch.equal(was, now)
    simple = (*_PLAIN, str, type(None), tuple, list, dict, Tensor)
    if not isinstance(was, simple) and not isinstance(now, simple):
        return True
    if type(was) is not type(now):
        return False
    if isinstance(was, (tuple, list)):
        return len(was) == len(now) and all(map(_equal, was, now))
    if isinstance(was, dict):
        return was.keys() == now.keys() and all(_equal(was[k], now[k]) for k in was)
    return bool(was == now) or (was != was and now != now)  # a NaN is the same NaN


def _patchable(was: Any, now: Any) -> bool:
    """Whether an attribute may be set from a file: a finite number, or whole numbers in a row, of
    the old type."""
    if type(was) is not type(now):
        return False
    if isinstance(now, (tuple, list)):
        return all(type(n) is int for n in (*was, *now))
    return type(now) in (int, bool) or (type(now) is float and math.isfinite(now))


def _patch_attributes(name: str, module: nn.Module | None, values: Any) -> None:
    if module is None or not isinstance(values, dict):
        raise _mismatch(name, "is no module of the model")
    for key, value in values.items():
        was = vars(module).get(key)
        value = tuple(value) if type(was) is tuple and isinstance(value, list) else value
        if key in _INTERNAL or key not in vars(module) or not _patchable(was, value):
            raise _mismatch(f"{name}.{key}".lstrip("."), f"is {was!r:.80} and cannot become {value!r:.80}")
        setattr(module, key, value)


def _patch_modes(modules: dict[str, nn.Module], modes: dict[str, Any]) -> None:
    for name in sorted(modes, key=lambda n: (n != "", n.count("."), n)):  # outer modules first
        if name not in modules or type(modes[name]) is not bool:
            raise _mismatch(name, "is no module with a mode")
        modules[name].train(modes[name])


def _patch_tensors(model: nn.Module, changes: dict[str, Any]) -> None:
    """New tensors of the shapes and types asked for, each under every name that shares the old
    one."""
    own = tensors(model)
    places: dict[int, list[tuple[Any, str]]] = {}
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for key, tensor in store.items():
                places.setdefault(id(tensor), []).append((store, key))
    for name, value in changes.items():
        if name not in own:
            raise _mismatch(name, "is no tensor of the model")
        new = _empty(name, own[name], value)
        for store, key in places[id(own[name])]:
            store[key] = new


def _empty(name: str, old: Tensor, value: Any) -> Tensor:
    shape, kind = value if isinstance(value, list) and len(value) == 2 else (None, None)
    sizes = isinstance(shape, list) and all(type(n) is int and 0 <= n < 2**31 for n in shape)
    dtype = getattr(torch, kind, None) if isinstance(kind, str) else None
    if not sizes or not isinstance(dtype, torch.dtype) or math.prod(shape or ()) > MAX_ELEMENTS:
        raise _mismatch(name, f"cannot become {value!r:.80}")
    new = torch.zeros(shape or [], dtype=dtype, device=old.device)
    if not isinstance(old, nn.Parameter):
        return new
    return nn.Parameter(new, requires_grad=old.requires_grad and new.is_floating_point())


def _patch_frozen(model: nn.Module, names: list[Any]) -> None:
    parameters = dict(model.named_parameters())
    if odd := [name for name in names if not isinstance(name, str) or name not in parameters]:
        raise _mismatch(str(odd[0]), "is no parameter of the model")
    for name, parameter in parameters.items():
        if parameter.is_floating_point():
            parameter.requires_grad_(name not in names)


def _unsupported(name: str, what: str) -> ModelError:
    return ModelError(
        f"{name or 'the model'}: {what}. Only sizes and plain numbers can be saved as a difference from the "
        "freshly built model; save it with builder=None, as its graph.",
        code="difference-unsupported",
    )


def _mismatch(name: str, what: str) -> ArtifactError:
    return ArtifactError(
        f"structure: {name or 'the model'} {what}. The artifact was saved from another model or another "
        "version of it.",
        code="difference-mismatch",
    )
