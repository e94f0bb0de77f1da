"""A training's state in one safetensors file: tensors, and all else as JSON metadata.

Written in one step, so a crash leaves the old file or the new one. A checkpoint continues the
training it came
from and no other: its settings are compared by name. Nothing is pickled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor, nn

from niwaki import files, parallel
from niwaki.errors import RunError

KEY = "niwaki.training"
"""The metadata entry that holds everything which is no tensor."""
CLOSE = 1e-3
"""Starting models are the same if their tensors' mean sizes agree to this share: threads round."""

Optimiser = torch.optim.Optimizer


def write(
    path: Path, *, model: nn.Module, average: nn.Module, optimiser: Optimiser, facts: dict[str, Any]
) -> None:
    """Replace the file `path`; only the first process of a group writes.

    Args:
        facts: JSON; `settings` (compared on reading) and whatever the loop wants back.
    """
    if parallel.join()[0] != 0:
        return
    tensors = {f"weights.{name}": tensor for name, tensor in _named(model).items()}
    tensors |= {f"average.{name}": tensor for name, tensor in _named(average).items()}
    tensors |= {
        f"optimiser.{index}.{key}": value
        for index, state in optimiser.state_dict()["state"].items()
        for key, value in state.items()
    }
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    files.write_bytes(path, serialise(whole, metadata={KEY: text}))


def read(
    path: Path,
    *,
    model: nn.Module,
    average: nn.Module,
    optimiser: Optimiser,
    settings: dict[str, Any],
) -> dict[str, Any] | None:
    """A checkpoint's facts, its tensors copied into the three objects; None if there is no file.

    Every process of a group gets what the first one reads, so only its machine needs the file.

    Raises:
        RunError: it is damaged, or belongs to another training. [checkpoint-damaged,
            checkpoint-other]
    """
    first = parallel.join()[0] == 0
    data = parallel.bytes_from_first(path.read_bytes() if first and path.exists() else None)
    if data is None:
        return None
    try:
        tensors, found = parse(data), _facts(data)
        differences = differing(found["settings"], settings)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error
    if differences:
        raise RunError(
            f"checkpoint {path}: it belongs to another training: {'; '.join(differences)}. "
            "Repeat the command as it was, or delete the file to start again.",
            code="checkpoint-other",
        )
    try:
        _fill(_named(model), tensors, "weights.")
        _fill(_named(average), tensors, "average.")
        _fill_optimiser(optimiser, tensors)
    except (KeyError, RuntimeError, ValueError) as error:
        raise _damaged(path, error) from error
    return found


def facts(path: Path) -> dict[str, Any]:
    """What a checkpoint holds beside its tensors; reads the file's head only.

    Raises:
        RunError: there is no such file or it is damaged. [checkpoint-damaged]
    """
    try:
        with safe_open(path, framework="numpy") as file:
            found: dict[str, Any] = json.loads(file.metadata()[KEY])
        return found
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def sizes(model: nn.Module) -> list[float]:
    """Mean absolute value of each parameter and buffer: tells one starting model from another."""
    return [float(t.detach().abs().double().mean()) if t.numel() else 0.0 for t in _named(model).values()]


def differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which settings differ, in words; floats in lists may differ by `CLOSE` of their size."""
    return [
        f"{name} was {_short(then.get(name))}, is {_short(now.get(name))}"
        for name in sorted({*then, *now})
        if not _same(then.get(name), now.get(name))
    ]


def _same(then: Any, now: Any) -> bool:
    floats = isinstance(then, list) and isinstance(now, list) and len(then) == len(now)
    if floats and all(isinstance(value, float) for value in (*then, *now)):
        return all(math.isclose(a, b, rel_tol=CLOSE, abs_tol=1e-9) for a, b in zip(then, now, strict=True))
    return bool(then == json.loads(json.dumps(now)))


def _short(value: Any) -> str:
    text = "other numbers" if isinstance(value, list) and len(value) > 8 else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _named(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, a shared one once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _facts(data: bytes) -> dict[str, Any]:
    length = int.from_bytes(data[:8], "little")
    found: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][KEY])
    return found


@torch.no_grad()
def _fill(into: Mapping[str, Tensor], tensors: Mapping[str, Tensor], prefix: str) -> None:
    for name, tensor in into.items():
        tensor.copy_(tensors[prefix + name])


def _fill_optimiser(optimiser: Optimiser, tensors: Mapping[str, Tensor]) -> None:
    """Each tensor takes its parameter's memory layout: fused updates walk both side by side."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            index, key = name.removeprefix("optimiser.").split(".", 1)
            like = parameters[int(index)]
            if tensor.shape == like.shape:
                tensor = torch.empty_like(like).copy_(tensor)
            state.setdefault(int(index), {})[key] = tensor
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(
        f"checkpoint {path}: it cannot be read: {type(error).__name__}: {str(error)[:200]}. "
        "Delete it to start this training again.",
        code="checkpoint-damaged",
    )
