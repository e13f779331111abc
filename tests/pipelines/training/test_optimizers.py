"""Every slice of a stacked optimiser moves as torch's own optimiser moves that head alone."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from pipelines.training.optimizers import StackedAdam, StackedSGD, optimizer_of, set_rates, shorten_gradients

RATES, DECAYS = (0.03, 0.1, 0.001), (0.0, 0.2, 0.05)
SHAPES = ((4, 5), (5,), ())


def start(count: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(count, *shape, generator=draw) for shape in SHAPES]


def loss(values: list[torch.Tensor]) -> torch.Tensor:
    """A loss whose gradient changes along the way, in size and in sign."""
    return sum(torch.sin(3 * value).sum() + value.pow(4).sum() / 4 for value in values)


def moved(
    optimizer: torch.optim.Optimizer, values: list[torch.Tensor], rates: torch.Tensor, steps: int = 25
) -> list[torch.Tensor]:
    for step in range(steps):
        set_rates(optimizer, rates / (1 + step))
        optimizer.zero_grad()
        loss(values).backward()
        optimizer.step()
    return [value.detach() for value in values]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("rule", "momentum", "nesterov"),
    [("adamw", 0.9, False), ("adam", 0.9, False), ("sgd", 0.9, False), ("sgd", 0.0, False), ("sgd", 0.9, True)],
)
def test_slices_move_as_heads_alone(rule, momentum, nesterov, count):
    values = [value.requires_grad_() for value in start(count)]
    rates = torch.tensor(RATES[:count])
    settings = {"rates": rates, "weight_decay": torch.tensor(DECAYS[:count])}
    adam = rule != "sgd"
    stacked = (
        StackedAdam(values, settings, decoupled=rule == "adamw")
        if adam
        else StackedSGD(values, settings, momentum, nesterov)
    )

    together = moved(stacked, values, rates)

    for m in range(count):
        own = [value[m].clone().requires_grad_() for value in start(count)]
        torchs = {
            "adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": partial(torch.optim.SGD, momentum=momentum, nesterov=nesterov)
        }[rule](own, lr=RATES[m], weight_decay=DECAYS[m])  # fmt: skip
        for ours, theirs in zip(together, moved(torchs, own, rates[m : m + 1]), strict=True):
            torch.testing.assert_close(ours[m], theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("rule", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)]
)
def test_one_head_gets_torchs_own(rule, kind):
    value = torch.zeros(3, requires_grad=True)

    optimizer = optimizer_of(rule, [value], torch.tensor([0.25]), torch.tensor([0.5]), 0.75)

    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group.get("momentum", 0.75)) == (0.25, 0.5, 0.75)


@pytest.mark.parametrize(("rule", "kind"), [("adamw", StackedAdam), ("adam", StackedAdam), ("sgd", StackedSGD)])
def test_several_heads_get_the_stacked_form(rule, kind):
    value = torch.zeros(2, 3, requires_grad=True)

    assert type(optimizer_of(rule, [value], torch.tensor([0.1, 0.2]), torch.zeros(2), 0.9)) is kind


def test_a_gradient_as_small_as_eps_moves_as_torchs_does():
    value, own = torch.ones(2, 3, requires_grad=True), torch.ones(3, requires_grad=True)
    stacked = optimizer_of("adamw", [value], torch.tensor([0.1, 0.2]), torch.zeros(2), 0.9)
    torchs = torch.optim.AdamW([own], lr=0.1, weight_decay=0.0)

    for optimizer, moving in ((stacked, value), (torchs, own)):
        (1e-8 * moving).sum().backward()
        optimizer.step()

    torch.testing.assert_close(value[0], own)
    assert 0.9 < own[0].item() < 0.96, "half a step: eps is as large as the gradient"


def test_gradients_of_slices_are_cut_as_those_of_heads_alone():
    values = [value.requires_grad_() for value in start(3)]
    loss(values).backward()
    lengths = torch.stack([value.grad.reshape(3, -1).square().sum(1) for value in values]).sum(0).sqrt()
    most = float(lengths.sort().values[1])  # one is shorter, one is longer
    alone = [[value.grad[m].clone() for value in values] for m in range(3)]

    shorten_gradients([StackedSGD(values, {"rates": torch.ones(3), "weight_decay": torch.zeros(3)}, 0.0)], most)

    for m, gradients in enumerate(alone):
        for value, gradient in zip(values, gradients, strict=True):
            torch.testing.assert_close(value.grad[m], gradient * min(1.0, most / (lengths[m].item() + 1e-6)))


def test_gradients_of_one_head_and_what_it_learns_with_are_cut_together():
    head, backbone = torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)
    head.grad, backbone.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])

    shorten_gradients([torch.optim.SGD([head], lr=1.0), torch.optim.SGD([backbone], lr=1.0)], 1.0)

    torch.testing.assert_close(torch.cat([head.grad, backbone.grad]), torch.tensor([0.6, 0.0, 0.8]))
