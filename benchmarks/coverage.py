"""What pruning makes of the smallest model of each timm family: exported, cut to half the MACs, proven.

    python benchmarks/coverage.py --out runs/coverage.json           # all of timm_smallest.txt, resumable
    python benchmarks/coverage.py --only test_vit --out /tmp/one.json
    python benchmarks/coverage.py --out runs/coverage.json --page docs/coverage.md   # the table, nothing run
    python benchmarks/coverage.py --list                             # write timm_smallest.txt anew

Each model runs in a process of its own. It is slow when export, analysis, cut and both proofs take more than
60 seconds together; the mutants, which only test the proof, are not counted. Weights are those of timm's
constructors, so the proof that counts is the one on redrawn weights. Per model the JSON has: exported,
prunable (share of the parameters in prunable groups), error (of that proof), mutants and caught (scrambled
index lists, and how many the proof rejects), seconds (export, analysis with the choice of widths, cut with
both proofs), macs, asked and got (shares), coarser, result (module or graph), why (it is a graph), left (groups
left whole), unprunable (operators without a rule).
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

LIST = Path(__file__).with_name("timm_smallest.txt")
MOST_PARAMETERS, MOST_PIXELS = 30e6, 288
MUTANTS, LIMIT = 3, 60.0
Row = dict[str, Any]


def smallest() -> list[str]:
    """The smallest model of each of timm's module files, of at most 30 M parameters and 288 pixels."""
    import timm
    import torch

    best: dict[str, tuple[int, str]] = {}
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            config = timm.models.get_pretrained_cfg(name)
            if max((config.input_size if config else (3, 224, 224))[-2:]) > MOST_PIXELS:
                continue
            with torch.device("meta"):
                count = sum(p.numel() for p in timm.create_model(name).parameters())
            if count <= MOST_PARAMETERS:
                best[module] = min(best.get(module, (count, name)), (count, name), key=lambda b: b[0])
    return [name for _, name in best.values()]


def measure(name: str, share: float) -> Row:
    """One model, all the way; what goes wrong is said in `raised`."""
    import timm
    import torch

    from niwaki import prune, search, surgery
    from niwaki.cost import Budget
    from niwaki.errors import NiwakiError
    from niwaki.surgery.axes import walk

    torch.manual_seed(0)
    row: Row = {"name": name, "exported": False, "seconds": {}}
    net: Any = timm.create_model(name).eval()
    example = prune.drawn((4, *net.pretrained_cfg["input_size"]), torch.Generator().manual_seed(0))
    row["params"] = sum(p.numel() for p in net.parameters())
    try:
        with _Clock(row, "export"):
            traced = surgery.trace(net, example[:2])
        row["exported"] = True
        with _Clock(row, "analysis"):
            axes = walk(traced)
            row |= {"prunable": axes.prunable, "unprunable": axes.unprunable, "groups": len(axes.groups)}
            scores, whole = prune.score(net, axes), axes.cost({})
            macs = whole.macs or 0
            row |= {"macs": macs, "asked": share}
            budget = Budget.parse(f"macs={share:.0%}")
            found = search.meet(budget, axes=axes, scores=scores, baseline=whole)
        row |= {"got": found.got, "coarser": found.coarser}
        with _Clock(row, "cut"):
            done = prune.cut(net, axes, found.keep, example=example)
        row |= {"result": done.result, "why": done.why, "left": done.left, "error": done.proofs[0].error}
        row |= {"own_error": done.proofs[1].error, "got": (axes.cost(done.keep).macs or 0) / macs}
        row["smaller"] = sum(p.numel() for p in done.model.parameters())
        row |= _mutants(net, axes, done, example)
    except NiwakiError as error:
        row["raised"] = f"{error.code}: {error}"
    return row


class _Clock:
    """Seconds of a block, written into the row."""

    def __init__(self, row: Row, what: str) -> None:
        self.seconds, self.what = row["seconds"], what

    def __enter__(self) -> None:
        self.start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.what] = round(time.monotonic() - self.start, 2)


