"""Adafactor over convolutions and weights in halves; its formula on matrices is tested with the other optimizers."""

from __future__ import annotations

import torch
from torch import nn

from edkit.train.adafactor import Adafactor, rounded


def step(weights: list[nn.Parameter], grads: list[torch.Tensor], *, seed: int = 1, lr: float = 1e-2) -> Adafactor:
    optimizer = Adafactor([{"params": weights, "lr": lr}], weight_decay=0.0, seed=seed)
    for weight, grad in zip(weights, grads, strict=True):
        weight.grad = grad
    optimizer.step()
    return optimizer


def test_a_convolution_moves_as_the_matrix_of_its_outputs() -> None:
    start, grad = torch.randn(2, 6, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    conv, matrix = nn.Parameter(start.clone()), nn.Parameter(start.reshape(6, 27).clone())
    optimizer = step([conv, matrix], [grad, grad.reshape(6, 27)])
    assert torch.equal(conv.detach().reshape(6, 27), matrix.detach())
    assert sum(t.numel() for t in optimizer.state[conv].values() if isinstance(t, torch.Tensor)) == 6 + 27


def test_rounding_by_chance_hits_the_value_on_average_and_keeps_what_halves_can_hold() -> None:
    values = torch.tensor([1 + 2**-10, -3.3e-5, 0.0, 1.5, -2.0])
    many = torch.stack([rounded(values, torch.Generator().manual_seed(i)) for i in range(4000)]).double()
    torch.testing.assert_close(many.mean(0), values.double(), rtol=1e-3, atol=0)
    assert bool((many[:, 2:] == values[2:]).all())
    # only the two neighbours in bf16
    assert sorted(set(many[:, 0].tolist())) == [1.0, 1 + 2**-7]


def test_small_steps_are_not_lost_in_halves() -> None:
    halves = nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    optimizer = Adafactor([{"params": [halves], "lr": 1e-4}], weight_decay=0.0, seed=1)
    for _ in range(50):
        halves.grad = torch.ones_like(halves)
        optimizer.step()
    # to the nearest, 1 - 1e-4 is 1 in bf16: every step would be lost
    assert abs(float(halves.detach().float().mean()) - (1 - 50e-4)) < 5e-4


def test_a_weights_rounding_is_its_own_draw() -> None:
    def moved(order: int, seed: int) -> torch.Tensor:
        weights = [nn.Parameter(torch.ones(32, 32, dtype=torch.bfloat16)) for _ in range(2)]
        optimizer = Adafactor([{"params": weights, "lr": 1e-3}], weight_decay=0.0, seed=seed)
        for weight in weights[::order]:
            weight.grad = torch.ones_like(weight)
            optimizer.step_one(weight)
        return torch.stack([weight.detach() for weight in weights])

    assert torch.equal(moved(1, 1), moved(-1, 1))
    assert not torch.equal(moved(1, 1), moved(1, 2)) and not torch.equal(*moved(1, 1))
