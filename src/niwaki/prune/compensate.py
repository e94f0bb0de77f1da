"""Recovery without training: what pruning took is given back by the layers that are left, in closed form.

The pruned network and the original run side by side over calibration images. Layer by layer, in order, each
linear operator (linear, convolution) whose output has moved is fitted to what the original gives on the same
images, from the inputs that it now gets: its bias alone ("mean") or weights and bias ("least-squares"). Later
layers see, and make up for, what earlier ones could not.

The proof of surgery speaks of the cut and comes before: a compensated network computes something else than
the masked original, on purpose.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from niwaki import batches as made
from niwaki.errors import PlanError
from niwaki.evaluate import Readable
from niwaki.prune import activations
from niwaki.prune.least_squares import argument, fitted
from niwaki.spec import Spec
from niwaki.surgery import Axes, Keep
from niwaki.surgery.inputs import Example, few, leaves
from niwaki.surgery.rules import operator_of
from niwaki.surgery.trace import Call, Traced, owner_of, trace, with_weights

_HELD = 4
"""Every fourth batch is held out when the ridge is chosen."""
_RIDGE = 1e-2
"""The ridge where there are too few batches to hold one out."""
HOW = ("none", "mean", "least-squares")
_FITTED = ("linear", "conv1d", "conv2d", "conv3d")
_SHIFTED = (*_FITTED, "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_MOVED = 1e-5
"""A layer whose output differs by less, relative to its deviation, is left as it is."""


@dataclass(frozen=True, kw_only=True)
class Compensated:
    """A pruned model after compensation.

    Args:
        model: the pruned class with other weights, biases or running means; shapes are the same.
        how: "mean" or "least-squares".
        images: calibration images that were used.
        layers: parameters that were fitted, in order.
        left: layers that could not be, or only their bias, each with the reason.
    """

    model: nn.Module
    how: str
    images: int
    layers: tuple[str, ...]
    left: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain values, all but the model."""
        facts = asdict(replace(self, model=nn.Identity()))
        return {name: value for name, value in facts.items() if name != "model"}


