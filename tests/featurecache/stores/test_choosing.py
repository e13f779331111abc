"""What users read of a store is of the same rows, also where images were skipped; unknown names are refused by name."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import logme
from featurecache.errors import StoreContentsError
from featurecache.stores import create_store, open_store
from tests.featurecache.stores.samples import BATCH, fill, header, said, speaking, table, values

SPLITS = np.array(["train", "train", "test", "val"])[np.arange(200) % 4]


@pytest.fixture(params=[".zarr", ".h5"])
def store(request, tmp_path):
    """A store of 200 rows in three splits, of which row 40, in train, was skipped, and rows 8 and 9 have no label."""
    rows = table(200)
    target = np.asarray(rows.target).copy()
    target[[8, 9]] = -1
    made = create_store(
        tmp_path / f"x{request.param}", header(200), dataclasses.replace(rows, split=list(SPLITS), target=target),
        chunk_multiple=BATCH,
    )  # fmt: skip
    fill(made)
    made.finish()
    made.close()
    return open_store(tmp_path / f"x{request.param}")


@pytest.mark.parametrize("split", [None, "train", "val", "test"])
def test_values_labels_and_ids_are_of_the_same_rows(store, split):
    kept = [row for row in range(200) if row != 40 and split in (None, SPLITS[row])]

    X, y = store.X_y("embedding", split, labelled=False)

    np.testing.assert_array_equal(store.row_numbers(split=split), kept)
    np.testing.assert_array_equal(store.to_numpy("embedding", split=split), values(range(200))["embedding"][kept, 0])
    np.testing.assert_array_equal(store.labels(split=split), np.asarray(store.table().target)[kept])
    assert store.sample_ids(split=split) == [f"class é/{row}.jpg" for row in kept]
    np.testing.assert_array_equal(X, store.to_numpy("embedding", split=split))
    np.testing.assert_array_equal(y, store.labels(split=split))


def test_rows_without_a_label_are_refused_unless_one_says_what_becomes_of_them(store):
    with pytest.raises(StoreContentsError, match="2 of the 99 rows asked .* have no label. Give labelled=True"):
        store.X_y("embedding", "train")
    X, y = store.X_y("embedding", "train", labelled=True)

    assert len(X) == len(y) == 97 and set(y) == {0, 1}
    assert len(store.X_y("embedding", "val")[1]) == 50


def test_features_and_targets_go_into_logme_as_they_are(store):
    features, targets = store.X_y("layers/cls/00", "train", labelled=True)

    assert np.isfinite(logme.logme(features, targets))


@pytest.mark.parametrize("act", ["to_numpy", "X_y", "labels", "sample_ids", "row_numbers"])
def test_an_unknown_split_is_refused_with_those_there_are(store, act):
    arrays = ["embedding"] if act in ("to_numpy", "X_y") else []

    with pytest.raises(StoreContentsError, match=r"no split 'tset'. Did you mean 'test'\? .*it holds test, train, val"):
        getattr(store, act)(*arrays, split="tset")


def test_a_split_of_a_store_without_splits_is_refused(tmp_path):
    rows = dataclasses.replace(table(BATCH), split=[""] * BATCH)
    with_none = create_store(tmp_path / "x.zarr", header(BATCH), rows, chunk_multiple=BATCH)
    fill(with_none)

    with pytest.raises(StoreContentsError, match="holds no split 'train'.*its rows are of no split"):
        with_none.to_numpy("embedding", split="train")
    with_none.close()


def test_an_unknown_array_is_refused_with_those_there_are(store):
    for act in (store.to_numpy, store.X_y):
        with pytest.raises(StoreContentsError, match="no array 'embeding'; it holds embedding, layers/cls/00"):
            act("embeding")
    with pytest.raises(StoreContentsError, match="no array 'embeding'"):
        store.labels(array="embeding")


def test_in_a_store_that_is_not_finished_an_array_names_its_own_rows(tmp_path):
    writer = create_store(tmp_path / "x.zarr", header(200), table(200), chunk_multiple=BATCH)
    fill(writer, commit_every=1, stop_after=2)
    there = [row for row in range(2 * BATCH) if row != 40]

    X, y = writer.X_y("embedding")

    np.testing.assert_array_equal(writer.row_numbers(array="embedding"), there)
    assert len(X) == len(y) == len(writer.labels()) == len(there)
    writer.close()


def test_a_store_displays_what_it_holds_and_no_text_of_it_is_html(store, tmp_path):
    made = create_store(
        tmp_path / "b.zarr", dataclasses.replace(header(BATCH), backbone={"name": "<i>b</i>"}), table(BATCH),
        chunk_multiple=BATCH,
    )  # fmt: skip

    assert repr(store).endswith(
        ": 200 rows, 1 of them skipped or deleted, 3 arrays, backbone test, data None, finished>"
    )
    assert "<td>layers/patch-grid/00</td><td>200 x 4 x 24</td><td>float16</td>" in store._repr_html_()
    assert "not finished" in repr(made)
    assert "&lt;i&gt;b" in made._repr_html_() and "<i>" not in made._repr_html_()
    made.close()


def test_the_row_table_is_a_data_frame_with_every_row(store):
    pytest.importorskip("pandas")
    frame = store.to_pandas()

    assert len(frame) == 200 and frame.index.tolist() == list(range(200))
    assert frame.loc[40, "status"] == "skipped: truncated"
    assert frame.label.isna()[8] and frame.loc[11, "label"] == "b" and frame.loc[8, "target"] == -1
    kept = frame[(frame.status == "ok") & (frame.split == "train")]
    assert kept.sample_id.tolist() == store.sample_ids(split="train")
    assert store.to_pandas(split="val").split.unique().tolist() == ["val"]
    with pytest.raises(StoreContentsError, match="no split 'tset'"):
        store.to_pandas(split="tset")


def test_arrays_of_classes_have_no_split(tmp_path):
    made = create_store(
        tmp_path / "x.zarr", speaking(BATCH), table(BATCH), chunk_multiple=BATCH,
        constants=said,
    )  # fmt: skip

    assert made.to_numpy("text/embedding").shape == (5, 2, 3)
    with pytest.raises(StoreContentsError, match="holds classes and no rows: leave split and view out"):
        made.to_numpy("text/embedding", split="train")
    made.close()
