"""Do the cheap figures of sensitivity order layers as the exact one does? On networks of benchmarks/ladder.py.

    NIWAKI_DATA=... python benchmarks/ladder.py --train-only      # weights under runs/ladder, once
    NIWAKI_DATA=... python benchmarks/sensitivity.py --images 256

For each network and each layer or block: the KL divergence of the outputs from float's when it alone is int8,
on --images of val (exact); the same on 16 and on 4 images of the other half of val; and the noise in each
layer's own output (own output, only layers with weights). Printed: the rank correlation (Spearman) of each
cheap figure with the exact one, with the exact KL of the other half of val (what repeating the exact
measurement gives: no cheap one can give more), the correlation with the drop of val's score, and seconds.
Results are kept under --out.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

NETWORKS = ("resnet18", "mobilenetv3_small_100", "vit_tiny_patch16_224")


def network(name: str, given: argparse.Namespace) -> Any:
    """The network with the weights that benchmarks/ladder.py kept."""
    import timm
    from safetensors.torch import load_model

    more = {"img_size": given.size, "patch_size": max(4, given.size // 4)} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=10, **more).eval()
    load_model(model, given.weights / f"{name}.safetensors")
    return model


def measured(model: Any, data: Any, given: argparse.Namespace) -> dict[str, Any]:
    """Each layer's exact figures on two halves of val, its cheap ones on a few images, and seconds."""
    from niwaki.qdq import graph as graphs
    from niwaki.qdq import sensitivity, switches, twins
    from niwaki.qdq.recipe import Recipe
    from niwaki.runtimes import onnx_export
    from niwaki.spec import Spec
    from niwaki.tasks import Classify

    spec, task = Spec(size_hw=(given.size, given.size)), Classify(data.classes)
    calib, val = data.train.take(256, seed=0), data.val.take(2 * given.images, seed=0)
    images, labels = val.batch(range(len(val)), spec), val.labels
    order = np.random.default_rng(0).permutation(len(val))
    one, other = order[: given.images], order[given.images :]
    maker = onnx_export.maker(model, spec, task=task, calib=calib.batch(range(len(calib)), spec))
    proto, activations, weights = maker.rounded(Recipe())
    nodes, graph = maker.nodes(proto, Recipe()), graphs.read(proto)
    whole = switches.switched(proto, nodes, activations, weights)
    groups = sensitivity.groups(graph, graphs.units(graph, nodes), by=given.by)

    def exact(some: np.ndarray) -> tuple[list[float], list[float], float]:
        """KL and drop of the score of each group alone, and seconds."""
        began = time.perf_counter()
        before = whole.run(images[some], whole.roundings(()))
        score = task.score(before, labels[some])["accuracy"]
        after = [whole.run(images[some], whole.roundings(members)) for members in groups.values()]
        drops = [score - task.score(each, labels[some])["accuracy"] for each in after]
        return [sensitivity.divergence(before, each) for each in after], drops, time.perf_counter() - began

    kl, drops, seconds = exact(one)
    again, few, four = exact(other), exact(other[: given.few]), exact(other[:4])
    began = time.perf_counter()
    near = twins.compare(proto, activations, weights, images[one[: given.few]])
    noise = [[-near[m].sqnr for m in members if m in near] for members in groups.values()]
    found = {"names": list(groups), "kl": kl, "drops": drops}
    found |= {"again": again[0], "few": few[0], "four": four[0]}
    took = {"exact": seconds, "few": few[2], "four": four[2], "own": time.perf_counter() - began}
    return found | {"own": [max(each) if each else None for each in noise], "seconds": took}


def ranks(found: dict[str, Any]) -> dict[str, float]:
    """Rank correlations with the exact KL of the first half."""
    from niwaki.qdq.sensitivity import spearman

    held = [place for place, own in enumerate(found["own"]) if own is not None and np.isfinite(own)]
    return {
        "few images": spearman(found["few"], found["kl"]),
        "4 images": spearman(found["four"], found["kl"]),
        "own output": spearman([found["own"][n] for n in held], [found["kl"][n] for n in held]),
        "exact, other half of val": spearman(found["again"], found["kl"]),
        "drop of score": spearman(found["drops"], found["kl"]),
    }


def main() -> None:
    """A line for each figure of each network, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--by", default="layer", choices=("layer", "block"))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=128, help="of each half of val")
    parser.add_argument("--few", type=int, default=16)
    parser.add_argument("--weights", type=Path, default=Path("runs/ladder"))
    parser.add_argument("--out", type=Path, default=Path("runs/sensitivity"))
    given = parser.parse_args()
    if not os.environ.get("NIWAKI_DATA"):
        print("skipped: NIWAKI_DATA is not set, and this needs cifar10/ there")
        return
    from niwaki import data

    images = data.read("cifar10", val=0.1)
    given.out.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in given.only:
        if not (given.weights / f"{name}.safetensors").exists():
            print(f"{name}: skipped, benchmarks/ladder.py --train-only has not trained it")
            continue
        kept = given.out / f"{name}-{given.by}-{given.images}-{given.few}.json"
        if not kept.exists():
            kept.write_text(json.dumps(measured(network(name, given), images, given)))
        found = json.loads(kept.read_text())
        results[name] = ranks(found)
        took = ", ".join(f"{how} {seconds:.1f} s" for how, seconds in found["seconds"].items())
        print(f"{name}: {len(found['kl'])} {given.by}s, {given.images} images: {took}")
        for figure, rank in results[name].items():
            print(f"  {figure:26s} {rank:6.3f}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
