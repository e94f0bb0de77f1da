"""Distillation of attention maps: the student learns to look where the teacher looks.

Shape letters: B batch, Q queries, S keys.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from niwaki import checkpoint as kept
from niwaki import loop
from niwaki.batches import Batch
from niwaki.distill import inside
from niwaki.evaluate import Readable
from niwaki.spec import Spec
from niwaki.tasks import Task


def attention(
    model: nn.Module,
    *,
    task: Task,
    spec: Spec,
    train: Readable,
    teacher: nn.Module,
    val: Readable | None = None,
    last: int = 1,
    beta: float = 1.0,
    checkpoint: Path | None = None,
    show: loop.Show | None = None,
    **training: Unpack[loop.Training],
) -> nn.Module:
    """A copy in eval mode, trained so that its attention lies where the teacher's does; `loop.steps` says how.

    A sample's loss is the task's plus `beta` times the Kullback-Leibler divergence of the teacher's maps from
    the student's, averaged over queries. Maps are averaged over heads, so heads may differ in number and size.
    Found are calls of `scaled_dot_product_attention`, and softmax over the last axis of a 4-d tensor; not those
    inside `nn.MultiheadAttention`. Model and teacher are untouched.

    Args:
        last: how many attention layers are compared, from the output back; 0 is all.
        beta: weight of the maps' distance beside the task's loss, above 0.
        checkpoint, show, training: as in `train.fit`.
    Raises:
        PlanError: a knob is out of range, a model has no such attention, or its maps differ in number or size.
            [train-knob, distill-layers, train-nonfinite]
        RunError: the checkpoint is damaged or another training's.
            [checkpoint-damaged, checkpoint-other]
    Source: Wang et al. 2020 (MiniLM), arXiv:2002.10957, eq. 4; there head by head.
    """
    inside.check("attention", beta, last >= 0, "last at least 0", last)
    wise = inside.ready(teacher)

    def maps(net: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        with _Attention() as seen:
            output = net(images)
        return output, seen.maps[-last:]

    own, told = (inside.tried(net, train, spec, maps) for net in (model, wise))
    if not own or [m.shape for m in own] != [m.shape for m in told]:
        raise inside.incomparable(
            f"attention maps of the student: {inside.shapes(own)}, of the teacher: {inside.shapes(told)}"
        )

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            _, told = maps(wise, batch.images)
        output, own = maps(model, batch.images)
        apart = [_attention_apart(a, b) for a, b in zip(own, told, strict=True)]
        return task.loss(output.float(), batch.target) + beta * torch.stack(apart).mean(0)

    return loop.run(
        model, objective, stage="distill attention", task=task, spec=spec, train=train, val=val,
        knobs=loop.Knobs(**training), checkpoint=checkpoint, show=show,
        settings={"last": last, "beta": beta, "teacher": kept.sizes(teacher)},
    )  # fmt: skip


def _attention_apart(own_BQS: Tensor, told_BQS: Tensor) -> Tensor:
    """`[B]`: divergence of the teacher's attention from the student's, averaged over queries, in nats."""
    a, b = (x.float().clamp_min(1e-9).log() for x in (own_BQS, told_BQS))
    return F.kl_div(a, b, reduction="none", log_target=True).sum(-1).mean(-1)


class _Attention(TorchFunctionMode):
    """Collects attention maps `[B, Q, S]`, averaged over heads, of all calls made inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            self.maps.append(_map_of(*args, **kwargs))
        elif name in ("softmax", "_softmax") and isinstance(out, Tensor) and out.dim() == 4:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if dim in (-1, 3):
                self.maps.append(out.mean(1))
        return out


def _map_of(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_: Any, **given: Any) -> Tensor:
    """The map that `scaled_dot_product_attention` works with and does not give."""
    if given.get("enable_gqa"):
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)
    scale = given.get("scale") or 1 / math.sqrt(q.shape[-1])
    logits = (q * scale) @ k.transpose(-2, -1)
    if given.get("is_causal"):
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if attn_mask is not None:
        hidden = attn_mask.dtype is torch.bool
        logits = logits.masked_fill(~attn_mask, -math.inf) if hidden else logits + attn_mask
    return logits.softmax(-1).flatten(1, -3).mean(1)
