"""Structured pruning: scores, choice of widths, the cut itself and its proof.

    axes = surgery.analyse(model, example)
    scores = prune.score(model, axes, by="l2")
    keep = prune.choose(axes, scores, ratio=0.3)
    small = surgery.shrink(model, axes, keep)
    proofs = prune.prove(model, axes, keep, example)

`prune.channels` is all of it as one step.
"""

from niwaki.prune.choose import SCOPES, best, choose
from niwaki.prune.compensate import Compensated, calibration, compensate
from niwaki.prune.evidence import Evidence, gather
from niwaki.prune.gates import gates
from niwaki.prune.proof import Proof, compare, prove, redrawn
from niwaki.prune.scores import DATA, NORMALISE, SCORES, Scores, evidence_for, score
from niwaki.prune.slimming import slimming
from niwaki.prune.step import Pruned, channels, cut, drawn

__all__ = [
    "DATA",
    "NORMALISE",
    "SCOPES",
    "SCORES",
    "Compensated",
    "Evidence",
    "Proof",
    "Pruned",
    "Scores",
    "best",
    "calibration",
    "channels",
    "choose",
    "compare",
    "compensate",
    "cut",
    "drawn",
    "evidence_for",
    "gates",
    "gather",
    "prove",
    "redrawn",
    "score",
    "slimming",
]
