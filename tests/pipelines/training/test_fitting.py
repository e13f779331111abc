"""One loop: a stack learns what its heads learn alone, keeps the best on validation, and is never worse than its start."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from featurecache.errors import ConfigError
from featurecache.metrics import score
from heads._checkpoint import build_head
from pipelines.objectives import Loss
from pipelines.objectives.cross_entropy import build as objective_of
from pipelines.training.fitting import fit
from pipelines.training.outputs import outputs_of
from pipelines.training.recipe import Recipe, usual_epochs
from pipelines.training.stack import Member
from tests.heads.samples import LAYERS, TASKS, batches, joined, spec_of
from tests.pipelines.sources import InMemory
from tests.pipelines.training.samples import member, sources

SETTINGS = ((1e-2, 0.0), (3e-3, 0.5), (0.1, 0.01))
"""(rate, decay) of the members of a stack."""


class Point(nn.Module):
    """One trained number, the logit of every row."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([start]))

    def forward(self, arrays):
        return self.value.expand(len(arrays["layers/cls/05"]), 1)


def downhill(outputs, batch) -> Loss:
    """A loss whose gradient is one everywhere."""
    return Loss(outputs["logits"].mean(), {})


def no_number(outputs, batch) -> Loss:
    """A loss that has lost its way."""
    return Loss(outputs["logits"].mean() * float("nan"), {})


def fitted(members: list[Member], train: InMemory, validation: InMemory | None, task: str, **recipe) -> list[Member]:
    fit(members, train, validation, objective_of(task), Recipe(batch_size=50, **recipe), task)
    return members


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize(
    ("name", "task"), [("linear", "classification"), ("lfa", "classification"), ("linear", "multilabel"), ("linear", "regression")]
)  # fmt: skip
def test_a_stack_learns_what_its_heads_learn_alone(name, task, optimizer):
    train, validation = sources(task, LAYERS)

    def members() -> list[Member]:
        return [member(name, train, task, *settings, seed=seed) for seed, settings in enumerate(SETTINGS)]

    together = fitted(members(), train, validation, task, epochs=6, optimizer=optimizer)
    alone = [fitted([one], train, validation, task, epochs=6, optimizer=optimizer)[0] for one in members()]

    for one, other in zip(together, alone, strict=True):
        assert one.best_epoch == other.best_epoch
        assert one.best == pytest.approx(other.best, rel=1e-5, abs=1e-5)
        for ours, theirs in zip(one.history, other.history, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5, nan_ok=True)
        for key, value in other.head.state_dict().items():
            torch.testing.assert_close(one.head.state_dict()[key], value, rtol=1e-5, atol=1e-5)
    assert len({one.history[-1]["val_loss"] for one in together}) == len(SETTINGS), "they had rates of their own"


def test_heads_of_unequal_shapes_and_options_learn_from_one_read_what_they_learn_alone():
    train, validation = sources(widths=LAYERS)
    cells = [
        ("linear", {}),
        ("lfa", {"start": "published"}),
        ("ridge", {}),
        ("linear", {"bias": False}),
        ("linear", {}),
    ]

    def members() -> list[Member]:
        made = []
        for seed, (name, options) in enumerate(cells):
            torch.manual_seed(seed)
            spec = spec_of(widths=LAYERS, standardised_by=train.walk(50))
            made.append(Member(build_head(name, spec, options), 0.01, kind=(name, str(options))))
        return made

    several = members()
    train.read.clear()
    together = fitted(several, train, validation, "classification", epochs=3)
    read = len(train.read)
    alone = [fitted([one], train, validation, "classification", epochs=3)[0] for one in members()]

    assert read == 3
    for one, other in zip(together, alone, strict=True):
        assert one.best == pytest.approx(other.best, rel=1e-5)
        for key, value in other.head.state_dict().items():
            torch.testing.assert_close(one.head.state_dict()[key], value, rtol=1e-5, atol=1e-5)


