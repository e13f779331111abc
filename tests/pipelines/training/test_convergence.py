"""A training is said to have stopped too early by its own losses, and not where it had come to rest."""

from __future__ import annotations

import math

import pytest

from pipelines.training.convergence import describe_improving, is_improving


def make_history(losses: list[float], key: str = "val_loss", first: int = 0) -> list[dict[str, float]]:
    return [{"epoch": epoch, key: loss} for epoch, loss in enumerate(losses, start=first)]


def test_a_loss_that_falls_to_the_end_is_improving():
    history = make_history([2.3, 2.0, 1.8, 1.65])

    assert is_improving(history, best_epoch=3)


def test_a_loss_that_has_come_to_rest_is_not_even_where_its_last_epoch_is_the_best():
    losses = [0.4 + 1.9 * math.exp(-epoch / 5) for epoch in range(51)]

    assert not is_improving(make_history(losses), best_epoch=50)


def test_a_loss_next_to_nothing_may_go_on_falling_by_any_factor():
    losses = [0.7 * 0.8**epoch for epoch in range(60)]

    assert not is_improving(make_history(losses), best_epoch=59)


def test_a_few_small_steps_from_the_start_are_improving():
    assert is_improving(make_history([1.100, 1.096, 1.093, 1.092]), best_epoch=3)


def test_a_start_at_the_optimum_that_hardly_moves_is_not():
    assert not is_improving(make_history([0.4700, 0.4698, 0.46972, 0.46970]), best_epoch=3)


def test_an_earlier_epoch_that_was_better_ends_the_question():
    assert not is_improving(make_history([2.3, 1.2, 1.1, 1.3]), best_epoch=2)


@pytest.mark.parametrize("losses", [[], [2.3]])
def test_a_head_that_was_never_trained_is_not_improving(losses):
    assert not is_improving(make_history(losses), best_epoch=0)


def test_without_validation_the_training_loss_is_looked_at():
    history = [{"epoch": 0}, *make_history([2.0, 1.6, 1.2], "train_loss", first=1)]

    assert is_improving(history, best_epoch=3)


def test_one_epoch_without_validation_is_not_enough_to_know():
    assert is_improving([{"epoch": 0}, {"epoch": 1, "train_loss": 2.0}], best_epoch=1)


def test_it_is_said_of_heads_that_were_in_most_of_their_trials():
    assert describe_improving("mlp", 1, 3) == ""
    assert describe_improving("mlp", 2, 3).startswith(
        "mlp was still improving in 2 of 3 trials: its best epoch is the last"
    )
    assert "--epochs" in describe_improving("mlp", 1, 1)
