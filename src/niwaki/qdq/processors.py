"""Kinds of CPUs, by how they add products of u8 and s8. Imports nothing: all that runs a file asks here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

KINDS = ("vnni", "arm", "pairs")
"""Exact products on x86, on ARM; and x86 without VNNI, where pairs of products saturate at 16 bits."""
EXACT = {
    **dict.fromkeys(("avx_vnni", "avx512_vnni", "amx_int8"), "vnni"),
    **dict.fromkeys(("asimd", "aarch64", "arm64"), "arm"),
}
"""Names of instruction sets that add products exactly, as `timing.isa` spells them."""


def kind(isa: Collection[str]) -> str:
    """Which of `KINDS` a CPU is, by the names that `timing.isa` gives."""
    return next((EXACT[name] for name in EXACT if name in isa), "pairs")


def exact(name: str, entry: Mapping[str, Any], isa: Collection[str]) -> str | None:
    """The sentence that says why ONNX Runtime runs an export in its exact mode on such a CPU; None where not.

    Args:
        name: of the artifact.
        entry: its int8 export, as a manifest describes it.
    """
    if kind(isa) != "pairs" or safe(entry, isa):
        return None
    told = entry.get("instruction_sets")
    kept = told.get("agreement") if isinstance(told, Mapping) else None
    share = f" ({100 * kept:.1f} % of predictions would stay)" if isinstance(kept, float) else ""
    listed = told.get("safe_for") if isinstance(told, Mapping) else None
    says = "saturates" if isinstance(listed, list) else "may saturate"
    return (
        f"{name}: int8 {says} on this CPU, which has no VNNI{share}. It runs in ONNX "
        "Runtime's exact mode, which is slower; weights of 7 bits are safe and fast (docs/instruction-sets.md)."
    )


def saturating(name: str, entry: Mapping[str, Any], isa: Collection[str]) -> str | None:
    """The sentence that says that OpenVINO's kernels may saturate on such a CPU, of which it has no exact ones;
    None where they do not.

    Args:
        name: of the artifact.
        entry: its int8 export, as a manifest describes it.
    """
    if kind(isa) != "pairs" or safe(entry, isa):
        return None
    return (
        f"{name}: OpenVINO's int8 may saturate on this CPU, which has no VNNI, so that its answers are others "
        "than measured elsewhere. Measure its accuracy here, or take weights of 7 bits, or ONNX Runtime, whose "
        "exact mode is for such CPUs (docs/instruction-sets.md)."
    )


def safe(entry: Mapping[str, Any], isa: Collection[str]) -> bool:
    """Whether an export, as a manifest describes it, is safe on such a CPU; False where it is not told."""
    told = entry.get("instruction_sets")
    listed = told.get("safe_for") if isinstance(told, Mapping) else None
    return isinstance(listed, list) and kind(isa) in listed
