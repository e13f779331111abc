"""A disk that is full or cannot be written ends in an explanation; what was committed stays."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from featurecache.errors import StoreError
from featurecache.stores import _chunks, _ledger, open_store
from save_features import run
from tests.extraction_samples import BATCH, lasting, pictures, settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "animals")


def test_a_full_disk_ends_in_an_explanation_and_the_committed_rows_stay(folder, tmp_path, monkeypatch):
    whole, config = settings(folder, tmp_path / "whole.zarr"), settings(folder, tmp_path / "x.zarr", commit_rows=1)
    run(whole)
    write = _chunks.write_all

    def full(descriptor: int, content: bytes, offset: int) -> None:
        if offset > 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(descriptor, content, offset)

    with monkeypatch.context() as patch:
        patch.setattr(_chunks, "write_all", full)
        with pytest.raises(
            StoreError, match=r"cannot write to .*: No space left on device\. Nothing that was committed"
        ):
            run(config)

    assert open_store(config.out).missing() == [range(BATCH, 40)]
    assert run(config).kept == BATCH
    assert lasting(config.out) == lasting(whole.out)


def test_a_disk_that_is_full_when_a_commit_is_noted_loses_that_commit_alone(folder, tmp_path, monkeypatch):
    config = settings(folder, tmp_path / "x.zarr", commit_rows=1)
    append = _ledger.append

    def full(path: Path, record: dict[str, object]) -> None:
        if record["rows"] != [0, BATCH]:
            path.write_bytes(path.read_bytes() + _ledger.encode(record)[:20])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(path, record)

    with monkeypatch.context() as patch:
        patch.setattr(_ledger, "append", full)
        with pytest.raises(StoreError, match=r"cannot commit to .*: No space left on device"):
            run(config)

    assert open_store(config.out).missing() == [range(BATCH, 40)]
    assert run(config).kept == BATCH


def test_files_that_may_not_grow_end_in_an_explanation(forks, folder, tmp_path):
    out, printed = tmp_path / "x.zarr", tmp_path / "printed.txt"
    call = ["extract-features", str(folder), "--backbone", "demo", "--out", str(out), "--dtype", "float32"]

    ended = forks.wait(forks.start(call, printed, largest_file=32_000))

    assert ended == 1
    assert "File too large. Nothing that was committed is lost: make room" in printed.read_text()
    assert "Traceback" not in printed.read_text()
    assert forks.wait(forks.start(call, printed)) == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused_with_the_reason(folder, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o500)

    with pytest.raises(StoreError, match=r"Permission denied.*give an --out that can be written"):
        run(settings(folder, closed / "x.zarr", layers="5"))
