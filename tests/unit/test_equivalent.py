"""Antialiased resizing as matrix products: torch's own numbers, and left alone where it is another function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from niwaki.runtimes.equivalent import Equivalents

torch.set_num_threads(1)


@pytest.mark.parametrize("runtime", ["LiteRT", "ExecuTorch"])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(10, 7), (4, 3), (17, 31), (10, 20), 6])
def test_antialiased_resizing_is_torchs(
    runtime: str, mode: str, size: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(2, 3, 10, 7, generator=torch.Generator().manual_seed(0))
    knobs: dict[str, Any] = {"mode": mode, "align_corners": None, "antialias": True}
    wanted = functional.interpolate(x, size, **knobs)
    monkeypatch.setattr(torch._C._nn, "_upsample_bicubic2d_aa", None)  # the other form does without
    monkeypatch.setattr(torch._C._nn, "_upsample_bilinear2d_aa", None)
    with Equivalents(runtime):
        got = functional.interpolate(x, size=size, **knobs)
    torch.testing.assert_close(got, wanted, atol=5e-6, rtol=0)


@pytest.mark.parametrize(
    "knobs",
    [
        {"size": (5, 5), "mode": "bilinear", "align_corners": True, "antialias": True},
        {"scale_factor": 0.6, "mode": "bilinear", "antialias": True},
        {"size": (5, 5), "mode": "bilinear"},
    ],
)
def test_other_resizing_is_left_alone(knobs: dict[str, Any]) -> None:
    x = torch.randn(1, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    with Equivalents("ExecuTorch"):
        got = functional.interpolate(x, **knobs)
    assert torch.equal(got, functional.interpolate(x, **knobs))
