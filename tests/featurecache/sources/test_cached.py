"""Batches from a store hold exactly what NumPy reads from it, whatever the order, the dtype, and what else is broken."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import featurecache.sources.cached as cached
from featurecache.errors import StoreContentsError, StoreDamagedError
from featurecache.sources.cached import CachedSource, is_labelled, ordered, split_rows
from featurecache.stores import open_store
from tests.featurecache.sources.samples import SKIPPED, expected, finished_store, specs, unfinished_store

ROWS = 600
EVERY = np.arange(ROWS)
NAMES = tuple(spec.name for spec in specs("float16"))


@pytest.fixture
def store(tmp_path):
    return finished_store(tmp_path / "features.zarr", ROWS)


def rows_of(source, order, seed=0, batch_size=64) -> np.ndarray:
    return np.concatenate([batch.rows for batch in source.batches(batch_size, order=order, seed=seed)])


@pytest.mark.parametrize("order", ["sequential", "shuffled", "blocks"])
def test_an_order_is_the_same_for_row_numbers_of_any_length(order):
    rows = np.flatnonzero(np.arange(50_000) % 3)

    short, long = ordered(rows.astype(np.int32), order, 7), ordered(rows, order, 7)

    assert (short == long).all() and short.dtype == np.int32


@pytest.mark.parametrize("order", ["sequential", "shuffled"])
def test_a_source_keeps_short_row_numbers_and_its_batches_tell_long_ones(store, order):
    source = CachedSource(store, NAMES, EVERY)

    batch = next(source.batches(64, order=order))

    assert source.rows.dtype == np.int32 and batch.rows.dtype == np.int64


@pytest.mark.parametrize(
    ("targets", "known"),
    [
        (np.array([3, -1, 0]), [True, False, True]),
        (np.array([[0, 1], [0, 0]], np.uint8), [True, True]),
        (np.array([[0.5, np.nan], [np.nan, np.nan], [1, 2]], np.float32), [False, False, True]),
    ],
)
def test_a_row_is_labelled_when_no_number_of_its_target_is_none(targets, known):
    assert is_labelled(targets).tolist() == known


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_batch_holds_the_stored_values_in_float32_in_the_order_asked(tmp_path, dtype):
    store = finished_store(tmp_path / "features.zarr", ROWS, dtype)
    rows = np.array([599, 0, 0, 300, 41])

    batch = CachedSource(store, NAMES, EVERY).batch(rows)

    for number, name in enumerate(NAMES):
        assert batch.arrays[name].dtype == torch.float32
        np.testing.assert_array_equal(batch.arrays[name].numpy(), expected(ROWS, number, dtype)[rows])
    np.testing.assert_array_equal(batch.targets.numpy(), rows % 3)
    np.testing.assert_array_equal(batch.rows, rows)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_store_that_cannot_be_mapped_gives_the_same_batches(tmp_path, monkeypatch, dtype):
    store = finished_store(tmp_path / "features.zarr", ROWS, dtype)
    source = CachedSource(store, NAMES, EVERY)
    monkeypatch.setattr(type(store), "mapped", lambda self, array, view=0: None)
    unmapped = CachedSource(open_store(store.path), NAMES, EVERY)

    pairs = list(zip(source.batches(100, order="shuffled"), unmapped.batches(100, order="shuffled"), strict=True))

    assert all(torch.equal(a.arrays[name], b.arrays[name]) for a, b in pairs for name in NAMES)


def test_changing_a_batch_changes_neither_the_store_nor_the_next_batch(store):
    source = CachedSource(store, NAMES, EVERY)

    source.batch(EVERY[:5]).arrays["embedding"].zero_()

    np.testing.assert_array_equal(source.batch(EVERY[:5]).arrays["embedding"].numpy(), expected(ROWS, 0)[:5])


def test_sample_ids_are_those_of_the_rows(store):
    ids = CachedSource(store, NAMES, EVERY).batch(np.array([5, 3, 599])).sample_ids

    assert list(ids) == ["2/5.jpg", "0/3.jpg", "2/599.jpg"]
    assert (len(ids), ids[-1], ids[:2]) == (3, "2/599.jpg", ["2/5.jpg", "0/3.jpg"])
    assert "0/3.jpg" in ids and "0/0.jpg" not in ids


def test_the_targets_of_several_columns_come_as_columns(store, monkeypatch):
    table = replace(store.table(), target=(EVERY[:, None] % np.array([2, 3, 5]) == 0).astype(np.uint8))
    monkeypatch.setattr(store, "table", lambda: table)

    batch = CachedSource(store, NAMES, EVERY).batch(np.array([6, 5]))

    assert batch.targets.tolist() == [[1, 1, 0], [0, 0, 1]]


class TestOrder:
    @pytest.mark.parametrize("order", ["sequential", "shuffled", "blocks"])
    @pytest.mark.parametrize("batch_size", [1, 64, 600, 1000])
    def test_every_row_comes_once_and_only_the_last_batch_is_smaller(self, store, order, batch_size):
        rows = split_rows(store, "train")

        sizes = [len(b) for b in CachedSource(store, NAMES[:1], rows).batches(batch_size, order=order)]

        assert sorted(rows_of(CachedSource(store, NAMES[:1], rows), order, batch_size=batch_size)) == rows.tolist()
        assert set(sizes[:-1]) <= {batch_size}
        assert sum(sizes) == len(rows)

    @pytest.mark.parametrize("order", ["shuffled", "blocks"])
    def test_it_is_a_function_of_the_seed_alone(self, store, monkeypatch, order):
        monkeypatch.setattr(cached, "BLOCK", 50)
        first, again = CachedSource(store, NAMES[:1], EVERY), CachedSource(store, NAMES, EVERY)
        np.random.seed(5), torch.manual_seed(5)

        assert rows_of(first, order, seed=3).tolist() == rows_of(again, order, seed=3, batch_size=7).tolist()
        assert rows_of(first, order, seed=3).tolist() == rows_of(first, order, seed=3).tolist()
        assert rows_of(first, order, seed=3).tolist() != rows_of(first, order, seed=4).tolist()

    def test_sequential_rows_come_as_they_lie(self, store):
        assert rows_of(CachedSource(store, NAMES, EVERY[::2]), "sequential").tolist() == EVERY[::2].tolist()

    def test_blocks_keep_neighbours_together_and_mix_whatever_fits_the_pool(self, store, monkeypatch):
        monkeypatch.setattr(cached, "BLOCK", 20)
        monkeypatch.setattr(cached, "POOL", 3)

        rows = rows_of(CachedSource(store, NAMES[:1], EVERY), "blocks")

        pools = rows.reshape(-1, 60)
        for pool in pools:  # 60 rows that follow each other in time come from 3 runs of 20 rows on disk
            blocks = np.unique(pool // 20)
            assert len(blocks) == 3
            assert pool.tolist() != sorted(pool)
        assert not np.array_equal(np.unique(pools[0] // 20), np.arange(3))

    def test_shuffling_leaves_no_row_near_its_place(self, store):
        rows = rows_of(CachedSource(store, NAMES[:1], EVERY), "shuffled")

        assert np.abs(rows - EVERY).mean() == pytest.approx(ROWS / 3, rel=0.15)

    def test_a_walk_can_be_walked_again(self, store):
        walk = CachedSource(store, NAMES[:1], EVERY).walk(250)

        first, second = ([batch.rows.tolist() for batch in walk] for _ in range(2))

        assert first == second
        assert [len(rows) for rows in first] == [250, 250, 100]


class TestStatistics:
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
    def test_they_are_those_of_numpy_in_float64(self, tmp_path, dtype):
        store = finished_store(tmp_path / "features.zarr", ROWS, dtype)
        rows = EVERY[::3]

        found = CachedSource(store, NAMES, rows).statistics(batch_size=64)

        for number, name in enumerate(NAMES):
            values = expected(ROWS, number, dtype)[rows].astype(np.float64)
            varying = values.std(0) > 0
            np.testing.assert_allclose(found[name][0], values.mean(0), rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(found[name][1][varying], values.std(0)[varying], rtol=1e-6)

    def test_a_constant_feature_is_divided_by_one(self, store):
        mean, deviation = CachedSource(store, NAMES, EVERY).statistics()["embedding"]

        assert (mean[1], deviation[1]) == (3, 1)

    def test_a_small_spread_on_a_large_offset_is_not_lost(self, tmp_path):
        store = finished_store(tmp_path / "features.zarr", ROWS, "float32")

        mean, deviation = CachedSource(store, NAMES, EVERY).statistics()["embedding"]

        assert mean[2] == pytest.approx(1001, rel=1e-7)
        assert deviation[2] == pytest.approx(np.sqrt(2 / 3), rel=1e-6)


class TestSplits:
    def test_a_split_is_its_readable_rows_ascending(self, store):
        rows = split_rows(store, "train")

        assert rows.tolist() == [row for row in range(ROWS) if row % 4 in (0, 1) and row != SKIPPED]
        assert SKIPPED not in split_rows(store, "train", "val", "test")
        assert len(split_rows(store, "train", "val", "test")) == ROWS - 1

    def test_an_unfinished_store_is_refused_with_the_count_of_what_it_lacks(self, tmp_path):
        store = unfinished_store(tmp_path / "features.zarr", ROWS, stop=200)

        with pytest.raises(
            StoreContentsError, match=r"is not finished: 400 of 600 rows .* same extract-features command"
        ):
            split_rows(store, "train")
        store.close()

    def test_a_split_that_is_not_there_is_empty(self, store):
        assert len(split_rows(store, "domain-b")) == 0
        assert len(CachedSource(store, NAMES, split_rows(store, "domain-b"))) == 0


class TestWhatIsTouched:
    def test_one_layer_alone_opens_no_file_of_another(self, store):
        for name in ("embedding", "layers/cls/00"):
            shutil.rmtree(store.path / name / "c")

        source = CachedSource(open_store(store.path), ["layers/cls/01"], split_rows(store, "train"))

        (batch,) = source.batches(1000)
        np.testing.assert_array_equal(batch.arrays["layers/cls/01"].numpy(), expected(ROWS, 2)[source.rows])

    def test_a_layer_whose_file_is_gone_is_refused_before_the_first_batch(self, store):
        shutil.rmtree(store.path / "layers/cls/01" / "c")

        with pytest.raises(StoreDamagedError, match="is gone. Mend it with: featurecache verify .* --repair"):
            CachedSource(open_store(store.path), NAMES, EVERY)

    def test_an_array_that_the_store_does_not_hold_is_refused_with_those_that_it_does(self, store):
        with pytest.raises(StoreContentsError, match="no array 'layers/cls/07'; it holds embedding, layers/cls/00"):
            CachedSource(store, ["layers/cls/07"], EVERY)

    def test_neither_images_nor_a_backbone_are_needed(self, store, monkeypatch):
        def refuse(*_, **__):
            raise AssertionError("training from a store built a backbone, or opened an image")

        for name in ("featurecache.backbones.load_backbone", "timm.create_model", "PIL.Image.open"):
            monkeypatch.setattr(name, refuse)
        source = CachedSource(open_store(store.path), NAMES, split_rows(store, "train"))

        assert len(source.statistics()) == 3
        assert sum(len(batch) for batch in source.batches(64, order="shuffled")) == len(source)

    def test_a_store_larger_than_half_of_the_memory_does_not_fit(self, store, monkeypatch):
        source = CachedSource(store, NAMES, EVERY)
        fits, size = source.fits_memory(), 3 * ROWS * 16 * 2
        pages = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 2 * size}
        monkeypatch.setattr(cached.os, "sysconf", pages.__getitem__)

        assert fits
        assert not source.fits_memory()


def test_a_source_of_a_moved_store_reads_what_was_there(store, tmp_path):
    moved = Path(shutil.move(store.path, tmp_path / "elsewhere.zarr"))

    batch = CachedSource(open_store(moved), NAMES, EVERY).batch(EVERY[:3])

    np.testing.assert_array_equal(batch.arrays["embedding"].numpy(), expected(ROWS, 0)[:3])