def _mutants(net: Any, axes: Any, done: Any, example: Any) -> Row:
    """Smaller models with one index list scrambled, of which the proof must reject each.

    Only lists that matter are scrambled: where the same shuffle of the original's own tensor leaves its
    output as it is (a bias of keys before a softmax), there is nothing to catch.
    """
    from niwaki import prune, surgery
    from niwaki.surgery.trace import with_weights

    drawn = prune.redrawn(net, example)
    few = example[:4]
    kept = axes.kept_indices(done.keep)
    cut = surgery.rewrite if done.result == "graph" else surgery.shrink
    small = cut(drawn, axes, done.keep, example=few)
    traced = with_weights(axes.traced, drawn)
    errors: dict[str, float] = {}
    draw = random.Random(0)
    places = [(n, a) for n, by_axis in kept.items() for a, i in by_axis.items() if len(i) > 1]
    draw.shuffle(places)
    for name, axis in places:
        if len(errors) == MUTANTS:
            break
        if _matters(drawn, name, axis, few):
            with _Shuffled(small, name, axis):
                errors[f"{name}:{axis}"] = prune.compare(traced, drawn, small, kept, few).error
    caught = sum(error > 1e-4 for error in errors.values())
    return {"mutants": len(errors), "caught": caught, "mutant_errors": errors}


def _matters(net: Any, name: str, axis: int, example: Any) -> bool:
    """Whether a shuffle of this tensor moves the output by more than the proof's tolerance."""
    import torch

    with torch.no_grad():
        before = net(example)
        with _Shuffled(net, name, axis):
            after = net(example)
    return bool((after - before).abs().max() > 1e-3 * before.std())


class _Shuffled:
    """A tensor of a model with one axis shuffled, inside the block."""

    def __init__(self, net: Any, name: str, axis: int) -> None:
        every = (net.named_parameters(remove_duplicate=False), net.named_buffers(remove_duplicate=False))
        self.tensor = next(t.data for named in every for n, t in named if n == name)
        self.axis = axis

    def __enter__(self) -> None:
        import torch

        self.before = self.tensor.clone()
        order = list(range(self.tensor.shape[self.axis]))
        random.Random(0).shuffle(order)
        self.tensor.copy_(self.before.index_select(self.axis, torch.tensor(order)))

    def __exit__(self, *_: object) -> None:
        self.tensor.copy_(self.before)


def outcome(row: Row) -> str:
    """One word: pruned, coarser, wrong, raised or slow."""
    if row.get("slow") or sum(row["seconds"].values()) > LIMIT:
        return "slow"
    if "raised" in row:
        return "raised"
    right = row["error"] <= 1e-4 and row["caught"] == row["mutants"] > 0
    return (
        "wrong" if not right else "coarser" if row["coarser"] or row["got"] < 0.98 * row["asked"] else "pruned"
    )


def run(names: list[str], out: Path, *, share: float, limit: float) -> dict[str, Row]:
    """Rows of all models, those in `out` taken from there; written after each."""
    rows: dict[str, Row] = json.loads(out.read_text()) if out.exists() else {}
    for name in names:
        if name in rows:
            continue
        start = time.monotonic()
        row = _child(name, share=share, limit=limit)
        row["wall"] = round(time.monotonic() - start, 1)
        rows = (json.loads(out.read_text()) if out.exists() else {}) | {name: row}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(rows, indent=1))
        print(_line(row), flush=True)
    return {name: rows[name] for name in names}


def _child(name: str, *, share: float, limit: float) -> Row:
    command = [sys.executable, __file__, "--one", name, "--share", str(share)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=4 * limit)
    except subprocess.TimeoutExpired:
        return {"name": name, "exported": None, "seconds": {}, "slow": limit}
    try:
        row: Row = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {
            "name": name,
            "exported": None,
            "seconds": {},
            "raised": done.stderr[-600:] or str(done.returncode),
        }
    return row


