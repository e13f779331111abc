"""LFA starts where it says, attends with weights that sum to one, and learns from there."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from featurecache.errors import ConfigError
from heads import lfa, ridge
from heads._checkpoint import build_head
from tests.heads.samples import LAYERS, TASKS, batches, joined, spec_of


def started(start: str, task: str = "classification", *, rows: int = 90) -> tuple[lfa.LayerAttention, list]:
    torch.manual_seed(0)
    parts = batches(task, LAYERS, rows=rows)
    head = lfa.build(spec_of(task, LAYERS, standardised_by=parts), start=start)
    head.solve(parts)
    return head.eval(), parts


def solved_ridge(parts: list, task: str, names: list[str]) -> torch.Tensor:
    """Return the logits of the ridge head that reads the named arrays."""
    spec = spec_of(task, {name: LAYERS[name] for name in names}, standardised_by=parts)
    head = ridge.build(spec)
    head.solve(parts)
    return head(joined(parts).arrays)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("rows", [90, 20], ids=["more rows", "more features"])
def test_it_starts_at_the_ridge_over_all_layers(task, rows):
    head, parts = started("ridge", task, rows=rows)

    torch.testing.assert_close(
        head(joined(parts).arrays), solved_ridge(parts, task, list(LAYERS)), rtol=1e-4, atol=1e-4
    )


def test_it_records_the_ridge_it_starts_at():
    parts = batches(widths=LAYERS)
    spec = spec_of(widths=LAYERS, standardised_by=parts)

    assert lfa.build(spec, start="ridge").solve(parts) == ridge.build(spec).solve(parts)


def test_start_probe_is_the_ridge_over_the_last_layer():
    head, parts = started("probe")

    torch.testing.assert_close(
        head(joined(parts).arrays), solved_ridge(parts, "classification", ["layers/cls/05"]), rtol=1e-4, atol=1e-4
    )


def test_start_published_keeps_torchs_default_start():
    torch.manual_seed(3)
    head = lfa.build(spec_of(widths=LAYERS), start="published")
    before = {name: value.clone() for name, value in head.state_dict().items()}

    assert head.solve(batches(widths=LAYERS)) == {}
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    torch.manual_seed(3)
    assert torch.equal(head.query.weight, torch.nn.Linear(LAYERS["layers/cls/05"], 64, bias=False).weight)


def test_attention_is_uniform_at_the_ridge_and_not_where_published():
    uniform, parts = started("ridge")
    published, _ = started("published")
    arrays = joined(parts).arrays

    torch.testing.assert_close(uniform.attention(arrays), torch.full((90, 5), 0.2))
    assert published.attention(arrays).std() > 1e-3


@pytest.mark.parametrize("start", ["ridge", "probe", "published"])
def test_attention_weights_sum_to_one(start):
    head, parts = started(start)
    torch.nn.init.normal_(head.query.weight)

    weights = head.attention(joined(parts).arrays)

    assert weights.shape == (90, len(LAYERS))
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(90))


@torch.no_grad()
def test_logits_are_what_the_formula_says_row_by_row():
    head, parts = started("published")
    layers = head.inputs(joined(parts).arrays)

    for row in (0, 41):
        query = head.query.weight @ layers[-1][row]
        scores = [float(query @ (k.weight @ x[row])) / math.sqrt(64) for k, x in zip(head.keys, layers, strict=True)]
        powers = [math.exp(score) for score in scores]
        by_hand = head.bias.clone()
        for power, value, x in zip(powers, head.values, layers, strict=True):
            by_hand += power / sum(powers) * (value.weight @ x[row])
        torch.testing.assert_close(head(joined(parts).arrays)[row], by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("start", ["ridge", "probe", "published"])
def test_training_brings_the_loss_down_and_bends_the_attention(start):
    head, parts = started(start)
    batch = joined(parts)
    step = torch.optim.AdamW(head.parameters(), lr=1e-2)
    first = float(F.cross_entropy(head(batch.arrays), batch.targets).detach())

    for _ in range(60):
        step.zero_grad()
        F.cross_entropy(head(batch.arrays), batch.targets).backward()
        step.step()

    assert float(F.cross_entropy(head(batch.arrays), batch.targets).detach()) < 0.8 * first
    assert head.attention(batch.arrays).std() > 1e-3


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    head = lfa.build(spec_of(widths=LAYERS), start="published", dropout=0.5)
    arrays = joined(batches(widths=LAYERS)).arrays

    assert not torch.equal(head(arrays), head(arrays))
    assert torch.equal(head.eval()(arrays), head(arrays))


def test_every_option_out_of_range_is_told():
    with pytest.raises(ConfigError) as refused:
        lfa.build(replace(spec_of(widths=LAYERS), combine="mean"), width=0, dropout=1.0)

    assert refused.value.problems == [
        "width must be positive, got 0",
        "dropout must lie in [0, 1), got 1.0",
        "lfa reads every layer by itself: --layers mean does not apply",
    ]


def test_a_start_that_does_not_exist_is_answered_with_those_that_do():
    with pytest.raises(ConfigError, match="start must be one of auto, ridge, probe, published, got 'zero'"):
        build_head("lfa", spec_of(), {"start": "zero"})


def test_where_rows_are_few_it_stays_at_a_ridge_that_prefers_the_deep_layers():
    parts = batches(widths=LAYERS, rows=24)
    head = lfa.build(replace(spec_of(widths=LAYERS, standardised_by=parts), converge=True))

    chosen = head.solve(parts)

    assert chosen["depth"] == max(lfa.DEPTHS)
    assert not any(p.requires_grad for p in head.parameters())
    first, last = (head.values[place].weight.norm() for place in (0, -1))
    assert last > 10 * first
