"""niwaki clean: an ONNX file without what it does not need, compared with the file it came from."""

from __future__ import annotations

import argparse
from pathlib import Path

from niwaki.cli.screen import Answer, Out
from niwaki.cli.values import natural
from niwaki.errors import ModelError


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    arg = parser.add_argument
    arg("file", metavar="FILE", help="an ONNX file, of any program")
    arg("--out", required=True, metavar="FILE", help="where the cleaned file goes")
    arg("--seed", type=natural, default=0, metavar="N", help="seed of the inputs that both run on (default 0)")


def run(args: argparse.Namespace, out: Out) -> Answer:
    """Clean, compare, write."""
    from niwaki import files
    from niwaki.lazy import require

    onnx = require("onnx", extra="train")
    clean = require("niwaki.qdq.clean", extra="train")
    data = Path(args.file).read_bytes()
    try:
        proto = onnx.ModelProto.FromString(data)
    except Exception as error:  # protobuf's own kind
        raise ModelError(f"clean: {args.file} is no ONNX file.", code="clean-graph") from error
    done = clean.clean(proto, seed=args.seed)
    written = done.proto.SerializeToString(deterministic=True)
    files.write_bytes(Path(args.out), written)
    value = {"file": args.out, "nodes": [done.before, done.after], "bytes": [len(data), len(written)]}
    text = f"{args.out}: {done.before} nodes to {done.after}, {len(data)} bytes to {len(written)}; "
    return Answer({**value, "error": done.error}, text + f"outputs differ by at most {done.error:.2g}")
