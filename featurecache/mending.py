"""What a store was made of, to make parts of it again: its images and its backbone, as its provenance names them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt

from featurecache.backbones import Backbone, BackboneOptions, load_backbone
from featurecache.casting import stored_form
from featurecache.datasets import Fingerprint, ImageDataset, RowTable, open_dataset
from featurecache.decoders import decoder_known_by
from featurecache.devices import resolve_device
from featurecache.errors import StoreContentsError, StoreMismatchError
from featurecache.features import ArraySpec, Header, differences
from featurecache.progress import Stopwatch
from featurecache.prompting import class_values
from featurecache.provenance import provenance
from featurecache.requests import request_of
from featurecache.sources.images import decoded, grid
from featurecache.views import Views

OF_THE_IMAGES = ("batch_size", "views", "decoder")
"""What an identity of features says beside the backbone: how images came to it."""


class Remaking:
    """The data set and the backbone of a store; each is opened when it is first needed, and must be what it was."""

    def __init__(
        self, path: Path, notes: Path, header: Header, *, data: str | None, weights: str | None, device: str
    ) -> None:
        self.path, self.header, self._data, self._weights, self._device = path, header, data, weights, device
        self._facts: dict[str, Any] = next((line for line in reversed(provenance(notes)) if "origin" in line), {})

    @cached_property
    def dataset(self) -> ImageDataset:
        """The images.

        Raises:
            StoreContentsError: nothing says where they are.
            StoreMismatchError: they are not those of the store; names what differs.
        """
        spec = self._data or self._facts.get("data")
        if spec is None:
            raise StoreContentsError(
                f"{self.path} has no provenance that says where its images are. Name them with --data."
            )
        kind, colon, _ = str(self.header.dataset.get("fingerprint", "")).partition(":")
        fingerprint: Fingerprint = "sizes" if not colon else "content" if kind == "content" else "names"
        found = open_dataset(
            spec, split_seed=self._facts.get("split_seed", 0), task=self._facts.get("task"), fingerprint=fingerprint
        )
        self._check(f"the data of {spec}", _unnamed(found.identity), _unnamed(self.header.dataset), "--data")
        return found

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
        self._check(f"the backbone {built.name}", dict(built.identity), known, "--weights")
        return built

    def _check(self, what: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], option: str) -> None:
        found = differences(ours, theirs)
        if found:
            lines = "\n".join(f"  {name}: the store has {old!r}, this is {new!r}" for name, new, old in found)
            raise StoreMismatchError(
                f"{what} is not what made {self.path}:\n{lines}\nGive the right one with {option}."
            )

    def table(self) -> RowTable:
        """Return the row table of the data set."""
        return self.dataset.table

    def classes(self, classes: range) -> Mapping[str, npt.NDArray[Any]]:
        """Return the arrays of the classes for some of them."""
        with class_values(self.backbone, self.header, quiet=True) as values:
            return values(classes)

    def rows(
        self, rows: range, lacking: Mapping[ArraySpec, tuple[int, ...]], skipped: Mapping[int, str]
    ) -> Iterator[tuple[range, Mapping[str, npt.NDArray[Any]]]]:
        """Yield (rows, array -> (B, V, ...) in storage dtype of the views in `lacking`) in order, all of `rows`."""
        header, arrays, ids = self.header, list(lacking), self.dataset.table.sample_id
        views = tuple(sorted({view for wanted in lacking.values() for view in wanted}))
        # whole batches, also where the rows begin inside one: a result depends on its batch in the last bits
        size = int(header.backbone["batch_size"])
        whole = range(rows.start // size * size, min(-(-rows.stop // size) * size, header.rows))
        for batch, images, unread in decoded(
            self.backbone, self.dataset, list(grid(whole, size)), Stopwatch(), on_error="skip",
            views=Views.known_by(header.views, header.backbone), which=views, decoder=decoder_known_by(header.backbone),
        ):  # fmt: skip
            outputs = []
            for view, of_view in zip(views, images, strict=True):
                specs = [spec for spec in arrays if view in lacking[spec]]
                found = self.backbone.forward(of_view.to(self.backbone.device), request_of(header.tokens, specs))
                outputs.append({spec.name: found[spec.name] for spec in specs})
            empty = {row - batch.start: skipped[row] for row in batch if row in skipped} | unread
            yield batch, stored_form(outputs, arrays, [ids[row] for row in batch], empty)


def _unnamed(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity of a data set without its name, which is only that of its folder."""
    return {key: value for key, value in identity.items() if key != "name"}
