"""What every store format promises. A format's test names its suffix and inherits."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from featurecache.errors import StoreBusyError, StoreContentsError, StoreDamagedError, StoreError, StoreNotFoundError
from featurecache.features import ArraySpec
from featurecache.stores import _constants, create_store, gaps, open_store
from tests.featurecache.stores.samples import (
    ARRAYS,
    BATCH,
    CLASSES,
    CONSTANTS,
    PROMPTS,
    ROWS,
    files,
    fill,
    header,
    said,
    speaking,
    table,
    values,
)  # fmt: skip


def fill_until_killed(path: Path, delay: float) -> None:
    store = open_store(path, writable=True)
    fill(store, commit_every=1, delay=delay)
    store.finish()
    store.close()


class StoreContract:
    suffix: str

    def journalled(self, path: Path) -> Path:
        """Return the folder of ledger and chunks while the store at `path` is written."""
        raise NotImplementedError

    def change_constant(self, path: Path) -> None:
        """Change, behind its back, a value of the first class of `text/eot`."""
        raise NotImplementedError

    def change_header(self, path: Path) -> None:
        """Change the header of a finished store behind its back."""
        raise NotImplementedError

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / f"features{self.suffix}"

    @pytest.fixture
    def finished(self, path: Path) -> Path:
        store = create_store(path, header(), table(), chunk_multiple=BATCH)
        fill(store)
        store.finish()
        store.close()
        return path

    def test_a_new_store_is_one_in_which_everything_is_missing(self, path):
        store = create_store(path, header(), table(), chunk_multiple=BATCH)

        assert store.missing() == [range(ROWS)]
        assert not store.finished
        assert set(store.status()) == {""}

    def test_what_was_written_is_read_back_bit_for_bit(self, finished):
        store = open_store(finished)

        for name, expected in values(range(ROWS)).items():
            np.testing.assert_array_equal(store.read(name, slice(0, ROWS)), expected[:, 0])
            np.testing.assert_array_equal(store.read(name, np.array([999, 3, 3, 500])), expected[[999, 3, 3, 500], 0])

    def test_mapped_rows_equal_read_rows(self, finished):
        store = open_store(finished)

        mapped = store.mapped("embedding")

        assert mapped is not None
        np.testing.assert_array_equal(mapped, values(range(ROWS))["embedding"][:, 0])

    def test_writing_to_a_mapped_array_changes_no_file(self, finished):
        before = files(finished)

        open_store(finished).mapped("embedding")[:] = 0

        assert files(finished) == before

    def test_header_and_row_table_come_back_as_given(self, finished):
        store = open_store(finished)

        assert store.header == header()
        assert list(store.table().sample_id) == list(table().sample_id)
        np.testing.assert_array_equal(store.table().target, table().target)

    def test_skipped_rows_say_why_and_move_no_other_row(self, finished):
        store = open_store(finished)

        assert store.status()[40] == "skipped: truncated"
        assert store.status()[41] == "ok"
        assert len(store.to_numpy("embedding", split="train")) == ROWS - 1

    def test_readable_rows_are_those_whose_status_is_ok(self, finished):
        store = self.reopened(finished) if hasattr(self, "reopened") else open_store(finished)

        assert store.readable().tolist() == (store.status() == "ok").tolist()
        assert 0 < store.readable().sum() < store.header.rows

    def test_rows_not_committed_are_not_there_after_reopening(self, path):
        store = create_store(path, header(), table(), chunk_multiple=BATCH)
        fill(store, commit_every=2, stop_after=5)
        store.close()

        assert open_store(path).missing() == [range(4 * BATCH, ROWS)]

    def test_an_interrupted_store_ends_equal_byte_for_byte(self, finished, tmp_path):
        path = tmp_path / f"again{self.suffix}"
        store = create_store(path, header(), table(), chunk_multiple=BATCH)
        for batches in (1, 3, 7, 2):
            fill(store, commit_every=2, stop_after=batches)
            store.close()
            store = open_store(path, writable=True)
        fill(store, commit_every=3)
        store.finish()
        store.close()

        assert files(path) == files(finished)

    @pytest.mark.parametrize("moment", [0.05, 0.12, 0.2])
    def test_kill_9_leaves_exactly_the_committed_rows_and_ends_equal(self, finished, tmp_path, moment):
        path = tmp_path / f"killed{self.suffix}"
        create_store(path, header(), table(), chunk_multiple=BATCH).close()
        context = multiprocessing.get_context("fork")
        writer = context.Process(target=fill_until_killed, args=(path, 0.01))
        writer.start()
        time.sleep(moment)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()

        store = open_store(path, writable=True)
        committed = ROWS - sum(map(len, store.missing()))
        np.testing.assert_array_equal(
            store.read("embedding", slice(0, committed)), values(range(ROWS))["embedding"][:committed, 0]
        )
        assert store.interrupted_at - committed <= BATCH
        fill(store)
        store.finish()
        store.close()
        assert files(path) == files(finished)

    def test_a_torn_ledger_line_and_what_follows_never_happened(self, path):
        store = create_store(path, header(), table(), chunk_multiple=BATCH)
        fill(store, commit_every=2, stop_after=4)
        store.close()
        with open(self.journalled(path) / "ledger.jsonl", "ab") as ledger:
            ledger.write(b'deadbeef {"kind":"comm')

        store = open_store(path, writable=True)
        assert store.missing() == [range(4 * BATCH, ROWS)]
        fill(store)
        store.close()
        assert open_store(path).missing() == []

    def test_damage_to_an_unfilled_chunk_is_found_before_it_grows(self, path):
        store = create_store(path, header(), table(), chunk_multiple=BATCH)
        fill(store, stop_after=1)
        store.commit()
        store.close()
        chunk = sorted(self.journalled(path).glob("embedding/c/0/**/*"))[-1]
        content = bytearray(chunk.read_bytes())
        content[5] ^= 1
        chunk.write_bytes(content)

        with pytest.raises(StoreDamagedError, match="does not hold the 32 rows that were committed"):
            open_store(path, writable=True)

    def test_a_changed_header_is_refused(self, finished):
        self.change_header(finished)

        with pytest.raises(StoreDamagedError, match="is not the (file|one) that was written"):
            open_store(finished)

    def test_a_second_writer_is_refused_with_the_first_ones_pid(self, path):
        first = create_store(path, header(), table(), chunk_multiple=BATCH)

        with pytest.raises(StoreBusyError, match=f"process {os.getpid()} on "):
            open_store(path, writable=True)
        first.close()
        open_store(path, writable=True).close()

    def test_a_store_that_is_there_is_not_overwritten(self, finished):
        with pytest.raises(StoreError, match="exists already"):
            create_store(finished, header(), table(), chunk_multiple=BATCH)

    def test_a_finished_store_is_extended_without_touching_what_is_there(self, finished, tmp_path):
        later = ArraySpec("logits", (3,), "float32")
        wider = dataclasses.replace(header(), arrays=(*ARRAYS, later))
        logits = np.arange(ROWS * 3, dtype=np.float32).reshape(ROWS, 1, 3)
        whole = tmp_path / f"whole{self.suffix}"
        for path in (finished, whole):
            if path == whole:
                store = create_store(path, wider, table(), chunk_multiple=BATCH)
            else:
                store = open_store(path, writable=True)
                store.extend(wider, chunk_multiple=BATCH)
                assert not open_store(path).finished
                assert store.missing([spec.name for spec in ARRAYS]) == []
            for rows in store.missing(["logits"]):
                old = {} if path == finished else values(rows)
                skipped = {} if path == finished else {40: "truncated"}
                store.write(rows, {**old, "logits": logits[rows.start : rows.stop]}, skipped)
            store.commit()
            store.finish()
            store.close()

        assert files(finished) == files(whole)
        assert open_store(finished).finished

    def test_views_are_added_without_touching_those_that_are_there(self, finished, tmp_path):
        drawn = {"name": "test", "views": {"augment": "flip"}}
        wider, whole = dataclasses.replace(header(), backbone=drawn, views=3), tmp_path / f"whole{self.suffix}"
        viewed = {name: np.concatenate([clean, clean * 2, clean * 3], 1) for name, clean in values(range(ROWS)).items()}
        at_once = create_store(whole, wider, table(), chunk_multiple=BATCH)
        at_once.write(range(ROWS), viewed, {40: "truncated"})

        store = open_store(finished, writable=True)
        store.extend(wider, chunk_multiple=BATCH)
        journalled = self.journalled(finished)
        there = {p: p.stat() for p in journalled.rglob("c/*/0/**/*") if p.is_file() and "status" not in p.parts}
        assert store.missing(views=[0]) == [] and store.missing(views=[2]) == [range(ROWS)] == store.missing()
        np.testing.assert_array_equal(store.read("embedding", slice(9)), values(range(9))["embedding"][:, 0])
        with pytest.raises(StoreContentsError, match="lacks 9 of the 9 rows asked of embedding"):
            store.read("embedding", slice(9), 2)
        (gap,) = gaps(store)
        assert gap.rows == range(ROWS) and gap.views == (1, 2) and gap.arrays(1) == list(ARRAYS)
        for start in range(0, ROWS, 500):  # in two commits
            rows = range(start, start + 500)
            new = {name: viewed[name][start : start + 500, 1:] for name in viewed}
            store.write(rows, new, {}, dict.fromkeys(new, (1, 2)))
            store.commit()
        now = {p: p.stat() for p in there}

        for one in (store, at_once):
            one.commit()
            one.finish()
            one.close()
        assert len(there) > 3
        assert all(now[p].st_ino == stat.st_ino and now[p].st_mtime_ns == stat.st_mtime_ns for p, stat in there.items())
        assert files(finished) == files(whole)
        for view in range(3):
            np.testing.assert_array_equal(open_store(finished).mapped("embedding", view), viewed["embedding"][:, view])

    def test_values_of_fewer_views_than_announced_are_refused(self, path):
        store = create_store(path, dataclasses.replace(header(), views=2), table(), chunk_multiple=BATCH)

        with pytest.raises(StoreError, match="embedding holds 1 views, but 2 were announced"):
            store.write(range(BATCH), values(range(BATCH)), {})

    @pytest.fixture(params=[2**23, 400], ids=["one file", "two classes a file"])
    def spoken(self, request, path, monkeypatch) -> Path:
        """A finished store with arrays of the classes."""
        monkeypatch.setattr(_constants, "TARGET_BYTES", request.param)
        store = create_store(path, speaking(), table(), chunk_multiple=BATCH, constants=said)
        fill(store)
        store.finish()
        store.close()
        return path

    def test_arrays_of_the_classes_are_there_from_the_start_and_no_rows(self, path):
        store = create_store(path, speaking(), table(), chunk_multiple=BATCH, constants=said)

        assert store.missing() == [range(ROWS)]
        for name, expected in said().items():
            np.testing.assert_array_equal(store.constant(name), expected)

    def test_arrays_of_the_classes_come_back_bit_for_bit(self, spoken):
        store = open_store(spoken)

        assert store.header == speaking()
        for name, expected in said().items():
            np.testing.assert_array_equal(store.constant(name), expected)
            np.testing.assert_array_equal(store.to_numpy(name), expected)

    def test_arrays_of_the_classes_are_added_at_once_and_the_store_is_that_of_one_creation(self, spoken, tmp_path):
        grown = tmp_path / f"grown{self.suffix}"
        store = create_store(grown, dataclasses.replace(header(), class_names=CLASSES), table(), chunk_multiple=BATCH)
        fill(store)
        store.finish()

        store.extend(speaking(), chunk_multiple=BATCH, constants=said)
        assert store.missing() == []
        np.testing.assert_array_equal(open_store(grown).constant("text/eot"), said()["text/eot"])
        store.finish()
        store.close()

        assert files(grown) == files(spoken)

    def test_an_array_of_all_classes_is_added_to_those_that_are_there_and_no_text_is_asked_for_again(
        self, spoken, tmp_path
    ):
        grown, asked = tmp_path / f"grown{self.suffix}", []
        before = dataclasses.replace(speaking(), constants=CONSTANTS[:2])
        store = create_store(grown, before, table(), chunk_multiple=BATCH, constants=said)
        fill(store)
        store.finish()

        def projection(classes: range) -> dict[str, np.ndarray]:
            asked.append(classes)
            return {"text/projection": said()["text/projection"]}

        store.extend(speaking(), chunk_multiple=BATCH, constants=projection)
        store.finish()
        store.close()

        assert asked == [range(1)]
        assert files(grown) == files(spoken)

    def test_a_damaged_array_of_the_classes_is_told_and_never_zeros(self, spoken):
        self.change_constant(spoken)

        with pytest.raises(StoreDamagedError, match="text/eot of the classes 0 to . is not what was written"):
            open_store(spoken).constant("text/eot")

    def test_values_that_end_in_an_error_leave_no_store_and_no_trace_in_one_that_is_there(self, finished, tmp_path):
        def failing(classes: range) -> dict[str, np.ndarray]:
            raise KeyboardInterrupt

        before = files(finished)
        with pytest.raises(KeyboardInterrupt):
            create_store(tmp_path / f"x{self.suffix}", speaking(), table(), chunk_multiple=BATCH, constants=failing)
        store = open_store(finished, writable=True)
        two_names = dataclasses.replace(
            header(), prompts=PROMPTS, constants=(ArraySpec("text/embedding", (2, 2, 3), "float32"),)
        )
        with pytest.raises(KeyboardInterrupt):
            store.extend(two_names, chunk_multiple=BATCH, constants=failing)
        store.close()

        open_store(finished, writable=True).close()
        assert files(finished) == before
        assert not list(tmp_path.glob("x*"))

    def test_values_of_another_shape_are_refused(self, path):
        with pytest.raises(StoreError, match=r"text/embedding is \(5, 2, 2\) of float32, not \(5, 2, 3\)"):
            create_store(
                path, speaking(), table(), chunk_multiple=BATCH,
                constants=lambda classes: {name: values[..., :-1] for name, values in said(classes).items()},
            )  # fmt: skip

    def test_classes_are_not_asked_for_by_row_nor_by_split(self, spoken):
        store = open_store(spoken)

        with pytest.raises(StoreContentsError, match=r"holds classes and no rows: ask for constant\('text/eot'\)"):
            store.read("text/eot", slice(0, 1))
        with pytest.raises(StoreContentsError, match="holds classes and no rows: leave split and view out"):
            store.to_numpy("text/eot", split="train")
        with pytest.raises(
            StoreContentsError, match="no array 'text/x' of the classes; it holds text/embedding, text/eot"
        ):
            store.constant("text/x")

    def test_no_arrays_of_the_classes_are_answered_with_the_way_to_them(self, finished):
        with pytest.raises(StoreContentsError, match="'text/eot' of the classes; extract-features with --prompts"):
            open_store(finished).constant("text/eot")

    def test_a_store_opened_for_reading_takes_no_rows(self, finished):
        with pytest.raises(StoreError, match="was opened for reading. Open it with writable=True"):
            open_store(finished).write(range(1), values(range(1)), {})

    def test_an_unfinished_store_cannot_be_sealed(self, path):
        store = create_store(path, header(), table(), chunk_multiple=BATCH)

        with pytest.raises(StoreContentsError, match="lacks 1000 rows"):
            store.finish()

    def test_an_unknown_array_is_answered_with_those_that_exist(self, finished):
        with pytest.raises(StoreContentsError, match="holds no array 'logits'; it holds embedding"):
            open_store(finished).read("logits", slice(0, 1))

    def test_no_store_is_answered_with_the_command_that_makes_one(self, path):
        with pytest.raises(StoreNotFoundError, match="does not exist. Make one with: featurecache extract-features"):
            open_store(path)

    def test_a_failed_creation_leaves_nothing_behind(self, tmp_path):
        obstacle = tmp_path / "nowhere"
        obstacle.write_text("a file, not a folder")

        with pytest.raises(StoreError, match="cannot create"):
            create_store(obstacle / f"x{self.suffix}", header(), table(), chunk_multiple=1)

        assert [p.name for p in tmp_path.iterdir()] == ["nowhere"]
