"""Stores with domains, groups and texts of classes, for protocols; as small as they can be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featurecache.datasets import RowTable
from featurecache.features import ArraySpec, Header
from featurecache.stores import create_store

WIDTH = 6


def store_of(
    path: Path,
    target: np.ndarray,
    *,
    split: Sequence[str],
    domain: Sequence[str] | None = None,
    group: Sequence[str] | None = None,
    class_names: Sequence[str] = ("ant", "bee", "cow"),
    features: np.ndarray | None = None,
    backbone: str = "made",
    text: bool = False,
    array: str = "embedding",
) -> Path:
    """Write a store whose one array tells the classes apart, by default with noise; return its path."""
    rows, draw = len(target), np.random.default_rng(3)
    centres = np.random.default_rng(7).normal(size=(max(len(class_names), 1), WIDTH))
    values = centres[target] + 0.7 * draw.normal(size=(rows, WIDTH)) if features is None else features
    constants = {}
    if text:
        constants = {"text/embedding": centres[:, None], "text/logit_scale": np.full((1, 1, 1), 2.0)}
    header = Header(
        backbone={"name": backbone}, dataset={"name": path.stem, "fingerprint": path.stem}, rows=rows, views=1,
        task="classification", class_names=tuple(class_names), layers=(), tokens=(),
        arrays=(ArraySpec("projected" if text else array, values.shape[1:], "float32"),),
        constants=tuple(ArraySpec(name, value.shape, "float32") for name, value in constants.items()),
    )  # fmt: skip
    table = RowTable(
        sample_id=[f"{row:03d}.jpg" for row in range(rows)], target=target.astype(np.int64), split=list(split),
        domain=list(domain or [""] * rows), group=list(group or [""] * rows),
    )  # fmt: skip
    given = {name: value.astype(np.float32) for name, value in constants.items()}
    store = create_store(
        path, header, table, chunk_multiple=8, constants=(lambda classes: _cut(given, classes)) if given else None
    )
    store.begin(range(rows))
    store.write(range(rows), {header.arrays[0].name: values.astype(np.float32)[:, None]}, {})
    store.commit()
    store.finish()
    store.close()
    return path


def _cut(given: dict[str, np.ndarray], classes: range) -> dict[str, np.ndarray]:
    return {k: v if v.shape[-3] == 1 else v[..., classes.start : classes.stop, :, :] for k, v in given.items()}


def balanced(rows: int, classes: int = 3) -> np.ndarray:
    """Return classes in turn."""
    return np.arange(rows) % classes


def splits(rows: int, classes: int = 3) -> list[str]:
    """Return train, train, train, val, test and so on, alike for every class."""
    return [("train", "train", "train", "val", "test")[row // classes % 5] for row in range(rows)]
