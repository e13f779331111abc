"""The store that an extraction writes: made, opened again or extended, by one process or by several at once."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurecache.backbones import Backbone
from featurecache.datasets import ImageDataset
from featurecache.decoders import decoder_known_by
from featurecache.division import DIVISION, adopt_division
from featurecache.errors import StoreBusyError, StoreContentsError, StoreError
from featurecache.features import Header, comparable_data
from featurecache.growing import Standing, arranged, grown_table, runs_of, standing
from featurecache.prompting import class_values
from featurecache.provenance import note
from featurecache.recomputing import changes, check_unchanged
from featurecache.stores import (
    FeatureStore,
    Shard,
    create_store,
    explained,
    lacking,
    open_store,
    progress,
    store_exists,
    united,
)

log = logging.getLogger("featurecache")

WAIT_SECONDS = 600
"""How long a writer of a share waits for another one that extends the store; the text of many classes takes minutes."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What is asked of the store at `path`."""

    path: Path
    backbone: Backbone
    dataset: ImageDataset
    wanted: Header
    """Of the store that would hold all that is asked for."""
    chunk_multiple: int
    extend: bool = False
    shard: Shard | None = None
    """The share of the rows that this process writes; None: all."""
    take_over: bool = False
    quiet: bool = False


def opened(asked: Opening) -> tuple[FeatureStore, ImageDataset]:
    """Return the store, made or extended where that was asked, and the data set in the order of its rows.

    It is open for reading where nothing is to be done, else for writing.

    Raises:
        StoreMismatchError: it holds other features, or the backbone no longer gives what is stored.
        StoreContentsError: it holds these features, but not all that is asked for, and `extend` was not given.
        StoreBusyError: another process writes it, or the same share of it.
    """
    if not store_exists(asked.path):
        try:
            with class_values(asked.backbone, asked.wanted, quiet=asked.quiet) as texts:
                store = create_store(
                    asked.path, asked.wanted, asked.dataset.table, chunk_multiple=asked.chunk_multiple,
                    constants=texts, shard=asked.shard,
                )  # fmt: skip
            return store, asked.dataset
        except StoreError:
            if asked.shard is None or not store_exists(asked.path):
                raise  # else the writer of another share came first
    return _reopened(asked)


def _reopened(asked: Opening) -> tuple[FeatureStore, ImageDataset]:
    store = open_store(asked.path)
    if DIVISION in store.header.dataset:
        dataset = adopt_division(store.header, store.table, asked.dataset)
        wanted = dataclasses.replace(asked.wanted, dataset=dataset.identity)
        asked = dataclasses.replace(asked, dataset=dataset, wanted=wanted)
    if not _refused_or_absent(asked, store).names and store.finished:
        return store, asked.dataset
    if asked.shard is None:
        store = open_store(asked.path, writable=True, take_over=asked.take_over)
    else:
        _extended_by_one(asked)
        store = open_store(asked.path, writable=True, shard=asked.shard, take_over=asked.take_over)
    with _closed_on_failure(store):
        if not store.finished:
            log.info("going on: kept %d rows, recomputing %d", *progress(store))
        _check(asked, store)
        if asked.shard is None:
            _extend(asked, store)
        return store, arranged(asked.dataset, store.table(), deleted_rows(store))


def deleted_rows(store: FeatureStore) -> set[int]:
    """Return the rows that were deleted from a store."""
    return set(np.flatnonzero(store.status() == "deleted").tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """What a store lacks of what is asked."""

    names: tuple[str, ...]
    """New samples, arrays, views."""
    standing: Standing
    """Of the data set to the store."""
    wanted: Header
    """What is asked, of the rows that the store has by now."""


def absent(path: Path, store: FeatureStore, dataset: ImageDataset, wanted: Header) -> Absent:
    """Return what the store lacks of `wanted`, which is of all samples of the data set.

    Raises:
        StoreMismatchError: it holds other features, or samples that are not what they were; names what differs.
    """
    dataset = adopt_division(store.header, store.table, dataset)
    held = store.header
    if comparable_data(held.dataset) == comparable_data(
        dataset.identity
    ):  # the usual case, for which no row table is read
        stands: Standing | None = Standing(gone=held.rows - len(dataset))
    else:
        stands = standing(path, held, store.table(), deleted_rows(store), dataset)
    if stands is not None:
        wanted = dataclasses.replace(wanted, rows=held.rows, dataset=held.dataset)
    stands = stands or Standing()
    new = stands.new
    more = (f"{len(new)} new samples (the first is {dataset.table.sample_id[new[0]]!r})",) if new else ()
    return Absent(names=(*more, *lacking(path, held, wanted)), standing=stands, wanted=wanted)


def _refused_or_absent(asked: Opening, store: FeatureStore) -> Absent:
    found = absent(asked.path, store, asked.dataset, asked.wanted)
    if found.names and not asked.extend:
        raise StoreContentsError(
            f"{asked.path} holds these features, but without {', '.join(found.names)}. Give --extend to add just those "
            "(nothing that is there is computed again), or another --out."
        )
    return found


def _check(asked: Opening, store: FeatureStore) -> None:
    found = _refused_or_absent(asked, store)
    if not found.names and not store.missing():
        return
    backbone, decoder = asked.backbone, decoder_known_by(store.header.backbone)
    dataset = arranged(asked.dataset, store.table(), deleted_rows(store))
    changed = changes(store.notes, str(backbone.device), decoder)
    if not found.standing.measured:
        changed["data"] = ("of all samples", "without those that were deleted")
    if changed and (largest := check_unchanged(backbone, dataset, store, changed)):
        log.info("%s changed; features recomputed to %.1e of their size", ", ".join(changed), largest.relative)


def _extend(asked: Opening, store: FeatureStore) -> None:
    """Extend a store that is open for writing; opening it so has ended an extension that was killed while it began."""
    found = _refused_or_absent(asked, store)
    if found.names:
        log.info("extending by %s", ", ".join(found.names))
    if found.standing.new:
        _grow(asked, store, found.standing.new)
        found = _refused_or_absent(asked, store)
    if found.names:
        more = united(store.header, found.wanted)
        new = tuple(spec for spec in more.constants if spec not in store.header.constants)
        with class_values(asked.backbone, dataclasses.replace(more, constants=new), quiet=asked.quiet) as texts:
            store.extend(more, chunk_multiple=asked.chunk_multiple, constants=texts)


def _grow(asked: Opening, store: FeatureStore, new: Sequence[int]) -> None:
    """Let the store take in new samples; which they are is noted first, so that a repair knows the order of the rows."""
    held = store.header
    grown = grown_table(held, store.table(), asked.dataset, new)
    with explained(f"write to {store.path}"):
        note(store.notes, {"grown": {"held": held.rows, "rows": len(grown), "new": runs_of(new)}})
    store.grow(dataclasses.replace(held, rows=len(grown), dataset=asked.wanted.dataset), grown)


def _extended_by_one(asked: Opening) -> None:
    """Let the first of several writers that come with the same wish extend the store, and the others wait for it."""
    deadline = time.monotonic() + WAIT_SECONDS
    while _refused_or_absent(asked, open_store(asked.path)).names:
        try:
            store = open_store(asked.path, writable=True, take_over=asked.take_over)
        except StoreBusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
            continue
        with _closed_on_failure(store):
            _check(asked, store)
            _extend(asked, store)
        store.close()


@contextmanager
def _closed_on_failure(store: FeatureStore) -> Iterator[None]:
    try:
        yield
    except BaseException:
        store.close()
        raise
