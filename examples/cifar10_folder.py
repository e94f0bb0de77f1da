"""Make `$NIWAKI_DATA/cifar10` from the published "CIFAR-10 binary version" (no pickle involved).

    curl -O https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz && tar xf cifar-10-binary.tar.gz
    python examples/cifar10_folder.py cifar-10-batches-bin ~/data/cifar10
    export NIWAKI_DATA=~/data

Each record of a .bin file is a byte of label and 3072 of pixels: red, green, blue planes, 32 x 32.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

SHEET = 500  # images below each other in one lossless WebP


def main(source: Path, target: Path) -> None:
    """Write 100 + 20 sheets and labels.npz to `target`."""
    target.mkdir(parents=True, exist_ok=True)
    labels = {"class_names": np.array((source / "batches.meta.txt").read_text().split())}
    batches = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
    for split, files in batches.items():
        content = b"".join((source / name).read_bytes() for name in files)
        records = np.frombuffer(content, dtype=np.uint8).reshape(-1, 3073)
        labels[f"{split}_y"] = records[:, 0]
        pixels = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        for number, start in enumerate(range(0, len(pixels), SHEET)):
            sheet = Image.fromarray(pixels[start : start + SHEET].reshape(-1, 32, 3))
            sheet.save(target / f"{split}_{number:03d}.webp", lossless=True)
    np.savez_compressed(target / "labels.npz", **labels)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
