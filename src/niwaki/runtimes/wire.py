"""Reads just enough of an ONNX file's protobuf to see whether it keeps tensors in other files, and what it says
of itself. No onnx needed.

ONNX lets a tensor live in a file named inside the model; a model from elsewhere could so name any
file of the machine. niwaki never writes such tensors and refuses them. Only the fields below are
walked (the numbers are those of onnx.proto3); everything else is skipped by its length.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from niwaki.errors import RuntimeFailed

# message kind -> field number -> kind of the message in it
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse",
        23: "sparse",
    },
    "tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_PROPERTIES = 14  # of the model
_MAX_DEPTH = 64


def refuse_external(data: bytes, path: Path) -> None:
    """Nothing, when every tensor of an ONNX file lies inside it.

    Raises:
        RuntimeFailed: it is no ONNX file, or a tensor lies outside. [runtime-refused,
            runtime-external]
    """
    waiting = [("model", memoryview(data), 0)]
    try:
        while waiting:
            kind, body, depth = waiting.pop()
            for field, value in _fields(body):
                if kind == "tensor" and (field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value)):
                    raise RuntimeFailed(
                        f"{path.name}: keeps a tensor in another file, which is refused. Save it as one file.",
                        code="runtime-external",
                    )
                child = _CHILDREN[kind].get(field)
                if child and isinstance(value, memoryview):
                    if depth >= _MAX_DEPTH:
                        raise ValueError("graphs nested too deeply")
                    waiting.append((child, value, depth + 1))
    except (ValueError, IndexError) as error:
        raise RuntimeFailed(
            f"{path.name}: is no ONNX file ({error}). Export it again.", code="runtime-refused"
        ) from error


def properties(data: bytes) -> dict[str, str]:
    """The metadata of an ONNX file that `refuse_external` has read: what it says of itself, by name."""
    found = {}
    for field, body in _fields(memoryview(data)):
        if field == _PROPERTIES and isinstance(body, memoryview):
            entry = {key: value for key, value in _fields(body) if isinstance(value, memoryview)}
            key, value = (bytes(entry.get(number, b"")).decode(errors="replace") for number in (1, 2))
            found[key] = value
    return found


def _fields(body: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    at = 0
    while at < len(body):
        key, at = _varint(body, at)
        field, wire = key >> 3, key & 7
        value: int | memoryview = 0
        if wire == 0:
            value, at = _varint(body, at)
        elif wire == 2:
            size, at = _varint(body, at)
            value, at = body[at : at + size], at + size
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at > len(body):
            raise ValueError("cut short")
        yield field, value


def _varint(body: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = body[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