def test_a_head_with_dropout_draws_in_a_stack_what_it_draws_alone():
    train, validation = sources(widths=LAYERS)

    def members() -> list[Member]:
        made = []
        for seed in range(3):
            torch.manual_seed(seed)
            head = build_head("lfa", spec_of(widths=LAYERS), {"dropout": 0.4, "start": "published"})
            made.append(Member(head, 0.01, random_state=torch.get_rng_state()))
        return made

    together = fitted(members(), train, validation, "classification", epochs=4)
    alone = [fitted([one], train, validation, "classification", epochs=4)[0] for one in members()]

    for one, other in zip(together, alone, strict=True):
        for key, value in other.head.state_dict().items():
            torch.testing.assert_close(one.head.state_dict()[key], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_step_in_parts_is_the_same_step(optimizer):
    def values(accumulate: int) -> torch.Tensor:
        train, validation = sources()
        one = member("linear", train, "classification", 0.01, 0.01)
        return fitted([one], train, validation, "classification", epochs=3, accumulate=accumulate)[0].head.map.weight

    torch.testing.assert_close(values(5), values(1))


@pytest.mark.parametrize("select", ["loss", "metric"])
@pytest.mark.parametrize("task", TASKS)
def test_the_values_that_were_best_on_validation_are_kept(task, select):
    train, validation = sources(task)

    (one,) = fitted([member("linear", train, task, 0.03, 0.0)], train, validation, task, epochs=15, select=select)

    metric = next(name for name in one.history[0] if name.startswith("val_") and name != "val_loss")
    stood = [(entry[metric], -entry["val_loss"]) for entry in one.history]
    by_loss = select == "loss" and task != "regression"
    assert one.best == max(stood, key=lambda value: value[1:] if by_loss else value) == stood[one.best_epoch]
    assert one.best_epoch == one.history[one.best_epoch]["epoch"]
    logits, targets = outputs_of(one.head, validation, "cpu")
    assert score(logits.numpy(), targets.numpy(), task) == pytest.approx(one.best, rel=1e-5)


def test_of_equal_epochs_the_later_one_is_kept():
    train, validation = sources()
    still = member("linear", train, "classification", 1e-30, 0.0)  # a step that changes no value

    (one,) = fitted([still], train, validation, "classification", epochs=3)

    assert len({entry["val_loss"] for entry in one.history}) == 1
    assert one.best_epoch == 3


@pytest.mark.parametrize("task", TASKS)
def test_a_head_that_starts_at_the_ridge_is_never_worse_than_it_on_validation(task):
    train, validation = sources(task, LAYERS)
    start = member("ridge", train, task, 0.0, 0.0).head
    logits, targets = outputs_of(start, validation, "cpu")
    place = 0 if task == "regression" else 1  # R2, or the loss
    ridge = score(logits.numpy(), targets.numpy(), task)[place]

    for lr in (1e-3, 1.0):
        (one,) = fitted([member("lfa", train, task, lr, 0.0)], train, validation, task, epochs=4)
        assert one.best[place] >= ridge - 1e-5


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("count", [1, 2])
def test_a_training_that_diverges_keeps_the_last_values_that_were_numbers(task, count):
    train, validation = sources(task)
    if task == "classification":
        validation.whole.targets[:] = 0  # what argmax answers to logits that are no numbers
    members = [member("linear", train, task, 0.1, 0.0, seed) for seed in range(count)]

    fit(members, train, validation, no_number, Recipe(epochs=2), task)

    for one in members:
        assert math.isnan(one.history[-1]["val_loss"])
        assert all(torch.isfinite(value).all() for value in one.head.state_dict().values())
        assert one.best_epoch == 0


def test_where_validation_leaves_the_metric_undefined_the_loss_decides():
    parts = batches("regression", rows=121, size=120)
    train, one_row = InMemory(parts[:1]), InMemory(parts[1:])

    (one,) = fitted([member("linear", train, "regression", 0.03, 0.0)], train, one_row, "regression", epochs=5)

    losses = [entry["val_loss"] for entry in one.history]
    assert one.best_epoch == losses.index(min(losses)) > 0


def test_without_validation_the_last_values_are_kept():
    train, _ = sources()

    (one,) = fitted([member("linear", train, "classification", 0.01, 0.0)], train, None, "classification", epochs=3)

    assert one.best_epoch == 3
    assert [sorted(entry) for entry in one.history] == [
        ["epoch", "lr", "weight_decay"], *[["epoch", "lr", "train_loss", "weight_decay"]] * 3
    ]  # fmt: skip


@pytest.mark.parametrize("count", [1, 2])
def test_the_history_says_where_every_head_stood_after_every_epoch(count):
    train, validation = sources()
    members = [member("linear", train, "classification", 1e-9 * (m + 1), 0.0, seed=m) for m in range(count)]
    starts = [outputs_of(m.head, train, "cpu") for m in members]

    fitted(members, train, validation, "classification", epochs=2)

    for one, (logits, targets) in zip(members, starts, strict=True):
        assert [entry["epoch"] for entry in one.history] == [0, 1, 2]
        assert "train_loss" not in one.history[0]
        assert one.history[2]["train_loss"] == pytest.approx(float(F.cross_entropy(logits, targets)), rel=1e-4)
        assert {entry["lr"] for entry in one.history} == {one.lr}


@pytest.mark.parametrize("count", [1, 2])
def test_a_long_training_is_measured_a_bounded_number_of_times_and_learns_the_same(count):
    def histories(**recipe) -> list[list[dict[str, float]]]:
        train, validation = sources()
        members = [member("linear", train, "classification", 1e-2 * (m + 1), 0.0, seed=m) for m in range(count)]
        return [one.history for one in fitted(members, train, validation, "classification", epochs=11, **recipe)]

    for often, seldom in zip(histories(), histories(judgings=3), strict=True):
        assert [entry["epoch"] for entry in seldom] == [0, 4, 8, 11], "start and end are always among them"
        for before, entry in itertools.pairwise(seldom):
            losses = [of["train_loss"] for of in often[before["epoch"] + 1 : entry["epoch"] + 1]]
            assert entry["train_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
            assert entry["val_loss"] == pytest.approx(often[entry["epoch"]]["val_loss"], rel=1e-6)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("schedule", "factors"), [("constant", 8.0), ("cosine", 4.5)])
def test_the_rate_follows_the_schedule_over_all_steps(schedule, factors, count):
    """Eight steps with a gradient of one: half a cosine, sampled at their beginnings, sums to (8 + 1) / 2."""
    train = InMemory(batches(rows=80))
    members = [Member(Point(), 0.1 * (m + 1)) for m in range(count)]
    recipe = Recipe(epochs=4, batch_size=40, optimizer="sgd", momentum=0.0, schedule=schedule)

    fit(members, train, None, downhill, recipe, "regression")

    for one in members:
        assert one.head.value.item() == pytest.approx(-one.lr * factors, rel=1e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_heads_train_in_training_mode_and_are_measured_in_eval_mode(count):
    modes = []

    class Noting(Point):
        def forward(self, arrays):
            modes.append(self.training)
            return super().forward(arrays)

    rows = InMemory(batches("regression", classes=1, rows=80))

    fit(
        [Member(Noting(), 0.1) for _ in range(count)],
        rows,
        rows,
        downhill,
        Recipe(epochs=2, batch_size=40),
        "regression",
    )

    trial = [True] * (count - 1)  # a stack tries once whether its heads draw random numbers
    assert modes == [False, *trial, *[True, True, False] * 2]


def test_the_row_order_is_fixed_by_the_data_seed_alone():
    def order(seed: int, data_seed: int) -> list[list[int]]:
        train, _ = sources()
        members = [member("linear", train, "classification", 0.01, 0.0, seed)]
        train.read.clear()
        fitted(members, train, None, "classification", epochs=3, data_seed=data_seed)
        return train.read

    assert order(0, 0) == order(5, 0)
    assert order(0, 0) != order(0, 1)
    assert len(set(map(tuple, order(0, 0)))) == 3, "every epoch has an order of its own"
    assert all(sorted(rows) == list(range(120)) for rows in order(0, 0))


def test_the_same_seeds_give_the_same_bits():
    def values() -> torch.Tensor:
        train, validation = sources()
        one = member("linear", train, "classification", 0.01, 0.01)
        return fitted([one], train, validation, "classification", epochs=3)[0].head.map.weight

    assert torch.equal(values(), values())


@pytest.mark.parametrize("count", [1, 2])
def test_a_head_with_nothing_to_train_is_only_measured(count):
    train, validation = sources()
    members = [member("ridge", train, "classification", 0.0, 0.0) for _ in range(count)]
    before = members[0].head.map.weight.clone()

    fitted(members, train, validation, "classification", epochs=3)

    assert [len(one.history) for one in members] == [1] * count
    assert torch.equal(members[-1].head.map.weight, before)


def test_no_epochs_measure_the_start():
    train, validation = sources()

    (one,) = fitted(
        [member("linear", train, "classification", 0.1, 0.0)], train, validation, "classification", epochs=0
    )

    assert one.best_epoch == 0
    assert one.best[0] == one.history[0]["val_top1"]


def test_heads_are_left_in_eval_mode():
    train, validation = sources()

    (one,) = fitted(
        [member("linear", train, "classification", 0.1, 0.0)], train, validation, "classification", epochs=1
    )

    assert not one.head.training


def test_outputs_come_in_the_order_of_the_rows():
    train, _ = sources()
    head = member("linear", train, "classification", 0.1, 0.0).head

    logits, targets = outputs_of(head, train, "cpu")

    assert torch.equal(targets, joined(train.walk(7)).targets)
    torch.testing.assert_close(logits, head(train.whole.arrays).detach())


@pytest.mark.parametrize(("rows", "epochs"), [(1, 1000), (256, 1000), (1000, 250), (4500, 56), (50_000, 50)])
def test_a_length_that_nobody_said_makes_a_thousand_steps_within_bounds(rows, epochs):
    assert usual_epochs(rows, batch_size=256) == epochs


def test_every_setting_out_of_range_is_told():
    with pytest.raises(ConfigError) as refused:
        Recipe(epochs=-1, batch_size=0, judgings=0, momentum=1.0, least_lr=-1.0, nesterov=True, clip_norm=0.0)

    assert refused.value.problems == [
        "epochs must not be negative, got -1",
        "batch_size must be positive, got 0",
        "judgings must be positive, got 0",
        "momentum must lie in [0, 1), got 1.0",
        "least_lr must be finite and not negative, got -1.0",
        "nesterov looks ahead along the momentum of sgd, and this is adamw with 1.0",
        "clip_norm must be positive and finite, got 0.0",
    ]


@pytest.mark.parametrize("part", [0, 3])
def test_parts_of_a_step_must_divide_it(part):
    with pytest.raises(ConfigError, match=f"accumulate must be positive and divide batch_size, got {part} of 50"):
        Recipe(batch_size=50, accumulate=part)
