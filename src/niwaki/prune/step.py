"""The pruning step: score, choose, cut, prove. Where the class does not follow a cut its graph does; groups
that fail the proof even so are left whole and named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.errors import ModelError, ParityError, PlanError
from niwaki.evaluate import Readable
from niwaki.prune import scores
from niwaki.prune.choose import Ratios, choose
from niwaki.prune.compensate import calibration
from niwaki.prune.compensate import compensate as compensated
from niwaki.prune.proof import TOLERANCE, Proof, proven, redrawn
from niwaki.spec import Spec
from niwaki.surgery import Axes, Keep, analyse
from niwaki.surgery.inputs import leaves, mapped
from niwaki.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A proven cut.

    Args:
        model: the smaller module.
        result: "module", the user's own class; or "graph", its graph with the same parameter names, for a class
            that could not be mended.
        why: what the class does wrong at its new sizes, where the result is a graph.
        keep: atoms that stayed, by group.
        proofs: on redrawn weights, and on the model's own.
        left: groups that failed alone and were left whole, each with the reason.
    """

    model: nn.Module
    keep: dict[str, list[int]]
    proofs: tuple[Proof, Proof]
    left: dict[str, str]
    result: str = "module"
    why: str = ""

    @property
    def error(self) -> float:
        """The larger of the two proof errors."""
        return max(proof.error for proof in self.proofs)


def cut(model: nn.Module, axes: Axes, keep: Keep, *, example: Any, result: str = "auto") -> Pruned:
    """The model without the atoms that `keep` leaves out, proven.

    Args:
        example: an input `[B, ...]`, or a tuple or dict of inputs.
        result: "module": the user's own class only; "graph": its graph only; "auto": the class wherever it
            passes the proof, the graph where that cuts more groups.
    Raises:
        PlanError: another result. [prune-result]
        ParityError: no subset of the groups passes the proof. [prune-proof]
    """
    if result not in ("auto", "module", "graph"):
        raise PlanError(
            f"prune: result must be auto, module or graph, got {result!r}.",
            code="prune-result",
        )
    wanted = {name: list(kept) for name, kept in keep.items()}
    inputs = varied(example)
    trial = partial(_attempt, model, axes, drawn=redrawn(model, inputs), example=inputs)
    first = "graph" if result == "graph" else "module"
    done = trial(wanted, result=first)
    if done.fine:
        return done.pruned(left={})
    if done.proofs is not None and not done.proofs[0].varies:
        raise ParityError(
            f"prune: nothing can be proven on an output that hardly varies ({done.reason}). Give an example of "
            "several images that differ, or a trained model; nothing was changed.",
            code="prune-proof",
        )
    why = done.reason
    if result == "auto":
        other = trial(wanted, result="graph")
        if other.fine:
            return other.pruned(left={}, why=why)
    best = _largest(trial, wanted, first)
    if result == "auto" and best.left:
        other_best = _largest(trial, wanted, "graph")
        if len(other_best.left) < len(best.left) and other_best.done.fine:
            return other_best.done.pruned(left=other_best.left, why=why)
    if not best.done.fine:
        raise ParityError(
            f"prune: the proof of surgery fails, {best.done.reason}; expected an error of at most 1e-4. Please "
            "report the model; nothing was changed.",
            code="prune-proof",
        )
    return best.done.pruned(left=best.left)