def compensate(
    model: nn.Module,
    pruned: nn.Module,
    axes: Axes,
    keep: Keep,
    *,
    inputs: Example,
    how: str = "least-squares",
    ridge: float | None = None,
    memory: int = 2 << 30,
) -> Compensated:
    """The pruned model, its linear layers fitted to the original's outputs on calibration inputs. No gradients.

    "mean" moves the bias of each layer by the mean of what its output lacks: the folded means of the dropped
    channels, and of how the kept ones have moved. "least-squares" refits weights and bias. A layer without bias
    moves the running mean of the batch norm behind it. Neither model is changed.

    Args:
        model: the original.
        pruned: `surgery.shrink(model, axes, keep)`, not trained since.
        axes, keep: the analysis and the atoms that stayed.
        inputs: calibration images float32 `[N, C, H, W]`, normalised as the model is used to, or a tuple or
            dict of inputs; 64 to 512 images are usual.
        ridge: how much a change of weights costs, relative to the mean square of the inputs; 0 is the smallest
            of the best changes. None chooses one for each layer, on every fourth batch held out.
        memory: bytes for activations; of more images than fit, the first are used.
    Raises:
        PlanError: `how` is no such method, ridge is negative, or there are no inputs. [prune-compensate]
        ModelError: torch.export cannot follow the pruned model. [model-export]
    Source: He et al. 2017, arXiv:1707.06168, section 3.1, and Luo et al. 2017 (ThiNet), arXiv:1707.06342,
        section 3.2.3: least squares; the asymmetric inputs are He et al.'s eq. 5. Here all linear layers are
        fitted, and the ridge pulls to the pruned weights instead of to zero.
    """
    given = tuple(leaves(inputs))
    count = min((len(x) for x in given if isinstance(x, Tensor) and x.dim()), default=0)
    _check(how, ridge, count)
    small = copy.deepcopy(pruned).eval()
    before = with_weights(axes.traced, model)
    after = with_weights(trace(small, few(inputs, images=before.batch)), small)
    each = activations.bytes_per_image(before) + activations.bytes_per_image(after)
    batches = activations.split(given, before, images=max(before.batch, memory // max(1, each)))
    pairs = _pairs(before, after)
    walks = (
        activations.Walk(before, batches, {old for old, _ in pairs}),
        activations.Walk(after, batches, set()),
    )
    fit = _Fit(small, after, axes, axes.alive(keep), how, ridge)
    fit.scales = _scales(model, small, axes, keep, [old for old, _ in pairs])
    for old, new in pairs:
        fit.layer(old, new, *walks)
    images = sum(next(len(x) for x in b if isinstance(x, Tensor) and x.dim()) for b in batches)
    return Compensated(model=small, how=how, images=images, layers=tuple(fit.done), left=fit.left)


def calibration(
    calib: Readable | None, spec: Spec | None, *, device: torch.device, images: int = 512
) -> Tensor:
    """Calibration inputs float32 `[N, C, H, W]`: at most `images`, evenly from all of the split.

    Raises:
        PlanError: there is no split or no spec. [plan-need]
    """
    if calib is None or spec is None:
        raise PlanError(
            "prune.channels: compensate= needs calibration images, and calib= or spec= is not given. Give both "
            '(Bench(calib=..., spec=...)), or leave compensate="none".',
            code="plan-need",
        )
    count = min(images, len(calib))
    chosen = [i * len(calib) // count for i in range(count)]
    return made.normalise(calib.batch(chosen, spec), spec, device=device).contiguous()


def _check(how: str, ridge: float | None, count: int) -> None:
    if how not in HOW[1:]:
        raise PlanError(
            f"prune: compensate must be one of {', '.join(HOW)}, got {how!r}.", code="prune-compensate"
        )
    if not 0 <= (ridge or 0) < float("inf") or count == 0:
        raise PlanError(
            f"prune: compensation needs a ridge of at least 0 and calibration images, got {ridge} and {count}.",
            code="prune-compensate",
        )


def _calls(traced: Traced) -> dict[tuple[str, int], Call]:
    """Linear calls in order, each by its weight's name (its module's, where the weight is computed) and how
    often that was met before."""
    out: dict[tuple[str, int], Call] = {}
    seen: Counter[str] = Counter()
    for node in traced.graph.nodes:
        if node.op == "call_function" and operator_of(node) in _SHIFTED:
            name = traced.names.get(node.args[1].name) or owner_of(node)
            out[name, seen[name]] = node
            seen[name] += 1
    return out


def _pairs(before: Traced, after: Traced) -> list[tuple[Call, Call]]:
    """Each linear call of the pruned graph with the same one of the original."""
    old, new = _calls(before), _calls(after)
    return [(old[key], node) for key, node in new.items() if key in old]


def _scales(model: nn.Module, small: nn.Module, axes: Axes, keep: Keep, nodes: list[Call]) -> dict[str, Tensor]:
    """For each weight what the surgery multiplied its rows by: 1, but for queries, whose scale it keeps."""
    tensors, kept = dict(model.named_parameters()), axes.kept_indices(keep)
    out: dict[str, Tensor] = {}
    for name in {axes.traced.names.get(node.args[1].name) for node in nodes if operator_of(node) in _FITTED}:
        if name not in tensors:
            continue
        weight = tensors[name].detach()
        for d, indices in kept.get(name, {}).items():
            weight = weight.index_select(d, torch.tensor(indices, device=weight.device))
        own, cut = weight.flatten(1), small.get_parameter(name).detach().flatten(1)
        square = (own * own).sum(1)
        out[name] = torch.where(square > 0, (own * cut).sum(1) / square, torch.ones_like(square))
    return out


class _Fit:
    """The state of one compensation: the model being fitted, and what was done."""

    def __init__(
        self, small: nn.Module, traced: Traced, axes: Axes, alive: Any, how: str, ridge: float | None
    ) -> None:
        self.small, self.traced, self.axes, self.alive = small, traced, axes, alive
        self.how, self.ridge = how, ridge
        self.uses = Counter(x.name for n in traced.graph.nodes for x in n.all_input_nodes)
        self.scales: dict[str, Tensor] = {}
        self.done: list[str] = []
        self.left: dict[str, str] = {}

    def layer(self, old: Call, new: Call, original: activations.Walk, pruned: activations.Walk) -> None:
        """One layer fitted, if its output has moved."""
        name = self.traced.names.get(new.args[1].name)
        label = name or owner_of(new) or new.name
        inputs = pruned.inputs_of(new)
        scale = self.scales.get(name or "")
        wanted = [self._kept(y, old, scale) for y in original.take(old)]
        got = pruned.call(new)
        if [w.shape for w in wanted] != [g.shape for g in got]:
            self.left[label] = "its output has another shape than the original's kept channels"
            return
        residuals = [w - g for w, g in zip(wanted, got, strict=True)]
        if not _moved(residuals, wanted):
            return
        offset = self._offset(new)
        weight = self._weight(new, label)
        if offset is None:
            self.left[label] = "it has neither a bias nor a batch norm of its own behind it"
        if weight is not None:
            change, shift = self._solved(new, weight, inputs, residuals, intercept=offset is not None)
            with torch.no_grad():
                weight += change.reshape(weight.shape).to(weight.dtype)
            self._shift(offset, shift.flatten())
        elif offset is not None:
            self._shift(offset, _mean(residuals, channel=_channel(new, residuals[0])))
        if weight is not None or offset is not None:
            self.done.append(label)

    def _solved(
        self, node: Call, weight: Tensor, inputs: list[Tensor], residuals: list[Tensor], *, intercept: bool
    ) -> tuple[Tensor, Tensor]:
        """Changes of weights and bias, from all batches; the ridge, if none was given, from held-out ones."""
        held = slice(_HELD - 1, None, _HELD)
        if self.ridge is not None or not inputs[held]:
            ridge = _RIDGE if self.ridge is None else self.ridge
            return fitted(node, weight, inputs, residuals).solve(ridge=ridge, intercept=intercept)
        rest = [i for i in range(len(inputs)) if i % _HELD != _HELD - 1]
        most = fitted(node, weight, [inputs[i] for i in rest], [residuals[i] for i in rest])
        other = fitted(node, weight, inputs[held], residuals[held])
        return (most + other).solve(ridge=most.ridge(other, intercept=intercept), intercept=intercept)

    def _kept(self, y: Tensor, node: Call, scale: Tensor | None) -> Tensor:
        """The original's output where the pruned one has elements, times what the surgery scaled it by."""
        for d, axis in enumerate(self.axes.axes_of(node)):
            resolved = self.axes.resolve(axis)
            stays = None if resolved is None else np.flatnonzero(self.alive[resolved].all(1))
            if stays is not None and len(stays) < y.shape[d]:
                y = y.index_select(d, torch.from_numpy(stays).to(y.device))
        channel = _channel(node, y)
        if scale is None or len(scale) != y.shape[channel] or bool((scale == 1).all()):
            return y
        return y * scale.view([-1 if d == channel else 1 for d in range(y.dim())])

    def _weight(self, node: Call, label: str) -> Tensor | None:
        """The weight to refit, or None (then the reason is in `left`)."""
        if self.how != "least-squares":
            return None
        if operator_of(node) not in _FITTED:
            self.left[label] = "transposed convolutions are not refitted; their bias is"
            return None
        weight = self._own(node.args[1])
        if weight is None:
            self.left[label] = "its weight is computed or shared and not refitted; its bias is"
        return weight

    def _offset(self, node: Call) -> tuple[Tensor, int] | None:
        """What can take a constant, and with which sign: a bias, or the running mean of the norm behind."""
        bias = self._own(argument(node, 2, "bias"))
        if bias is not None:
            return bias, 1
        users = list(node.users)
        if len(users) == 1 and "batch_norm" in operator_of(users[0]) and users[0].args[0] is node:
            mean = self._own(users[0].args[3])
            return None if mean is None else (mean, -1)
        return None

    def _shift(self, offset: tuple[Tensor, int] | None, by: Tensor) -> None:
        if offset is not None:
            with torch.no_grad():
                offset[0].add_(by.to(offset[0].dtype), alpha=offset[1])

    def _own(self, x: Any) -> Tensor | None:
        """A parameter or buffer of the model that this one call uses, else None."""
        if not isinstance(x, fx.Node) or x.name not in self.traced.tensors or self.uses[x.name] != 1:
            return None
        tensor = self.traced.tensors[x.name]
        held = [t for t in self.traced.tensors.values() if t is tensor]
        return tensor.detach() if len(held) == 1 else None


def _channel(node: Call, y: Tensor) -> int:
    return y.dim() - 1 if operator_of(node) == "linear" else 1


def _moved(residuals: list[Tensor], wanted: list[Tensor]) -> bool:
    most = max(float(r.abs().max()) for r in residuals)
    return most > _MOVED * max(float(w.std()) for w in wanted)


def _mean(residuals: list[Tensor], *, channel: int) -> Tensor:
    rows = [r.double().movedim(channel, -1).flatten(0, -2) for r in residuals]
    total: Tensor = sum((r.sum(0) for r in rows[1:]), rows[0].sum(0))
    return total / sum(len(r) for r in rows)
