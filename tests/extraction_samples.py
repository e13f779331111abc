"""Small extractions for tests: generated pictures, a tiny backbone with random weights, and what of a store must last."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import save_features
from featurecache.backbones import Backbone, Request
from save_features import SaveFeaturesConfig
from tests.featurecache.datasets.pictures import as_folder, tree

BATCH = 16
TINY: dict[str, Any] = {"backbone": "timm:test_vit", "weights": "random:0", "image_size": 32, "batch_size": BATCH}
"""Layers 0 to 5 of width 64, a class token, four patches, and a classifier."""


def pictures(folder: Path, **classes: int) -> Path:
    """Write so many small PNG files into each class folder; by default 40 in two classes."""
    return Path(as_folder(tree(classes or {"cat": 20, "dog": 20}, ".png"), folder))


def settings(folder: Path, out: Path, **changes: Any) -> SaveFeaturesConfig:
    """Return the config of an extraction of `folder` with the tiny backbone."""
    return SaveFeaturesConfig(**{"data": str(folder), "out": out, "quiet": True, **TINY, **changes})


def lasting(store: Path) -> dict[str, bytes]:
    """Return path -> content of all that must be equal, however a store came about: not provenance and scores."""
    found = {p.relative_to(store): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}
    return {str(p): content for p, content in found.items() if p.name != "provenance.jsonl" and p.parts[0] != "scores"}


class Forwards:
    """What a backbone is asked for while it extracts; `change` may spoil what it gives."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.change: Callable[[dict[str, Tensor], int], None] = lambda outputs, number: None
        """Called with the outputs of each batch and its number."""

    def around(self, backbone: Backbone) -> Backbone:
        def forward(images: Tensor, request: Request) -> dict[str, Tensor]:
            outputs = {name: values.clone() for name, values in backbone.forward(images, request).items()}
            if images.any():  # an empty image only asks for shapes
                self.requests.append(request)
                self.change(outputs, len(self.requests) - 1)
            return outputs

        return dataclasses.replace(backbone, forward=forward)

    def watch(self, patch: pytest.MonkeyPatch) -> Forwards:
        """Let every backbone that `save_features` loads from now on be watched."""
        load = save_features.load_backbone
        patch.setattr(save_features, "load_backbone", lambda name, options: self.around(load(name, options)))
        return self
