"""Predictions are told in the words of the data set, one line a sample, columns that any reader of Parquet knows."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet
import pytest
import torch

from featurecache.sources.cached import CachedSource
from featurecache.stores import open_store
from pipelines._evaluation import answers, evaluate, prediction_table, probabilities, write_predictions
from tests.pipelines.stores import made_store

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [-3.0, 0.2, 0.1]])
NAMES = ("ant", "bee", "cow")


class Shift(torch.nn.Module):
    """A head that says the first three features less five."""

    def forward(self, arrays):
        return arrays["embedding"][:, :3] - 5


def test_classes_are_told_by_name_with_their_probabilities():
    table = prediction_table(["x.jpg", "y.jpg"], np.array([0, 2]), LOGITS, NAMES, "classification").to_pydict()

    assert list(table) == ["sample_id", "label", "pred", "prob_ant", "prob_bee", "prob_cow"]
    assert table["sample_id"] == ["x.jpg", "y.jpg"]
    assert table["label"] == ["ant", "cow"]
    assert table["pred"] == ["ant", "bee"]
    powers = np.exp(LOGITS[1].numpy())
    assert [table[f"prob_{name}"][1] for name in NAMES] == pytest.approx((powers / powers.sum()).tolist())


def test_labels_are_told_together_with_their_probabilities():
    targets = np.array([[1, 0, 1], [0, 0, 0]], np.uint8)

    table = prediction_table(["x", "y"], targets, LOGITS, NAMES, "multilabel").to_pydict()

    assert table["label"] == ["ant|cow", ""]
    assert table["pred"] == ["ant|cow", "bee|cow"]
    assert table["prob_bee"] == pytest.approx((1 / (1 + np.exp(-LOGITS[:, 1].numpy()))).tolist())


def test_values_are_told_as_they_are():
    targets = np.array([[1.5, 0.0, 2.0], [0.0, 0.0, 0.5]], np.float32)

    table = prediction_table(["x", "y"], targets, LOGITS, NAMES, "regression").to_pydict()

    assert list(table) == ["sample_id", "label", "pred", "value_ant", "value_bee", "value_cow"]
    assert table["label"] == targets.tolist()
    assert table["pred"] == [pytest.approx(row) for row in LOGITS.tolist()]
    one = prediction_table(["x"], targets[:1, :1], LOGITS[:1, :1], NAMES[:1], "regression").to_pydict()
    assert (one["label"], one["pred"]) == ([1.5], [2.0])


def test_a_label_is_given_from_one_half_on():
    assert answers(torch.tensor([[0.5, 0.49]]), "multilabel").tolist() == [[1, 0]]
    assert probabilities(torch.tensor([[0.0]]), "multilabel").tolist() == [[0.5]]


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_evaluation_is_over_the_rows_of_the_source_in_their_order(tmp_path, task):
    store = open_store(made_store(tmp_path / "x.zarr", task))
    rows = np.array([3, 50, 51, 7, 90, 20, 44])
    source = CachedSource(store, ("embedding",), rows)

    metrics, logits = evaluate(Shift(), source, task, "cpu")
    write_predictions(tmp_path, source, logits)

    expected = store.read("embedding", rows)[:, :3] - 5
    np.testing.assert_allclose(logits, expected, rtol=1e-6)
    if task == "classification":
        right = (expected.argmax(1) == store.table().target[rows]).mean()
        assert metrics["top1"]["value"] == pytest.approx(right)
    table = pyarrow.parquet.read_table(tmp_path / "predictions.parquet").to_pydict()
    assert table["sample_id"] == [f"{row}.jpg" for row in rows]


def test_rows_of_one_group_widen_the_interval(tmp_path):
    alone = open_store(made_store(tmp_path / "a.zarr"))
    grouped = open_store(made_store(tmp_path / "b.zarr", group=[f"patient {row // 40}" for row in range(120)]))

    def interval(store) -> dict:
        return evaluate(Shift(), CachedSource(store, ("embedding",), np.arange(120)), "classification", "cpu")[0][
            "top1"
        ]

    assert interval(alone)["value"] == interval(grouped)["value"]
    assert (interval(alone)["low"], interval(alone)["high"]) != (interval(grouped)["low"], interval(grouped)["high"])


def test_a_metric_that_is_undefined_is_none_not_nan(tmp_path):
    store = open_store(made_store(tmp_path / "x.zarr", "regression"))

    metrics, _ = evaluate(Shift(), CachedSource(store, ("embedding",), np.array([4])), "regression", "cpu")

    assert metrics["r2"] == {"value": None, "low": None, "high": None}
    assert metrics["mae"]["value"] > 0
