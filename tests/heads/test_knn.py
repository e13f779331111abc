"""The vote against one written out row by row in numpy, and the rows that travel with the head."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featurecache.errors import ConfigError
from featurecache.features import FeatureBatch
from heads import knn
from heads._checkpoint import load_head, save_head
from heads.knn import FLOOR, build
from tests.heads.samples import CLASSES, LAYERS, ONE, TASKS, batches, joined, spec_of


def voted(known: FeatureBatch, asked: FeatureBatch, k: int, temperature: float, task: str) -> np.ndarray:
    """Return (B, C) shares of the vote, or weighted means of the values, row by row."""
    x = torch.cat(list(known.arrays.values()), 1).double().numpy()
    y = known.targets.numpy()
    votes = np.eye(CLASSES)[y] if task == "classification" else y.astype(np.float64)
    found = []
    for query in torch.cat(list(asked.arrays.values()), 1).double().numpy():
        cosines = np.array([query @ row / np.linalg.norm(query) / np.linalg.norm(row) for row in x])
        nearest = np.argsort(-cosines)[:k]
        weights = np.exp(cosines[nearest] / temperature)
        found.append(sum(w * votes[i] for w, i in zip(weights, nearest, strict=True)) / weights.sum())
    return np.array(found)


def as_said(shares: np.ndarray, task: str) -> np.ndarray:
    """Return what the head's logits should be."""
    if task == "regression":
        return shares
    floored = np.clip(shares, FLOOR, None if task == "classification" else 1 - FLOOR)
    return np.log(floored) if task == "classification" else np.log(floored / (1 - floored))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("k", "temperature"), [(20, 0.07), (3, 1.0), (1, 0.07)])
def test_logits_are_dinos_weighted_vote(task, k, temperature):
    parts, asked = batches(task, LAYERS, noise=3.0), joined(batches(task, LAYERS, rows=30, noise=3.0, seed=1))
    head = build(spec_of(task, LAYERS), k=k, temperature=temperature, whiten=False, dtype="float32")

    head.solve(parts)

    expected = as_said(voted(joined(parts), asked, k, temperature, task), task)
    np.testing.assert_allclose(head(asked.arrays).numpy(), expected, rtol=1e-3, atol=1e-4)


def test_rows_kept_in_half_precision_vote_nearly_the_same():
    parts, asked = batches(noise=3.0), joined(batches(rows=30, noise=3.0, seed=1))
    half, full = (build(spec_of(), whiten=False, dtype=dtype) for dtype in ("float16", "float32"))

    half.solve(parts), full.solve(parts)

    assert half.rows.dtype == torch.float16
    torch.testing.assert_close(half(asked.arrays).exp(), full(asked.arrays).exp(), atol=0.02, rtol=0)


def test_similarities_in_pieces_change_nothing(monkeypatch):
    parts, asked = batches(rows=200, noise=3.0), joined(batches(rows=30, noise=3.0, seed=1))
    head = build(spec_of(), k=5, dtype="float32")
    head.solve(parts)
    whole = head(asked.arrays)
    widest, multiply = 0, torch.Tensor.topk

    def watched(values, *rest, **named):
        nonlocal widest
        widest = max(widest, values.shape[-1])
        return multiply(values, *rest, **named)

    monkeypatch.setattr(torch.Tensor, "topk", watched)
    monkeypatch.setattr(knn, "PIECE", 30 * 8)

    torch.testing.assert_close(head(asked.arrays), whole)
    assert widest == 5 + 5, "never more at a time than a piece, or the best so far beside those of a piece"


def test_a_training_row_is_its_own_first_neighbour():
    parts = batches(noise=5.0)
    head = build(spec_of(), k=1)

    head.solve(parts)

    assert torch.equal(head(joined(parts).arrays).argmax(1), joined(parts).targets)


def test_fewer_rows_than_neighbours_all_vote():
    parts = batches(rows=7)
    head = build(spec_of(), k=20)

    assert head.solve(parts) == {"shrinkage": 1.0, "rows": 7.0, "neighbours": 7.0}
    assert torch.isfinite(head(joined(parts).arrays)).all()


@pytest.mark.parametrize("task", TASKS)
def test_a_head_built_anew_takes_as_many_rows_as_were_saved(task, tmp_path):
    parts = batches(task, rows=77)
    head = build(spec_of(task), k=3)
    head.solve(parts)

    save_head(tmp_path, head, "knn", spec_of(task), {"k": 3})
    again, _ = load_head(tmp_path)

    assert again.rows.shape == (77, ONE["layers/cls/05"])
    assert torch.equal(again(parts[0].arrays), head(parts[0].arrays))


def test_the_rows_of_each_class_are_counted():
    parts = batches()
    head = build(spec_of())

    head.solve(parts)

    assert head.counts.tolist() == np.bincount(joined(parts).targets, minlength=CLASSES).tolist()


def test_every_option_out_of_range_is_told():
    with pytest.raises(ConfigError) as refused:
        build(spec_of(), k=0, temperature=0.0)

    assert refused.value.problems == ["k must be positive, got 0", "temperature must be positive, got 0.0"]
