"""Reading trained weights into a model: safetensors, or a torch file that holds only tensors."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from niwaki.errors import ModelError

_TORCH = (".pt", ".pth", ".th")
_WRAPPERS = ("state_dict", "model_state_dict", "model")


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """The same model, its parameters and buffers replaced in place by those of a file.

    A torch file is read with `weights_only=True`, so nothing in it is run; a `state_dict` inside
    it is unwrapped and the `module.` prefix of data-parallel training is dropped.

    Args:
        path: `.safetensors`, or `.pt`, `.pth`, `.th`.
    Raises:
        ModelError: there is no such file, it cannot be read, or its names or shapes are not the
            model's; then the model is unchanged.
            [weights-missing, weights-format, weights-mismatch]
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"weights: there is no file {path}.", code="weights-missing")
    state = _unwrap(_read(path), path)
    _check(model.state_dict(), state, path)
    model.load_state_dict(state)
    return model


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix in _TORCH:
            return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ModelError(
            f"weights: {path} cannot be read as {path.suffix}: {_first_line(error)}. It is "
            "damaged, or holds more than tensors; save the state_dict alone, best as .safetensors.",
            code="weights-format",
        ) from error
    raise ModelError(
        f"weights: {path} ends in {path.suffix or 'nothing'!r}, expected .safetensors, "
        + ", ".join(_TORCH)
        + ".",
        code="weights-format",
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _unwrap(value: Any, path: Path) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
            break
    tensors = isinstance(value, Mapping) and all(isinstance(v, Tensor) for v in value.values())
    if not tensors or not value:
        raise ModelError(
            f"weights: {path} holds no state_dict, expected names with tensors, bare or under "
            f"one of {', '.join(_WRAPPERS)}.",
            code="weights-format",
        )
    return {str(name).removeprefix("module."): tensor for name, tensor in value.items()}


def _check(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], path: Path) -> None:
    shapes = [
        f"{name}: {tuple(theirs[name].shape)} in the file, {tuple(ours[name].shape)} in the model"
        for name in ours
        if name in theirs and ours[name].shape != theirs[name].shape
    ]
    parts = {
        "missing from the file": [
            name  # batch norm's counter came after many published checkpoints; it is never used
            for name in ours
            if name not in theirs and not name.endswith("num_batches_tracked")
        ],
        "unknown to the model": [name for name in theirs if name not in ours],
        "of another shape": shapes,
    }
    found = [f"{len(names)} {what} ({_few(names)})" for what, names in parts.items() if names]
    if found:
        raise ModelError(
            f"weights: {path} does not fit the model's {len(ours)} tensors: {'; '.join(found)}. "
            "Use the same --model and number of classes as it was trained with.",
            code="weights-mismatch",
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
