"""The reader that the documentation shows reads every store without our package, and takes nothing that is not real."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.featurecache.sources.samples import expected, finished_store, unfinished_store
from tests.journeys.pages import ROOT, steps

ROWS = 600


@pytest.fixture(scope="module")
def plain() -> SimpleNamespace:
    """The functions of the page, with what they import alone."""
    (shown,) = [step.text for step in steps(ROOT / "docs/store.md") if "def ledger(" in step.text]
    assert set(re.findall(r"^(?:import|from) (.*?)(?: import.*)?$", shown, re.MULTILINE)) == {
        "json, zlib", "pathlib", "numpy as np",
    }  # fmt: skip
    namespace: dict[str, object] = {}
    exec(compile(shown, "docs/store.md", "exec"), namespace)
    return SimpleNamespace(**namespace)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_reader_of_the_page_gives_what_the_package_gives(plain, tmp_path, dtype):
    store = finished_store(tmp_path / "x.zarr", ROWS, dtype)

    for number, spec in enumerate(store.header.arrays):
        values = plain.read(store.path, spec.name)
        np.testing.assert_array_equal(values[8:], expected(ROWS, number, dtype)[8:])
        assert values.shape == (ROWS, 16)


def test_every_file_of_the_store_is_one_that_the_page_names(tmp_path):
    store = finished_store(tmp_path / "x.zarr", ROWS)
    page = (ROOT / "docs/store.md").read_text()

    rooms = {path.relative_to(store.path).parts[0] for path in store.path.rglob("*") if path.is_file()}

    assert {room for room in rooms if room not in page} == set()


@pytest.mark.parametrize("name", ["embedding/zarr.json", "embedding/c/0/0/0", "embedding/c/1/0/0"])
def test_it_finds_a_flipped_bit(plain, tmp_path, name):
    store = finished_store(tmp_path / "x.zarr", ROWS)
    content = bytearray((store.path / name).read_bytes())
    content[20] ^= 4
    (store.path / name).write_bytes(content)

    with pytest.raises(AssertionError, match=f"{name} is not what was written"):
        plain.read(store.path, "embedding")


def test_it_takes_no_row_that_is_not_committed(plain, tmp_path):
    store = unfinished_store(tmp_path / "x.zarr", ROWS, stop=200)
    store.close()

    with pytest.raises(AssertionError, match="c/0/0/0 is not committed whole"):
        plain.read(store.path, "embedding")


def test_a_torn_line_ends_the_ledger(plain, tmp_path):
    store = finished_store(tmp_path / "x.zarr", ROWS)
    ledger = store.path / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(lines[0] + lines[1][:-20])

    files, chunks = plain.ledger(store.path)

    assert (len(files) > 0, chunks) == (True, {})


def test_every_test_that_the_page_names_is_there():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "docs/store.md").read_text())

    assert len(named) > 8
    assert [name for file, name in named if f"def {name}(" not in (Path(ROOT, "tests", file)).read_text()] == []
