"""2018 Data Science Bowl: nuclei as objects, against Otsu's threshold and watershed, on the held test split.

    python benchmarks/dsb2018.py                  trains (or goes on), chooses on val, reports test
    python benchmarks/dsb2018.py --minutes 10     stops the training after ten minutes; the same command goes on
    python benchmarks/dsb2018.py --baseline       the baseline alone
    python benchmarks/dsb2018.py --small          a few images and one epoch: whether all of it runs
    python benchmarks/dsb2018.py --picture F.png  a test image: truth, baseline and prediction, as outlines

Needs $NIWAKI_DATA/dsb2018 and scipy. Val chooses thresholds, test reports; the last epoch's averaged weights;
learned from windows of 128 pixels at the images' own scale, run on 256. AP is TP / (TP + FP + FN), mean over
images, a hit is an IoU above 0.5; Kaggle's mean precision is its mean over IoU .50:.05:.95. Times are of the
processor, of one core.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import heapq
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy import ndimage

from niwaki import Instances, Spec, data, evaluate, images, instances, nets, runtimes, train
from niwaki.instances.tally import interval, scored

SIDE, CONTEXT, LEARNED = 256, 64, 128
THRESHOLDS, OVERLAPS = (0.3, 0.4, 0.5, 0.6, 0.7), (0.2, 0.4)
Maps = npt.NDArray[np.integer[Any]]


class Enough(Exception):
    """The minutes are over."""


def main() -> None:
    """Run what the command line asks for."""
    given = _given()
    torch.set_num_threads(given.threads)
    read = data.read("dsb2018")
    if given.small:
        given.epochs, given.out = 1, given.out + "-small"
        read = dataclasses.replace(read, train=read.train.take(8), val=read.val.take(4), test=read.test.take(6))
    root = Path(given.out)
    wide = "" if given.model == "niwaki:star_unet" else f"-{given.model.partition(':')[2]}-{given.precision}"
    folder = root / f"epochs-{given.epochs}-lr-{given.lr:g}-seed-{given.seed}{wide}"
    folder.mkdir(parents=True, exist_ok=True)
    test = [_pair(read.test, row) for row in range(len(read.test))]
    kinds = _kinds(read.test)
    baseline = _baseline(read, root)
    rows = {"Otsu + watershed": _kept(root / "baseline.json", lambda: _rows(baseline, test))}
    if not given.baseline:
        try:
            predict = _predictor(_trained(read, given, folder), folder)
        except Enough:
            print(f"stopped after {given.minutes} minutes; the same command goes on")
            return
        if given.turns > 1:
            predict, folder = instances.turned(predict, turns=given.turns), folder / f"turns-{given.turns}"
            folder.mkdir(exist_ok=True)
        task = _chosen(predict, read, folder)
        for name, make in _ways(predict, task, test).items():
            rows[name] = _kept(folder / f"{name.split(', ')[1].replace(' ', '-')}.json", make)
            _table({name: rows[name]}, kinds)
    _table(rows, kinds)
    (folder / "scores.json").write_text(json.dumps({"kinds": kinds, "rows": rows}))
    if given.picture and not given.baseline:
        ways = (baseline, functools.partial(_found, predict, task, context=CONTEXT))
        _picture(ways, test, kinds, Path(given.picture))


def _pair(samples: data.Samples, row: int) -> tuple[npt.NDArray[np.uint8], Maps]:
    assert samples.masks is not None
    source, mask = samples.sources[row], samples.masks[row]
    assert not isinstance(source, np.ndarray) and not isinstance(mask, np.ndarray)
    return images.decode(source, channels=3), mask.read()


def _kinds(samples: data.Samples) -> list[str]:
    """How each image was made."""
    with (Path(os.environ["NIWAKI_DATA"]) / "dsb2018" / "index.csv").open() as file:
        kinds = {row["file_stem"]: row["modality"] for row in csv.DictReader(file)}
    return [kinds[Path(name).stem] for name in samples.names]


def watershed(image: npt.NDArray[np.uint8], *, reach: int = 9, smooth: float = 1.0) -> Maps:
    """The baseline: Otsu's threshold on grey (the rarer side is objects), peaks of the smoothed distance
    transform as seeds, flooded from the peaks down; objects below 20 pixels go.

    Args:
        reach: side of the square in which a peak is the highest.
        smooth: of the distance transform, in pixels.
    """
    grey = ndimage.gaussian_filter(image.mean(2), 1)
    inside = grey > otsu(grey)
    inside = ndimage.binary_fill_holes(~inside if inside.mean() > 0.5 else inside)
    exact = ndimage.distance_transform_edt(inside)
    depth = ndimage.gaussian_filter(exact, smooth) * inside
    peaks = (depth == ndimage.maximum_filter(depth, size=reach)) & inside
    seeds, _ = ndimage.label(peaks, structure=np.ones((3, 3)))
    return instances.cleaned(flooded(depth, seeds.astype(np.int32), inside), min_area=20)


def flooded(depth: npt.NDArray[np.floating[Any]], seeds: Maps, inside: npt.NDArray[np.bool_]) -> Maps:
    """Each pixel inside with the seed that reaches it first when the water falls from the peaks.

    Source: Meyer 1994, "Topographic distance and watershed lines": a queue ordered by depth, then by arrival.
    """
    labels, height, width = seeds.copy(), *seeds.shape
    queue = [(-float(depth[y, x]), k, y, x) for k, (y, x) in enumerate(np.argwhere(seeds > 0).tolist())]
    heapq.heapify(queue)
    arrived = len(queue)
    while queue:
        _, _, y, x = heapq.heappop(queue)
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= v < height and 0 <= u < width and inside[v, u] and not labels[v, u]:
                labels[v, u] = labels[y, x]
                heapq.heappush(queue, (-float(depth[v, u]), arrived, v, u))
                arrived += 1
    return labels


def _kept(path: Path, make: Callable[[], Any]) -> Any:
    """What a file holds as JSON, or what is made, and kept in it."""
    if not path.exists():
        path.write_text(json.dumps(make()))
    return json.loads(path.read_text())


def _baseline(read: data.DataSet, folder: Path) -> Callable[[npt.NDArray[np.uint8]], Maps]:
    """The watershed with the settings that are best on val."""
    knobs = _kept(folder / "watershed.json", lambda: _best_watershed(read))
    return functools.partial(watershed, **knobs)


def _best_watershed(read: data.DataSet) -> dict[str, Any]:
    val = [_pair(read.val, row) for row in range(len(read.val))]
    best: tuple[float, dict[str, Any]] = (-1.0, {})
    for reach, smooth in ((9, 1.0), (15, 1.0), (15, 2.0), (21, 2.0)):
        knobs = {"reach": reach, "smooth": smooth}
        found = [scored(instances.pairs(true, watershed(image, **knobs)), detail=False) for image, true in val]
        score = float(np.mean([one["ap50"] for one in found]))
        print(f"val: watershed {knobs}: AP@0.5 {score:.3f}")
        best = max(best, (score, knobs), key=lambda one: one[0])
    return best[1]


def otsu(grey: npt.NDArray[np.floating[Any]]) -> float:
    """The threshold of the largest variance between the two sides. Source: Otsu 1979, IEEE SMC 9(1)."""
    counts, edges = np.histogram(grey, bins=256)
    middle = (edges[1:] + edges[:-1]) / 2
    below, total = np.cumsum(counts), np.cumsum(counts * middle)
    share = below / below[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (total[-1] / below[-1] * share - total / below[-1]) ** 2 / (share * (1 - share))
    return float(middle[np.nanargmax(between[:-1])])


def _trained(read: data.DataSet, given: argparse.Namespace, folder: Path) -> torch.nn.Module:
    """The network, trained on windows of the train split; its weights are kept."""
    torch.manual_seed(given.seed)
    model = nets.build(given.model, classes=1)
    weights = folder / "weights.safetensors"
    if weights.exists():
        model.load_state_dict(load_file(weights))
        return model.eval()
    windows = data.windows(read.train, (LEARNED, LEARNED), most=3)
    print(f"{len(read.train)} images, {len(windows)} windows, {given.epochs} epochs")
    model = train.fit(
        model, task=read.task, spec=Spec(size_hw=(LEARNED, LEARNED)), train=windows, epochs=given.epochs,
        batch=8, lr=given.lr, flip=True, augment="weak", seed=given.seed, precision=given.precision,
        checkpoint=folder / "train.checkpoint", show=_clock(given),
    )  # fmt: skip
    save_file(model.state_dict(), weights)
    return model


def _clock(given: argparse.Namespace) -> Callable[[Any], None]:
    """Prints an epoch's end; ends the run when the minutes are over."""
    began, worked = time.monotonic(), time.process_time()

    def show(progress: Any) -> None:
        if progress.epoch_ended:
            spent = time.process_time() - worked
            print(f"epoch {progress.epoch}: loss {progress.loss:.3f}, {spent:.0f} s of processor", flush=True)
        if given.minutes and time.monotonic() - began > 60 * given.minutes:
            raise Enough

    return show


