"""A data set that has grown: its new samples go behind the rows of the store, and nothing else is computed or moved."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from featurecache.errors import StoreContentsError, StoreMismatchError
from featurecache.stores import open_store
from save_features import run
from tests.extraction_samples import BATCH, Forwards, lasting, pictures, settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pictures(tmp_path / "animals", cat=20, dog=20)


def add(folder: Path, *names: str) -> None:
    """Add pictures that are none of those that are there, under names that sort anywhere."""
    source = sorted((folder / "cat").iterdir())[0]
    for name in names:
        shutil.copy(source, folder / f"{name}.png")
        with open(folder / f"{name}.png", "ab") as file:
            file.write(name.encode())


def extracted(folder: Path, out: Path, **changes):
    return run(settings(folder, out, layers="4-5", **changes))


@pytest.fixture(params=[".zarr", ".h5"])
def grown(request, folder, tmp_path, monkeypatch):
    """A store of 40 samples that took in 13 more, what it was before, and what was computed for them."""
    out = tmp_path / f"x{request.param}"
    extracted(folder, out)
    before = open_store(out)
    old = {spec.name: before.read(spec.name, slice(0, 40)).copy() for spec in before.header.arrays}
    ids = list(before.table().sample_id)
    add(folder, *(f"cat/0-new-{n}" for n in range(7)), *(f"dog/z-new-{n}" for n in range(6)))
    watched = Forwards().watch(monkeypatch)
    report = extracted(folder, out, extend=True)
    return out, ids, old, report, watched


def test_rows_stay_and_only_new_samples_are_computed(grown):
    out, ids, old, report, watched = grown

    store = open_store(out)

    assert store.finished
    assert list(store.table().sample_id[:40]) == ids
    assert list(store.table().sample_id[40:]) == sorted(store.table().sample_id[40:])
    assert "cat/0-new-0.png" in list(store.table().sample_id[40:])
    for name, values in old.items():
        np.testing.assert_array_equal(store.read(name, slice(0, 40)), values)
    assert len(watched.requests) == 1 + (53 - 48 > 0)  # rows 40 to 47 and 48 to 52, on the grid of 16
    assert report.added == ("13 new samples",)
    assert (report.rows, report.kept) == (53, 40)


def test_the_same_command_is_then_a_no_op_and_an_extension_reads_the_rows_in_their_order(grown, folder):
    out = grown[0]

    assert extracted(folder, out).was_finished
    extracted(folder, out, extend=True, tokens="cls+mean")

    fresh = folder.parent / "fresh.zarr"
    extracted(folder, fresh, tokens="cls+mean")
    one, other = open_store(out), open_store(fresh)
    place = {name: row for row, name in enumerate(other.table().sample_id)}
    rows = np.array([place[name] for name in one.table().sample_id])
    np.testing.assert_array_equal(one.table().target, other.table().target[rows])
    for spec in other.header.arrays:
        ours = one.read(spec.name, slice(0, 53)).astype(np.float32)
        theirs = other.read(spec.name, rows).astype(np.float32)
        # in other batches, so the last bits may differ
        np.testing.assert_allclose(ours, theirs, atol=5e-3 * np.abs(theirs).max())


def test_without_extend_new_samples_are_named_and_refused(folder, tmp_path):
    extracted(folder, tmp_path / "x.zarr")
    add(folder, "cat/new")

    with pytest.raises(
        StoreContentsError, match=r"without 1 new samples \(the first is 'cat/new.png'\). Give --extend"
    ):
        extracted(folder, tmp_path / "x.zarr")


def test_a_sample_that_is_gone_is_named(folder, tmp_path):
    extracted(folder, tmp_path / "x.zarr")
    add(folder, "cat/new")
    gone = sorted((folder / "dog").iterdir())[3]
    gone.unlink()

    with pytest.raises(StoreMismatchError, match=f"1 samples of the store are gone from the data.*dog/{gone.name}"):
        extracted(folder, tmp_path / "x.zarr", extend=True)


def test_an_old_file_of_another_size_is_refused(folder, tmp_path):
    extracted(folder, tmp_path / "x.zarr")
    add(folder, "cat/new")
    with open(sorted((folder / "dog").iterdir())[3], "ab") as file:
        file.write(b"more")

    with pytest.raises(StoreMismatchError, match="has changed its size or content"):
        extracted(folder, tmp_path / "x.zarr", extend=True)


def test_a_new_class_is_refused_since_numbers_of_classes_would_change(folder, tmp_path):
    extracted(folder, tmp_path / "x.zarr")
    (folder / "bee").mkdir()
    add(folder, "bee/new")

    with pytest.raises(StoreMismatchError, match=r"its classes are others \(such as 'bee'\)"):
        extracted(folder, tmp_path / "x.zarr", extend=True)


@pytest.mark.parametrize("what", ["label", "group", "domain"])
def test_a_sample_with_another_label_group_or_domain_is_named(folder, tmp_path, what):
    rows = [[f"cat/{p.name}", "cat", "g", "d"] for p in sorted((folder / "cat").iterdir())]
    rows += [[f"dog/{p.name}", "dog", "g", "d"] for p in sorted((folder / "dog").iterdir())]

    def write(lines) -> Path:
        path = folder / "list.csv"
        path.write_text("\n".join(["path,label,group,domain", *(",".join(line) for line in lines)]) + "\n")
        return path

    extracted(write(rows[1:]), tmp_path / "x.zarr")
    rows[5][["label", "group", "domain"].index(what) + 1] = "dog"

    with pytest.raises(StoreMismatchError, match=f"1 samples have another {what}, the first is '{rows[5][0]}'"):
        extracted(write(rows), tmp_path / "x.zarr", extend=True)


def test_a_kill_while_the_new_rows_are_computed_ends_in_the_same_store(folder, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole.zarr", tmp_path / "cut.zarr"
    extracted(folder, whole)
    shutil.copytree(whole, cut)
    add(folder, *(f"cat/0-new-{n}" for n in range(30)))
    extracted(folder, whole, extend=True)
    watched = Forwards().watch(monkeypatch)

    def stop(outputs, number) -> None:
        if number == 1:
            raise KeyboardInterrupt

    watched.change = stop
    with pytest.raises(KeyboardInterrupt):
        extracted(folder, cut, extend=True, commit_rows=BATCH)
    half = open_store(cut)
    assert half.header.rows == 70
    assert half.missing() == [range(48, 70)]
    assert half.to_numpy("embedding").shape == (48, 64)
    watched.change = lambda outputs, number: None

    extracted(folder, cut)

    assert lasting(cut) == lasting(whole)


def test_shares_take_in_new_samples_too(folder, tmp_path):
    whole, shared = tmp_path / "whole.zarr", tmp_path / "shared.zarr"
    extracted(folder, whole)
    shutil.copytree(whole, shared)
    add(folder, "cat/new", "dog/new")
    extracted(folder, whole, extend=True)

    for number in (0, 1):
        extracted(folder, shared, extend=True, shard=f"{number}/2")

    assert lasting(shared) == lasting(whole)


def test_a_store_that_grew_is_the_same_store_as_one_file(folder, tmp_path):
    from pipelines.maintain import ConvertConfig, convert

    out = tmp_path / "x.zarr"
    extracted(folder, out)
    add(folder, "cat/new", "dog/new")
    extracted(folder, out, extend=True)

    convert(ConvertConfig(store=out, out=tmp_path / "x.h5"))
    convert(ConvertConfig(store=tmp_path / "x.h5", out=tmp_path / "back.zarr"))

    assert lasting(tmp_path / "back.zarr") == lasting(out)
