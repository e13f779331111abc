"""Rows that come next are asked of the disk before they are gathered, each once, and only where that helps."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
import torch

import featurecache.sources._ahead as ahead
import featurecache.sources.cached as cached
from featurecache.sources._ahead import Ahead, can_read_ahead
from featurecache.sources.cached import CachedSource
from featurecache.stores import open_store
from tests.featurecache.sources.samples import finished_store

ROWS = 600
EVERY = np.arange(ROWS)


@pytest.fixture
def source(tmp_path) -> CachedSource:
    finished_store(tmp_path / "features.zarr", ROWS)
    return CachedSource(open_store(tmp_path / "features.zarr"), ["embedding", "layers/cls/00"], EVERY)


@pytest.fixture
def loaded(monkeypatch) -> list[tuple[int, int]]:
    """Runs of rows that were brought into memory, of one array after the other."""
    runs: list[tuple[int, int]] = []
    real = ahead._load
    monkeypatch.setattr(ahead, "_load", lambda values, *run: (runs.append(run), real(values, *run)))
    return runs


def test_a_window_is_there_before_its_first_row_is_gathered_and_the_next_is_on_its_way(loaded):
    reader = Ahead([torch.zeros(100, 8)], np.arange(100), 10)

    reader.reach(1)
    reader.close()

    assert loaded[0] == (0, 10)
    assert loaded in ([(0, 10)], [(0, 10), (10, 20)])


def test_neighbouring_rows_are_one_request_and_far_ones_are_not_read(loaded):
    reader = Ahead([torch.zeros(10_000, 8)], np.array([9000, 3, 0, 9002, 20]), 5)

    reader.reach(5)
    reader.close()

    assert loaded == [(0, 21), (9000, 9003)]


def test_whole_pages_around_the_rows_are_asked_for(monkeypatch):
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(ahead, "_advise", lambda place, size, advice: asked.append((place, size)))
    values = torch.zeros(4096, 16)

    ahead._load(values, 100, 3000)

    first, last = values.data_ptr() + 100 * 64, values.data_ptr() + 3000 * 64
    assert all(place % mmap.PAGESIZE == 0 for place, _ in asked)
    assert min(place for place, _ in asked) <= first
    assert max(place + size for place, size in asked) == last


@pytest.mark.skipif(not can_read_ahead(), reason="this system cannot be asked")
class TestPasses:
    @pytest.mark.parametrize("order", ["sequential", "blocks"])
    def test_a_pass_reads_every_row_of_every_array_ahead_once(self, source, loaded, order, monkeypatch):
        monkeypatch.setattr(cached, "BLOCK", 50)
        monkeypatch.setattr(cached, "POOL", 3)
        monkeypatch.setattr(cached, "WINDOW_BYTES", 100 * 64)

        for _ in source.batches(64, order=order):
            pass

        assert sorted(row for run in loaded for row in range(*run)) == sorted([*EVERY, *EVERY])

    def test_a_random_order_has_no_next_page(self, source, loaded):
        for _ in source.batches(64, order="shuffled"):
            pass

        assert loaded == []

    def test_what_fits_memory_is_read_ahead_in_the_first_whole_pass_only(self, source, loaded):
        next(source.batches(64))
        for _ in range(3):
            for _ in source.batches(64):
                pass

        assert loaded.count((0, ROWS)) in (3, 4)  # two arrays: whole once, and begun once

    def test_what_does_not_fit_is_read_ahead_every_time(self, source, loaded, monkeypatch):
        monkeypatch.setattr(source, "fits_memory", lambda: False)

        for _ in range(3):
            for _ in source.batches(64):
                pass

        assert loaded.count((0, ROWS)) == 6

    def test_a_pass_that_is_left_leaves_no_thread(self, source):
        import threading

        batches = source.batches(64)
        next(batches)
        batches.close()

        assert not [thread for thread in threading.enumerate() if thread.name.startswith("read ahead")]
