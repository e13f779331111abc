"""What a store was made of, to make parts of it again: its images and its backbone, as its provenance names them.

It names the order of the rows too, where the store has grown: a damaged row table does not tell it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.backbones import Backbone, BackboneOptions, load_backbone
from featurecache.casting import stored_form
from featurecache.datasets import Fingerprint, ImageDataset, RowTable, open_dataset
from featurecache.decoders import decoder_known_by
from featurecache.devices import resolve_device
from featurecache.division import adopt_division
from featurecache.errors import DatasetNotFoundError, StoreContentsError, StoreMismatchError
from featurecache.features import ArraySpec, Header, comparable_data, differences
from featurecache.growing import COLUMNS, NOWHERE, arranged, divided_like, standing
from featurecache.progress import Stopwatch
from featurecache.prompting import class_values
from featurecache.provenance import provenance
from featurecache.requests import request_of
from featurecache.sources.images import decoded, grid
from featurecache.stores import Kept
from featurecache.views import Views

Column = npt.NDArray[Any]

OF_THE_IMAGES = ("batch_size", "views", "decoder")
"""What an identity of features says beside the backbone: how images came to it."""


class Remaking:
    """The data set and the backbone of a store; each is opened when it is first needed, and must be what it was."""

    def __init__(
        self, path: Path, notes: Path, header: Header, *, data: str | None, weights: str | None, device: str
    ) -> None:
        self.path, self.header, self._data, self._weights, self._device = path, header, data, weights, device
        self._lines = provenance(notes)
        self._facts: dict[str, Any] = next((line for line in reversed(self._lines) if "origin" in line), {})

    @cached_property
    def found(self) -> ImageDataset:
        """The data set where the store's images are now, by the name that the store knows; not compared with it yet.

        Raises:
            StoreContentsError: nothing says where they are, or several data sets went into the store.
        """
        if "parts" in self.header.dataset:
            names = ", ".join(str(part.get("name")) for part in self.header.dataset["parts"])
            raise StoreContentsError(
                f"{self.path} was merged from stores of different data ({names}), so no rows of it can be computed again. "
                "Verify and mend the stores that it was merged from, then merge them again."
            )
        spec = self._data or self._facts.get("data")
        if spec is None:
            raise StoreContentsError(
                f"{self.path} has no provenance that says where its images are. Name them as the second argument, DATA."
            )
        kind, colon, _ = str(self.header.dataset.get("fingerprint", "")).partition(":")
        fingerprint: Fingerprint = "sizes" if not colon else "content" if kind == "content" else "names"
        try:
            opened = open_dataset(
                spec, split_seed=self._facts.get("split_seed", 0), task=self._facts.get("task"), fingerprint=fingerprint
            )
        except DatasetNotFoundError as error:
            if self._data is not None:
                raise
            raise StoreContentsError(
                f"the images of {self.path} were in {spec} and are not there any more ({error}) If they were moved or renamed, "
                f"say where they are now: featurecache verify {self.path} DATA"
            ) from None
        return divided_like(self.header, opened, self.path)

    def images(self, table: RowTable, deleted: Collection[int]) -> ImageDataset:
        """Return the images in the order of a store's table; rows that were deleted are not read.

        Raises:
            StoreMismatchError: they are not those of the store; names what differs.
        """
        found = self.divided
        way = "as the second argument, DATA"
        if standing(self.path, self.header, table, deleted, found, way=f"name the right one {way}") is None:
            ours, theirs = (comparable_data(identity) for identity in (found.identity, self.header.dataset))
            self._check(f"the data of {found.spec}", ours, theirs, way)
        return arranged(found, table, deleted)

    @cached_property
    def divided(self) -> ImageDataset:
        """The same data set with the splits that `split` gave the store, where it did."""
        return adopt_division(self.header, lambda: self.found.table, self.found)

    @cached_property
    def backbone(self) -> Backbone:
        """The model.

        Raises:
            StoreContentsError: nothing says what it was.
            StoreMismatchError: it is not that of the store; names what differs.
        """
        if "origin" not in self._facts:
            raise StoreContentsError(
                f"{self.path} has no provenance that says what built its backbone, so its features cannot be computed "
                "again. Extract into a new --out."
            )
        given = {key: value for key, value in self._facts["origin"].items() if key != "name"}
        given |= {
            "precision": self.header.backbone.get("precision", "fp32"),
            "device": str(resolve_device(self._device)),
        }
        if self._weights is not None:
            given["weights"] = self._weights
        built = load_backbone(self._facts["origin"]["name"], BackboneOptions(**given))
        known = {key: value for key, value in self.header.backbone.items() if key not in OF_THE_IMAGES}
        self._check(f"the backbone {built.name}", dict(built.identity), known, "with --weights")
        return built

    def _check(self, what: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], way: str) -> None:
        found = differences(ours, theirs)
        if found:
            lines = "\n".join(f"  {name}: the store has {old!r}, this is {new!r}" for name, new, old in found)
            raise StoreMismatchError(f"{what} is not what made {self.path}:\n{lines}\nGive the right one {way}.")

    def of(self, kept: Kept) -> Sequence[Remade]:
        """Return what makes parts of the store again, once for each way in which its batches may have been cut.

        Rows that came with a growth were computed in batches of their own, and a result depends on its batch in the last
        bits; arrays that came after it were computed in batches of all rows.
        """
        grown = [growth.held for growth in growths(self._lines, self.header.rows)]
        return [Remade(self, kept, tuple(grown[first:])) for first in range(len(grown) + 1)]


@dataclass(frozen=True)
class Remade:
    """The parts of a store, made again from its images, its class names and its backbone."""

    remaking: Remaking
    kept: Kept
    cuts: tuple[int, ...] = ()
    """Rows at which a batch begins, besides those of the grid."""

    @cached_property
    def _table(self) -> RowTable:
        columns, sound = self.kept.columns, self.kept.sound
        if all(values.all() for values in sound.values()):
            told: dict[str, Any] = dict(columns)
            return RowTable(**told)
        remaking = self.remaking
        table = rebuilt(remaking.divided, columns, sound, growths(remaking._lines, remaking.header.rows))
        remaking.images(table, self.kept.deleted)
        return table

    def table(self) -> RowTable:
        """Return the row table of the store: of every row what is still known of it, else what the data set says."""
        return self._table

    def classes(self, classes: range) -> Mapping[str, npt.NDArray[Any]]:
        """Return the arrays of the classes for some of them."""
        with class_values(self.remaking.backbone, self.remaking.header, quiet=True) as values:
            return values(classes)

    def _batches(self, rows: range) -> list[range]:
        """Return whole batches that cover `rows`, also where these begin inside one."""
        header = self.remaking.header
        size, edges = int(header.backbone["batch_size"]), [0, *self.cuts, header.rows]
        parts = [grid(range(first, stop), size) for first, stop in pairwise(edges)]
        return [batch for part in parts for batch in part if batch.start < rows.stop and rows.start < batch.stop]

    def rows(
        self, rows: range, lacking: Mapping[ArraySpec, tuple[int, ...]], skipped: Mapping[int, str]
    ) -> Iterator[tuple[range, Mapping[str, npt.NDArray[Any]]]]:
        """Yield (rows, array -> (B, V, ...) in storage dtype of the views in `lacking`) in order, all of `rows`."""
        header, backbone, arrays = self.remaking.header, self.remaking.backbone, list(lacking)
        views = tuple(sorted({view for wanted in lacking.values() for view in wanted}))
        dataset = self.remaking.images(self._table, self.kept.deleted)
        for batch, images, unread in decoded(
            backbone, dataset, self._batches(rows), Stopwatch(), on_error="skip",
            views=Views.known_by(header.views, header.backbone), which=views, decoder=decoder_known_by(header.backbone),
        ):  # fmt: skip
            outputs = []
            for view, of_view in zip(views, images, strict=True):
                specs = [spec for spec in arrays if view in lacking[spec]]
                found = backbone.forward(of_view.to(backbone.device), request_of(header.tokens, specs))
                outputs.append({spec.name: found[spec.name] for spec in specs})
            empty = {row - batch.start: skipped[row] for row in batch if row in skipped} | unread
            empty |= {row - batch.start: "deleted" for row in batch if row in self.kept.deleted}
            ids = [str(dataset.table.sample_id[row]) for row in batch]
            yield batch, stored_form(outputs, arrays, ids, empty)


@dataclass(frozen=True, slots=True)
class Growth:
    """One time that a store took in new samples."""

    held: int
    """Rows before it."""
    new: Sequence[Sequence[int]]
    """Places of the new samples in the data set of then, as [first, behind the last]."""


def growths(lines: Sequence[Mapping[str, Any]], rows: int) -> list[Growth]:
    """Return from the lines of a provenance how a store came to have `rows` rows, the oldest growth first."""
    found: list[Growth] = []
    noted = [line["grown"] for line in lines if "grown" in line]
    while line := next((line for line in reversed(noted) if line["rows"] == rows), None):
        found.insert(0, Growth(line["held"], line["new"]))
        rows = line["held"]
    return found


def rebuilt(
    dataset: ImageDataset, columns: Mapping[str, Column], sound: Mapping[str, npt.NDArray[np.bool_]],
    grown: Sequence[Growth],
) -> RowTable:  # fmt: skip
    """Return the row table of a store: every value that is still sound, and what the data set says of the others.

    `sound` tells of each column, (N,), which values are. Whether it is what was written is for a checksum to say.
    """
    ids = _ids(dataset, columns["sample_id"], sound["sample_id"], grown)
    place = {name: row for row, name in enumerate(dataset.table.sample_id)}
    rows = np.array([place.get(name, NOWHERE) for name in ids], np.int64)
    told: dict[str, Any] = {"sample_id": ids}
    for name in COLUMNS[1:]:
        theirs = getattr(dataset.table, name)
        told[name] = [
            str(value) if good or row == NOWHERE else str(theirs[row])
            for value, good, row in zip(columns[name], sound[name], rows, strict=True)
        ]
    target = np.array(columns["target"])
    damaged = ~sound["target"] & (rows != NOWHERE)
    target[damaged] = np.asarray(dataset.table.target)[rows[damaged]]
    return RowTable(target=target, **told)


def _ids(dataset: ImageDataset, ids: Column, sound: npt.NDArray[np.bool_], grown: Sequence[Growth]) -> list[str]:
    if sound.all():
        return [str(name) for name in ids]
    noted = _in_order(list(dataset.table.sample_id), grown)
    if len(noted) == len(ids) and all(mine == str(name) for mine, name in zip(noted, ids, strict=True) if name):
        return noted
    known = {str(name) for name, good in zip(ids, sound, strict=True) if good}
    others = iter([name for name in dataset.table.sample_id if name not in known])
    return [str(name) if good else next(others, "") for name, good in zip(ids, sound, strict=True)]


def _in_order(ids: list[str], grown: Sequence[Growth]) -> list[str]:
    """Return the samples of a data set in the order in which they came into a store."""
    behind: list[str] = []
    for growth in reversed(grown):
        new = {row for first, stop in growth.new for row in range(first, stop)}
        behind = [name for row, name in enumerate(ids) if row in new] + behind
        ids = [name for row, name in enumerate(ids) if row not in new]
    return ids + behind
