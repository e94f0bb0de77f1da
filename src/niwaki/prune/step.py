"""The pruning step: score, choose, cut, prove; groups that fail the proof are left whole and named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.errors import ModelError, ParityError
from niwaki.evaluate import Readable
from niwaki.prune import scores
from niwaki.prune.choose import Ratios, choose
from niwaki.prune.proof import Proof, prove
from niwaki.spec import Spec
from niwaki.surgery import Axes, Keep, analyse, shrink
from niwaki.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A proven cut.

    Args:
        model: the smaller module, of the user's own class.
        keep: atoms that stayed, by group.
        proofs: on redrawn weights, and on the model's own.
        left: groups that failed alone and were left whole, each with the reason.
    """

    model: nn.Module
    keep: dict[str, list[int]]
    proofs: tuple[Proof, Proof]
    left: dict[str, str]

    @property
    def error(self) -> float:
        """The larger of the two proof errors."""
        return max(proof.error for proof in self.proofs)


def cut(model: nn.Module, axes: Axes, keep: Keep, *, example: Tensor | tuple[Any, ...]) -> Pruned:
    """The model without the atoms that `keep` leaves out, proven.

    Raises:
        ParityError: no subset of the groups passes the proof. [prune-proof]
    """
    example = varied(example)
    wanted = {name: list(kept) for name, kept in keep.items()}
    proofs, reason = _attempt(model, axes, wanted, example)
    left: dict[str, str] = {}
    if not _fine(proofs):
        left = _failing(model, axes, wanted, example)
        wanted = {name: kept for name, kept in wanted.items() if name not in left}
        proofs, reason = _attempt(model, axes, wanted, example)
    if proofs is None or not _fine(proofs):
        raise ParityError(
            f"prune: the proof of surgery fails, {reason}; expected an error of at most 1e-4. Please report "
            "the model; nothing was changed.",
            code="prune-proof",
        )
    small = shrink(model, axes, wanted, example=example)
    return Pruned(model=small, keep=wanted, proofs=proofs, left=left)


def varied(example: Tensor | tuple[Any, ...], *, images: int = 8) -> tuple[Any, ...]:
    """Proof inputs of at least `images` images: those given, or else drawn ones of the same shape.

    Drawn images differ in brightness, coarse structure and grain: with mere noise, a network that ends in a
    mean over pixels says nearly the same of all, and a proof on a constant output proves nothing.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    draw = torch.Generator().manual_seed(0)

    def grown(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dim() == 0 or not x.is_floating_point() or len(x) >= images:
            return x
        return drawn((images, *x.shape[1:]), draw).to(x)

    grown_inputs = tuple(grown(x) for x in inputs)
    same = {len(x) for x in grown_inputs if isinstance(x, Tensor) and x.dim()}
    return grown_inputs if len(same) == 1 else inputs


def drawn(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Random inputs float32 of a shape, structured where they are images `[B, C, H, W]`."""
    grain = torch.randn(shape, generator=draw)
    if len(shape) != 4:
        return grain
    level = torch.randn((*shape[:2], 1, 1), generator=draw)
    coarse = torch.randn((*shape[:2], 4, 4), generator=draw)
    return 0.5 * grain + level + nn.functional.interpolate(coarse, shape[2:], mode="bilinear")


def _fine(proofs: tuple[Proof, Proof] | None) -> bool:
    """The redrawn proof must hold and vary; on the model's own weights the error must be small, though an
    untrained output may be nearly constant."""
    return proofs is not None and proofs[0].ok and proofs[1].error <= 1e-4


def _attempt(model: nn.Module, axes: Axes, keep: Keep, example: Any) -> tuple[tuple[Proof, Proof] | None, str]:
    try:
        proofs = prove(model, axes, keep, example)
    except ModelError as error:
        return None, str(error)
    worst = max(proofs, key=lambda proof: proof.error)
    return proofs, worst.reason or f"error {worst.error:.1e} on a deviation of {worst.deviation:.1e}"


def _failing(model: nn.Module, axes: Axes, keep: Keep, example: Any) -> dict[str, str]:
    """Groups that fail when they alone are cut."""
    out: dict[str, str] = {}
    for name, kept in keep.items():
        proofs, reason = _attempt(model, axes, {name: kept}, example)
        if not _fine(proofs):
            out[name] = reason
    return out


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
        task, spec, calib: the labelled images that a score in `prune.DATA` is made from; others need none.
    Raises:
        PlanError: a knob is out of range, or a score lacks its images. [prune-score, prune-evidence, ...]
        ModelError: the model cannot be exported or cut. ParityError: the proof fails. [prune-proof]
    """
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
    return cut(model, axes, keep, example=example).model
