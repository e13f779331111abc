"""Readers beside a writer, of a store that goes away under them, and of one that nobody may write."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from featurecache.errors import StoreContentsError, StoreDamagedError, StoreNotFoundError
from featurecache.scoring import saved_scores
from featurecache.stores import FeatureStore, open_store
from tests.faults.extent import sampled
from tests.faults.forks import _has_ended, commits, until
from tests.faults.places import can_mount, read_only, small_disk
from tests.faults.verbs import ROWS, outcome
from tests.pipelines.stores import made_store

REMOVED = {
    "train": ("pipelines.train_head:planned", "pipelines.train_head:is_done", "pipelines.training.training:fit",
              "pipelines.train_head:evaluate", "pipelines.train_head:write_record"),
    "rank": ("pipelines.rank:scored_rows", "featurecache.scoring:scored_rows", "featurecache.scoring:score_array 2",
             "featurecache.scoring:write_atomic 2", "pipelines.scores._keeping:Rows.stored 2"),
    "recompute": ("pipelines.verify:_examined", "featurecache.stores._verifying:_table",
                  "featurecache.stores._verifying:_chunks 2", "pipelines.verify:recomputed"),
    "convert to a file": ("pipelines.maintain:copy_store", "featurecache.stores._hdf5_file:checked_blocks 2"),
    "convert to fewer bits": ("pipelines._narrowing:stored_form 2",),
}  # fmt: skip
"""Verb that reads `x.zarr` or `a.zarr` -> before what it is removed."""
CASES = [(name, phase) for name, phases in REMOVED.items() for phase in phases]


def committed(store: FeatureStore, whole: FeatureStore) -> int:
    """Return how many rows a reader sees; they must be those of the whole store, and no other may be given out."""
    missing = store.missing()
    count = missing[0].start if missing else ROWS
    assert missing in ([range(count, ROWS)], [])
    for spec in store.header.arrays:
        np.testing.assert_array_equal(store.read(spec.name, slice(0, count)), whole.read(spec.name, slice(0, count)))
        if missing:
            with pytest.raises(StoreContentsError, match=f"lacks {ROWS - count} of the {ROWS} rows"):
                store.read(spec.name, slice(0, ROWS))
            with pytest.raises(StoreContentsError, match="lacks 1 of the 1 rows"):
                store.read(spec.name, np.array([count]))
    assert (store.status() == "").sum() == ROWS - count
    return count


def test_a_reader_beside_a_writer_sees_committed_rows_and_never_fill_values(verbs, tmp_path):
    finely = ("--batch-size", "4", "--commit-rows", "4")
    whole = open_store(verbs.extracted("finely.zarr", *finely))
    out, seen = tmp_path / "x.zarr", []
    process = verbs.forks.start(verbs.extract(out, *finely), tmp_path / "printed.txt", happens={})
    until(lambda: commits(out) > 2, process)
    early = open_store(out)
    held = committed(early, whole)

    while not _has_ended(process):
        seen.append(committed(open_store(out), whole))
        assert committed(early, whole) == held

    assert verbs.forks.wait(process) == 0
    assert 0 < held < ROWS
    assert seen == sorted(seen)
    assert committed(open_store(out), whole) == ROWS


@pytest.mark.parametrize(("name", "phase"), sampled(CASES, 4))
def test_a_verb_whose_store_is_removed_under_it_says_so_and_leaves_nothing_half_made(verbs, tmp_path, name, phase):
    whole = verbs.outcome(name)
    words = verbs.begin(name, tmp_path / "place")
    before = set((tmp_path / "place").iterdir())
    store = next(iter(before))

    code, said = verbs.run(words, {phase: str(store)})

    assert "Traceback" not in said, said
    assert not store.exists()
    left = outcome(tmp_path / "place")
    if code == 0:  # what is mapped or read stays readable until it is let go
        assert left == {path: content for path, content in whole.items() if not path.startswith(store.name)}
    else:
        assert code == 1
        assert "Error: " in said
        assert str(store) in said
        assert "record.json" not in " ".join(left)
        assert ".tmp" not in " ".join(left)


def test_reads_of_a_store_that_was_removed_say_so(tmp_path):
    path = made_store(tmp_path / "x.zarr", rows=120)
    store, scored = open_store(path), open_store(path)
    held = store.read("embedding", slice(0, 120)).copy()
    scored.table()
    shutil.rmtree(path)

    for act in (
        store.table, lambda: scored.read("embedding", slice(0, 4)), lambda: scored.mapped("layers/cls/00"),
        lambda: open_store(path),
    ):  # fmt: skip
        with pytest.raises(StoreNotFoundError, match=r"x\.zarr (was removed while it was read|does not exist)"):
            act()
    with pytest.raises(StoreNotFoundError, match=r"x\.zarr was removed"):
        saved_scores(scored)
    assert len(held) == 120
    assert not path.exists()


def test_a_piece_of_the_row_table_that_is_gone_is_named_and_not_read_as_empty(tmp_path):
    path = made_store(tmp_path / "x.zarr", rows=40)
    (path / "target/c/0").unlink()

    with pytest.raises(StoreDamagedError, match=r"target/c/0 is not the file that was written.*--repair"):
        open_store(path).table()


def test_a_chunk_that_goes_while_zarr_reads_it_is_named_and_not_read_as_zeros(tmp_path, monkeypatch):
    path = made_store(tmp_path / "x.zarr", rows=40)
    store = open_store(path)
    array = store._array

    def going(name: str) -> object:
        found = array(name)
        (path / "embedding/c/0/0/0").unlink()
        return found

    monkeypatch.setattr(store._rows, "_array", going)
    monkeypatch.setattr("featurecache.stores._reading.can_map", lambda *_: False)

    with pytest.raises(StoreDamagedError, match=r"embedding/c/0/0/0 is gone"):
        store.read("embedding", slice(0, 10))


@can_mount
@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_store_that_nobody_may_write_is_read_by_every_verb_and_refused_by_the_others(verbs, tmp_path, suffix):
    with small_disk(tmp_path / "disk", 64 * 1024) as disk:
        store, run, other = disk / f"x{suffix}", disk / "run", ".zarr" if suffix == ".h5" else ".h5"
        for words in (verbs.extract(store), verbs.train(store, run)):
            assert verbs.run(words)[0] == 0
        shutil.rmtree((store if suffix == ".zarr" else disk / "x.h5.notes") / "scores")
        out = tmp_path / "out"
        out.mkdir()
        read = [
            ["info", str(store)], ["logme", str(store)], ["verify", str(store), "--recompute", "16"],
            verbs.train(store, out / "run"), ["convert", str(store), "--out", str(out / f"y{other}")],
            ["merge", str(store), str(store), "--out", str(out / "z.zarr")], ["gc", str(disk)], verbs.extract(store),
            ["predict", str(run), str(verbs.folder), "--out", str(out / "said.csv")],
            verbs.train(store, run),
        ]  # fmt: skip
        refused = [
            verbs.extract(disk / f"new{suffix}"), verbs.extract(store, "--views", "2", "--extend"),
            ["delete", str(store), "--ids", "cat/000.png"], verbs.train(store, disk / "another"),
            ["convert", str(store), "--out", str(disk / f"y{other}")], verbs.embed(disk / "x.npy"),
        ]  # fmt: skip
        with read_only(disk):
            for words in read:
                code, said = verbs.run(words)
                assert (code, "Traceback" in said) == (0, False), f"{words[0]}: {said}"
                assert words[0] != "logme" or "scores are not kept" in said
            for words in refused:
                code, said = verbs.run(words)
                assert (code, "Traceback" in said) == (1, False), f"{words[0]}: {said}"
                assert "Read-only file system" in said, f"{words[0]}: {said}"
                assert str(disk) in said, f"{words[0]}: {said}"
