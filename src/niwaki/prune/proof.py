"""Proof of surgery: a pruned model computes what the original does when dropped channels count for nothing.

The reference (`reference.py`) shares nothing with the surgery. An untrained or freshly made network proves
little: a residual block whose last norm scale starts at zero folds away, and even scrambled indices pass. So
the proof is run twice: on the weights as they are, and on a copy with redrawn scales and statistics.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.prune.reference import NoReference, run
from niwaki.surgery import Axes, Keep, Traced, rewrite, shrink
from niwaki.surgery.inputs import arguments, few, leaves, mapped, outputs
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
        precision: what the error was found in: float64 where float32 was over 1e-4, for a deep network can make
            rounding errors that large; a wrong cut is as wrong in float64.
    """

    error: float
    deviation: float
    variation: float
    reason: str = ""
    precision: str = "float32"

    @property
    def ok(self) -> bool:
        """Whether the error is at most 1e-4 on an output that varies."""
        return self.error <= TOLERANCE and self.varies

    @property
    def varies(self) -> bool:
        """Whether the output changes enough for the comparison to prove anything."""
        return self.deviation > LEAST_DEVIATION and self.variation > LEAST_VARIATION

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
    before = _outputs(model, example)
    spread: dict[str, Any] = dict(zip(("deviation", "variation"), _spread(before), strict=True))
    try:
        wanted = run(traced, kept, leaves(example))
    except NoReference as none:
        return Proof(error=float("inf"), **spread, reason=str(none))
    try:
        got = _outputs(pruned, example)
    except Exception as error:  # a wrong surgery may fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Proof(error=float("inf"), **spread, reason=f"the pruned model fails: {reason}")
    found, exact = _error(got, wanted, before), None
    if TOLERANCE < found < float("inf"):  # wrong, or rounding errors that a deep network makes larger
        exact = _in_double(traced, model, pruned, kept, example)
    if exact is None:
        return Proof(error=found, **spread)
    return Proof(error=exact, precision="float64", **spread)


def _in_double(traced: Traced, model: nn.Module, pruned: nn.Module, kept: Any, example: Any) -> float | None:
    """The error of the same comparison in float64; None where the network does not run in it."""
    net, small = copy.deepcopy(model).double(), copy.deepcopy(pruned).double()
    again = with_weights(traced, net)
    tensors = {n: t.double() if t.is_floating_point() else t for n, t in again.tensors.items()}
    try:
        inputs = mapped(few(example), _doubled)
        wanted = run(replace(again, tensors=tensors), kept, leaves(inputs))
        return _error(_outputs(small, inputs), wanted, _outputs(net, inputs))
    except Exception:  # a forward may name float32 itself
        return None


def _doubled(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


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


def _outputs(model: nn.Module, example: Any) -> list[Tensor]:
    with quiet():
        return outputs(model, example)


def redrawn(model: nn.Module, example: Any, *, seed: int = 0) -> nn.Module:
    """A copy whose every part counts: norm and layer scales and constant parameters drawn from U(0.5, 1.5),
    weights that are too small to be seen in the output made larger, batch statistics taken from `example`."""
    drawn = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(seed)
    scales = {id(m.weight) for m in drawn.modules() if _is_norm(m) and isinstance(m.weight, Tensor)}
    with torch.no_grad():
        for name, parameter in drawn.named_parameters():
            layer_scale = parameter.dim() <= 1 and "gamma" in name.rsplit(".", 1)[-1]
            if id(parameter) in scales or layer_scale or bool((parameter == parameter.flatten()[:1]).all()):
                parameter.copy_(torch.rand(parameter.shape, generator=draw) + 0.5)
            elif parameter.dim() > 1:
                parameter.mul_(_louder(parameter))
        _take_statistics(drawn, example)
        deviation, variation = _spread(_outputs(drawn, example))
        if deviation < 2 * LEAST_DEVIATION or variation < 2 * LEAST_VARIATION:
            _widen(drawn.eval(), example)
            _take_statistics(drawn, example)
    return drawn.eval()


def _spread(out: list[Tensor]) -> tuple[float, float]:
    """The least deviation of the outputs, and the least variation between images."""
    deviation = min((float(o.double().std()) for o in out if o.numel() > 1), default=0.0)
    return deviation, min((_variation(o) for o in out if o.dim()), default=0.0)


def _widen(model: nn.Module, example: Any) -> None:
    """Convolutions and linear layers scaled, one after the other, to outputs of deviation 1: without norms, a
    fresh network's signal fades from layer to layer until nothing is left to prove anything on."""

    def scale(module: Any, _: Any, out: Tensor) -> Tensor | None:
        spread = float(out.std()) if out.numel() > 1 else 0.0
        if module in done or not 0 < spread < float("inf"):
            return None
        done.add(module)
        module.weight.div_(spread)
        if module.bias is not None:
            module.bias.div_(spread)
        return out / spread

    done: set[nn.Module] = set()
    layers = (nn.modules.conv._ConvNd, nn.Linear)
    hooks = [
        module.register_forward_hook(scale)
        for module in model.modules()
        if isinstance(module, layers) and "weight" in module._parameters
    ]
    _outputs(model, example)
    for hook in hooks:
        hook.remove()


def _louder(weight: Tensor) -> float:
    """The factor that makes a quiet weight `[out, ...]` pass on the deviation of what it gets; else 1.

    A transformer's first weights deviate by 0.02: scrambled, they move its output by less than rounding does.
    """
    wanted = (weight[0].numel() or 1) ** -0.5
    deviation = float(weight.double().square().mean().sqrt())
    return wanted / deviation if 0 < deviation < 0.5 * wanted else 1.0


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
    args, kwargs = arguments(example)
    with quiet():
        model(*args, **kwargs)
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
        if module.running_var is not None:  # a channel that never varies would blow up rounding errors
            module.running_var.clamp_(min=1e-2 * float(module.running_var.mean()))


def prove(
    model: nn.Module, axes: Axes, keep: Keep, example: Any, *, seed: int = 0, result: str = "module"
) -> tuple[Proof, Proof]:
    """Two proofs of the same surgery: on redrawn weights, and on the model's own.

    Args:
        model: the original.
        axes: its analysis.
        keep: atoms that stay, by group.
        example: inputs of at least four images that vary (statistics are taken from them).
        result: "module", the model's own class, or "graph".
    """
    drawn = redrawn(model, example, seed=seed)
    return proven(model, axes, keep, example, drawn=drawn, result=result)[0]


def proven(
    model: nn.Module, axes: Axes, keep: Keep, example: Any, *, drawn: nn.Module, result: str = "module"
) -> tuple[tuple[Proof, Proof], nn.Module]:
    """`prove`, and the cut model that it was about; `drawn` is `redrawn(model, example)`.

    The proof that counts is the one on redrawn weights, from all images; on the model's own two are enough to
    see that the same cut was made.
    """
    kept = axes.kept_indices(keep)
    smaller: nn.Module
    small: nn.Module
    if result == "graph":
        smaller = rewrite(drawn, axes, keep)
        small = rewrite(model, axes, keep, example=example)
    else:
        smaller = shrink(drawn, axes, keep, example=example, checked=True)
        small = shrink(model, axes, keep, like=smaller)
    first, second = (
        compare(with_weights(axes.traced, net), net, cut, kept, inputs)
        for net, cut, inputs in ((drawn, smaller, example), (model, small, few(example)))
    )
    return (first, second), small
