"""Learning from another model: `distill.logits`."""

from __future__ import annotations

from niwaki.distill.hinton import logits

__all__ = ["logits"]
