"""Surgery: which channels, heads and units of a model can go, and taking them out.

`analyse` reads a model's exported graph, `shrink` cuts the user's own module, `rewrite` the graph itself; none
knows why a channel goes (that is `niwaki.prune`). `difference` writes a changed structure as data.
"""

from niwaki.surgery.axes import Axes, Group, Keep, Kept, analyse
from niwaki.surgery.shrink import attention_factors, rewrite, shrink, smaller
from niwaki.surgery.trace import Traced, trace

__all__ = [
    "Axes",
    "Group",
    "Keep",
    "Kept",
    "Traced",
    "analyse",
    "attention_factors",
    "rewrite",
    "shrink",
    "smaller",
    "trace",
]
