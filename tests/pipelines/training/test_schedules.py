"""Rates over the steps are those of the formulas, and never negative."""

from __future__ import annotations

import math

import pytest
import torch

from pipelines.training.schedules import learning_rates

BASE = torch.tensor([0.1, 2.0])


def rates(schedule: str, *, epochs: int = 4, steps: int = 5, **settings: float) -> torch.Tensor:
    """(steps in all, 2)."""
    return torch.stack(
        [
            learning_rates(schedule, BASE, step, steps_per_epoch=steps, epochs=epochs, **settings)
            for step in range(epochs * steps)
        ]
    )


def test_cosine_is_half_a_cosine_over_all_steps():
    expected = torch.tensor([0.5 * (1 + math.cos(math.pi * step / 20)) for step in range(20)])

    torch.testing.assert_close(rates("cosine"), expected[:, None] * BASE)


def test_constant_is_the_base_rate():
    assert torch.equal(rates("constant"), BASE.expand(20, 2))


def test_cosine_epochs_changes_between_epochs_only():
    found = rates("cosine_epochs").reshape(4, 5, 2)

    assert torch.equal(found, found[:, :1].expand_as(found))
    torch.testing.assert_close(
        found[:, 0], BASE * torch.tensor([[0.5 * (1 + math.cos(math.pi * e / 4))] for e in range(4)])
    )


def test_coop_begins_with_an_epoch_at_the_warm_up_rate_and_reaches_no_zero():
    found = rates("coop", warmup_lr=1e-3).reshape(4, 5, 2)[:, 0]

    assert torch.equal(found[0], torch.full((2,), 1e-3))
    torch.testing.assert_close(
        found[1:], BASE * torch.tensor([[0.5 * (1 + math.cos(math.pi * e / 4))] for e in range(3)])
    )
    assert (found > 0).all()


@pytest.mark.parametrize("schedule", ["cosine", "constant", "cosine_epochs"])
def test_a_warm_up_rises_evenly_to_the_base_rate(schedule):
    found = rates(schedule, warmup_epochs=2)

    torch.testing.assert_close(found[:10], BASE * (torch.arange(1, 11) / 11)[:, None])
    torch.testing.assert_close(found[10], BASE)
    assert (found[11:] <= found[10]).all()


@pytest.mark.parametrize("schedule", ["cosine", "cosine_epochs"])
def test_a_cosine_ends_at_the_least_rate_and_a_lower_one_stays(schedule):
    found = rates(schedule, epochs=400, warmup_epochs=1, least_lr=0.2)[5:]

    assert torch.equal(found[:, 0], torch.full_like(found[:, 0], 0.1))
    torch.testing.assert_close(found[:, 1], 0.2 + 1.8 * (rates(schedule, epochs=400, warmup_epochs=1)[5:, 1] / 2))
    assert 0.2 <= found[-1, 1] < 0.2001
