"""What users read of a store: values, labels and ids of the same rows, the row table, and the store at a glance."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurecache.errors import StoreContentsError
from featurecache.features import ArraySpec, Header, as_numbers
from featurecache.registry import nearest
from featurecache.reports import Table, import_pandas

if TYPE_CHECKING:
    from featurecache.datasets import RowTable


def spec_called(path: Path, header: Header, array: str) -> ArraySpec:
    """Return the spec of an array of the store at `path`.

    Raises:
        StoreContentsError: there is none of that name; lists those that there are.
    """
    try:
        return header.array(array)
    except KeyError:
        held = ", ".join(spec.name for spec in (*header.arrays, *header.constants))
        if array in [spec.name for spec in header.constants]:
            raise StoreContentsError(
                f"{array} of {path} holds classes and no rows: ask for constant({array!r})."
            ) from None
        raise StoreContentsError(f"{path} holds no array {array!r}; it holds {held}.") from None


def check_split(path: Path, known: Collection[str], split: str) -> None:
    """Refuse a split that no row of the store at `path` is of.

    Raises:
        StoreContentsError: names the splits that there are.
    """
    if split not in known:
        named = sorted(name for name in known if name)
        held = f"it holds {', '.join(named)}" if named else "its rows are of no split, since its data has no labels"
        raise StoreContentsError(f"{path} holds no split {split!r}.{nearest(str(split), named)} Known: {held}.")


class RowAccess:
    """What a store of every format answers of its rows. All methods yield the same rows for the same `split`: those that
    are committed and whose image could be read, in the order of the store."""

    path: Path
    header: Header

    if TYPE_CHECKING:

        @property
        def finished(self) -> bool: ...
        def table(self) -> RowTable: ...
        def readable(
            self, arrays: Sequence[str] | None = None, views: Sequence[int] | None = None
        ) -> npt.NDArray[np.bool_]: ...
        def status(
            self, arrays: Sequence[str] | None = None, views: Sequence[int] | None = None
        ) -> npt.NDArray[Any]: ...
        def read(self, array: str, rows: npt.NDArray[np.int64] | slice, view: int = 0) -> npt.NDArray[Any]: ...
        def constant(self, name: str) -> npt.NDArray[Any]: ...

    def row_numbers(
        self, *, split: str | None = None, array: str | None = None, view: int = 0
    ) -> npt.NDArray[np.int64]:
        """Return the numbers of the rows that the other methods yield, ascending.

        Args:
            split: rows of this split; None: of all.
            array: whose rows, in a store that is not finished; None: rows that every array and view holds.
            view: of that array.

        Raises:
            StoreContentsError: no such split or array; names those that there are.
        """
        if array is not None:
            spec_called(self.path, self.header, array)
        keep = self.readable(None if array is None else [array], None if array is None else [view])
        if split is not None:
            column = np.asarray(self.table().split)
            check_split(self.path, set(column.tolist()), split)
            keep &= column == split
        return np.flatnonzero(keep)

    def to_numpy(self, array: str, *, split: str | None = None, view: int = 0) -> npt.NDArray[Any]:
        """Return the values of one array, (N, ...), or an array of the classes, whole; bfloat16 as float32.

        Raises:
            StoreContentsError: no such array or split (names those that there are), or a split of an array of the classes.
        """
        if array in [spec.name for spec in self.header.constants]:
            if split is not None or view:
                raise StoreContentsError(f"{array} of {self.path} holds classes and no rows: leave split and view out.")
            return as_numbers(self.constant(array), self.header.constant(array).dtype)
        rows = self.row_numbers(split=split, array=array, view=view)
        return as_numbers(self.read(array, rows, view), self.header.array(array).dtype)

    def labels(self, *, split: str | None = None, array: str | None = None, view: int = 0) -> npt.NDArray[Any]:
        """Return the targets of the rows of `to_numpy`: (N,) int64 numbers of `header.class_names`; (N, K) of several labels
        (uint8) or of a regression (float32). A row without a label holds -1, or NaN.

        Arguments and errors are those of `row_numbers`.
        """
        found: npt.NDArray[Any] = np.asarray(self.table().target)[self.row_numbers(split=split, array=array, view=view)]
        return found

    def sample_ids(self, *, split: str | None = None, array: str | None = None, view: int = 0) -> list[str]:
        """Return the N sample ids of the rows of `to_numpy`. Arguments and errors are those of `row_numbers`."""
        rows = self.row_numbers(split=split, array=array, view=view)
        return [str(name) for name in np.asarray(self.table().sample_id)[rows].tolist()]

    def X_y(
        self, array: str, split: str | None = None, *, view: int = 0, labelled: bool | None = None
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return features (N, ...) and targets (N,) or (N, K) of the same rows, as `fit` of scikit-learn takes them.

        Args:
            array: as "embedding" or "layers/cls/11".
            split: rows of this split; None: of all.
            view: 0 is the clean one.
            labelled: True leaves out rows that have no label, False keeps them, with the target -1 or NaN; None: refuse
                where there are any, since a classifier would take -1 for one more class.

        Raises:
            StoreContentsError: no such array or split, or rows without a label.
        """
        X, y = self.to_numpy(array, split=split, view=view), self.labels(split=split, array=array, view=view)
        known = y >= 0 if y.ndim == 1 else ~np.isnan(y.astype(np.float32)).any(axis=1)
        if known.all() or labelled is False:
            return X, y
        if labelled is None:
            raise StoreContentsError(
                f"{len(y) - int(known.sum())} of the {len(y)} rows asked of {self.path} have no label. "
                "Give labelled=True to leave them out, or labelled=False to keep them."
            )
        return X[known], y[known]

    def to_pandas(self, *, split: str | None = None) -> Any:
        """Return the row table as a `pandas.DataFrame`, one line for each row of the store, also for those that were skipped.

        The index is the row number; columns are those of the row table and `status`, with which `frame[frame.status == "ok"]`
        has the rows of `to_numpy`.

        Raises:
            FeatureCacheError: pandas is not installed.
            StoreContentsError: no such split; names those that there are.
        """
        import_pandas()
        frame = self.table().to_pandas(self.header.class_names)
        frame["status"] = [str(text) for text in self.status().tolist()]
        if split is None:
            return frame
        check_split(self.path, set(frame["split"]), split)
        return frame[frame["split"] == split]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}: {', '.join(self._facts())}>"

    def _repr_html_(self) -> str:
        """Return the store at a glance, for a notebook."""
        rows = [(s.name, " x ".join(map(str, (self.header.rows, *s.tail))), s.dtype) for s in self.header.arrays]
        title = f"{self.path}: {', '.join(self._facts())}"
        return Table(title, ("array", "shape", "dtype"), rows)._repr_html_()

    def _facts(self) -> list[str]:
        header, readable = self.header, int(self.readable([], []).sum())
        left = [f"{header.rows - readable} of them skipped or deleted"] if readable < header.rows else []
        return [
            f"{header.rows} rows", *left, f"{len(header.arrays)} arrays", f"backbone {header.backbone.get('name')}",
            f"data {header.dataset.get('name')}", "finished" if self.finished else "not finished",
        ]  # fmt: skip