def varied(example: Any, *, images: int = 4) -> Any:
    """Proof inputs of at least `images` images: those given, or else drawn ones of the same shape.

    Drawn images differ in brightness, coarse structure and grain: with mere noise, a network that ends in a
    mean over pixels says nearly the same of all, and a proof on a constant output proves nothing.
    """
    draw = torch.Generator().manual_seed(0)

    def grown(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dim() == 0 or not x.is_floating_point() or len(x) >= images:
            return x
        return drawn((images, *x.shape[1:]), draw).to(x)

    grown_example = mapped(example, grown)
    same = {len(x) for x in leaves(grown_example) if isinstance(x, Tensor) and x.dim()}
    return grown_example if len(same) == 1 else mapped(example, lambda x: x)


def drawn(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Random inputs float32 of a shape, structured where they are images `[B, C, H, W]`."""
    grain = torch.randn(shape, generator=draw)
    if len(shape) != 4:
        return grain
    level = torch.randn((*shape[:2], 1, 1), generator=draw)
    coarse = torch.randn((*shape[:2], 4, 4), generator=draw)
    return 0.5 * grain + level + nn.functional.interpolate(coarse, shape[2:], mode="bilinear")


@dataclass(frozen=True)
class _Attempt:
    """One cut, tried."""

    keep: dict[str, list[int]]
    result: str
    model: nn.Module | None
    proofs: tuple[Proof, Proof] | None
    reason: str

    @property
    def fine(self) -> bool:
        """The redrawn proof must hold and vary; on the model's own weights the error must be small, though an
        untrained output may be nearly constant."""
        return self.proofs is not None and self.proofs[0].ok and self.proofs[1].error <= TOLERANCE

    def pruned(self, *, left: dict[str, str], why: str = "") -> Pruned:
        """What `cut` gives back."""
        assert self.model is not None and self.proofs is not None
        return Pruned(
            model=self.model,
            keep=self.keep,
            proofs=self.proofs,
            left=left,
            result=self.result,
            why=why,
        )


def _attempt(
    model: nn.Module, axes: Axes, keep: dict[str, list[int]], *, drawn: nn.Module, example: Any, result: str
) -> _Attempt:
    try:
        proofs, small = proven(model, axes, keep, example, drawn=drawn, result=result)
    except ModelError as error:
        return _Attempt(keep, result, None, None, str(error))
    worst = max(proofs, key=lambda proof: proof.error)
    reason = worst.reason or f"error {worst.error:.1e} on a deviation of {worst.deviation:.1e}"
    return _Attempt(keep, result, small, proofs, reason)


@dataclass(frozen=True)
class _Best:
    """The most groups that can be cut together, and the others with what fails when they go."""

    done: _Attempt
    left: dict[str, str]


def _largest(trial: Callable[..., _Attempt], keep: dict[str, list[int]], result: str) -> _Best:
    left = _failing(trial, keep, result)
    rest = {name: kept for name, kept in keep.items() if name not in left}
    return _Best(trial(rest, result=result), left)


def _failing(trial: Callable[..., _Attempt], keep: dict[str, list[int]], result: str) -> dict[str, str]:
    """Groups that fail when they alone are cut, found by halving: those of a half that passes need no trial."""
    out: dict[str, str] = {}
    halves = [dict(part) for part in _halved(list(keep.items()))]
    while halves:
        part = halves.pop()
        done = trial(part, result=result)
        if done.fine:
            continue
        if len(part) == 1:
            out[next(iter(part))] = done.reason
        else:
            halves += [dict(half) for half in _halved(list(part.items()))]
    return {name: out[name] for name in keep if name in out}


def _halved(items: list[Any]) -> list[list[Any]]:
    middle = (len(items) + 1) // 2
    return [half for half in (items[middle:], items[:middle]) if half]


def channels(
    model: nn.Module,
    *,
    example: Tensor | tuple[Any, ...],
    ratio: float = 0.5,
    score: str = "l2",
    scope: str = "local",
    normalise: str = "mean",
    ratios: Ratios = (),
    multiple: int = 1,
    min_width: float = 0.1,
    skip: Sequence[str] = (),
    widths: Mapping[str, int] | None = None,
    compensate: str = "none",
    task: Task | None = None,
    spec: Spec | None = None,
    calib: Readable | None = None,
) -> nn.Module:
    """The model with a share of its channels, heads and hidden units removed: its own class, smaller, proven.

    Inputs, outputs and the head's classes are never touched. The given model is not changed.

    Args:
        example: an input `[B, ...]`, or a tuple of inputs.
        ratio: share of each group's atoms that goes, 0 to below 1.
        score: criterion, one of `prune.SCORES`.
        scope: rank within each group ("local"), over all ("global") or over groups of one kind ("isomorphic").
        normalise: how groups are made comparable, one of `prune.NORMALISE`; docs/scores.md says when which.
        ratios: other shares by name pattern, `{"layer3.*": 0.7}` or `["layer3.*=0.7"]`.
        multiple: round kept counts up to a multiple of this.
        min_width: share of a group that always stays.
        skip: patterns of parameter names whose groups are left whole.
        widths: exact widths by group, which override the ratio.
        compensate: after the proof, fit what is left to the original's outputs: "none", "mean" (biases) or
            "least-squares" (docs/recovery.md).
        task, spec, calib: the labelled images that a score in `prune.DATA` is made from, and those that
            compensation is (512 of them at most); others need none.
    Raises:
        PlanError: a knob is out of range, or a score lacks its images. [prune-score, prune-evidence, ...]
        ModelError: the model cannot be exported or cut. ParityError: the proof fails. [prune-proof]
    """
    images = None
    if compensate != "none":
        images = calibration(calib, spec, device=next(model.parameters()).device)
    axes = analyse(model, example)
    evidence = scores.evidence_for(score, model, axes, task=task, spec=spec, samples=calib)
    keep = choose(
        axes,
        scores.score(model, axes, by=score, normalise=normalise, evidence=evidence),
        ratio=ratio,
        scope=scope,
        ratios=ratios,
        multiple=multiple,
        min_width=min_width,
        skip=skip,
        keep=widths,
    )
    made = cut(model, axes, keep, example=example)
    if images is None:
        return made.model
    return compensated(model, made.model, axes, made.keep, inputs=images, how=compensate).model
