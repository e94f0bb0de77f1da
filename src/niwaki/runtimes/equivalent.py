"""Exactly equivalent forms of operators that a runtime's converter lacks or gets wrong, put in while it traces.

Rules are per operator. A form here computes the same function, up to the order of sums:

| operator | form |
|---|---|
| `x[:, :, ::s, ::t]` | max pooling with a 1x1 window and stride (s, t) |
| `x.reshape(B, N, P, H, D).permute(2, ...).unbind(0)` | each of the P parts sliced from the last axis of `x` |
| adaptive max pooling where sizes divide | max pooling with that window |
| nearest resizing (LiteRT takes pixels' centres, torch their corners) | rows and columns picked by index |
| antialiased resizing to a size (timm's position embeddings) | a matrix product an axis, none where it stays |
| GELU by tanh (ExecuTorch's kernel is 6e-4 off) | its formula |
| scaled dot-product attention | two matrix products and a softmax |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class Inside(nn.Module):
    """A module whose forward runs inside `Equivalents`: torch.export sets modes around it aside."""

    def __init__(self, module: nn.Module, runtime: str) -> None:
        super().__init__()
        self.module, self.runtime = module, runtime

    def forward(self, image: Tensor) -> Any:
        """What the module gives."""
        with Equivalents(self.runtime):
            return self.module(image)


class Equivalents(TorchFunctionMode):
    """Inside this block, operators of the table are called in their other form."""

    def __init__(self, runtime: str) -> None:
        super().__init__()
        self._forms = _FORMS.get(runtime, {})
        self._five_axes = runtime == "ncnn"
        self._split: dict[int, tuple[Any, Tensor, list[int], list[int]]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One call of torch, replaced where the table says so."""
        if self._five_axes and func in _PARTED and not kwargs:
            return self._parted(func, args)
        form = self._forms.get(func)
        if form is not None:
            found = form(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
        return func(*args, **(kwargs or {}))

    def _parted(self, func: Any, args: Any) -> Any:
        """Reshapes of three axes to five are remembered, until an unbind takes the third one apart."""
        out = func(*args)
        known = self._split.get(id(args[0]))
        if func in _RESHAPES and args[0].ndim == 3 and out.ndim == 5 and out.shape[:2] == args[0].shape[:2]:
            self._split[id(out)] = (out, args[0], list(out.shape), [0, 1, 2, 3, 4])
        elif func is Tensor.permute and known and sorted(_axes(args)) == [0, 1, 2, 3, 4]:
            order = [known[3][axis] for axis in _axes(args)]
            self._split[id(out)] = (out, known[1], known[2], order)
        elif func is Tensor.unbind and known and known[3][0] == 2 and (*args, 0)[1] == 0:
            return _parts(known[1], known[2], known[3][1:])
        return out


_RESHAPES = (Tensor.reshape, Tensor.view)
_PARTED = (*_RESHAPES, Tensor.permute, Tensor.unbind)


def _axes(args: Any) -> list[int]:
    return [int(n) for n in (args[1] if isinstance(args[1], (tuple, list)) else args[1:])]


def _parts(x: Tensor, shape: list[int], order: list[int]) -> tuple[Tensor, ...]:
    """`x.reshape(shape).permute(2, *order).unbind(0)`, by slices of the last axis of `x [B, N, P*H*D]`."""
    _, count, parts, heads, depth = shape
    places = [axis - (axis > 2) for axis in order]  # the third axis is gone
    step = heads * depth
    return tuple(
        x[:, :, part * step : (part + 1) * step].reshape(-1, count, heads, depth).permute(places)
        for part in range(parts)
    )


def _strided(x: Any, index: Any) -> Any:
    if not isinstance(index, tuple) or not isinstance(x, Tensor) or x.ndim != 4:
        return NotImplemented
    steps = [part.step or 1 if isinstance(part, slice) else None for part in index]
    plain = all(isinstance(p, slice) and p.start in (None, 0) and p.stop is None for p in index)
    if len(index) > 4 or not plain or any(s not in (None, 1) for s in steps[:2]):
        return NotImplemented
    rows, columns = [*steps, 1, 1, 1, 1][2:4]
    if (rows, columns) == (1, 1):
        return NotImplemented
    return functional.max_pool2d(x, 1, stride=(rows or 1, columns or 1))


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    if is_causal or enable_gqa or (attn_mask is not None and attn_mask.dtype == torch.bool):
        return NotImplemented
    weights = (q * (scale or 1 / math.sqrt(q.shape[-1]))) @ k.transpose(-2, -1)
    if attn_mask is not None:
        weights = weights + attn_mask
    return weights.softmax(-1) @ v


def _adaptive_max(x: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    sizes = [int(n) for n in x.shape[-2:]]
    wanted = [output_size] * 2 if isinstance(output_size, int) else list(output_size)
    outs = [size if want is None else want for size, want in zip(sizes, wanted, strict=True)]
    if return_indices or any(size % out for size, out in zip(sizes, outs, strict=True)):
        return NotImplemented
    window = (sizes[0] // outs[0], sizes[1] // outs[1])
    return functional.max_pool2d(x, window, stride=window)


def _nearest(
    x: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Any:
    if mode != "nearest" or x.ndim != 4:
        return NotImplemented
    shape = functional.interpolate(
        torch.zeros(1, 1, *map(int, x.shape[-2:])),
        size,
        scale_factor,
        recompute_scale_factor=recompute_scale_factor,
    ).shape
    for axis in (2, 3):
        given, wanted = int(x.shape[axis]), int(shape[axis])
        if size is None and not recompute_scale_factor and wanted % given and given % wanted:
            return NotImplemented  # torch then steps by the factor as it was given, not by the sizes' ratio
        x = x.index_select(axis, torch.arange(wanted) * given // wanted)
    return x


def _antialiased(x: Tensor, size: Any = None, *rest: Any, mode: str = "nearest", **more: Any) -> Any:
    kernel = _KERNELS.get(mode)
    plain = more.pop("antialias", False) and not any(more.values())
    if rest or size is None or kernel is None or x.ndim != 4 or not plain:
        return NotImplemented
    height, width = [size] * 2 if isinstance(size, int) else map(int, size)
    if height != x.shape[2]:
        x = _blend(int(x.shape[2]), height, *kernel) @ x
    return x if width == x.shape[3] else x @ _blend(int(x.shape[3]), width, *kernel).T


def _blend(given: int, wanted: int, kernel: Callable[[float], float], reach: int) -> Tensor:
    """Matrix `[wanted, given]` of the shares that each pixel has in those of a resized axis."""
    wide = max(given / wanted, 1.0)
    rows = []
    for out in range(wanted):
        centre = given / wanted * (out + 0.5)
        first = max(int(centre - reach * wide + 0.5), 0)
        last = min(int(centre + reach * wide + 0.5), given)
        shares = [kernel(abs(at - centre + 0.5) / wide) if first <= at < last else 0.0 for at in range(given)]
        rows.append([share / sum(shares) for share in shares])
    return torch.from_numpy(
        np.array(rows, np.float32)
    )  # torch.tensor is traced as a copy that is detached in place


def _triangle(x: float) -> float:
    return max(1 - x, 0.0)


def _cubic(x: float) -> float:
    """Keys' kernel at a = -1/2, which torch takes where it antialiases, as Pillow does."""
    return 1.5 * x**3 - 2.5 * x**2 + 1 if x < 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


_KERNELS: dict[str, tuple[Callable[[float], float], int]] = {"bilinear": (_triangle, 1), "bicubic": (_cubic, 2)}


def _resized(x: Tensor, *args: Any, **knobs: Any) -> Any:
    return _antialiased(x, *args, **knobs) if knobs.get("antialias") else _nearest(x, *args, **knobs)


def _gelu(x: Tensor, approximate: str = "none") -> Any:
    if approximate != "tanh":
        return NotImplemented
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


_FORMS: dict[str, dict[Any, Any]] = {
    "ncnn": {Tensor.__getitem__: _strided, functional.scaled_dot_product_attention: _attention},
    "LiteRT": {functional.adaptive_max_pool2d: _adaptive_max, functional.interpolate: _resized},
    "ExecuTorch": {
        functional.adaptive_max_pool2d: _adaptive_max,
        functional.gelu: _gelu,
        functional.interpolate: _antialiased,
    },
}
"""For each runtime the operators that are replaced."""
