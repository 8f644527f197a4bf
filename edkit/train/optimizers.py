"""Optimizers, the learning rate of every optimizer step, and the moving average of the weights."""

from __future__ import annotations

import contextlib
import importlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edkit.data.errors import MissingExtra, UsageError
from edkit.train.adafactor import Adafactor

Optimizer = Literal["adamw", "adamw8bit", "adafactor", "lion", "prodigy"]


def lr_factor(step: int, *, schedule: str, warmup: int, total: int, end: float, power: float = 2.0) -> float:
    """What the learning rate is multiplied by at optimizer step `step` (from 0) of `total`.

    Warm-up rises linearly and reaches 1 with its last step; then constant, or linear, half a cosine or a
    polynomial (of the part of the steps that is left, to the `power`) to `end`.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    left = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "polynomial": (1 - done) ** power}
    return float(end + (1 - end) * left[schedule])


def make_optimizer(
    name: Optimizer,
    groups: Sequence[tuple[Sequence[nn.Parameter], float]],
    *,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    seed: int = 0,
) -> torch.optim.Optimizer:
    """The optimizer over groups of (parameters, learning rate); the base rate stands in each group as
    `base_lr`.

    `adamw`: Loshchilov and Hutter 2019, arXiv:1711.05101. `adamw8bit`: the same with 8-bit moments, Dettmers
    et al. 2022, arXiv:2110.02861. `adafactor`: see there; `seed` is for its rounding of weights in bf16. `lion`:
    Chen et al. 2023, arXiv:2302.06675. `prodigy`: Mishchenko and Defazio 2024, arXiv:2306.06101, with bias
    correction. Raises MissingExtra where the package isn't installed, UsageError for Prodigy with two rates (it
    finds one for all).
    """
    used = [(list(params), lr) for params, lr in groups if params]
    rows: list[dict[str, Any]] = [{"params": params, "lr": lr, "base_lr": lr} for params, lr in used]
    every = [p for params, _ in used for p in params]
    if name == "adamw":
        fused = all(p.device.type in ("cpu", "cuda") and p.dtype == torch.float32 for p in every)
        return torch.optim.AdamW(rows, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)
    if name == "adamw8bit":
        bitsandbytes = _package("bitsandbytes")
        return _made(bitsandbytes.optim.AdamW8bit(rows, betas=betas, eps=eps, weight_decay=weight_decay))
    if name == "adafactor":
        # `eps` is Adam's; Adafactor's own two have other meanings, and its paper's values
        return Adafactor(rows, weight_decay=weight_decay, seed=seed)
    if name == "lion":
        return _made(_package("lion_pytorch").Lion(rows, betas=betas, weight_decay=weight_decay))
    if len({lr for _, lr in used}) > 1:
        raise UsageError("prodigy finds one learning rate for all weights", mend="leave text_encoder_lr out")
    with contextlib.redirect_stdout(io.StringIO()):  # it greets
        prodigy = _package("prodigyopt").Prodigy(
            rows, betas=betas, eps=eps, weight_decay=weight_decay, use_bias_correction=True, safeguard_warmup=True
        )
    return _made(prodigy)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        if name == "bitsandbytes":
            raise UsageError("adamw8bit needs the package bitsandbytes", mend="pip install bitsandbytes") from None
        raise MissingExtra("train", name) from None


def _made(optimizer: Any) -> torch.optim.Optimizer:
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group's learning rate for the step to come."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, Tensor]:
    """The optimizer's tensors as `<parameter>|<entry>` -> tensor; `names`: each parameter's by its id()."""
    return {
        f"{names[id(parameter)]}|{entry}": value.detach().cpu().contiguous()
        for parameter, entries in optimizer.state.items()
        for entry, value in entries.items()
        if isinstance(value, Tensor)
    }


def optimizer_numbers(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, Any]:
    """What else the optimizer remembers, as JSON holds it exactly: step counts, and Prodigy's estimates, which
    stand in its groups.
    """
    counts = {
        f"{names[id(parameter)]}|{entry}": value
        for parameter, entries in optimizer.state.items()
        for entry, value in entries.items()
        if isinstance(value, int | float)
    }
    groups = [{k: v for k, v in group.items() if _is_number(v)} for group in optimizer.param_groups]
    return {"state": counts, "groups": groups}


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Mapping[int, str],
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, Any],
) -> None:
    """Put back what `optimizer_tensors` and `optimizer_numbers` gave; KeyError where an entry belongs to no
    parameter. The groups' settings stay those of this run.
    """
    by_name = {names[id(p)]: p for group in optimizer.param_groups for p in group["params"]}
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("|")
        parameter = by_name[name]
        # fused AdamW walks memory: a state must be laid out as its parameter is, and aligned as torch aligns
        like = parameter.detach() if tensor.shape == parameter.shape else tensor.to(parameter.device)
        optimizer.state[parameter][entry] = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
    for key, value in numbers.get("state", {}).items():
        name, _, entry = key.rpartition("|")
        optimizer.state[by_name[name]][entry] = value
    for group, before in zip(optimizer.param_groups, numbers.get("groups", []), strict=False):
        group.update({key: value for key, value in before.items() if key in _ESTIMATES})


_ESTIMATES = ("d", "d_max", "d_numerator", "d_denom", "d_hat", "k")  # Prodigy's; all else is a setting


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Aside:
    """A second set of weights for parameters, which the model can bear for a while; at first, what they are now."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.names = list(parameters)
        self._live = list(parameters.values())
        self.shadow = [p.detach().clone() for p in self._live]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model bear these weights while it is open; no graph may span its ends."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for i, parameter in enumerate(self._live):
            parameter.data, self.shadow[i] = self.shadow[i], parameter.data


class Ema(Aside):
    """An exponential moving average of parameters, that warms up: decay min(d, (1 + n) / (10 + n)) at update
    n.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        super().__init__(parameters)
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights as they are after optimizer step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        live: list[Any] = [p.detach() for p in self._live]
        torch._foreach_lerp_(self.shadow, live, 1 - decay)

    def tensors(self) -> dict[str, Tensor]:
        """The average by parameter name."""
        return dict(zip(self.names, self.shadow, strict=True))

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        for name, shadow in zip(self.names, self.shadow, strict=True):
            shadow.copy_(tensors[name])
