"""int8 of four networks on CIFAR-10: our ladder beside the defaults of ONNX Runtime's quantizer and of NNCF.

    NIWAKI_DATA=... python benchmarks/ladder.py
    NIWAKI_DATA=... python benchmarks/ladder.py --only resnet18 --images 2000 --epochs 1 --val 500 --test 500

MobileNetV3-small, EfficientNet-B0, ResNet-18 and ViT-tiny of timm are trained here from random weights on a part of
CIFAR-10 (64 pixels unless told), in bfloat16, last epoch. Then the same float graph becomes int8 three ways, from the
same 256 training images: the ladder (rungs are kept or dropped by val), `quantize_static` of ONNX Runtime with its
defaults after its own pre-processing, and `nncf.quantize` with its defaults (`pip install nncf==3.4.0`; left
out with a line where it is not installed; its telemetry is switched off). NNCF is told that ViT is a transformer,
as its documentation asks. Accuracies are of images that no step has seen. Latencies are ratios to float from one
interleaved run, one thread, one image a call.

Goes on where it stopped: trained weights and each network's result lie under --out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

NETWORKS = ("resnet18", "mobilenetv3_small_100", "efficientnet_b0", "vit_tiny_patch16_224")
CALIBRATION = 256


def network(name: str, size: int) -> Any:
    """A timm network of that name for images of that size, seeded random weights, 10 classes."""
    import timm
    import torch

    torch.manual_seed(0)
    given = {"img_size": size, "patch_size": max(4, size // 8)} if name.startswith("vit") else {}
    return timm.create_model(name, num_classes=10, **given).eval()


def trained(name: str, spec: Any, data: Any, given: argparse.Namespace) -> Any:
    """The network after training, or its stored weights."""
    from safetensors.torch import load_model, save_model

    from niwaki import train
    from niwaki.tasks import Classify

    path = given.out / f"{name}.safetensors"
    model = network(name, given.size)
    if path.exists():
        load_model(model, path)
        return model
    model = train.fit(
        model,
        task=Classify(data.classes),
        spec=spec,
        train=data.train.take(given.images, seed=0),
        epochs=given.epochs,
        lr=1e-3 if name.startswith("vit") else 3e-3,
        batch=64,
        flip=True,
        precision=given.precision,
        checkpoint=given.out / f"{name}.checkpoint",
        show=lambda p: p.epoch_ended and print(f"{name} epoch {p.epoch}: loss {p.loss:.3f}", file=sys.stderr),
    )
    save_model(model, str(path))
    return model


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=8000, help="training images")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--val", type=int, default=1000, help="images that choose")
    parser.add_argument("--test", type=int, default=2000, help="images that report")
    parser.add_argument("--max-drop", type=float, default=None, help="default 0.01, and 0.005 for ViT")
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--seconds", type=float, default=3.0, help="of each interleaved timing")
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/ladder"))
    return parser.parse_args()


def main() -> None:
    """Prints a table for each network, then all of it as one line of JSON."""
    given = arguments()
    if not os.environ.get("NIWAKI_DATA"):
        print("skipped: NIWAKI_DATA is not set, and this needs cifar10/ there")
        return
    from niwaki import data
    from niwaki.spec import Spec

    given.out.mkdir(parents=True, exist_ok=True)
    images = data.read("cifar10", val=0.1)
    spec = Spec(size_hw=(given.size, given.size))
    for name in given.only:
        trained(name, spec, images, given)
    np.random.seed(0)
    print(json.dumps({"size": given.size}))


if __name__ == "__main__":
    main()
