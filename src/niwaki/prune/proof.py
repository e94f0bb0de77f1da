"""Proof of surgery: a pruned model computes what the original does when dropped channels count for nothing.

The reference (`reference.py`) shares nothing with the surgery. An untrained or freshly made network proves
little: a residual block whose last norm scale starts at zero folds away, and even scrambled indices pass. So
the proof is run twice: on the weights as they are, and on a copy with redrawn scales and statistics.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.prune.reference import NoReference, run
from niwaki.surgery import Axes, Keep, Traced, shrink
from niwaki.surgery.trace import quiet, with_weights

TOLERANCE = 1e-4
LEAST_DEVIATION = 1e-2
LEAST_VARIATION = 1e-4


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The outcome of one comparison.

    Args:
        error: largest absolute difference of any output, over its deviation.
        deviation: standard deviation of the original's output; up to 1e-2 the comparison proves nothing.
        variation: the part of it between images (an output's constant part does not count); up to 1e-4 the
            comparison proves nothing either.
        reason: why there is no number, if so.
    """

    error: float
    deviation: float
    variation: float
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether the error is at most 1e-4 on an output that varies."""
        varies = self.deviation > LEAST_DEVIATION and self.variation > LEAST_VARIATION
        return self.error <= TOLERANCE and varies

    def to_json(self) -> dict[str, Any]:
        """Plain values; an error that is not a number is None."""
        finite = self.error < float("inf")
        return {**asdict(self), "error": self.error if finite else None, "ok": self.ok}


def compare(
    traced: Traced, model: nn.Module, pruned: nn.Module, kept: dict[str, dict[int, list[int]]], example: Any
) -> Proof:
    """The pruned model held against the masked original on the same inputs.

    Args:
        traced: `trace(model, ...)`, with the model's present weights.
        kept: kept indices of every parameter and buffer, as the surgery was asked for them.
        example: an input `[B, ...]` or tuple of inputs.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    before = _outputs(model, inputs)
    spread: dict[str, Any] = {
        "deviation": min((float(o.double().std()) for o in before if o.numel() > 1), default=0.0),
        "variation": min((_variation(o) for o in before if o.dim()), default=0.0),
    }
    try:
        wanted = run(traced, kept, inputs)
    except NoReference as none:
        return Proof(error=float("inf"), **spread, reason=str(none))
    try:
        got = _outputs(pruned, inputs)
    except Exception as error:  # a wrong surgery may fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Proof(error=float("inf"), **spread, reason=f"the pruned model fails: {reason}")
    return Proof(error=_error(got, wanted, before), **spread)


def _error(got: list[Tensor], wanted: list[Tensor], before: list[Tensor]) -> float:
    if [g.shape for g in got] != [w.shape for w in wanted]:
        return float("inf")
    worst = 0.0
    for g, w, original in zip(got, wanted, before, strict=True):
        scale = float(original.double().std()) if original.numel() > 1 else 1.0
        error = float((g.double() - w.double()).abs().max()) / max(scale, 1e-12)
        worst = max(worst, error if error == error else float("inf"))
    return worst


def _variation(output: Tensor) -> float:
    """Root mean square of an output `[B, ...]` around its mean over the images."""
    return float(output.double().var(dim=0, unbiased=False).mean().sqrt())


def _outputs(model: nn.Module, inputs: Sequence[Any]) -> list[Tensor]:
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), quiet():
            out = model(*inputs)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return [x for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, Tensor)]


def redrawn(model: nn.Module, example: Any, *, seed: int = 0) -> nn.Module:
    """A copy whose every part counts: norm and layer scales and all-zero parameters drawn from U(0.5, 1.5),
    batch statistics taken from `example`."""
    drawn = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(seed)
    scales = {id(m.weight) for m in drawn.modules() if _is_norm(m) and isinstance(m.weight, Tensor)}
    with torch.no_grad():
        for name, parameter in drawn.named_parameters():
            layer_scale = parameter.dim() <= 1 and "gamma" in name.rsplit(".", 1)[-1]
            if id(parameter) in scales or layer_scale or not bool(parameter.any()):
                parameter.copy_(torch.rand(parameter.shape, generator=draw) + 0.5)
        _take_statistics(drawn, example)
    return drawn.eval()


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and hasattr(module, "weight")


def _take_statistics(model: nn.Module, example: Any) -> None:
    """Running statistics of batch norms from one batch, everything else in eval mode."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not any(m.track_running_stats for m in norms):
        return
    model.eval()
    momenta = [m.momentum for m in norms]
    for module in norms:
        module.train()
        module.momentum = 1.0
    inputs = example if isinstance(example, tuple) else (example,)
    with quiet():
        model(*inputs)
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum


def prove(model: nn.Module, axes: Axes, keep: Keep, example: Any, *, seed: int = 0) -> tuple[Proof, Proof]:
    """Two proofs of the same surgery: on redrawn weights, and on the model's own.

    Args:
        model: the original.
        axes: its analysis.
        keep: atoms that stay, by group.
        example: inputs of at least four images that vary (statistics are taken from them).
    """
    drawn = redrawn(model, example, seed=seed)
    kept = axes.kept_indices(keep)

    def proof(net: nn.Module) -> Proof:
        small = shrink(net, axes, keep, example=example)
        return compare(with_weights(axes.traced, net), net, small, kept, example)

    return proof(drawn), proof(model)