def _predictor(model: torch.nn.Module, folder: Path) -> evaluate.Predictor:
    """The exported network, run without torch."""
    path = folder / "star_unet.onnx"
    onnx = runtimes.load("onnx")
    onnx.export(model, Spec(size_hw=(SIDE, SIDE)), path, task=Instances())
    opened: evaluate.Predictor = onnx.open(path)
    return opened


def _found(predict: evaluate.Predictor, task: Instances, image: npt.NDArray[np.uint8], context: int) -> Maps:
    find = instances.finder(predict, task)
    return instances.tiled(find, image, tile=SIDE, context=context, slack=min(8, context)).labels


def _chosen(predict: evaluate.Predictor, read: data.DataSet, folder: Path) -> Instances:
    """The thresholds of the best AP@0.5, the main score, on val; each window is predicted once."""
    path = folder / "task.json"
    if path.exists():
        return Instances.from_json(json.loads(path.read_text()))
    windows = data.windows(read.val, (SIDE, SIDE), most=2)
    masks = [np.maximum(mask, 0) for mask in windows.masks or ()]
    outputs = [predict(windows.batch([row], Spec(size_hw=(SIDE, SIDE))))[0] for row in range(len(windows))]
    best: tuple[float, Instances] = (-1.0, Instances())
    for threshold in THRESHOLDS:
        for overlap in OVERLAPS:
            task = Instances(threshold=threshold, overlap=overlap)
            tally = task.tally(detail=False)
            for output, mask in zip(outputs, masks, strict=True):
                tally.add(output[None], mask[None])
            score = tally.score()
            print(f"val: threshold {threshold}, overlap {overlap}: AP@0.5 {score['ap50']:.3f}, "
                  f"mean precision {score['mean_precision']:.3f}")  # fmt: skip
            best = max(best, (score[Instances.metric], task), key=lambda one: one[0])
    path.write_text(json.dumps(best[1].to_json()))
    return best[1]


