"""What is copied to a device gives the batches of the store, in the same order, and is copied only where there is room."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import featurecache.sources.staged as staging
from featurecache.sources.cached import CachedSource, split_rows
from featurecache.sources.staged import SHARE, StagedSource, staged, staged_bytes
from tests.featurecache.sources.samples import finished_store, specs

ROWS = 600
NAMES = tuple(spec.name for spec in specs("float16"))


@pytest.fixture(params=["float16", "bfloat16", "float32"])
def source(request, tmp_path) -> CachedSource:
    store = finished_store(tmp_path / "features.zarr", ROWS, request.param)
    return CachedSource(store, NAMES, split_rows(store, "train"))


def pairs(one, other, **asked):
    return list(zip(one.batches(64, **asked), other.batches(64, **asked), strict=True))


@pytest.mark.parametrize("order", ["sequential", "shuffled", "blocks"])
def test_its_batches_are_those_of_the_store(source, order, monkeypatch):
    monkeypatch.setattr(staging, "BLOCK", 100)  # several pieces of a copy
    there = StagedSource(source, torch.device("cpu"))

    found = pairs(source, there, order=order, seed=5)

    assert len(found) == -(-len(source) // 64)
    for ours, theirs in found:
        assert ours.rows.tolist() == theirs.rows.tolist()
        assert list(ours.sample_ids) == list(theirs.sample_ids)
        assert torch.equal(ours.targets, theirs.targets)
        for name in NAMES:
            assert theirs.arrays[name].dtype == torch.float32
            assert torch.equal(ours.arrays[name], theirs.arrays[name])


def test_it_stays_in_the_dtype_of_the_store(source):
    there = StagedSource(source, torch.device("cpu"))

    taken = sum(values.nbytes for values in there._values.values()) + there._targets.nbytes
    assert taken == staged_bytes(source)
    assert len(there) == len(source)


def test_every_row_keeps_its_own_view(source, monkeypatch):
    stored, read = source.store, source.store.read
    shifted = lambda name, rows, view=0: read(name, (rows + view) % ROWS)  # noqa: E731
    monkeypatch.setattr(stored, "read", shifted)
    monkeypatch.setattr(stored, "mapped", lambda name, view=0: None)
    drawn = CachedSource(stored, NAMES[:1], source.rows, views=3)
    there = StagedSource(drawn, torch.device("cpu"))

    found = pairs(drawn, there, order="shuffled", seed=1)

    assert all(torch.equal(a.arrays[NAMES[0]], b.arrays[NAMES[0]]) for a, b in found)
    assert any(not np.array_equal(a.arrays[NAMES[0]].numpy(), read(NAMES[0], a.rows)) for a, _ in found)


def test_a_walk_can_be_walked_again(source):
    walk = StagedSource(source, torch.device("cpu")).walk(100)

    first, second = ([batch.rows.tolist() for batch in walk] for _ in range(2))

    assert first == second


class TestRoom:
    @pytest.fixture
    def copied(self, monkeypatch) -> list[torch.device]:
        """Devices that sources were copied to; nothing is copied."""
        devices: list[torch.device] = []
        monkeypatch.setattr(staging, "StagedSource", lambda source, device: devices.append(device) or source)
        return devices

    def test_what_fits_is_copied_to_the_gpu_and_said(self, source, copied, caplog):
        caplog.set_level("INFO", logger="featurecache")
        sources = {"train": source, "val": source}
        needed = 2 * staged_bytes(source)

        staged(sources, "cuda:0", lambda device: int(needed / SHARE) + 1)

        assert copied == [torch.device("cuda:0")] * 2
        assert "are copied to cuda:0 once" in caplog.text

    def test_what_does_not_fit_stays_and_the_figures_are_said(self, source, copied, caplog):
        caplog.set_level("INFO", logger="featurecache")
        sources = {"train": source, "val": source}

        found = staged(sources, "cuda:0", lambda device: 2 * staged_bytes(source))

        assert found is sources
        assert copied == []
        assert "cuda:0 has 0.0 GB free, so every batch is copied there when its turn comes" in caplog.text

    def test_nothing_is_copied_where_there_is_no_gpu_to_copy_to(self, source, copied):
        def asked(device):
            raise AssertionError("a CPU was asked for its free memory")

        assert staged({"train": source}, "cpu", asked) == {"train": source}
        assert copied == []

    def test_an_empty_split_stays(self, source, copied):
        nothing = CachedSource(source.store, NAMES, source.rows[:0])

        assert staged({"val": nothing}, "cuda", lambda device: 10**9)["val"] is nothing
        assert copied == []
