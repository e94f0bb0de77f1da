"""The report of a run: `report.html`, one self-contained page, and `report.json`, its record.

`build(record, folder)` writes both; `rebuild(folder)` draws the page again from `report.json`. The
page holds no script and asks the network for nothing: charts are inline SVG (`charts.py`), pictures
are data URIs (`pictures.py`). `search(result, folder)` writes the page of a search (`front.py`), `sensitivity`
and `mixed` those of what int8 costs each layer, and of the bits that it gets.

The record is plain JSON. A part that is missing or empty is left out of the page; `name` and
`stages` are required.

    name         str, the run's name: the page's title
    data         {"source": str, "train": int, "val": int, "test": int}: images in each split
    model        str, as it was asked for: "niwaki:small", "timm:resnet18", "net.py:make"
    metric       name of the main score: "accuracy" (when left out), "miou" or "ap50"
    budget       {"asked": "latency=50%", "got": 0.48, "met": true, "max_drop": 0.01, "note": str}
                 `got` in the budget's own terms: a share 0..1, a count, bytes or ms. `note`
                 (optional): what a reader must know, such as "atoms are coarser than 2 %"
    default      name of the stage that is served by default: "int8" or "distilled"
    stages       list, in order, the uncompressed one first, of
                 {"name": "baseline" | "pruned" | "distilled" | "int8" | "unpruned int8" | any,
                  "cost": {"macs", "params", "bytes", "ms"},            each a number or null
                  "val", "test": {its number, "low", "high"} or null,   0..1, 95 % interval
                  "flipped": share 0..1 of test predictions unlike the baseline's, or null}
    points       every point tried, the baseline among them: list of
                 {"name": str, "cost": {as above}, "accuracy": 0..1 or null (val),
                  "outcome": "chosen" | "too lossy" | "too costly" | "baseline" | any short text}
    widths       output channels in the network's order: [{"layer": str, "before", "after": int}]
    histories    {stage: [{"epoch": int, "loss": float, "val_score": float or null, ...}]}
    confusion    {"classes": [K names], "counts": [K][K] int}: rows true, columns predicted, of the
                 default export on test
    wrong        worst first, list of {"image": uint8 array [H,W], [H,W,1] or [H,W,3], or a
                 "data:image/png;..." URI, "name", "true", "predicted": str,
                 "probability": 0..1 of what was predicted}
    maps         of class maps, worst first, list of {"image": uint8 array [H,W,3] or URI: truth,
                 prediction, contours (of class maps) and errors in a row, "name", "score": 0..1}
    ledger       the behaviour ledger, on test: {"images": {"test", "corrupted", "attacked": int},
                 "bins": int of the calibration error, "severity": 1..5, "corruptions": {kind: words},
                 "attack": {"eps", "step", "steps", "of"}, "stages": [
                 {"name", "flipped": 0..1 or null, "class_drops": {class: accuracy lost} or null,
                  "calibration": expected calibration error 0..1 or null,
                  "clean": {"accuracy", "low", "high"}, "corrupted": {kind: {as clean}},
                  "corrupted_mean": 0..1, "attack": "white-box" | "transfer from STAGE",
                  "attacked": {"fgsm", "pgd": {as clean}}}]}
    sensitivity  what int8 costs each layer of the chosen network, as search.recipes.kinds gives it:
                 {"images": int, "rows": [{"name", "alone", "weights", "inputs": {"kl": nats}}]}, or null
    proof_error  float or null: the proof of surgery's largest error over the output's deviation
    machine      {"cpu": str, "isa": [str], "threads": int}
    versions     {package: version}
    problems     images left out: [{"path", "code", "message"}]
    warnings     list of str
    seconds      float, wall time of the whole run
"""

from __future__ import annotations

from niwaki.report.build import build, rebuild
from niwaki.report.front import search
from niwaki.report.mixed import mixed
from niwaki.report.sensitivity import sensitivity

__all__ = ["build", "mixed", "rebuild", "search", "sensitivity"]
