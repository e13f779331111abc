"""A store that was copied to an object store is read there like the one on disk, and never written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import featurecache.stores._remote as remote
from featurecache.errors import (
    ConfigError,
    PlaceError,
    StoreContentsError,
    StoreDamagedError,
    StoreError,
    StoreNotFoundError,
)
from featurecache.scoring import saved_scores
from featurecache.sources.cached import CachedSource, split_rows
from featurecache.stores import copy_store, create_store, open_store, store_exists
from tests.featurecache.sources.samples import expected, finished_store, unfinished_store

fsspec = pytest.importorskip("fsspec")
ROWS = 600


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return finished_store(tmp_path_factory.mktemp("local") / "features.zarr", ROWS)


@pytest.fixture(scope="module")
def bucket():
    """An S3 server on loopback with an empty bucket; yields its URL."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("features")
        yield "s3://features"
    server.stop()


def uploaded(path: Path, url: str) -> str:
    fsspec.filesystem(url.partition("://")[0]).put(str(path), url, recursive=True)
    return url


@pytest.fixture(params=["memory", "file", "s3"])
def url(request, local, tmp_path) -> str:
    if request.param == "file":
        return f"file://{local.path}"
    root = request.getfixturevalue("bucket") if request.param == "s3" else "memory://"
    return uploaded(local.path, f"{root}/{tmp_path.name}.zarr")


@pytest.fixture
def copied(local, tmp_path) -> str:
    """A copy in memory that a test may damage."""
    return uploaded(local.path, f"memory://{tmp_path.name}/x.zarr")


def test_it_holds_what_the_local_store_holds(local, url):
    store = open_store(url)

    assert str(store.path) == url
    assert (store.header, store.finished, store.missing()) == (local.header, True, [])
    assert np.asarray(store.table().sample_id).tolist() == np.asarray(local.table().sample_id).tolist()
    assert store.table().target.tolist() == local.table().target.tolist()
    assert store.status().tolist() == local.status().tolist()
    for number, spec in enumerate(store.header.arrays):
        np.testing.assert_array_equal(store.read(spec.name, slice(0, ROWS)), expected(ROWS, number))
    rows = np.array([599, 0, 0, 300, 41])
    np.testing.assert_array_equal(store.read("embedding", rows), local.read("embedding", rows))
    np.testing.assert_array_equal(store.to_numpy("embedding", split="val"), local.to_numpy("embedding", split="val"))


def test_training_reads_the_same_batches_as_from_disk(local, url):
    rows = split_rows(open_store(url), "train")
    sources = [CachedSource(store, ["embedding", "layers/cls/01"], rows) for store in (local, open_store(url))]

    pairs = list(zip(*(source.batches(64, order="shuffled", seed=3) for source in sources), strict=True))

    assert sources[1].store.mapped("embedding") is None
    assert all((a.arrays[name] == b.arrays[name]).all() for a, b in pairs for name in a.arrays)


def test_it_is_scored_like_the_local_one_and_says_that_scores_are_not_kept(tmp_path, copied, caplog):
    scores = saved_scores(open_store(copied))

    assert len(scores) == 3
    assert scores == saved_scores(finished_store(tmp_path / "own.zarr", ROWS))
    assert "is only read, never written" in caplog.text


def test_a_path_that_swallowed_a_slash_is_the_url_again(local, copied):
    assert open_store(Path(copied)).header == local.header
    assert store_exists(Path(copied))


def test_a_copy_on_disk_is_the_store_again(local, copied, tmp_path):
    copy_store(open_store(copied), tmp_path / "back.zarr")

    files = {path.relative_to(local.path) for path in local.path.rglob("*") if path.is_file()}
    assert all((tmp_path / "back.zarr" / name).read_bytes() == (local.path / name).read_bytes() for name in files)


def test_no_more_chunks_are_kept_than_there_is_room_for(copied, monkeypatch):
    room = 512 * 32  # the first of the two chunks, or the second
    monkeypatch.setattr(remote, "cache_bytes", lambda: room)
    store, fetched = open_store(copied), []
    monkeypatch.setattr(type(store.path), "read_many", _noting(type(store.path).read_many, fetched))

    store.read("embedding", slice(0, ROWS))
    store.read("embedding", slice(ROWS - 5, ROWS))
    store.read("embedding", slice(0, 5))

    assert fetched == [2, 0, 1]
    assert 0 < store._remote._bytes <= room


