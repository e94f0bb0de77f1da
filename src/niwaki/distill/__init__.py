"""Learning from another model: `distill.logits`."""

from __future__ import annotations

from niwaki.distill.logits import logits

__all__ = ["logits"]
