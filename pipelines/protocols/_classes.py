"""A store as if its classes were others: some of its own, or those of another store, matched by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from featurecache.datasets import RowTable
from featurecache.features import ArraySpec, Header
from featurecache.stores import FeatureStore

CLASSES = -3
"""Axis of the classes in an array of them; of length one in an array that is of all classes alike."""


class _OfClasses:
    """A store that is read through a list of classes; whatever is not said here is the store's own."""

    def __init__(self, store: FeatureStore, names: Sequence[str]) -> None:
        own = list(store.header.class_names)
        self._store, self.path, self.notes = store, store.path, store.notes
        self._numbers = [own.index(name) for name in names if name in own]
        """Of the classes that the store has, in the new order."""
        whole = len(self._numbers) == len(names)
        constants = tuple(self._fewer(spec) for spec in store.header.constants) if whole else ()
        self.header: Header = replace(store.header, class_names=tuple(names), constants=constants)
        self._table = self._relabelled(store.table(), own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def table(self) -> RowTable:
        """Return the row table; rows of other classes have no label."""
        return self._table

    def constant(self, name: str) -> npt.NDArray[Any]:
        """Return an array of the classes, of these alone."""
        values = self._store.constant(name)
        return values if values.shape[CLASSES] == 1 else np.take(values, self._numbers, axis=CLASSES)

    def _fewer(self, spec: ArraySpec) -> ArraySpec:
        if spec.tail[CLASSES] == 1:
            return spec
        tail = list(spec.tail)
        tail[CLASSES] = len(self._numbers)
        return replace(spec, tail=tuple(tail))

    def _relabelled(self, table: RowTable, own: Sequence[str]) -> RowTable:
        place = {name: number for number, name in enumerate(self.header.class_names)}
        numbers = np.array([place.get(name, -1) for name in own] + [-1], dtype=np.int64)  # the last is of label -1
        return replace(table, target=numbers[np.asarray(table.target, dtype=np.int64)])


def of_classes(store: FeatureStore, names: Sequence[str]) -> FeatureStore:
    """Return the store with the classes `names` in this order: rows of others unlabelled, arrays of the classes cut to fit.

    Where the store lacks one of them, it offers no array of the classes: it has no words for all.
    """
    return cast(FeatureStore, _OfClasses(store, names))
