"""A copy of a model in which some tensors are replaced: what `copy.deepcopy` gives, several times faster.

A module of torch's own keeps a dozen dicts, nearly all of them empty; deepcopy takes each apart and puts it
together again, which for small networks costs more than all the rest of a cut.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type, FunctionType, BuiltinFunctionType)
_SHARED = (*_PLAIN, torch.dtype, torch.device, torch.Size)
_OWN_WAYS = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")


def copied(model: nn.Module, instead: Mapping[int, Tensor] | None = None) -> nn.Module:
    """A deep copy of `model`: shared tensors and modules stay shared, hooks and user attributes are copied.

    Args:
        instead: by the `id` of a tensor, the tensor that the copy gets in all of its places.
    """
    memo: dict[int, Any] = dict(instead or {})
    return _module(model, memo)


def _module(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    if id(module) in memo:
        known: nn.Module = memo[id(module)]
        return known
    if _has_own_way(type(module)):
        return copy.deepcopy(module, memo)
    new = type(module).__new__(type(module))
    memo[id(module)] = new
    new.__dict__.update({name: _value(value, memo) for name, value in vars(module).items()})
    return new


def _value(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in _SHARED:
        return value
    if kind in (dict, OrderedDict) and id(value) not in memo:
        new: dict[Any, Any] = kind()
        memo[id(value)] = new
        new.update((name, _value(one, memo)) for name, one in value.items())
        return new
    if isinstance(value, nn.Module):
        return _module(value, memo)
    return copy.deepcopy(value, memo)


def _has_own_way(kind: type) -> bool:
    """Whether a class says itself how it is copied; torch's layers that only fill in defaults do not."""
    for name in _OWN_WAYS:
        own = getattr(kind, name, None)
        if own is getattr(nn.Module, name, None):
            continue
        if name != "__setstate__" or not _only_defaults(own):
            return True
    return False


def _only_defaults(method: Any) -> bool:
    """`__setstate__` of torch's own layers, but not of recurrent ones, whose lists of weights it makes anew."""
    place = getattr(method, "__module__", "")
    return place.startswith("torch.nn.modules.") and not place.endswith(".rnn")