def _rows(make: Callable[[npt.NDArray[np.uint8]], Maps], test: list[Any]) -> dict[str, Any]:
    """Scores of each test image, and the seconds of processor that all of them took."""
    began = time.process_time()
    maps = [make(image) for image, _ in test]
    seconds = time.process_time() - began
    found = [scored(instances.pairs(true, one)) for one, (_, true) in zip(maps, test, strict=True)]
    return {"seconds": seconds, "images": found, "objects": sum(len(np.unique(one)) - 1 for one in maps)}


def _ways(
    predict: evaluate.Predictor, task: Instances, test: list[Any]
) -> dict[str, Callable[[], dict[str, Any]]]:
    """The network in tiles that see their surroundings, in tiles that do not, and with overlaps left in."""
    return {
        "niwaki, tiles with context": lambda: _rows(lambda image: _found(predict, task, image, CONTEXT), test),
        "niwaki, overlaps not fixed": lambda: _overlapping(predict, task, test),
        "niwaki, tiles cut hard": lambda: _rows(lambda image: _hard(predict, task, image), test),
    }


def _hard(predict: evaluate.Predictor, task: Instances, image: npt.NDArray[np.uint8]) -> Maps:
    """What comes of tiles that lie side by side: objects are cut at their borders."""
    out = np.zeros(image.shape[:2], np.int64)
    find = instances.finder(predict, task)
    for y in range(0, image.shape[0], SIDE):
        for x in range(0, image.shape[1], SIDE):
            part = instances.tiled(find, image[y : y + SIDE, x : x + SIDE], tile=SIDE, context=0, slack=0)
            labels = part.labels
            out[y : y + SIDE, x : x + SIDE] = np.where(labels > 0, labels + out.max(), 0)
    return out


