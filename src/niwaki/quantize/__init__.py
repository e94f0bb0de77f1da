"""Quantization-aware training: `quantize.qat`, `quantize.stages`; what a layer's bits cost: `quantize.noise`.

graphs.py      a recorded graph read and rewritten, batch norms folded
places.py      which values and weights are rounded
grids.py       the scales and zero points that training starts from
insert.py      the graph with fake quantizers in it
lsq.py         training it, scales and all
order.py       the noise of each layer
multistage.py  the least sensitive layers first
"""

from __future__ import annotations

from niwaki.quantize.lsq import qat
from niwaki.quantize.multistage import stages
from niwaki.quantize.order import noise

__all__ = ["noise", "qat", "stages"]
