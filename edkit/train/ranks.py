"""Several processes that train one model: what each of them does, and what they must agree on.

They are started by `accelerate launch` or `torchrun`, whose environment variables say which one this is. A process
that is alone has rank 0 of 1, and every function here gives back what it was given.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from edkit.data.errors import StateError
from edkit.data.plan import MicroBatch, Step

if TYPE_CHECKING:
    from torch import nn

_T = TypeVar("_T")
_PATIENCE = timedelta(days=1)  # others wait while the first makes latents, saves and draws; the launcher ends them
_CHUNK = 1 << 26  # gradients summed in one message


def size() -> int:
    """How many processes train together."""
    whole = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    return int(os.environ["WORLD_SIZE"]) if whole else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ["RANK"]) if size() > 1 else 0


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Be in touch with the other processes while it is open: over gloo, and NCCL where there are CUDA devices."""
    import torch
    import torch.distributed as dist

    if size() == 1 or dist.is_initialized():
        yield
        return
    with _together():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def device_name(name: str) -> str:
    """The device of this process, of those that `name` (auto, cuda, cpu, ...) means: each takes a GPU of its own."""
    import torch

    if size() > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{int(os.environ.get('LOCAL_RANK', rank()))}"
        torch.cuda.set_device(name)
    return name


def share(step: Step, rank: int, size: int) -> Step:
    """The picks of a step that one of `size` processes trains: consecutive ones, and as many as any other has, give
    or take one. All shares together are the step, each pick once.
    """
    total = sum(len(micro.picks) for micro in step)
    start, end = total * rank // size, total * (rank + 1) // size
    mine = []
    for micro in step:
        picks = micro.picks[max(0, start) : max(0, end)]
        if picks:
            mine.append(MicroBatch(bucket=micro.bucket, batch_id=micro.batch_id, picks=picks))
        start, end = start - len(micro.picks), end - len(micro.picks)
    return tuple(mine)


def anybody(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return any(gathered([flag])) if size() > 1 else flag


def gathered(values: list[_T]) -> list[_T]:
    """The lists of all processes, one after another, in every process."""
    if size() == 1:
        return values
    import torch.distributed as dist

    parts: list[list[_T]] = [[] for _ in range(size())]
    with _together():
        dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def from_first(value: _T) -> _T:
    """The first process's value, in every process."""
    if size() == 1:
        return value
    import torch.distributed as dist

    box = [value]
    with _together():
        dist.broadcast_object_list(box, src=0)
    return box[0]


@contextmanager
def after_first() -> Iterator[None]:
    """A block that the first process goes through alone, and the others when it is done."""
    if not is_first():
        from_first(None)
    yield
    if is_first():
        from_first(None)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up every parameter's gradients over all processes; one that has none anywhere is left without."""
    if size() == 1:
        return
    import torch
    import torch.distributed as dist

    every = list(parameters)
    with _together():
        has = torch.tensor([p.grad is not None for p in every], dtype=torch.uint8)
        dist.all_reduce(has, op=dist.ReduceOp.MAX)
        chunk: list[torch.Tensor] = []
        wanted = [p for p, there in zip(every, has.tolist(), strict=True) if there]
        for number, parameter in enumerate(wanted, start=1):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            chunk.append(parameter.grad)
            if number == len(wanted) or sum(g.numel() for g in chunk) >= _CHUNK:
                flat = torch.cat([gradient.reshape(-1) for gradient in chunk])
                dist.all_reduce(flat)
                for gradient, summed in zip(chunk, torch.split(flat, [g.numel() for g in chunk]), strict=True):
                    gradient.copy_(summed.view_as(gradient))
                chunk = []


@contextmanager
def _together() -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise StateError(
            f"process {rank()} has lost the others: {why}",
            mend="what the one that ended first said tells why; the last checkpoint is good",
        ) from None
