"""torchvision's models pruned to a share of their multiply-adds, with proof, each in a process of its own.

    python benchmarks/coverage_torchvision.py --out coverage_torchvision.json       # all, some minutes
    python benchmarks/coverage_torchvision.py --only resnet18,fcn_resnet50
    python benchmarks/coverage_torchvision.py --out FILE.json --page docs/coverage-torchvision.md   # only that

The smallest network of each classification family, the segmentation networks and the backbones of the
detectors, untrained, at small inputs. A line per model: share of parameters that is prunable, share of MACs
left, the proof's error, whether the result is the model's own class or its graph, groups left whole, seconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLASSIFICATION = {
    "alexnet": 64, "vgg11_bn": 32, "resnet18": 64, "resnext50_32x4d": 64, "wide_resnet50_2": 64,
    "squeezenet1_1": 64, "densenet121": 64, "googlenet": 64, "inception_v3": 96, "mobilenet_v2": 64,
    "mobilenet_v3_small": 64, "mnasnet0_5": 64, "shufflenet_v2_x0_5": 64, "efficientnet_b0": 64,
    "efficientnet_v2_s": 64, "regnet_x_400mf": 64, "regnet_y_400mf": 64, "convnext_tiny": 64, "vit_b_16": 224,
    "swin_t": 64, "swin_v2_t": 64, "maxvit_t": 224,
}  # fmt: skip
"""The smallest of each family, and the side of its input in pixels."""
SEGMENTATION = (
    "fcn_resnet50",
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "lraspp_mobilenet_v3_large",
)


def resnet_fpn() -> Any:
    """The backbone of Faster and Mask R-CNN, RetinaNet, Keypoint R-CNN."""
    from torchvision.models.detection import backbone_utils

    return backbone_utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)


def mobilenet_fpn() -> Any:
    """The backbone of the mobile Faster R-CNN."""
    from torchvision.models.detection import backbone_utils

    return backbone_utils.mobilenet_backbone(
        backbone_name="mobilenet_v3_large", weights=None, fpn=True, trainable_layers=6
    )


def ssdlite() -> Any:
    """The backbone of SSDlite."""
    from torchvision.models import mobilenet_v3_large
    from torchvision.models.detection import ssdlite as made

    return made._mobilenet_extractor(
        mobilenet_v3_large(), trainable_layers=6, norm_layer=__import__("torch").nn.BatchNorm2d
    )


def ssd() -> Any:
    """The backbone of SSD."""
    from torchvision.models import vgg16
    from torchvision.models.detection import ssd as made

    return made._vgg_extractor(vgg16(), highres=False, trainable_layers=5)


DETECTION: dict[str, tuple[Callable[[], Any], int]] = {
    "resnet18_fpn": (resnet_fpn, 64),
    "mobilenet_v3_large_fpn": (mobilenet_fpn, 64),
    "ssdlite320_mobilenet_v3_large": (ssdlite, 128),
    "ssd300_vgg16": (ssd, 300),
}
NAMES = (*CLASSIFICATION, *SEGMENTATION, *DETECTION)


def build(name: str) -> tuple[Any, int]:
    """(an untrained model, pixels of its input)."""
    import torch
    from torchvision import models

    torch.manual_seed(0)
    if name in DETECTION:
        make, side = DETECTION[name]
        return make(), side
    if name in SEGMENTATION:
        return models.get_model(name, weights=None, weights_backbone=None), 64
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return models.get_model(name, weights=None, **extra), CLASSIFICATION[name]


def one(name: str, budget: str) -> dict[str, Any]:
    """What `niwaki doctor` finds, without the list of groups."""
    import torch

    from niwaki import diagnose

    torch.set_num_threads(1)
    model, side = build(name)
    found = diagnose.model(model, budget=budget, size=(side, side))
    return {**found, "groups": len(found["groups"]), "left": len(found["left"]), "why": found["why"][:300]}


def apart(name: str, budget: str, seconds: float) -> dict[str, Any]:
    """`one` in a process of its own; an error or a time-out is a result too."""
    command = [sys.executable, __file__, "--one", name, "--budget", budget]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {seconds:.0f} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def line(name: str, found: dict[str, Any]) -> str:
    """One row for a person."""
    if "error" in found or not found["exported"]:
        return f"{name:32} {found.get('error') or found['reason']}"
    before, after = (found["macs"][key] for key in ("before", "after"))
    error = found["proof_error"]
    return (
        f"{name:32} prunable {found['prunable']:5.1%}  MACs {after / before:5.1%}  "
        f"error {error if error is None else format(error, '.0e')}  {found['result']:6} "
        f"left {found['left']}  {found['seconds']:5.1f} s"
    )


def page(results: dict[str, dict[str, Any]]) -> str:
    """The table of docs/coverage-torchvision.md."""
    done = [found for found in results.values() if found.get("exported")]
    worst = max((found["proof_error"] or 0.0 for found in done), default=0.0)
    own = sum(found["result"] == "module" for found in done)
    head = f"""# Coverage of torchvision

The smallest network of each classification family, the segmentation networks and the backbones of the
detectors, untrained, at small inputs, cut to half the multiply-adds. Written by
`python benchmarks/coverage_torchvision.py --page docs/coverage-torchvision.md`; no figure is typed by hand.

{len(done)} of {len(results)} cut and proven, worst error on redrawn weights {worst:.1e}; {own} as their
own class, the others as their graph with the same parameter names. Columns as in
[coverage of timm](coverage.md); seconds are of all of `niwaki doctor`: export, analysis, choice of widths,
cut and both proofs.

| model | prunable | MACs asked | MACs left | proof | result | groups left whole | seconds |
|---|---|---|---|---|---|---|---|
"""
    return head + "".join(_table_row(name, found) for name, found in results.items())


def _table_row(name: str, found: dict[str, Any]) -> str:
    if "error" in found or not found["exported"]:
        return f"| {name} | {found.get('error') or found['reason']} |\n"
    before, after = (found["macs"][key] for key in ("before", "after"))
    error = "" if found["proof_error"] is None else f"{found['proof_error']:.0e}"
    return (
        f"| {name} | {found['prunable']:.1%} | 50% | {after / before:.1%} | {error} | {found['result']} | "
        f"{found['left']} | {found['seconds']:.0f} |\n"
    )


def main() -> None:
    """The table, and all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", help="names, with commas between them; default: all")
    parser.add_argument("--budget", default="macs=50%")
    parser.add_argument("--seconds", type=float, default=300, help="at most so long a model")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--page", type=Path, help="write the table of --out's file as Markdown, run nothing")
    parser.add_argument("--one", choices=NAMES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.budget)))
        return
    if args.page:
        args.page.write_text(page(json.loads(args.out.read_text())), encoding="utf-8")
        return
    results = {}
    for name in args.only.split(",") if args.only else NAMES:
        results[name] = apart(name, args.budget, args.seconds)
        print(line(name, results[name]), flush=True)
        if args.out:
            args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
