"""The processes that `torchrun` started, seen as one: ranks, sums, bytes from the first.

One process alone is a world of one: every function here is then the identity, so callers need no
second path. Nothing is pickled between processes.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def join() -> tuple[int, int]:
    """This process's rank and the number of processes; joins torchrun's group at the first call.

    The group is nccl where there is CUDA, else gloo. A group that exists already is used as it is.
    """
    if not dist.is_available():
        return 0, 1
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(_leave)
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def device() -> torch.device:
    """Where this process trains: its own GPU where there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def sum_(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, in place and in one message a dtype."""
    if join()[1] == 1:
        return
    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in same])
        dist.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in same])
        for tensor, part in zip(same, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))


def from_first_(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by that of the first process, in place."""
    if join()[1] == 1:
        return
    for tensor in tensors:
        whole = tensor.contiguous()
        dist.broadcast(whole, src=0)
        tensor.copy_(whole)


def bytes_from_first(data: bytes | None) -> bytes | None:
    """What the first process gave, in every process. Only the first one's `data` counts."""
    if join()[1] == 1:
        return data
    size = torch.tensor([-1 if data is None else len(data)], device=device())
    dist.broadcast(size, src=0)
    if int(size) <= 0:
        return None if int(size) < 0 else b""
    first = join()[0] == 0 and data is not None
    content = torch.frombuffer(bytearray(data or b""), dtype=torch.uint8) if first else None
    if content is None:
        content = torch.empty(int(size), dtype=torch.uint8)
    content = content.to(device())
    dist.broadcast(content, src=0)
    return content.cpu().numpy().tobytes()
