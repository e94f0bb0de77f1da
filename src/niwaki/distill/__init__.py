"""Learning from another model: its outputs (`distill.logits`), what named modules give (`distill.features`),
where its attention lies (`distill.attention`)."""

from __future__ import annotations

from niwaki.distill.attention_maps import attention
from niwaki.distill.feature_maps import features
from niwaki.distill.hinton import logits

__all__ = ["attention", "features", "logits"]