def _overlapping(predict: evaluate.Predictor, task: Instances, test: list[Any]) -> dict[str, Any]:
    """Masks as they are predicted, of images that are one window; elsewhere as tiles with context give them."""
    began, found, objects = time.process_time(), [], 0
    find = instances.finder(predict, task)
    for image, true in test:
        if max(image.shape[:2]) > SIDE:
            labels = _found(predict, task, image, CONTEXT)
            objects += len(np.unique(labels)) - 1
            found.append(scored(instances.pairs(true, labels)))
            continue
        padded = np.empty((SIDE, SIDE, 3), np.uint8)
        padded[:] = np.median(image, axis=(0, 1)).astype(np.uint8)  # as `tiled` pads
        padded[: image.shape[0], : image.shape[1]] = image
        one = find(padded)
        objects += len(one)
        crops = instances.object_crops(true)[1]
        table = instances.pairs_of_masks(crops, one.crops, shape=(int(true.shape[0]), int(true.shape[1])))
        found.append(scored(table))
    return {"seconds": time.process_time() - began, "images": found, "objects": objects}


def _table(rows: dict[str, Any], kinds: list[str]) -> None:
    """Every way by kind of image: AP@0.5 with its interval, Kaggle's mean precision, PQ and AJI."""
    print(f"{'':28} {'kind':20} {'images':>6} {'AP@0.5':>21} {'Kaggle':>7} {'PQ':>6} {'AJI':>6}")
    for name, row in rows.items():
        for kind in ("all", *sorted(set(kinds))):
            these = [one for one, k in zip(row["images"], kinds, strict=True) if kind in ("all", k)]
            mean = {key: float(np.mean([one[key] for one in these])) for key in these[0]}
            low, high = interval(np.array([one["ap50"] for one in these]))
            print(
                f"{name:28} {kind:20} {len(these):6} {mean['ap50']:.3f} [{low:.3f}, {high:.3f}] "
                f"{mean['mean_precision']:7.3f} {mean['pq']:6.3f} {mean['aji']:6.3f}"
            )
        print(f"{name:28} {row['objects']} objects, {row['seconds']:.0f} s of processor")


def _picture(
    ways: tuple[Callable[[npt.NDArray[np.uint8]], Maps], ...], test: list[Any], kinds: list[str], path: Path
) -> None:
    """Images of many nuclei, fluorescent and stained: outlines of truth, baseline and prediction."""
    rows = []
    for kind in ("fluorescence", "brightfield_color"):
        small = [k for k, one in enumerate(kinds) if one == kind and max(test[k][0].shape[:2]) <= 320]
        place = sorted(small, key=lambda k: len(np.unique(test[k][1])))[-len(small) // 4]
        image, true = test[place]
        seen = np.clip(image.astype(np.float32) * (255 / max(1, np.percentile(image, 99.8))), 0, 255).astype(
            np.uint8
        )
        maps = (true, *(way(image) for way in ways))
        rows.append(np.concatenate([outlined(seen, labels)[: 2 * SIDE, : 2 * SIDE] for labels in maps], axis=1))
    Image.fromarray(np.concatenate(rows)).quantize(128).save(path, optimize=True)


def outlined(image: npt.NDArray[np.uint8], labels: Maps) -> npt.NDArray[np.uint8]:
    """An image at twice its size with the objects' outlines in yellow."""
    large, numbers = image.repeat(2, 0).repeat(2, 1), labels.repeat(2, 0).repeat(2, 1)
    edge = (ndimage.maximum_filter(numbers, 3) != ndimage.minimum_filter(numbers, 3)) & (numbers > 0)
    large[edge] = (255, 210, 0)
    return large


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = parser.add_argument
    arg("--model", default="niwaki:star_unet")
    arg("--turns", default=1, type=int, help="1, 2, 4 or 8: the mean over mirrored windows")
    arg("--precision", default="float32", help="of training: float32 or bfloat16")
    arg("--epochs", default=16, type=int)
    arg("--lr", default=1e-2, type=float, help="at a batch of 128; scaled by the root of the ratio")
    arg("--seed", default=0, type=int)
    arg("--threads", default=1, type=int)
    arg("--minutes", default=0.0, type=float, help="stop training after so many; 0: never")
    arg("--out", default="runs/dsb2018")
    arg("--baseline", action="store_true")
    arg("--small", action="store_true")
    arg("--picture", default="")
    return parser.parse_args()


if __name__ == "__main__":
    main()
