"""Proof of surgery on one network of each family, at three widths, with mutants that must fail."""

from __future__ import annotations

import random

import pytest
import timm
import torch

from niwaki import nets, prune, surgery

FAMILIES = {
    "ResNet": lambda: timm.create_model("resnet10t", num_classes=10),
    "CIFAR ResNet": lambda: nets.build("niwaki:resnet20", classes=10),
    "VGG": lambda: timm.create_model("vgg11_bn", num_classes=10, mlp_ratio=1 / 16),
    "DenseNet": lambda: timm.models.densenet.DenseNet(growth_rate=16, block_config=(2, 3, 2), num_classes=10),
    "MobileNetV2": lambda: timm.create_model("mobilenetv2_050", num_classes=10),
    "MobileNetV3": lambda: timm.create_model("mobilenetv3_small_050", num_classes=10),
    "EfficientNet": lambda: timm.create_model("efficientnet_b0", num_classes=10),
    "ConvNeXt": lambda: timm.create_model("convnext_atto", num_classes=10),
    "RegNet": lambda: timm.create_model("regnetx_002", num_classes=10),
    "RegNetY": lambda: timm.create_model("regnety_002", num_classes=10),
    "ViT": lambda: timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=64, depth=4),
    "DeiT": lambda: timm.create_model("deit_tiny_distilled_patch16_224", num_classes=10, img_size=64, depth=4),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str) -> None:
    torch.manual_seed(0)
    example = prune.drawn((8, 3, 64, 64), torch.Generator().manual_seed(0))
    net = prune.redrawn(FAMILIES[family]().eval(), example)
    axes = surgery.analyse(net, example)
    scores = prune.score(net, axes)
    assert not axes.unprunable and axes.prunable > 0.95
    for ratio in (0.75, 0.5, 0.25):
        keep = prune.choose(axes, scores, ratio=ratio)
        kept = axes.kept_indices(keep)
        small = surgery.shrink(net, axes, keep, example=example)
        proof = prune.compare(axes.traced, net, small, kept, example)
        assert proof.ok, proof
        assert axes.cost(keep).params == sum(p.numel() for p in small.parameters())
    caught = [mutant_error(net, axes, keep, kept, example, seed) for seed in range(4)]
    assert min(caught) > 1e-3, caught


def mutant_error(net, axes, keep, kept, example, seed) -> float:
    draw = random.Random(seed)
    weights = sorted(n for n in kept if n.endswith("weight") and len(net.get_parameter(n).shape) > 1)
    name = draw.choice(weights)
    axis = draw.choice(sorted(kept[name]))
    wrong = {n: dict(by_axis) for n, by_axis in kept.items()}
    wrong[name][axis] = draw.sample(kept[name][axis], len(kept[name][axis]))
    mutant = surgery.shrink(net, axes, keep, kept=wrong)
    return prune.compare(axes.traced, net, mutant, kept, example).error
