"""Learning rates step by step, the weights' average, and an optimizer that comes back as it was."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from edkit.data.errors import UsageError
from edkit.train.optimizers import (
    Ema,
    load_optimizer,
    lr_factor,
    make_optimizer,
    optimizer_numbers,
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


def test_a_polynomial_falls_by_its_power() -> None:
    fallen = [lr_factor(i, schedule="polynomial", warmup=0, total=10, end=0.1, power=3.0) for i in range(11)]
    assert fallen == pytest.approx([0.1 + 0.9 * (1 - i / 10) ** 3 for i in range(11)])
    assert factors("linear", total=7) == [
        lr_factor(i, schedule="polynomial", warmup=0, total=7, end=0.0, power=1.0) for i in range(7)
    ]


def gradients(shape: tuple[int, ...], n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for _ in range(n)]


def moved(name: Any, start: torch.Tensor, grads: list[torch.Tensor], **options: Any) -> torch.Tensor:
    weight = nn.Parameter(start.clone())
    lr = options.pop("lr")
    optimizer = make_optimizer(
        name, [([weight], lr)], **({"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0} | options)
    )
    for grad in grads:
        weight.grad = grad.clone()
        optimizer.step()
    return weight.detach()


def same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


def test_adamw_is_its_papers_formula() -> None:
    """Loshchilov and Hutter 2019, algorithm 2."""
    start, grads = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), gradients((4, 3), 5)
    w, m, v = start.double(), torch.zeros(4, 3).double(), torch.zeros(4, 3).double()
    for t, g in enumerate((g.double() for g in grads), 1):
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        w = w - 1e-2 * ((m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)).sqrt() + 1e-8) + 0.1 * w)
    torch.testing.assert_close(
        moved("adamw", start, grads, lr=1e-2, weight_decay=0.1).double(), w, rtol=1e-5, atol=1e-6
    )


def test_lion_is_its_papers_formula() -> None:
    """Chen et al. 2023, algorithm 2."""
    start, grads = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), gradients((4, 3), 5)
    w, m = start.double(), torch.zeros(4, 3).double()
    for g in (g.double() for g in grads):
        w = w - 1e-2 * ((0.9 * m + 0.1 * g).sign() + 0.1 * w)
        m = 0.99 * m + 0.01 * g
    same(moved("lion", start, grads, lr=1e-2, weight_decay=0.1), w)


def test_adafactor_is_its_papers_formula() -> None:
    """Shazeer and Stern 2018, algorithm 4, with the rate given and no momentum."""
    start, grads = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), gradients((4, 3), 5)
    w, rows, columns = start.double(), torch.zeros(4).double(), torch.zeros(3).double()
    for t, g in enumerate((g.double() for g in grads), 1):
        beta = 1 - t**-0.8
        rows = beta * rows + (1 - beta) * (g * g + 1e-30).mean(dim=1)
        columns = beta * columns + (1 - beta) * (g * g + 1e-30).mean(dim=0)
        update = g / (rows[:, None] * columns[None, :] / rows.mean()).sqrt()
        update = update / max(1.0, float(update.square().mean().sqrt()))
        w = w - 1e-2 * update
    same(moved("adafactor", start, grads, lr=1e-2), w)


def test_prodigy_finds_a_rate_that_solves_what_its_first_rate_could_not() -> None:
    """Mishchenko and Defazio 2024: the distance to the solution is found from 1e-6 upwards."""
    generator = torch.Generator().manual_seed(2)
    matrix, wanted = torch.randn(20, 8, generator=generator), torch.randn(8, generator=generator)
    weight = nn.Parameter(torch.zeros(8))
    optimizer = make_optimizer("prodigy", [([weight], 1.0)], betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)
    for _ in range(400):
        (matrix @ (weight - wanted)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float((weight.detach() - wanted).abs().max()) < 0.05
    assert 1e-2 < optimizer.param_groups[0]["d"] < 10


def test_prodigy_says_that_it_takes_one_rate() -> None:
    pairs = [([nn.Parameter(torch.ones(1))], 1.0), ([nn.Parameter(torch.ones(1))], 0.5)]
    with pytest.raises(UsageError, match="one learning rate"):
        make_optimizer("prodigy", pairs, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "prodigy"])
def test_an_optimizer_put_back_goes_on_bit_for_bit(name: Any) -> None:
    def fresh() -> tuple[nn.Linear, torch.optim.Optimizer, dict[int, str]]:
        torch.manual_seed(0)
        layer = nn.Linear(5, 3)
        named = dict(layer.named_parameters())
        made = make_optimizer(name, [(list(named.values()), 1e-2)], betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
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
    numbers = json.loads(json.dumps(optimizer_numbers(optimizer, names)))
    kept, weights = (
        optimizer_tensors(optimizer, names),
        {n: p.detach().clone() for n, p in first.named_parameters()},
    )
    second, optimizer, names = fresh()
    with torch.no_grad():
        for name, parameter in second.named_parameters():
            parameter.copy_(weights[name])
    load_optimizer(optimizer, names, kept, numbers)
    steps(second, optimizer, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), second.parameters(), strict=True))
