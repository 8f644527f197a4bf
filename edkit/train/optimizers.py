"""Optimizers, the learning rate of every optimizer step, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def lr_factor(step: int, *, schedule: str, warmup: int, total: int, end: float) -> float:
    """What the learning rate is multiplied by at optimizer step `step` (from 0) of `total`.

    Warm-up rises linearly and reaches 1 with its last step; then constant, or linear or half a cosine to
    `end`.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    fallen = done if schedule == "linear" else (1 - math.cos(math.pi * done)) / 2
    return 1 - (1 - end) * fallen


def make_optimizer(
    name: str,
    groups: Sequence[tuple[Sequence[nn.Parameter], float]],
    *,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """The optimizer over groups of (parameters, learning rate); the base rate stands in each group as
    `base_lr`.
    """
    used = [(list(params), lr) for params, lr in groups if params]
    rows = [{"params": params, "lr": lr, "base_lr": lr} for params, lr in used]
    if name != "adamw":
        raise ValueError(name)
    every = [p for params, _ in used for p in params]
    fused = all(p.device.type in ("cpu", "cuda") and p.dtype == torch.float32 for p in every)
    return torch.optim.AdamW(rows, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group's learning rate for the step to come."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter>|<entry>` -> tensor; `names`: each parameter's by its id()."""
    state: dict[str, Tensor] = {}
    for parameter, entries in optimizer.state.items():
        for entry, value in entries.items():
            tensor = value if isinstance(value, Tensor) else torch.tensor(value)
            state[f"{names[id(parameter)]}|{entry}"] = tensor.detach().cpu().contiguous()
    return state


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str], state: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave; KeyError where an entry belongs to no parameter."""
    by_name = {names[id(p)]: p for group in optimizer.param_groups for p in group["params"]}
    for key, tensor in state.items():
        name, _, entry = key.rpartition("|")
        parameter = by_name[name]
        # fused AdamW walks memory: a state must be laid out as its parameter is, and aligned as torch aligns
        like = parameter.detach() if tensor.shape == parameter.shape else tensor.to(parameter.device)
        optimizer.state[parameter][entry] = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


class Ema:
    """An exponential moving average of parameters, that warms up: decay min(d, (1 + n) / (10 + n)) at update
    n.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.names = list(parameters)
        self._live = list(parameters.values())
        self.shadow = [p.detach().clone() for p in self._live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights as they are after optimizer step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        live: list[Any] = [p.detach() for p in self._live]
        torch._foreach_lerp_(self.shadow, live, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model bear the averaged weights for a while (to draw samples, to export)."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for i, parameter in enumerate(self._live):
            parameter.data, self.shadow[i] = self.shadow[i], parameter.data

    def tensors(self) -> dict[str, Tensor]:
        """The average by parameter name."""
        return dict(zip(self.names, self.shadow, strict=True))

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        for name, shadow in zip(self.names, self.shadow, strict=True):
            shadow.copy_(tensors[name])
