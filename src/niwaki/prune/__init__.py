"""Structured pruning: scores, choice of widths, the cut itself and its proof.

    axes = surgery.analyse(model, example)
    scores = prune.score(model, axes, by="l2")
    keep = prune.choose(axes, scores, ratio=0.3)
    small = surgery.shrink(model, axes, keep)
    proofs = prune.prove(model, axes, keep, example)

`prune.channels` is all of it as one step.
"""

from niwaki.prune.choose import best, choose
from niwaki.prune.proof import Proof, compare, prove, redrawn
from niwaki.prune.scores import SCORES, score
from niwaki.prune.step import Pruned, channels, cut, drawn

__all__ = [
    "SCORES",
    "Proof",
    "Pruned",
    "best",
    "channels",
    "choose",
    "compare",
    "cut",
    "drawn",
    "prove",
    "redrawn",
    "score",
]
