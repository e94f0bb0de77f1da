"""What eight bits cost a network of 156 bands, on Samson: a scene of 95 x 95 pixels, 16 bits, three materials.

    NIWAKI_DATA=~/data python benchmarks/bands_samson.py --seeds 5

For each seed the scene is cut into blocks, dealt to train, val and test, and a small network is trained on
the same crops three times: bands stretched to 8 bits by the ranges measured on train (what niwaki does), 16
bits divided by 257 (what photographs get), and the three bands of a picture, stretched. Test mIoU of each is
printed; and, for the first, how many test pixels change their class when the same network gets the stretched
numbers unrounded.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

import niwaki as nw
from niwaki import evaluate

CLASSES = ("soil", "tree", "water")
CROP = 12
COLOURS = (109, 60, 20)
"""Bands at about 640, 550 and 460 nm, of 156 from 401 to 889 nm."""


def network(channels: int) -> nn.Module:
    """Three convolutions, 3 x 3 in the middle."""
    return nn.Sequential(
        *(nn.Conv2d(channels, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        nn.Conv2d(32, len(CLASSES), 1),
    )


def trained(scene: np.ndarray, mask: np.ndarray, scale: str | None, seed: int, epochs: int) -> tuple:
    """A network trained on crops of the scene, with its Spec and data."""
    data = nw.tile.crops(scene, mask, classes=CLASSES, crop=CROP, block=CROP, scale=scale, seed=seed)
    channels = scene.shape[2]
    spec = nw.Spec(size_hw=(CROP, CROP), mean=(0.0,) * channels, std=(1.0,) * channels, channels=channels)
    levels = data.train.batch(range(len(data.train)), spec).reshape(-1, channels) / 255 if scale else None
    if levels is not None:  # mean and deviation of what is left
        mean, std = levels.mean(0), np.maximum(levels.std(0), 0.002)
        spec = replace(spec, mean=tuple(mean.tolist()), std=tuple(std.tolist()))
    elif data.bands is not None:
        spec = data.bands.spec((CROP, CROP))
    torch.manual_seed(seed)
    given = {"task": data.task, "spec": spec, "train": data.train, "val": data.val}
    return nw.train.fit(network(channels), **given, epochs=epochs, batch=8, lr=0.01, seed=seed), spec, data


def miou(model: nn.Module, spec: nw.Spec, data: nw.data.DataSet) -> float:
    """Of the test crops."""
    return float(
        evaluate.tally(evaluate.predictor(model, spec, data.task), data.test, spec, data.task).score()["miou"]
    )


def moved(model: nn.Module, spec: nw.Spec, data: nw.data.DataSet) -> float:
    """Share of test pixels whose class is another one without the rounding to 8 bits."""
    low, high = np.array(spec.scale).T
    mean, std = np.array(spec.mean), np.array(spec.std)
    changed = []
    for row in range(len(data.test)):
        raw = np.clip((data.test.sources[row] - low) / (high - low), 0, 1)
        exact = torch.from_numpy(((raw - mean) / std).astype(np.float32).transpose(2, 0, 1)[None].copy())
        rounded = torch.from_numpy(spec.normalise(data.test.batch([row], spec)))
        with torch.no_grad():
            changed.append((model(exact).argmax(1) != model(rounded).argmax(1)).float().mean())
    return float(np.mean(changed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()
    held = np.load(Path(os.environ["NIWAKI_DATA"], "hyperspectral", "samson_raw.npz"))
    scene = np.ascontiguousarray(np.moveaxis(held["cube"], 0, -1))
    mask = held["abundance"].argmax(0).astype(np.uint8)
    found: dict[str, list[float]] = {"measured": [], "by 257": [], "three bands": [], "moved": []}
    for seed in range(args.seeds):
        model, spec, data = trained(scene, mask, None, seed, args.epochs)
        found["measured"].append(miou(model, spec, data))
        found["moved"].append(moved(model, spec, data))
        found["by 257"].append(miou(*trained(scene, mask, "bits", seed, args.epochs)))
        found["three bands"].append(miou(*trained(scene[..., COLOURS], mask, None, seed, args.epochs)))
        print(
            f"seed {seed}: " + ", ".join(f"{name} {values[-1]:.4f}" for name, values in found.items()),
            flush=True,
        )
    for name, values in found.items():
        ends = f"{min(values):.4f} to {max(values):.4f}"
        print(f"{name:12s} mean {np.mean(values):.4f}, {ends}, {len(values)} seeds")


if __name__ == "__main__":
    main()
