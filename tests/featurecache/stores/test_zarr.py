"""Zarr stores keep the contract, and any Zarr reader opens them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import zarr

from featurecache.errors import StoreDamagedError
from featurecache.features import ArraySpec
from featurecache.stores import open_store
from featurecache.stores._chunks import PAGE, chunk_rows
from featurecache.stores._layout import column_piece
from featurecache.stores._ledger import Committed
from tests.featurecache.stores.contract import StoreContract
from tests.featurecache.stores.samples import BATCH, ROWS, said, values


class TestZarrStore(StoreContract):
    suffix = ".zarr"

    def journalled(self, path):
        return path

    def change_header(self, path):
        metadata = path / "zarr.json"
        metadata.write_bytes(metadata.read_bytes().replace(b'"test"', b'"Test"'))

    def change_constant(self, path):
        chunk = path / "text/eot/c/0/0/0/0"
        content = bytearray(chunk.read_bytes())
        content[5] ^= 1
        chunk.write_bytes(content)

    def test_a_file_of_the_classes_that_is_gone_is_told_and_never_zeros(self, spoken):
        (spoken / "text/embedding/c/0/0/0").unlink()

        with pytest.raises(StoreDamagedError, match="text/embedding of the classes 0 to . is not what was written"):
            open_store(spoken).constant("text/embedding")

    def test_a_plain_zarr_reader_sees_the_arrays_of_the_classes(self, spoken):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            group = zarr.open_group(str(spoken), mode="r")

            for name, expected in said().items():
                np.testing.assert_array_equal(group[name][:], expected)

    def test_a_plain_zarr_reader_sees_features_and_row_table(self, finished):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            group = zarr.open_group(str(finished), mode="r")

            for name, expected in values(range(ROWS)).items():
                np.testing.assert_array_equal(group[name][:], expected)
            assert group["sample_id"][3] == "class é/3.jpg"
            assert group["status"][40] == "skipped: truncated"
            assert group["embedding"].compressors == ()

    def test_the_lock_is_gone_when_the_store_is_finished(self, finished):
        assert not (finished / "writer.lock").exists()


def test_chunks_are_multiples_of_the_batch_and_whole_pages():
    for width in (24, 192, 384, 768, 1280):
        for rows in (500, 6000, 2_000_000):
            spec = ArraySpec("embedding", (width,), "float16")
            count = chunk_rows(spec, rows, BATCH)
            assert count % BATCH == 0
            assert count * spec.row_bytes % PAGE == 0


def test_chunks_of_odd_widths_stay_small():
    spec = ArraySpec("embedding", (769,), "float16")

    assert chunk_rows(spec, 500, 48) <= 4096


def test_spans_join_and_gaps_are_what_is_left():
    state = Committed(files={})
    for start, stop in ((64, 96), (0, 32), (32, 64), (200, 300)):
        state.apply({"kind": "commit", "rows": [start, stop], "chunks": {"a": {"c/0/0/0": [1, 2]}}, "skipped": {}})

    assert state.missing(["a"], [0], 320) == [range(96, 200), range(300, 320)]
    assert state.missing(["a", "b"], [0], 320) == [range(320)]


def test_a_commit_counts_for_the_views_of_its_chunks_alone():
    state = Committed(files={})
    both, one = ({f"c/0/{view}/0": [32, 0] for view in views} for views in ((0, 1), (1,)))
    state.apply({"kind": "commit", "rows": [0, 32], "chunks": {"a": both, "b": one}, "skipped": {}})

    assert state.missing(["a"], [0, 1], 64) == [range(32, 64)]
    assert state.missing(["b"], [1], 64) == [range(32, 64)]
    assert state.missing(["a", "b"], [0], 64) == [range(64)]


@pytest.mark.parametrize(
    ("name", "given"),
    [("sample_id", ["a.jpg", "", "ü\0é.png"]), ("target", np.arange(3)), ("target", np.ones((3, 2), np.uint8)),
     ("target", np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2))],
    ids=["texts", "classes", "labels", "values"],
)  # fmt: skip
@pytest.mark.parametrize("chunk", [3, 5], ids=["full", "with room"])
def test_a_piece_of_a_column_has_the_bytes_that_zarr_writes(name, given, chunk, tmp_path):
    values, number = np.array(given, "T") if name == "sample_id" else np.asarray(given), 2
    rows = (number * chunk + len(values), *values.shape[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dtype = "string" if name == "sample_id" else values.dtype
        array = zarr.create_array(
            tmp_path, name=name, shape=rows, chunks=(chunk, *values.shape[1:]), dtype=dtype, compressors=None
        )
        array[number * chunk :] = values

    path, content = column_piece(name, number, values, chunk)

    assert (tmp_path / path).read_bytes() == content