def _noting(read_many, fetched: list[int]):
    def noted(self, names):
        fetched.append(len(names))
        return read_many(self, names)

    return noted


def test_what_does_not_fit_the_kept_chunks_is_not_shuffled_across_the_store(copied, monkeypatch):
    source = CachedSource(open_store(copied), ["embedding"], np.arange(ROWS))
    monkeypatch.setattr(remote, "cache_bytes", lambda: ROWS * 16)
    small = CachedSource(open_store(copied), ["embedding"], np.arange(ROWS))

    assert source.fits_memory()
    assert not small.fits_memory()


class TestDamage:
    def flip(self, url: str) -> None:
        system = fsspec.filesystem("memory")
        content = bytearray(system.cat_file(url))
        content[len(content) // 2] ^= 1
        system.pipe_file(url, bytes(content))

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("embedding/c/0/0/0", "is not the chunk that was committed. Copy the store again"),
            ("sample_id/c/0", "is not the file that was written. Copy the store again"),
            ("zarr.json", "is not the file that was written"),
        ],
    )
    def test_a_flipped_bit_is_found_when_its_file_is_read(self, copied, name, message):
        self.flip(f"{copied}/{name}")

        with pytest.raises(StoreDamagedError, match=message):
            open_store(copied).to_numpy("embedding", split="train")

    def test_a_chunk_that_was_not_copied_is_named(self, copied):
        fsspec.filesystem("memory").rm(f"{copied}/embedding/c/0/0/0")

        with pytest.raises(StoreDamagedError, match="a chunk of memory://.* is gone"):
            open_store(copied).read("embedding", slice(0, 5))

    def test_rows_that_were_not_committed_when_it_was_copied_are_refused(self, tmp_path):
        store = unfinished_store(tmp_path / "part.zarr", ROWS, stop=200)
        url = uploaded(store.path, f"memory://{tmp_path.name}/part.zarr")
        store.close()

        assert len(open_store(url).read("embedding", slice(0, 200))) == 200
        with pytest.raises(StoreContentsError, match="lacks row 200 of embedding.*Finish the store"):
            open_store(url).read("embedding", slice(150, 250))


class TestRefusals:
    def test_it_is_not_opened_for_writing(self, copied):
        with pytest.raises(
            StoreError, match=r"cannot be written.* fsync, rename and a lock.*Write .* on a disk .* copy"
        ):
            open_store(copied, writable=True)

    def test_none_is_created_there(self, local):
        with pytest.raises(StoreError, match="s3://bucket/new.zarr cannot be written"):
            create_store("s3://bucket/new.zarr", local.header, local.table(), chunk_multiple=32)

    def test_a_place_without_a_store_is_named(self):
        with pytest.raises(StoreNotFoundError, match="memory://nowhere/x.zarr is not a feature store"):
            open_store("memory://nowhere/x.zarr")

    def test_an_hdf5_file_is_to_be_copied_first(self):
        with pytest.raises(StoreError, match="of the store formats, only .zarr can. Copy the file"):
            open_store("s3://bucket/x.h5")

    def test_a_place_that_cannot_be_reached_says_what_its_library_says(self, monkeypatch):
        pytest.importorskip("s3fs")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        fsspec.filesystem("s3").clear_instance_cache()

        with pytest.raises(PlaceError, match="s3://bucket/x.zarr/ledger.jsonl cannot be read: .*127.0.0.1:9"):
            open_store("s3://bucket/x.zarr")
        fsspec.filesystem("s3").clear_instance_cache()

    def test_a_package_that_is_missing_is_named_with_its_install_line(self, monkeypatch):
        def missing(scheme: str) -> None:
            raise ImportError("Install s3fs to access S3")

        monkeypatch.setattr(fsspec, "filesystem", missing)

        with pytest.raises(PlaceError, match=r"pip install 'featurecache\[s3\]'"):
            open_store("s3://bucket/x.zarr")

    def test_a_verb_that_writes_says_the_way(self):
        from featurecache.checks import config_from
        from save_features import SaveFeaturesConfig

        with pytest.raises(
            ConfigError, match=r"out must be a path, got 's3://b/x.zarr'.*only read.*copy the finished store"
        ):
            config_from(SaveFeaturesConfig, {"data": "digits", "backbone": "demo", "out": "s3://b/x.zarr"})
        assert not os.path.exists("s3:")
