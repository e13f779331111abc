"""People's own torch loops see every row once, with its own values, whatever shares the work."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from featurecache.errors import ConfigError, StoreContentsError
from featurecache.sources import torch_datasets
from featurecache.sources.cached import CachedSource, split_rows
from featurecache.sources.torch_datasets import FeatureDataset, FeatureStream, batched
from featurecache.stores import open_store
from tests.featurecache.sources.samples import expected, finished_store, unfinished_store

ROWS = 600


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    store = finished_store(tmp_path_factory.mktemp("torch") / "features.zarr", ROWS)
    store.close()
    return store.path


@pytest.fixture
def train(path) -> np.ndarray:
    return np.array([row for row in range(ROWS) if row % 4 in (0, 1)])


def rows_in(batches) -> list[int]:
    return [row for batch in batches for row in batch["row"].tolist()]


class TestMapStyle:
    def test_a_sample_is_the_stored_vector_and_its_target(self, path, train):
        dataset = FeatureDataset(path, split="train")

        features, target = dataset[3]

        np.testing.assert_array_equal(features.numpy(), expected(ROWS, 0)[train[3]])
        assert (features.dtype, int(target), len(dataset)) == (torch.float32, train[3] % 3, len(train))

    def test_a_dict_holds_every_array_and_where_the_row_is_from(self, path, train):
        dataset = FeatureDataset(path, ["embedding", "layers/cls/01"], split="train", form="dict", dtype=torch.float16)

        sample = dataset[-1]

        assert sorted(sample) == ["embedding", "layers/cls/01", "row", "sample_id", "target"]
        assert (int(sample["row"]), sample["sample_id"]) == (train[-1], f"{train[-1] % 3}/{train[-1]}.jpg")
        assert sample["layers/cls/01"].dtype == torch.float16
        np.testing.assert_array_equal(sample["layers/cls/01"].float().numpy(), expected(ROWS, 2)[train[-1]])

    @pytest.mark.parametrize("collate", [None, batched])
    def test_a_loader_gives_the_batches_of_the_store(self, path, train, collate):
        loader = DataLoader(FeatureDataset(path, split="train"), batch_size=64, collate_fn=collate)

        features, targets = (torch.cat(parts) for parts in zip(*loader, strict=True))

        np.testing.assert_array_equal(features.numpy(), expected(ROWS, 0)[train])
        assert targets.tolist() == (train % 3).tolist()

    def test_a_batch_is_gathered_at_once(self, path, monkeypatch):
        dataset, asked = FeatureDataset(path), []
        gather = CachedSource.gather
        monkeypatch.setattr(CachedSource, "gather", lambda *given: asked.append(len(given[2])) or gather(*given))

        next(iter(DataLoader(dataset, batch_size=50, shuffle=True, collate_fn=batched)))

        assert asked == [50]

    def test_ranks_of_a_distributed_sampler_share_the_rows(self, path, train):
        dataset = FeatureDataset(path, split="train", form="dict")
        samplers = [DistributedSampler(dataset, num_replicas=3, rank=rank, shuffle=True) for rank in range(3)]

        seen = [rows_in(DataLoader(dataset, batch_size=64, sampler=s, collate_fn=batched)) for s in samplers]

        assert sorted(row for part in seen for row in part) == train.tolist()

    def test_it_travels_as_a_path_and_opens_the_store_anew(self, path):
        dataset = FeatureDataset(path, split="train")

        sent = pickle.dumps(dataset)

        assert len(sent) < 1000
        assert torch.equal(pickle.loads(sent)[5][0], dataset[5][0])

    def test_workers_read_the_same(self, path, train):
        dataset = FeatureDataset(path, split="train", form="dict")
        context = {"num_workers": 2, "multiprocessing_context": "fork"}

        assert rows_in(DataLoader(dataset, batch_size=100, collate_fn=batched, **context)) == train.tolist()

    def test_several_views_stand_beside_each_other(self, path, monkeypatch):
        dataset = FeatureDataset(path)
        monkeypatch.setattr(dataset, "selection", torch_datasets._selection(
            path, "embedding", None, (0, 0), torch.float32, "pair", labelled=True))  # fmt: skip

        assert dataset[4][0].shape == (2, 16)

    def test_rows_without_a_target_are_left_out_unless_asked_for(self, path, monkeypatch):
        source = FeatureDataset(path).source
        source._targets = torch.where(torch.arange(ROWS) % 2 == 0, -1, source._targets)
        table = source.store.table()
        monkeypatch.setattr(type(source.store), "table", lambda self: _relabelled(table, source._targets.numpy()))

        assert len(FeatureDataset(path)) == ROWS / 2 - 1
        assert len(FeatureDataset(path, labelled=False)) == ROWS - 1


def _relabelled(table, targets):
    from dataclasses import replace

    return replace(table, target=targets)


class TestStream:
    @pytest.mark.parametrize("order", ["sequential", "shuffled", "blocks"])
    @pytest.mark.parametrize("ranks", [1, 3])
    def test_all_ranks_and_workers_together_yield_every_row_once(self, path, train, order, ranks):
        streams = [
            FeatureStream(path, split="train", form="dict", batch_size=32, order=order, seed=4, rank=(rank, ranks))
            for rank in range(ranks)
        ]
        parts = [
            rows_in(DataLoader(s, batch_size=None, num_workers=2, multiprocessing_context="fork")) for s in streams
        ]

        assert sorted(row for part in parts for row in part) == train.tolist()

    def test_its_values_are_those_of_the_rows(self, path):
        (batch,) = FeatureStream(path, split="val", form="dict", batch_size=1000)

        np.testing.assert_array_equal(batch["embedding"].numpy(), expected(ROWS, 0)[batch["row"].numpy()])

    def test_without_a_batch_size_it_yields_samples(self, path, train):
        stream = FeatureStream(path, split="train", order="sequential")

        features, targets = (torch.cat(parts) for parts in zip(*DataLoader(stream, batch_size=64), strict=True))

        assert len(stream) == len(train)
        np.testing.assert_array_equal(features.numpy(), expected(ROWS, 0)[train])
        assert targets.tolist() == (train % 3).tolist()

    def test_the_order_is_a_function_of_seed_and_epoch(self, path):
        streams = [FeatureStream(path, form="dict", batch_size=64, order="shuffled", seed=seed) for seed in (1, 1, 2)]
        first, again, other = (rows_in(stream) for stream in streams)

        streams[0].set_epoch(1)

        assert first == again
        assert first != other
        assert rows_in(streams[0]) not in (first, other)
        assert sorted(rows_in(streams[0])) == sorted(first)

    def test_workers_that_live_on_see_the_next_epoch(self, path):
        stream = FeatureStream(path, form="dict", batch_size=64, order="shuffled")
        loader = DataLoader(
            stream, batch_size=None, num_workers=1, persistent_workers=True, multiprocessing_context="fork"
        )
        first = rows_in(loader)

        stream.set_epoch(1)

        assert rows_in(loader) not in ([], first)

    def test_even_ranks_make_equally_many_steps(self, path):
        lengths = [len(FeatureStream(path, batch_size=10, even=True, rank=(rank, 7))) for rank in range(7)]
        steps = [len(list(FeatureStream(path, batch_size=10, even=True, rank=(rank, 7)))) for rank in range(7)]

        assert lengths == steps == [9] * 7

    def test_the_rank_is_that_of_torch_distributed(self, path, monkeypatch):
        monkeypatch.setattr(torch_datasets, "_distributed", lambda: (1, 2))
        stream = FeatureStream(path, form="dict", batch_size=1000, order="sequential")
        monkeypatch.setattr(torch_datasets, "_distributed", lambda: None)
        here = rows_in(stream)
        monkeypatch.setattr(torch_datasets, "_distributed", lambda: (1, 2))
        sent = pickle.dumps(stream)
        monkeypatch.setattr(torch_datasets, "_distributed", lambda: None)  # as in a worker

        assert len(here) == ROWS - 1
        assert rows_in(pickle.loads(sent)) == here[len(here) // 2 + 1 :]


class TestRefusals:
    @pytest.mark.parametrize("kind", [FeatureDataset, FeatureStream])
    def test_a_pair_of_several_arrays_is_refused(self, path, kind):
        with pytest.raises(ConfigError, match="a pair holds one array, .* give form='dict'"):
            kind(path, ["embedding", "layers/cls/00"])

    def test_a_split_that_is_not_there_is_refused_with_those_that_are(self, path):
        with pytest.raises(ConfigError, match="no rows of the split 'valid'; it holds 'test', 'train', 'val'"):
            FeatureDataset(path, split="valid")

    def test_a_view_that_is_not_there_is_refused(self, path):
        with pytest.raises(ConfigError, match="holds views 0 to 0, not 2"):
            FeatureDataset(path, views=[0, 2])

    def test_an_array_that_is_not_there_is_refused_at_once(self, path):
        with pytest.raises(StoreContentsError, match="no array 'layers/cls/07'"):
            FeatureStream(path, "layers/cls/07")

    def test_an_unfinished_store_is_refused(self, tmp_path):
        store = unfinished_store(tmp_path / "part.zarr", ROWS, stop=200)
        store.close()

        with pytest.raises(StoreContentsError, match="is not finished"):
            FeatureDataset(store.path)

    def test_batch_size_and_rank_are_checked_together(self, path):
        with pytest.raises(ConfigError, match=r"(?s)batch_size must be positive, got 0.*rank must be .* got \(2, 2\)"):
            FeatureStream(path, batch_size=0, rank=(2, 2))


def test_the_rows_of_a_split_are_those_that_train_head_reads(path):
    store = FeatureDataset(path, split="train").source.store

    assert FeatureDataset(path, split="train").source.rows.tolist() == split_rows(store, "train").tolist()


@pytest.mark.parametrize("kind", [FeatureDataset, FeatureStream])
def test_an_unknown_split_is_refused_with_those_there_are(path, kind):
    with pytest.raises(ConfigError, match="no rows of the split 'trian'; it holds .*'train'.* Did you mean 'train'"):
        kind(path, split="trian")


@pytest.mark.parametrize("kind", [FeatureDataset, FeatureStream])
def test_a_data_set_displays_what_it_reads(path, kind, train):
    shown = kind(path, split="train")

    assert repr(shown) == f"<{kind.__name__} {path}: {len(train)} rows of embedding, split train>"
    assert f"<td>{len(train)}</td>" in shown._repr_html_()


def test_an_open_store_is_read_like_its_path_and_travels_as_it(path):
    store = open_store(path)

    of_store, of_path = FeatureDataset(store, split="test"), FeatureDataset(str(path), split="test")

    assert of_store.selection == of_path.selection
    assert len(pickle.loads(pickle.dumps(of_store))) == len(of_path)


def test_its_rows_are_those_of_x_y(path):
    X, y = open_store(path).X_y("embedding", "test", labelled=True)
    features, targets = zip(*FeatureDataset(path, split="test"), strict=True)

    np.testing.assert_array_equal(np.stack(features), X.astype(np.float32))
    np.testing.assert_array_equal(targets, y)
