"""Segmentation networks: as large as their papers say, pruned with proof, exported; those of libraries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from niwaki import Segment, Spec, nets, prune, runtimes, surgery
from niwaki.errors import ModelError
from niwaki.nets.blocks import resize
from niwaki.nets.sfnet import warped

torch.set_num_threads(1)
OWN = tuple(nets.SEGMENTATION)
# M parameters and GMACs at 512 x 1024 with 19 classes (LEDNet's with 20): what papers print, and how far we are
# off. Fast-SCNN's paper counts no MACs; SFNet's 243 G are of 1024 x 2048; BiSeNetV2's counts no parameters, and
# its 21.15 G are fewer than its table of layers gives (24.6 G, of which the head's 1024 channels are 9.7 G).
PAPERS = {
    "bisenet_v2": (None, 21.15, 0.17),
    "fast_scnn": (1.11, None, 0.03),
    "lednet": (0.94, 11.5, 0.03),
    "sfnet": (12.87, 243 / 4, 0.001),
}


def counted(name: str, classes: int) -> tuple[float, float]:
    """Millions of parameters, and 10^9 MACs at 512 x 1024, without a number computed."""
    with torch.device("meta"):
        model, image = nets.build(f"niwaki:{name}", classes=classes).eval(), torch.empty(1, 3, 512, 1024)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(image)
    return sum(p.numel() for p in model.parameters()) / 1e6, counter.get_total_flops() / 2e9


@pytest.mark.parametrize("name", sorted(PAPERS))
def test_networks_are_as_large_as_their_papers_say(name: str) -> None:
    wanted_params, wanted_macs, off = PAPERS[name]
    params, macs = counted(name, 20 if name == "lednet" else 19)
    if wanted_params is not None:
        assert params == pytest.approx(wanted_params, rel=off)
    if wanted_macs is not None:
        assert macs == pytest.approx(wanted_macs, rel=off)


def test_the_light_context_network_is_light() -> None:
    params, macs = counted("light_context", 19)
    assert params < 0.26 and macs < 1.1 < counted("fast_scnn", 19)[1]


@pytest.mark.parametrize("name", OWN)
def test_networks_give_maps_of_any_size_and_name_their_auxiliary_modules(name: str) -> None:
    model = nets.build(f"niwaki:{name}", classes=5, channels=1).eval()
    with torch.no_grad():
        out = model(torch.randn(2, 1, 72, 104))
    assert out.shape[:2] == (2, 5) and Segment(tuple("abcde")).fits((1, *out.shape[1:]))
    modules = dict(model.named_modules())
    assert model.auxiliary and set(model.auxiliary) <= set(modules)


HEAVY = ("bisenet_v2", "sfnet")  # analysing their graphs takes longest


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.bench] * (n in HEAVY)) for n in OWN])
def test_networks_are_pruned_with_proof(name: str) -> None:
    torch.manual_seed(0)
    model, example = nets.build(f"niwaki:{name}", classes=4).eval(), torch.randn(1, 3, 64, 96)
    axes = surgery.analyse(model, example)
    keep = prune.choose(axes, prune.score(model, axes), ratio=0.5)
    done = prune.cut(model, axes, keep, example=example)
    assert done.result == "module" and not done.left and done.error < 1e-4
    assert axes.cost(done.keep).macs < 0.45 * axes.cost({}).macs
    with torch.no_grad():
        assert done.model(example).shape == model(example).shape


def exported(name: str, folder: Path) -> None:
    """Float and int8 files, each compared with the model by its export."""
    torch.manual_seed(0)
    task, spec = Segment(tuple("abcd")), Spec(size_hw=(64, 96))
    model, onnx = nets.build(name, classes=4).eval(), runtimes.load("onnx")
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 96, 3), dtype=np.uint8)
    for precision in ("float32", "int8"):
        path = onnx.export(
            model, spec, folder / f"{precision}.onnx", task=task, precision=precision, calib=images
        )
        given = onnx.open(path)(images[:3])
        assert given.shape == (3, 4, 64, 96)
        np.testing.assert_allclose(given.sum(1), 1, atol=1e-4)


@pytest.mark.slow
def test_fast_scnn_is_exported(tmp_path: Path) -> None:
    exported("niwaki:fast_scnn", tmp_path)


@pytest.mark.bench
@pytest.mark.parametrize(
    "name",
    [
        *(f"niwaki:{own}" for own in OWN if own != "fast_scnn"),
        *("smp:unet-resnet18", "smp:pspnet-resnet18", "smp:deeplabv3plus-resnet18", "torchvision:fcn_resnet50"),
    ],
)
def test_every_network_is_exported(name: str, tmp_path: Path) -> None:
    exported(name, tmp_path)


def test_a_flow_of_nothing_is_bilinear_upsampling() -> None:
    coarse = torch.randn(2, 3, 5, 7)
    still = warped(coarse, torch.zeros(2, 2, 15, 14))
    torch.testing.assert_close(still, resize(coarse, torch.empty(1, 1, 15, 14)), atol=1e-5, rtol=1e-4)
    shifted = torch.zeros(2, 2, 5, 7)
    shifted[:, 0] = 1.0
    torch.testing.assert_close(warped(coarse, shifted)[..., :-1], coarse[..., 1:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["smp:unet-resnet18", "torchvision:lraspp_mobilenet_v3_large"])
def test_networks_of_libraries_give_maps(name: str) -> None:
    model = nets.build(name, classes=3, channels=1).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 1, 64, 96)).shape == (1, 3, 64, 96)


@pytest.mark.parametrize(
    "name", ["smp:unet", "smp:vnet-resnet18", "smp:unet-nonesuch", "torchvision:resnet18", "smp:unet-vgg11x"]
)
def test_networks_that_libraries_lack(name: str) -> None:
    with pytest.raises(ModelError) as found:
        nets.build(name, classes=3)
    assert found.value.code == "model-unknown"


def test_no_published_weights_of_libraries() -> None:
    with pytest.raises(ModelError) as found:
        nets.build("smp:unet-resnet18", classes=3, pretrained=True)
    assert found.value.code == "model-pretrained"


def test_a_network_of_labels_is_refused_where_there_are_masks() -> None:
    from niwaki.job.work import check_output

    task, spec = Segment(("a", "b", "c")), Spec(size_hw=(32, 32))
    with pytest.raises(ModelError, match="segmentation network") as found:
        check_output(nets.build("niwaki:small", classes=3), spec, task)
    assert found.value.code == "model-output"
    check_output(nn.Conv2d(3, 3, 1), spec, task)
