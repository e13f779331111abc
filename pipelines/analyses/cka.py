"""Minibatch CKA: how alike layers are, of one model or of several, by features or by attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from featurecache.checks import check
from featurecache.reports import Table
from pipelines.analyses import Analysis, Subject
from pipelines.analyses._similarity import SMALLEST, Matrix, MinibatchCKA, gram, hsic, summary, without_diagonal
from pipelines.analyses._spread import COARSE, class_attention, coarse, spread
from pipelines.analyses._subjects import LiveSubject
from pipelines.sections import Section, heat_map

__all__ = [
    "MinibatchCKA", "analyse", "class_attention", "coarse", "gram", "hsic", "spread", "summary", "without_diagonal",
]  # fmt: skip

PAPER = "Nguyen, Raghu & Kornblith, Do Wide and Deep Networks Learn the Same Things?, ICLR 2021 (arXiv:2010.15327)"
SAMPLES = 256

DENSE = 64
"""Tokens of a sample, at most, whose distances are taken where no grid to pool them is known."""


def analyse(
    subjects: Sequence[Subject],
    ids: Sequence[str],
    batch_size: int,
    *,
    of: Literal["features", "attention"] = "features",
) -> Analysis:
    """Compare every layer with every other one, of all subjects together, by their features or their attention maps.

    Raises:
        ConfigError: batches or samples are too few for the unbiased estimator.
        BackboneError, StoreContentsError: attention was asked of what shows none.
    """
    check(
        (
            batch_size >= SMALLEST,
            f"batch_size must be at least {SMALLEST} for the unbiased estimator, got {batch_size}",
        ),
        (len(ids) >= SMALLEST, f"CKA needs at least {SMALLEST} samples, and there are {len(ids)}"),
    )
    engine, apart, count = MinibatchCKA(), dict[str, list[dict[str, float]]](), 0
    for piece in _pieces(ids, batch_size):
        layers = {
            f"{subject.name} {name}": (subject, values)
            for subject in subjects for name, values in (subject.features if of == "features" else subject.attention)(piece).items()
        }  # fmt: skip
        engine.update([values for _, values in layers.values()])
        for name, (subject, values) in layers.items():
            apart.setdefault(name, []).append(_apart(subject, values, of))
        count += len(piece)
    names, matrix = list(apart), engine.matrix()
    means = {
        name: {key: float(np.mean([one[key] for one in found])) for key in found[0]} for name, found in apart.items()
    }
    return Analysis(_section(subjects, names, matrix, means, of, count, engine.batches))


def _pieces(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Yield batches; a last one too small for the estimator is left out."""
    for start in range(0, len(ids), size):
        piece = ids[start : start + size]
        if len(piece) >= SMALLEST:
            yield piece


def _apart(subject: Subject, values: Any, of: str) -> dict[str, float]:
    """Return what collapse shows in: how far tokens lie apart, or what the class token attends to; {} where it is not known."""
    prefix = subject.prefix if isinstance(subject, LiveSubject) else 0
    if of == "attention":
        return class_attention(values, prefix) if prefix and values.ndim == 4 else {}
    if values.ndim == 3 and isinstance(subject, LiveSubject) and values.shape[1] > 1:
        size = subject.size_of(values.shape[1])
        values = values if size is None else coarse(values, prefix, size, min(*size, COARSE))
    rows = values[:, None] if values.ndim == 2 else values
    return spread(rows) if rows.ndim == 3 and rows.shape[1] <= DENSE else {}


def _section(
    subjects: Sequence[Subject], names: list[str], matrix: Matrix, apart: dict[str, dict[str, float]], of: str,
    samples: int, batches: int,
) -> Section:  # fmt: skip
    shown = names if len(subjects) > 1 else [name.removeprefix(f"{subjects[0].name} ") for name in names]
    tables, read = [], {}
    for subject in subjects:
        places = [place for place, name in enumerate(names) if name.startswith(f"{subject.name} ")]
        read[subject.name] = summary(matrix[np.ix_(places, places)])
        tables.append(_table(subject.name, [names[place] for place in places], read[subject.name], apart))
    text = (
        f"Unbiased minibatch CKA of {of}, {samples} samples in {batches} batches. 1 is alike up to rotation and scale; large "
        "bright blocks off the diagonal are layers that say the same. Blank: a layer that is constant over the samples."
    )
    values = {
        "of": of, "layers": names, "cka": matrix.tolist(), "summary": read, "apart": apart, "samples": samples,
        "batches": batches,
    }  # fmt: skip
    figure = heat_map(matrix, shown, shown, f"CKA of {of}")
    return Section(title="Similarity of layers", text=text, tables=tables, figures=[figure], values=values)


def _table(title: str, names: list[str], read: dict[str, Any], apart: dict[str, dict[str, float]]) -> Table:
    keys = list(dict.fromkeys(key for name in names for key in apart[name]))
    rows = [
        (
            name.removeprefix(f"{title} "),
            f"{mean:.3f}",
            f"{change:.3f}",
            *(f"{apart[name].get(key, np.nan):.4g}" for key in keys),
        )
        for name, mean, change in zip(names, read["layer_mean"], read["change_mean"], strict=True)
    ]
    return Table(title, ("layer", "CKA to the others", "change between layers", *keys), rows)