def _line(row: Row) -> str:
    error, got = row.get("error"), row.get("got")
    parts = [
        f"{row['name']:36s} {outcome(row):8s}",
        "" if got is None else f"got {got:.3f}",
        "" if error is None else f"error {error:.1e}",
        f"caught {row['caught']}/{row['mutants']}" if "caught" in row else "",
        str(row.get("result", "")),
        str(row["seconds"]),
        str(row.get("raised", ""))[:200],
    ]
    return "  ".join(part for part in parts if part)


def page(rows: dict[str, Row]) -> str:
    """The table of docs/coverage.md."""
    order = LIST.read_text().split()
    rows = dict(sorted(rows.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))
    outcomes = [outcome(row) for row in rows.values()]
    counts = ", ".join(f"{outcomes.count(word)} {word}" for word in dict.fromkeys(outcomes))
    worst = max((row["error"] for row in rows.values() if row.get("error") is not None), default=0.0)
    modules = sum(row.get("result") == "module" for row in rows.values())
    slow = [sum(row["seconds"].get(k, 0) for k in ("analysis", "cut")) for row in rows.values()]
    head = f"""# Coverage of timm

The smallest model (at most 30 M parameters, at most 288 pixels) of each of timm's module files, cut to half the
multiply-adds. Written by `python benchmarks/coverage.py --page docs/coverage.md`; no figure is typed by hand.

{len(rows)} models: {counts} (slow: more than {LIMIT:.0f} s for export, analysis and cut with both proofs).
Worst proof error on redrawn weights {worst:.1e}. {modules} results are the model's own class, the others its
graph with the same parameter names. Median of analysis, cut and both proofs {median(slow):.1f} s, the longest
{max(slow):.1f} s, export not counted; one thread of a shared virtual core.

`prunable`: share of the parameters in groups that can shrink. `proof`: largest difference of any output from
the original in which what was dropped counts for nothing, over the output's deviation, on redrawn weights.
`caught`: index lists scrambled, and how many the proof rejects. Seconds: export, analysis with the choice of
widths, cut with both proofs.

| model | outcome | prunable | MACs left | proof | caught | result | seconds | without a rule |
|---|---|---|---|---|---|---|---|---|
"""
    return head + "".join(_table_row(row) for row in rows.values())


def _table_row(row: Row) -> str:
    def shown(key: str, form: str) -> str:
        return format(row[key], form) if row.get(key) is not None else ""

    cells = [
        row["name"],
        outcome(row) + (f" ({row['raised'].split(':')[0]})" if "raised" in row else ""),
        shown("prunable", ".1%"),
        shown("got", ".1%"),
        shown("error", ".0e"),
        f"{row['caught']}/{row['mutants']}" if "caught" in row else "",
        str(row.get("result", "")),
        " + ".join(f"{s:.0f}" for s in row["seconds"].values()),
        ", ".join(dict.fromkeys(f"`{u['operator']}`" for u in row.get("unprunable", []))),
    ]
    return "| " + " | ".join(cells) + " |\n"


def _names(given: argparse.Namespace) -> Iterator[str]:
    names = given.only or LIST.read_text().split()
    index, count = map(int, given.shard.split("/"))
    yield from names[index::count]


def main() -> None:
    """See the head of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("runs/coverage.json"))
    parser.add_argument("--share", type=float, default=0.5, help="of the MACs that stays")
    parser.add_argument(
        "--limit", type=float, default=LIMIT, help="seconds for one model; four times that with the mutants"
    )
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="every N-th model from the I-th, 0-based")
    parser.add_argument("--page", type=Path, help="write the table of --out to this file")
    parser.add_argument("--list", action="store_true", help=f"write {LIST.name} anew")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.one:
        print(json.dumps(measure(given.one, given.share)))
    elif given.list:
        LIST.write_text("\n".join(smallest()) + "\n")
    elif given.page:
        given.page.write_text(page(json.loads(given.out.read_text())))
    else:
        rows = run(list(_names(given)), given.out, share=given.share, limit=given.limit)
        words = [outcome(row) for row in rows.values()]
        print({word: words.count(word) for word in sorted(set(words))})


if __name__ == "__main__":
    main()
