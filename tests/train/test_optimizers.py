"""Learning rates step by step, the weights' average, and an optimizer that comes back as it was."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from edkit.train.optimizers import (
    Ema,
    load_optimizer_tensors,
    lr_factor,
    make_optimizer,
    optimizer_tensors,
    set_lr,
)


def factors(schedule: str, *, warmup: int = 0, total: int = 10, end: float = 0.0) -> list[float]:
    return [lr_factor(i, schedule=schedule, warmup=warmup, total=total, end=end) for i in range(total)]


def test_constant_stays_and_warm_up_rises_to_it() -> None:
    assert factors("constant") == [1.0] * 10
    assert factors("constant", warmup=4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_linear_falls_evenly_from_the_end_of_warm_up() -> None:
    fallen = factors("linear", warmup=2, total=12)
    assert fallen[:3] == [0.5, 1.0, 1.0]
    assert all(a - b == pytest.approx(0.1) for a, b in pairwise(fallen[2:]))
    assert lr_factor(12, schedule="linear", warmup=2, total=12, end=0.25) == 0.25


def test_cosine_is_half_a_cosine() -> None:
    fallen = factors("cosine", total=100, end=0.1)
    assert fallen[0] == 1.0
    assert fallen[50] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)
    assert fallen[99] == pytest.approx(0.1, abs=1e-3)


def test_the_average_follows_its_formula_and_lends_its_weights() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    ema = Ema({"w": weight}, 0.9)
    average = weight.detach().clone()
    for step in range(40):
        with torch.no_grad():
            weight.add_(1.0)
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight.detach()
    torch.testing.assert_close(ema.tensors()["w"], average)
    live = weight.detach().clone()
    with ema.in_place():
        torch.testing.assert_close(weight.detach(), average)
    assert torch.equal(weight.detach(), live)


def test_an_optimizer_put_back_goes_on_bit_for_bit() -> None:
    def fresh() -> tuple[nn.Linear, torch.optim.Optimizer, dict[int, str]]:
        torch.manual_seed(0)
        layer = nn.Linear(5, 3)
        named = dict(layer.named_parameters())
        made = make_optimizer("adamw", [(list(named.values()), 1e-2)], betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
        return layer, made, {id(p): n for n, p in named.items()}

    def steps(layer: nn.Linear, optimizer: torch.optim.Optimizer, which: range) -> None:
        for i in which:
            set_lr(optimizer, 1 / (i + 1))
            layer(torch.full((2, 5), float(i + 1))).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    straight, optimizer, _ = fresh()
    steps(straight, optimizer, range(6))
    first, optimizer, names = fresh()
    steps(first, optimizer, range(3))
    kept, weights = (
        optimizer_tensors(optimizer, names),
        {n: p.detach().clone() for n, p in first.named_parameters()},
    )
    second, optimizer, names = fresh()
    with torch.no_grad():
        for name, parameter in second.named_parameters():
            parameter.copy_(weights[name])
    load_optimizer_tensors(optimizer, names, kept)
    steps(second, optimizer, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), second.parameters(), strict=True))
