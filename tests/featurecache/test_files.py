"""Files are whole or not there, and readable by whom the umask lets read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from featurecache.files import write_atomic, write_whole


@pytest.fixture(params=[0o022, 0o002, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


WRITERS = {
    "safetensors": lambda path: save_file({"x": torch.zeros(2)}, path),
    "torch": lambda path: torch.save({"x": torch.zeros(2)}, path),
    "private": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)) or path.chmod(0o600),
    "text": lambda path: path.write_text("x"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_is_readable_as_the_umask_says_whoever_writes_it(writer, umask, tmp_path):
    write_whole(tmp_path / "x", WRITERS[writer])

    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~umask
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_content_is_readable_as_the_umask_says(umask, tmp_path):
    write_atomic(tmp_path / "x", b"content")

    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~umask


def test_what_fails_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path):
    write_atomic(tmp_path / "x", b"before")

    def fails(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "x", fails)

    assert (tmp_path / "x").read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1
