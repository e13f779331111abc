"""Teachers' rows come beside those of any source by sample id, whatever their order, staged or as they lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featurecache.datasets import ImageDataset, RowTable
from featurecache.errors import StoreContentsError, StoreMismatchError
from featurecache.features import as_numbers
from featurecache.sources import TrainedSource
from featurecache.sources.in_memory import InMemory
from featurecache.sources.joined import joined, taught, teachers_of
from featurecache.sources.teachers import Teacher
from tests.featurecache.sources.samples import SKIPPED, as_stored, finished_store, made

ROWS = 60


def dataset(order, *, fingerprint: str = "0", extra: int = 0) -> ImageDataset:
    """The samples of the stores in an order of their own, and some that no store has."""
    ids = [f"{row % 3}/{row}.jpg" for row in order] + [f"new/{n}.jpg" for n in range(extra)]
    table = RowTable(
        sample_id=ids, target=np.array([row % 3 for row in order] + [0] * extra), split=["train"] * len(ids),
        domain=[""] * len(ids), group=[""] * len(ids),
    )  # fmt: skip
    return ImageDataset(
        name="d", spec="photos", table=table, class_names=("a", "b", "c"), task="classification",
        read=lambda row: pytest.fail("an image is read"), identity={"fingerprint": fingerprint}, measures=[""] * len(ids),
    )  # fmt: skip


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    return {
        dtype: finished_store(folder / f"{dtype}.zarr", ROWS, dtype) for dtype in ("float16", "bfloat16", "float32")
    }


@pytest.fixture(params=["staged", "mapped"])
def way(request, monkeypatch):
    if request.param == "mapped":
        monkeypatch.setattr("featurecache.sources.teachers._room", lambda device: 0)
    return request.param


def test_rows_of_any_number_of_teachers_come_by_sample_id_in_any_order(stores, way):
    order = np.random.default_rng(0).permutation(ROWS)
    data = dataset(order)
    rows = np.flatnonzero(order != SKIPPED)
    teachers = [Teacher(stores["float16"], "embedding", data), Teacher(stores["bfloat16"], "layers/cls/01", data),
                Teacher(stores["float32"], "layers/cls/00", data)]  # fmt: skip
    for teacher in teachers:
        teacher.stage(rows, "cpu")

    seen = list(taught(data, rows, teachers).batches(16, order="shuffled", seed=3))

    assert sorted(np.concatenate([batch.rows for batch in seen])) == list(rows)
    assert [bool(teacher._staged) for teacher in teachers] == [way == "staged"] * 3
    for batch in seen:
        assert batch.targets.tolist() == [int(order[row]) % 3 for row in batch.rows]
        assert list(batch.sample_ids) == [data.table.sample_id[row] for row in batch.rows]
        for told, number, dtype in zip(teachers_of(batch), (0, 2, 1), ("float16", "bfloat16", "float32"), strict=True):
            wanted = as_numbers(as_stored(made(ROWS, number), dtype), dtype).astype(np.float32)[order[batch.rows]]
            assert told.dtype == torch.float32
            np.testing.assert_array_equal(told.numpy(), wanted)


def test_missing_samples_are_counted(stores):
    with pytest.raises(
        StoreMismatchError, match=r"float16.zarr lacks 5 of the 65 samples of photos, the first is 'new/0.jpg'"
    ):
        Teacher(stores["float16"], "embedding", dataset(range(ROWS), extra=5))


def test_the_same_ids_of_other_files_are_another_data_set(stores):
    with pytest.raises(
        StoreMismatchError, match="is of another data set: it has every sample id of photos, but fingerprint 0"
    ):
        Teacher(stores["float16"], "embedding", dataset(range(ROWS), fingerprint="1"))


def test_a_part_of_the_samples_of_a_store_is_another_data_set(stores):
    with pytest.raises(StoreMismatchError, match="is of another data set"):
        Teacher(stores["float16"], "embedding", dataset(range(ROWS - 1)))


def test_rows_that_were_skipped_are_counted_where_they_are_to_teach(stores):
    teacher = Teacher(stores["float16"], "embedding", dataset(range(ROWS)))

    with pytest.raises(
        StoreContentsError, match=r"cannot teach 1 of the 10 rows .* 1 are not committed or were skipped"
    ):
        teacher.stage(np.arange(10), "cpu")
    teacher.stage(np.arange(10, 20), "cpu")


def test_a_source_that_learns_goes_on_learning_when_it_is_joined(stores):
    class Learning(InMemory):
        def groups(self):
            return ["group"]

        def train(self, mode):
            self.mode = mode

        def state(self):
            return {"value": torch.ones(1)}

        def load(self, state):
            self.loaded = state

        def averages(self):
            return []

    targets = torch.zeros(ROWS, dtype=torch.int64)
    source = Learning({}, targets)

    found = joined(source, [])
    found.train(True)
    found.load({"value": torch.zeros(1)})

    assert isinstance(found, TrainedSource) and not isinstance(joined(InMemory({}, targets), []), TrainedSource)
    assert (found.groups(), found.state(), found.averages()) == (["group"], {"value": torch.ones(1)}, [])
    assert source.mode and source.loaded == {"value": torch.zeros(1)}
