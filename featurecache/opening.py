"""The store that an extraction writes: made, opened again or extended, by one process or by several at once."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from featurecache.backbones import Backbone
from featurecache.datasets import ImageDataset
from featurecache.decoders import decoder_known_by
from featurecache.errors import StoreBusyError, StoreContentsError, StoreError
from featurecache.features import Header
from featurecache.growing import arranged, grown_table, new_samples
from featurecache.prompting import class_values
from featurecache.recomputing import changes, check_unchanged
from featurecache.stores import (
    FeatureStore,
    Shard,
    create_store,
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
    if not _absent(asked, store) and store.finished:
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
        return store, arranged(asked.dataset, store.table())


def _absent(asked: Opening, store: FeatureStore) -> tuple[str, ...]:
    """Return by name what the store lacks of what is asked: new samples, arrays, views."""
    new = (
        new_samples(store.header, store.table(), asked.dataset) if store.header.dataset != asked.wanted.dataset else []
    )
    wanted = asked.wanted
    if new:
        grown_table(asked.path, store.header, store.table(), asked.dataset, new)
        wanted = dataclasses.replace(wanted, rows=store.header.rows, dataset=store.header.dataset)
    more = (f"{len(new)} new samples (the first is {asked.dataset.table.sample_id[new[0]]!r})",) if new else ()
    absent = (*more, *lacking(asked.path, store.header, wanted))
    if absent and not asked.extend:
        raise StoreContentsError(
            f"{asked.path} holds these features, but without {', '.join(absent)}. Give --extend to add just those "
            "(nothing that is there is computed again), or another --out."
        )
    return absent


def _check(asked: Opening, store: FeatureStore) -> None:
    if not _absent(asked, store) and not store.missing():
        return
    backbone, decoder = asked.backbone, decoder_known_by(store.header.backbone)
    dataset = arranged(asked.dataset, store.table())
    changed = changes(store.notes, str(backbone.device), decoder)
    if changed and (found := check_unchanged(backbone, dataset, store, changed)):
        log.info("%s changed; features recomputed to %.1e of their size", ", ".join(changed), found.relative)


def _extend(asked: Opening, store: FeatureStore) -> None:
    """Extend a store that is open for writing; opening it so has ended an extension that was killed while it began."""
    absent = _absent(asked, store)
    if absent:
        log.info("extending by %s", ", ".join(absent))
        _grow(asked, store)
    if lacking(asked.path, store.header, asked.wanted):
        more = united(store.header, asked.wanted)
        new = tuple(spec for spec in more.constants if spec not in store.header.constants)
        with class_values(asked.backbone, dataclasses.replace(more, constants=new), quiet=asked.quiet) as texts:
            store.extend(more, chunk_multiple=asked.chunk_multiple, constants=texts)


def _grow(asked: Opening, store: FeatureStore) -> None:
    held, table = store.header, store.table()
    if held.dataset == asked.wanted.dataset:
        return
    grown = grown_table(asked.path, held, table, asked.dataset, new_samples(held, table, asked.dataset))
    store.grow(dataclasses.replace(held, rows=len(grown), dataset=asked.wanted.dataset), grown)


def _extended_by_one(asked: Opening) -> None:
    """Let the first of several writers that come with the same wish extend the store, and the others wait for it."""
    deadline = time.monotonic() + WAIT_SECONDS
    while _absent(asked, open_store(asked.path)):
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
