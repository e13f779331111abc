"""Stores and models as subjects of an analysis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featurecache.backbones import Backbone
from featurecache.casting import as_tensor
from featurecache.datasets import ImageDataset
from featurecache.errors import BackboneError, ConfigError, StoreContentsError
from featurecache.requests import requested
from featurecache.sources.live import LiveImages
from featurecache.stores import FeatureStore
from pipelines._arrays import select_arrays

Table = Any


def rows_of(table: Table, split: str, name: str) -> dict[str, int]:
    """Return sample id -> row of a split; of all of them with `all`.

    Raises:
        ConfigError: there are none; names the splits that there are.
    """
    splits = np.asarray(table.split)
    rows = np.arange(len(splits)) if split == "all" else np.flatnonzero(splits == split)
    if not len(rows):
        known = ", ".join(sorted({str(found) for found in splits.tolist()})) or "none"
        raise ConfigError(
            [f"{name} has no samples in the split {split!r}; it has {known}. Give --split, or --split all"]
        )
    ids = np.asarray(table.sample_id)
    return {str(ids[row]): int(row) for row in rows}


class StoredSubject:
    """Layers of a store."""

    def __init__(self, store: FeatureStore, name: str, *, split: str, layers: str, tokens: str) -> None:
        self.store, self.name = store, name
        readable = store.readable()
        self._rows = {key: row for key, row in rows_of(store.table(), split, name).items() if readable[row]}
        self.ids: Sequence[str] = list(self._rows)
        held = store.header.layers
        words = str(held[-1].index) if layers == "last" and held else layers  # a layer here, as of a live model
        self.arrays = select_arrays(store.header, "all", words, tokens)[0]

    def features(self, ids: Sequence[str]) -> dict[str, Tensor]:
        """Return array -> (n, ...) float32."""
        rows = np.array([self._rows[key] for key in ids], np.int64)
        order = np.argsort(rows)
        back = torch.from_numpy(np.argsort(order))
        return {
            name: as_tensor(self.store.read(name, rows[order]), self.store.header.array(name).dtype).float()[back]
            for name in self.arrays
        }

    def attention(self, ids: Sequence[str]) -> dict[str, Tensor]:
        """Refuse: a store keeps features.

        Raises:
            StoreContentsError: always.
        """
        raise StoreContentsError(
            f"{self.name} is a store, and attention is not kept in stores. Name a run or a backbone instead, with --images."
        )


class LiveSubject:
    """A model on images."""

    def __init__(
        self, backbone: Backbone, dataset: ImageDataset, name: str, *, split: str, layers: str, tokens: str
    ) -> None:
        self.backbone, self.dataset, self.name = backbone, dataset, name
        self._rows = rows_of(dataset.table, split, name)
        self.ids: Sequence[str] = list(self._rows)
        words = layers if layers != "auto" else "all"
        self.request = requested(
            backbone, words, ("all" if "all" in backbone.tokens else "auto") if tokens == "auto" else tokens
        )
        self._images = LiveImages(backbone, dataset)

    @property
    def trunk(self) -> Any:
        """The transformer that sees images."""
        sees = getattr(self.backbone.module, "visual", self.backbone.module)
        return getattr(sees, "trunk", sees)

    @property
    def prefix(self) -> int:
        """Tokens before the patches."""
        return int(getattr(self.trunk, "num_prefix_tokens", 0) or 0)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches of the first block.

        Raises:
            BackboneError: the model lays its patches on no grid that it tells.
        """
        size = getattr(getattr(self.trunk, "patch_embed", None), "grid_size", None)
        if size is None:
            raise BackboneError(
                f"{self.name} does not tell the grid of its patches, as timm's ViTs do. Name one of these."
            )
        return int(size[0]), int(size[1])

    def size_of(self, tokens: int) -> tuple[int, int] | None:
        """Return the grid of so many tokens, where that of the first block may have lost rows and columns alike; or None."""
        rows, columns = self.grid
        sizes = [(rows - lost, columns - lost) for lost in range(min(rows, columns))]
        return next((size for size in sizes if size[0] * size[1] == tokens - self.prefix), None)

    def images(self, ids: Sequence[str]) -> Tensor:
        """(n, 3, H, W) as the model sees them."""
        found: Tensor = next(iter(self._images.batches([np.array([self._rows[key] for key in ids], np.int64)])))
        return found.clone()

    def features(self, ids: Sequence[str]) -> dict[str, Tensor]:
        """Return array -> (n, ...) float32; of every layer, and of no embedding."""
        found = self.backbone.forward(self.images(ids).to(self.backbone.device), self.request)
        return {name: values.cpu() for name, values in sorted(found.items()) if name.startswith("layers/")}

    def attention(self, ids: Sequence[str]) -> dict[str, Tensor]:
        """Return block -> (n, H, T, T); windows of a Swin lie side by side, (n, windows, H, T, T)."""
        with torch.inference_mode(), watched(self.trunk, self.name) as seen:
            self.trunk(self.images(ids).to(self.backbone.device))
        return {name: _by_sample(maps, len(ids)) for name, maps in seen.items()}

    def close(self) -> None:
        """End the threads that decode."""
        self._images.close()


@contextmanager
def watched(trunk: nn.Module, name: str) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that a forward pass fills with attention after the softmax; fused kernels, which hide it, are off meanwhile.

    Raises:
        BackboneError: no attention of this model can be seen.
    """
    parts: dict[str, Any] = {
        key: part for key, part in trunk.named_modules()
        if isinstance(getattr(part, "attn_drop", None), nn.Module) and hasattr(part, "fused_attn")
    }  # fmt: skip
    if not parts:
        raise BackboneError(
            f"no attention of {name} can be seen: that of timm's ViTs and Swins can. Name one of these."
        )
    seen: dict[str, Tensor] = {}
    fused = {key: part.fused_attn for key, part in parts.items()}
    hooks = [
        part.attn_drop.register_forward_hook(lambda _, given, out, key=key: seen.update({key: out.float().cpu()}))
        for key, part in parts.items()
    ]
    try:
        for part in parts.values():
            part.fused_attn = False
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
        for key, part in parts.items():
            part.fused_attn = fused[key]


def _by_sample(maps: Tensor, count: int) -> Tensor:
    return maps if len(maps) == count else maps.unflatten(0, (count, -1))
