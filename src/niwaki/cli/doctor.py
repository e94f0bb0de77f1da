"""niwaki doctor: what of a model can be pruned, by doing it; without a model, what works here."""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from niwaki.cli.screen import Answer, Out, count, percent, table
from niwaki.cli.values import share, size

PARTS = {
    "base": ("numpy", "pillow", "onnxruntime", "safetensors", "rich", "tomlkit"),
    "train": ("torch", "torchvision", "timm", "onnx", "onnxscript", "scikit-learn"),
    "nncf": ("nncf",),
}


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    arg = parser.add_argument
    arg("model", nargs="?", metavar="MODEL", help="timm:NAME, niwaki:NAME or file.py:function")
    cut = parser.add_mutually_exclusive_group()
    cut.add_argument("--budget", metavar="KIND=VALUE", help="prune to it (default macs=50%%)")
    cut.add_argument("--channels", type=share, metavar="SHARE", help="keep this share of every prunable group")
    arg("--groups", action="store_true", help="list every group of channels, and what it is made of")
    arg("--size", type=size, metavar="N|HxW", help="pixels of the model's input")


def run(args: argparse.Namespace, out: Out) -> Answer:
    """Examine a model, or the machine."""
    if args.model is None:
        value = machine()
        return Answer(value, _machine_text(value))
    from niwaki import diagnose

    value = diagnose.model(args.model, budget=args.budget, channels=args.channels, size=args.size)
    return Answer(value, _model_text(value, groups=args.groups))


def machine() -> dict[str, Any]:
    """What is installed here: `python`, `system`, `cores`, `parts`, `runtimes`, `web`.

    `parts` is {part: {package: its version or None}}, `runtimes` {name: {"run",
    "export": bool, "missing": packages, "install": the line that brings them or None, "precisions", "note"}},
    `web` what `web.support` says of the page for browsers.
    """
    from niwaki import runtimes, web

    parts = {part: {name: _version(name) for name in names} for part, names in PARTS.items()}
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "parts": parts,
        "runtimes": {name: {**runtimes.support(name), "note": _note(name)} for name in runtimes.NAMES},
        "web": web.support(),
    }


def _note(runtime: str) -> str | None:
    """What of a runtime depends on more than packages: a processor, a device."""
    from niwaki import runtimes

    if runtime == "tensorrt":
        return "it runs only where an NVIDIA GPU is; exporting needs none"
    if runtime == "openvino" and runtimes.support(runtime)["run"]:
        there = runtimes.load(runtime).has_bfloat16()
        return f"bfloat16: this CPU has {'it' if there else 'none, so it is not exported or run here'}"
    return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _machine_text(value: dict[str, Any]) -> str:
    lines = [f"Python {value['python']}, {value['system']}, {value['cores']} cores"]
    for part, packages in value["parts"].items():
        found = ", ".join(f"{name} {number}" for name, number in packages.items() if number)
        missing = [name for name, number in packages.items() if not number]
        lines.append(f"{part:<8}{found or 'nothing'}")
        if missing:
            lines.append(f"{'':8}missing: {', '.join(missing)}  (pip install 'niwaki[{part}]')")
    for name, can in value["runtimes"].items():
        words = [word for word in ("run", "export") if can[word]] or ["does not work here"]
        lines.append(f"runtime {name}: {', '.join(words)} ({', '.join(can['precisions'])})")
        if can["install"]:
            lines.append(f"{'':8}for {'the rest' if can['run'] or can['export'] else 'it'}: {can['install']}")
        if can["note"]:
            lines.append(f"{'':8}{can['note']}")
    web = value["web"]
    lines.append(f"page for browsers: {'export, ' + web['engine'] if web['export'] else 'does not work here'}")
    if web["install"]:
        lines.append(f"{'':8}for it: {web['install']}")
    return "\n".join(lines)


def _model_text(value: dict[str, Any], *, groups: bool) -> str:
    if not value["exported"]:
        return f"not exported: {value['reason']}"
    macs, params, error = value["macs"], value["params"], value["proof_error"]
    rows = [
        ["", "before", "after"],
        ["MACs", count(macs["before"]), count(macs["after"])],
        ["params", count(params["before"]), count(params["after"])],
    ]
    proof = "nothing was cut" if error is None else f"proven, error {error:.1g} (at most 1e-4)"
    kept = value["protected"]
    lines = [
        table(rows),
        "",
        f"prunable   {percent(value['prunable'])} of the parameters, {len(value['groups'])} groups",
        f"surgery    {proof}, result: {value['result']}, {value['seconds']:.1f} s",
        *([f"           {value['why']}"] if value["why"] else []),
        f"protected  input {', '.join(kept['inputs'])}; output and head {_some(kept['whole'])}",
    ]
    lines += [f"left alone {name}: {why}" for name, why in value["left"].items()]
    lines += [f"no rule    {one['operator']}  {one['source']}" for one in value["unprunable"]]
    lines += [f"not learnt {one}: not in the graph" for one in value["lost"]]
    if groups:
        lines += ["", *_groups_text(value["groups"])]
    return "\n".join(lines)


def _groups_text(groups: list[dict[str, Any]]) -> list[str]:
    """Each group of channels, what it is made of, and why it stays whole where it does."""
    lines = []
    for group in groups:
        marks = [word for word in ("secondary", "optional") if group[word]]
        marks += [group["reason"]] if group["reason"] else []
        said = f"  ({'; '.join(marks)})" if marks else ""
        lines.append(f"{group['name']}  {group['before']} -> {group['after']}{said}")
        members = [f"{one['parameter']}:{one['axis']}" for one in group["members"]]
        lines.append(f"    {', '.join(members)}")
    return lines


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or "–"
