"""Small stores with any targets, written straight through `create_store`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featurecache.datasets import RowTable
from featurecache.features import ArraySpec, Header, Layer, Task
from featurecache.stores import create_store

WIDTHS = (6, 10)
"""Of the layers 0 and 1; they differ, as those of a CNN do."""
CONSTANT = 2
"""A feature of every array that is the same in all rows."""
NAMES = tuple(f"layers/{token}/0{index}" for token in ("cls", "mean") for index in range(2))


def hidden(rows: int, columns: int = 3) -> np.ndarray:
    """Return (N, columns) values that the features are made of."""
    return np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)


def targets_of(task: Task, rows: int) -> np.ndarray:
    """Return targets that the features of `made_store` explain."""
    values = hidden(rows)
    if task == "classification":
        return values.argmax(1).astype(np.int64)
    return (values > 0).astype(np.uint8) if task == "multilabel" else values


def split_of(rows: int) -> list[str]:
    """Return six rows of train, then one of val and three of test, and so on."""
    return [
        ("train", "train", "test", "train", "val", "train", "test", "train", "train", "test")[i % 10]
        for i in range(rows)
    ]


def made_store(
    path: Path,
    task: Task = "classification",
    *,
    rows: int = 120,
    targets: np.ndarray | None = None,
    split: Sequence[str] | None = None,
    group: Sequence[str] | None = None,
    class_names: Sequence[str] = ("ant", "bee", "cow"),
    skipped: Sequence[int] = (),
    stop_at: int | None = None,
    arrays: Sequence[str] = ("embedding", *NAMES),
) -> Path:
    """Write a store whose features are noisy maps of `hidden`, committed up to `stop_at`; return its path."""
    draw, values = np.random.default_rng(1), hidden(rows)
    width = {name: WIDTHS[int(name[-1])] if "/" in name else WIDTHS[-1] for name in arrays}
    specs = tuple(ArraySpec(name, (width[name],), "float32") for name in sorted(arrays))
    header = Header(
        backbone={"name": "made", "weights": "none"}, dataset={"name": "rows", "fingerprint": task}, rows=rows, views=1,
        task=task, class_names=tuple(class_names),
        layers=tuple(Layer(i, w, "norm") for i, w in enumerate(WIDTHS)) if len(arrays) > 1 else (),
        tokens=("cls", "mean") if len(arrays) > 1 else (), arrays=specs,
    )  # fmt: skip
    table = RowTable(
        sample_id=[f"{row}.jpg" for row in range(rows)],
        target=targets_of(task, rows) if targets is None else targets,
        split=split_of(rows) if split is None else split,
        domain=[""] * rows,
        group=[""] * rows if group is None else group,
    )
    store = create_store(path, header, table, chunk_multiple=8)
    features = {}
    for spec in specs:
        made = values @ draw.normal(size=(3, spec.tail[0])) + 0.3 * draw.normal(size=(rows, spec.tail[0])) + 5
        made[:, CONSTANT] = 7.25
        features[spec.name] = made.astype(np.float32)[:, None]
    stop = rows if stop_at is None else stop_at
    store.begin(range(stop))
    store.write(
        range(stop),
        {name: v[:stop] for name, v in features.items()},
        {row: "truncated" for row in skipped if row < stop},
    )
    store.commit()
    if stop == rows:
        store.finish()
    store.close()
    return path
