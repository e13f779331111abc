"""What a teacher says of the samples of a data set: one array of its store, joined by sample id, staged in memory where it fits."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurecache.casting import as_tensor
from featurecache.datasets import ImageDataset, fingerprint_of_rows
from featurecache.errors import StoreContentsError, StoreMismatchError
from featurecache.features import ArraySpec
from featurecache.sources.cached import BLOCK, CachedSource
from featurecache.sources.staged import SHARE, free_bytes
from featurecache.stores import FeatureStore

log = logging.getLogger("featurecache")

Rows = npt.NDArray[np.int64]


class Teacher:
    """One array of a store, by row number of a data set."""

    def __init__(self, store: FeatureStore, array: str, dataset: ImageDataset, *, views: int = 1) -> None:
        """Find the samples of a data set in a store, whatever its order of rows.

        Raises:
            StoreMismatchError: the store is of another data set, or of a part of this one; counts what is missing.
            StoreContentsError: it has no such array, or none of vectors.
        """
        self.store, self.array, self.views = store, array, views
        self.spec = vector_of(store, array)
        self.place = places(store, dataset)
        """(N,) row of the store for each row of the data set, -1 where it has none."""
        self._cached: CachedSource | None = None
        self._staged: list[Tensor] = []
        self._position: Tensor | None = None
        self._device = torch.device("cpu")

    @property
    def width(self) -> int:
        """D."""
        return self.spec.tail[0]

    def stage(self, rows: Rows, device: str) -> None:
        """Take in some rows of the data set: into memory where they fit there, else where they lie.

        Raises:
            StoreContentsError: some of them are not in the store, or could not be read there; counts them.
        """
        self._check_there(rows)
        self._cached = CachedSource(self.store, [self.array], np.sort(self.place[rows]), views=self.views)
        self._device = torch.device(device)
        if len(rows) * self.spec.row_bytes * self.views > _room(self._device):
            log.info("%s stays where it lies: its rows do not fit the memory of %s", self.store.path, device)
            return
        self._position = torch.full((len(self.place),), -1)
        self._position[torch.from_numpy(rows)] = torch.arange(len(rows))
        self._position = self._position.to(self._device)
        self._staged = [self._copied(rows, view) for view in range(self.views)]

    def _copied(self, rows: Rows, view: int) -> Tensor:
        """Return (N, D) values of some rows in the dtype of the store, on the device."""
        parts = [
            as_tensor(self.store.read(self.array, self.place[rows[i : i + BLOCK]], view), self.spec.dtype)
            for i in range(0, len(rows), BLOCK)
        ]
        return torch.cat(parts).to(self._device) if parts else torch.empty(0, self.width, device=self._device)

    def _check_there(self, rows: Rows) -> None:
        readable = self.store.readable([self.array])
        place = self.place[rows]
        lacking = int((place < 0).sum())
        unread = int((~readable[place[place >= 0]]).sum())
        if lacking or unread:
            why = [f"{lacking} are not in it"] * bool(lacking) + [f"{unread} are not committed or were skipped"] * bool(
                unread
            )
            raise StoreContentsError(
                f"{self.store.path} cannot teach {lacking + unread} of the {len(rows)} rows of this training: "
                f"{' and '.join(why)}. Extract what is missing with the command that made the store, or leave these rows out."
            )

    def rows(self, rows: Rows, view: int = 0) -> Tensor:
        """Return (B, D) float32 of some rows of the data set, as the store holds them."""
        if self._staged and self._position is not None:
            where = self._position[torch.from_numpy(rows).to(self._device)]
            return self._staged[view].index_select(0, where).float()
        assert self._cached is not None, "stage comes first"
        return self._cached.gather(self.array, self.place[rows], view)


def _room(device: torch.device) -> float:
    """Return the bytes that the rows of a teacher may take."""
    if device.type == "cuda":
        return SHARE * free_bytes(device)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / 2


def vector_of(store: FeatureStore, array: str) -> ArraySpec:
    """Return the spec of an array of vectors.

    Raises:
        StoreContentsError: there is none of that name, or its rows are no vectors.
    """
    known = {spec.name: spec for spec in store.header.arrays}
    vectors = [name for name, spec in known.items() if len(spec.tail) == 1]
    if array not in vectors:
        why = f"its rows are no vectors but {known[array].tail}" if array in known else "it is not there"
        raise StoreContentsError(f"{store.path} cannot teach by {array}: {why}. There are {', '.join(vectors)}.")
    return known[array]


def places(store: FeatureStore, dataset: ImageDataset) -> Rows:
    """Return (N,) row of the store for each sample of a data set.

    Raises:
        StoreMismatchError: the samples, their labels or their files are others; says what, and counts.
    """
    ids = [str(name) for name in store.table().sample_id]
    ours = {str(name): row for row, name in enumerate(dataset.table.sample_id)}
    found = np.full(len(dataset), -1, np.int64)
    for row, name in enumerate(ids):
        if name in ours:
            found[ours[name]] = row
    lacking = int((found < 0).sum())
    if lacking:
        first = dataset.table.sample_id[int((found < 0).argmax())]
        what = "another data set" if lacking == len(dataset) else "a part of this data, or of another data set"
        raise StoreMismatchError(
            f"{store.path} lacks {lacking} of the {len(dataset)} samples of {dataset.spec}, the first is {str(first)!r}: it is "
            f"of {what}. Extract the teacher from this data, or add what is missing."
        )
    if len(ids) > len(dataset):
        raise StoreMismatchError(
            f"{store.path} is of another data set: it holds {len(ids)} samples, and {dataset.spec} has {len(dataset)} of them, "
            "so whether these are the same cannot be told. Extract the teacher from this data, or train on the data that the "
            "store is of, with fewer rows (--train-frac)."
        )
    if not _same(store, dataset, [ours[name] for name in ids if name in ours], len(ids)):
        raise StoreMismatchError(
            f"{store.path} is of another data set: it has every sample id of {dataset.spec}, but fingerprint "
            f"{store.header.dataset.get('fingerprint')} instead of {dataset.identity['fingerprint']}, so labels or files are "
            "others. Extract the teacher from this data, with the same --fingerprint."
        )
    return found


def _same(store: FeatureStore, dataset: ImageDataset, rows: Sequence[int], count: int) -> bool:
    """Return whether the store is of these samples: by its fingerprint, which is of rows in an order.

    A store that has grown knows the one of its samples in the order of the data; one that was merged, those of its parts.
    """
    known: Mapping[str, Any] = store.header.dataset
    if len(rows) != count:
        return False
    if known.get("fingerprint") in (dataset.identity["fingerprint"], fingerprint_of_rows(dataset, rows)):
        return True
    parts, start = known.get("parts", ()), 0
    for part in parts:
        own = rows[start : start + part["rows"]]
        start += part["rows"]
        if part.get("fingerprint") not in (
            fingerprint_of_rows(dataset, own),
            fingerprint_of_rows(dataset, sorted(own)),
        ):
            return False
    return bool(parts) and start == count
