"""Five hundred ways to damage an artifact: each takes its files and gives back damaged ones.

A case is (name, damage): `damage(files)` changes {name in the folder: bytes, or a maker of
something else} in place. Cases named `resummed-` carry right checksums, as an attacker's would.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

Files = dict[str, Any]
Case = tuple[str, Callable[[Files], None]]
SUMS, MANIFEST, WEIGHTS, GRAPH = "SHA256SUMS", "niwaki.json", "weights.safetensors", "graph.json"
FLOAT = "exports/onnx/float32.onnx"


def write(folder: Path, files: Files) -> None:
    """Puts files where an artifact would be; a callable makes what it likes at its path."""
    folder.mkdir()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content(path) if callable(content) else path.write_bytes(content)


def resum(files: Files) -> None:
    sums = "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n"
        for name, content in sorted(files.items())
        if name != SUMS
    )
    files[SUMS] = sums.encode()


def resummed(damage: Callable[[Files], None]) -> Callable[[Files], None]:
    def both(files: Files) -> None:
        damage(files)
        resum(files)

    return both


def bytes_damaged(names: list[str], sizes: dict[str, int]) -> Iterator[Case]:
    """Flipped, cut, lengthened; 220 cases over all files, the list of checksums among them."""
    draw = random.Random(0)
    for k in range(130):
        name, value = names[k % len(names)], draw.randrange(1, 256)
        at = draw.randrange(sizes[name])
        yield (
            f"flip-{k}",
            change(name, lambda b, at=at, v=value: flip(b, at, v)),
        )
    for k in range(60):
        name = names[k % len(names)]
        at = draw.randrange(sizes[name])
        yield f"cut-{k}", change(name, lambda b, at=at: b[:at])
    for k in range(30):
        name, tail = names[k % len(names)], draw.randbytes(draw.randrange(1, 40))
        yield f"longer-{k}", change(name, lambda b, tail=tail: b + tail)


def change(name: str, how: Callable[[bytes], bytes]) -> Callable[[Files], None]:
    def damage(files: Files) -> None:
        files[name] = how(files[name])

    return damage


def flip(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes([data[at] ^ value]) + data[at + 1 :]


def files_damaged(names: list[str]) -> Iterator[Case]:
    """Files missing, files too many, links."""
    for name in names:
        yield f"missing-{name}", lambda f, n=name: f.pop(n)
        yield f"link-{name}", change(name, lambda b: linked_to(b))  # type: ignore[arg-type, return-value]
        yield f"folder-{name}", change(name, lambda b: os.mkdir)  # type: ignore[arg-type, return-value]
        yield f"fifo-{name}", change(name, lambda b: os.mkfifo)  # type: ignore[arg-type, return-value]
    extra = [
        *(
            "run.py",
            "model.pkl",
            ".hidden",
            "exports/onnx/float32.onnx.data",
            "exports/x.onnx",
            "weights.bin",
        ),
        *("exports/onnx/deep/er/x.onnx", "__init__.py", "niwaki.json.bak", "a b", "Niwaki.json"),
    ]
    for name in extra:
        yield f"extra-{name}", lambda f, n=name: f.update({n: b"x"})
        yield f"resummed-extra-{name}", resummed(lambda f, n=name: f.update({n: b"x"}))
    yield (
        "dangling",
        lambda f: f.update({"exports/onnx/x.onnx": lambda p: p.symlink_to("/nowhere")}),
    )
    yield "folder-link", lambda f: f.update({"exports/y": lambda p: p.symlink_to("/etc")})
    yield "many", lambda f: f.update({f"exports/onnx/x{k}.onnx": b"" for k in range(500)})


def linked_to(content: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        target = path.parent.parent / f"{path.name}.elsewhere"
        target.write_bytes(content)
        path.symlink_to(target)

    return make


def sums_damaged() -> Iterator[Case]:
    """The list of checksums itself."""
    zero = b"0" * 64
    for name in (
        "../x",
        "/etc/passwd",
        "a/../../b",
        "exports/onnx/../../../x",
        "",
        "\\x",
        "no such",
    ):
        yield f"sums-{name}", change(SUMS, lambda b, n=name: b + zero + b"  " + n.encode() + b"\n")
    yield "sums-twice", change(SUMS, lambda b: b + b)
    yield "sums-empty", change(SUMS, lambda b: b"")
    yield "sums-large", change(SUMS, lambda b: b * 2000)
    yield "sums-upper", change(SUMS, lambda b: b.upper())
    yield "sums-binary", change(SUMS, lambda b: bytes(range(256)))
    yield "sums-crlf", change(SUMS, lambda b: b.replace(b"\n", b"\r\n"))
    yield "sums-nul", change(SUMS, lambda b: b.replace(b"  ", b" \0"))


def json_damaged() -> Iterator[Case]:
    """What is no JSON that niwaki writes."""
    texts = {
        "empty": b"",
        "text": b"hello",
        "list": b"[]",
        "null": b"null",
        "number": b"1",
        "cut": b'{"format": 1,',
        "nan": b'{"format": NaN}',
        "infinity": b'{"format": -Infinity}',
        "overflow": b'{"format": 1e999}',
        "long-number": b'{"format": ' + b"9" * 100_000 + b"}",
        "deep": b"[" * 200_000,
        "deep-object": b'{"a":' * 100_000,
        "twice": b'{"format": 1, "format": 1}',
        "utf16": '{"format": 1}'.encode("utf-16"),
        "not-utf8": b'{"format": "\xff\xfe"}',
        "surrogate": b'{"format": "\xed\xa0\x80"}',
        "bom": b'\xef\xbb\xbf{"format": 1}',
        "two": b"{} {}",
        "huge": b" " * 65_000_000,
        "binary": bytes(range(256)),
    }
    for name, text in texts.items():
        yield f"resummed-json-{name}", resummed(change(MANIFEST, lambda b, t=text: t))


def put(name: str, path: tuple[Any, ...], value: Any) -> Callable[[Files], None]:
    """Sets one value inside a JSON file; DELETE takes it away."""

    def damage(files: Files) -> None:
        whole = json.loads(files[name])
        inner = whole
        for key in path[:-1]:
            inner = inner[key]
        if value is DELETE:
            del inner[path[-1]]
        else:
            inner[path[-1]] = value
        files[name] = json.dumps(whole).encode()
        resum(files)

    return damage


DELETE = object()
_ANY = (None, -1, "x", [], {}, DELETE)
_FIELDS: dict[tuple[Any, ...], tuple[Any, ...]] = {
    ("format",): (*_ANY, 0, 2, 1.5, True, "1", [1]),
    ("spec",): (*_ANY, 3),
    ("spec", "size_hw"): (
        *_ANY,
        [8],
        [8, 8, 8],
        [0, 8],
        [8, -8],
        [10**12, 8],
        [1e308, 1],
        ["a", 8],
        [8, None],
        "88x",
    ),
    ("spec", "mean"): (*_ANY, [0.5, 0.5], ["x"], [None], [[]], 0.5),
    ("spec", "std"): (*_ANY, [0.0], [-1.0], ["x"], [None], [0.1, 0.1]),
    ("spec", "channels"): (None, -1, "x", [], {}, DELETE, 2, 3, 0, 1e300),
    ("spec", "resize"): (*_ANY, "nearest", 3),
    ("task",): (*_ANY, "classify"),
    ("task", "kind"): (*_ANY, "detect", ["classify"]),
    ("task", "classes"): (
        *_ANY,
        ["a"],
        [1, 2, 3, 4],
        "abcd",
        ["a", "b", "c", None],
        [[]] * 4,
        list("abcdefgh"),
    ),
    ("builder",): (
        None,
        -1,
        [],
        {},
        DELETE,
        "x",
        "niwaki:nothing",
        "timm:nothing",
        "evil.py:run",
        "timm:../x",
        "os:system",
        "niwaki:",
        "timm:hf_hub:a/b",
        "timm:local-dir:/etc",
    ),
    ("structure",): (*_ANY, 7),
    ("exports",): (*_ANY, {"onnx": []}, {"onnx": {}}, {"onnx": None}, {"tvm": {}}),
    ("exports", "onnx"): (*_ANY, 1),
    ("exports", "onnx", "float32"): (*_ANY, [1]),
    ("exports", "onnx", "float32", "file"): (
        *_ANY,
        "../x.onnx",
        "/etc/passwd",
        "exports/onnx/int8.onnx",
        "exports/onnx/float32.onnx/..",
        "niwaki.json",
    ),
    ("exports", "onnx", "float32", "bytes"): (*_ANY, 1.5),
    ("exports", "onnx", "float32", "parity"): (None, -1, "x", [], DELETE),
    ("versions",): (None, -1, "x", [], DELETE),
    ("default",): (None, -1, [], {}, "int4", "../x"),
    ("splits",): (None, [], {"seed": -1}, {"seed": "0"}, {"val": "x"}, {"val": 1}, {"val": None}),
}


def fields_damaged() -> Iterator[Case]:
    """Every field that niwaki reads, with values of wrong kinds and sizes."""
    for path, values in _FIELDS.items():
        for k, value in enumerate(values):
            yield f"resummed-field-{'.'.join(path)}-{k}", put(MANIFEST, path, value)


def structure_damaged(tensor: str, module: str) -> Iterator[Case]:
    """The difference that rebuilds the module: names and numbers that cannot be."""
    values: list[tuple[tuple[Any, ...], Any]] = [
        *((("tensors",), v) for v in (None, [], 1, DELETE)),
        *((("attributes",), v) for v in (None, [], 1, DELETE)),
        *((("training",), v) for v in (None, [], {"": 1}, {"nothing": True}, DELETE)),
        *((("frozen",), v) for v in (None, {}, ["nothing"], [1], DELETE)),
        *((("tensors", tensor), v) for v in (None, [], [[1]], [[10**9] * 3, "float32"], [[-1], "float32"])),
        *((("tensors", tensor), v) for v in ([[1], "load"], [[1], "nothing"], [["a"], "float32"], [[1], None])),
        *((("tensors", "nothing"), [[1], "float32"]) for _ in range(1)),
        *((("attributes", "nothing"), v) for v in ({}, {"a": 1})),
        *((("attributes", module), v) for v in (None, [], {"nothing": 1}, {"in_channels": "x"})),
        *((("attributes", module), {k: 1}) for k in ("_parameters", "forward", "__class__", "training")),
        *((("attributes", module), {"in_channels": v}) for v in (1.5, True, None, [1], {})),
        *((("attributes", module), {"stride": v}) for v in ([1.5, 1], ["a"], 1, [0, 0], [-1, -1])),
        *((("attributes", module), {"groups": v}) for v in (0, -1, 7)),
        *((("attributes", module), {"padding": v}) for v in ("same", [-5, -5])),
        ((("extra",)), 1),
    ]
    for k, (path, value) in enumerate(values):
        yield f"resummed-structure-{k}-{path[0]}", put(MANIFEST, ("structure", *path), value)


def weights_damaged() -> Iterator[Case]:
    """safetensors with a wrong header, with the right checksum."""

    def edit(how: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
        def changed(data: bytes) -> bytes:
            size = struct.unpack("<Q", data[:8])[0]
            header = json.loads(data[8 : 8 + size])
            text = json.dumps(how(header)).encode()
            return struct.pack("<Q", len(text)) + text + data[8 + size :]

        return changed

    def first(header: dict[str, Any], **new: Any) -> dict[str, Any]:
        name = next(k for k in header if k != "__metadata__")
        return {**header, name: {**header[name], **new}}

    edits: dict[str, Callable[[bytes], bytes]] = {
        "empty": lambda b: b"",
        "short": lambda b: b[:7],
        "size-huge": lambda b: struct.pack("<Q", 2**63) + b[8:],
        "size-past-end": lambda b: struct.pack("<Q", len(b) * 2) + b[8:],
        "size-zero": lambda b: struct.pack("<Q", 0) + b[8:],
        "header-garbage": lambda b: b[:8] + b"\xff" * 40 + b[48:],
        "header-list": edit(lambda h: []),
        "header-null": edit(lambda h: None),
        "no-tensors": edit(lambda h: {}),
        "dtype": edit(lambda h: first(h, dtype="F7")),
        "dtype-other": edit(lambda h: first(h, dtype="I32")),
        "shape-negative": edit(lambda h: first(h, shape=[-1])),
        "shape-huge": edit(lambda h: first(h, shape=[2**62, 8])),
        "shape-text": edit(lambda h: first(h, shape="x")),
        "offsets-backwards": edit(lambda h: first(h, data_offsets=[8, 0])),
        "offsets-outside": edit(lambda h: first(h, data_offsets=[0, 2**40])),
        "offsets-gap": edit(lambda h: first(h, data_offsets=[4, 8])),
        "renamed": edit(lambda h: {("x" + k): v for k, v in h.items()}),
        "extra": edit(lambda h: {**h, "extra": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
        "pickle": lambda b: b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        "zip": lambda b: b"PK\x03\x04" + b,
        "data-cut": lambda b: b[:-10],
        "data-longer": lambda b: b + b"0123",
    }
    for name, how in edits.items():
        yield f"resummed-weights-{name}", resummed(change(WEIGHTS, how))


def onnx_model(
    inputs: tuple[str, int, list[Any]] = ("image", TensorProto.UINT8, ["N", 8, 8, 1]),
    outputs: tuple[str, int, list[Any]] = ("probabilities", TensorProto.FLOAT, ["N", 4]),
    external: str = "",
) -> bytes:
    """A small ONNX file that is a right one apart from what is asked for."""
    weight = numpy_helper.from_array(np.ones((64, 4), np.float32), "w")
    if external:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        entry = weight.external_data.add()
        entry.key, entry.value = "location", external
    cast = helper.make_node("Cast", [inputs[0]], ["f"], to=TensorProto.FLOAT)
    flat = helper.make_node("Flatten", ["f"], ["g"])
    last = helper.make_node("MatMul", ["g", "w"], [outputs[0]])
    graph = helper.make_graph(
        [cast, flat, last],
        "g",
        [helper.make_tensor_value_info(*inputs)],
        [helper.make_tensor_value_info(*outputs)],
        [weight],
    )
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    )


def onnx_damaged() -> Iterator[Case]:
    """What is no ONNX file, or not one that niwaki exports, with the right checksum."""
    image, out, u8, f32 = "image", "probabilities", TensorProto.UINT8, TensorProto.FLOAT
    whole: dict[str, bytes] = {
        "empty": b"",
        "text": b"hello world",
        "zeros": bytes(5000),
        "ones": b"\xff" * 5000,
        "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        "input-name": onnx_model(("picture", u8, ["N", 8, 8, 1])),
        "input-type": onnx_model((image, f32, ["N", 8, 8, 1])),
        "input-rank": onnx_model((image, u8, ["N", 64])),
        "input-size": onnx_model((image, u8, ["N", 4, 16, 1])),
        "output-name": onnx_model(outputs=("logits", f32, ["N", 4])),
        "output-type": onnx_model(outputs=(out, TensorProto.INT64, ["N", 4])),
        "output-classes": onnx_model(outputs=(out, f32, ["N", 5])),
        "output-rank": onnx_model(outputs=(out, f32, ["N", 4, 1])),
        "external": onnx_model(external="x.bin"),
        "external-path": onnx_model(external="../../etc/passwd"),
        "external-absolute": onnx_model(external="/etc/passwd"),
    }
    for name, data in whole.items():
        yield f"resummed-onnx-{name}", resummed(change(FLOAT, lambda b, d=data: d))
    draw = random.Random(1)
    for k in range(20):
        noise = draw.randbytes(draw.randrange(1, 4000))
        yield f"resummed-onnx-noise-{k}", resummed(change(FLOAT, lambda b, d=noise: d))
        part = (k + 1) / 22
        yield (
            f"resummed-onnx-cut-{k}",
            resummed(change(FLOAT, lambda b, p=part: b[: int(p * len(b))])),
        )


def graph_damaged() -> Iterator[Case]:
    """A saved graph that asks for what it may not, or cannot be run."""

    def node(**new: Any) -> Callable[[Files], None]:
        def damage(files: Files) -> None:
            graph = json.loads(files[GRAPH])
            graph["nodes"][1] |= new
            files[GRAPH] = json.dumps(graph).encode()
            resum(files)

        return damage

    operators = (
        *(
            "os.system",
            "aten.save.default",
            "operator.attrgetter",
            "operator.methodcaller",
            "eval",
            None,
            7,
        ),
        *(
            "aten.from_file.default",
            "aten.conv2d.__class__",
            "aten.conv2d",
            "prim.print.default",
            "aten..",
            "",
        ),
        *(
            "builtins.exec",
            "operator.call",
            "aten.set_.source_Storage",
            "aten.relu.nothing",
            "aten.resize.default",
        ),
    )
    for k, name in enumerate(operators):
        yield f"resummed-graph-operator-{k}", node(op=name)
    arguments = (
        *(
            None,
            7,
            "x",
            {},
            [{"node": "nothing"}],
            [{"node": 1}],
            [{"dtype": "load"}],
            [{"what": 1}],
        ),
        *(
            [{"node": "a", "b": 1}],
            [[[[[[[[[[[[1]]]]]]]]]]]],
            [{"memory": "x"}],
            [{"layout": 1}],
            [{}],
            [],
            [1, 2],
        ),
    )
    for k, value in enumerate(arguments):
        yield f"resummed-graph-args-{k}", node(args=value)
    yield "resummed-graph-kwargs", node(kwargs=[1])
    yield "resummed-graph-kwargs-name", node(kwargs={"nothing": 1})
    yield "resummed-graph-name", node(name="x")
    for key in ("tensors", "inputs", "nodes", "outputs", "parameters"):
        for k, value in enumerate((None, [], {}, 1, "zz", DELETE, ["zz"], [[]], {"zz": "y"})):
            if key != "parameters" or k in (0, 3, 5):
                yield f"resummed-graph-{key}-{k}", put(GRAPH, (key,), value)
    for key in ("norms", "takes", "gives", "ties", "training"):
        for k, value in enumerate((None, 1, "zz", DELETE, ["zz"], {"zz": "y"})):
            yield f"resummed-graph-{key}-{k}", put(GRAPH, (key,), value)
    yield "resummed-graph-absent", resummed(lambda f: f.pop(GRAPH))
    yield "resummed-graph-deep", resummed(change(GRAPH, lambda b: b'{"a":' * 100_000))
