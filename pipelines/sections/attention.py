"""Where heads that attend over layers look: on average, by class, and for single images."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.declarations import defines
from featurecache.registry import plain
from featurecache.reports import Table
from pipelines.sections import Figure, Page, Picture, Run, Section, heat_map

CLASSES, IMAGES = 40, 12
"""Lines that are drawn at most."""


def section(page: Page) -> Section | None:
    """Show the attention of every run whose head has one, over the rows that it predicted."""
    tables: list[Table] = []
    figures: list[Figure] = []
    values: dict[str, Any] = {}
    for run in page.runs:
        weights = _weights(run)
        if weights is None:
            continue
        names = [name.removeprefix("layers/") for name in run.record["arrays"]]
        mean = weights.mean(0)
        values[run.name] = {"layers": names, "mean": mean.tolist()}
        lines, labels = [mean], ["all"]
        if run.is_classification:
            of_class = _by_class(run, weights)
            values[run.name]["by_class"] = {name: line.tolist() for name, line in of_class.items()}
            lines, labels = [*lines, *of_class.values()], [*labels, *of_class]
        figures.append(
            heat_map(
                np.stack(lines[: CLASSES + 1]), labels[: CLASSES + 1], names, f"{run.name}: mean attention by class"
            )
        )
        rows, values[run.name]["images"] = _images(run, weights)
        tables.append(Table(f"{run.name}: single images", ("image", "label", "answer", "looks most at"), rows))
    if not values:
        return None
    text = "Weights over layers sum to one for every image. Equal weights mean that the layers are averaged."
    return Section(title="Attention over layers", text=text, tables=tables, figures=figures, values=values)


def _weights(run: Run) -> npt.NDArray[np.float64] | None:
    """(N, L) of the predicted rows; None for heads without attention, or where the features are gone."""
    if not defines(f"heads.{plain(run.record['head'])}", "attention") or not run.predictions or run.store is None:
        return None
    import torch

    from featurecache.sources.cached import CachedSource
    from heads._checkpoint import load_head

    head, _ = load_head(run.folder)
    attention = getattr(head, "attention", None)
    if attention is None:
        return None
    source = CachedSource(run.store, run.record["arrays"], run.rows)
    with torch.inference_mode():
        found = [attention(batch.arrays) for batch in source.batches(4096)]
    weights = torch.cat(found).double().numpy()
    return weights if weights.ndim == 2 else None


def _by_class(run: Run, weights: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    label, _ = run.answers
    return {name: weights[label == c].mean(0) for c, name in enumerate(run.class_names) if (label == c).any()}


def _images(run: Run, weights: npt.NDArray[np.float64]) -> tuple[list[tuple[Any, ...]], dict[str, list[float]]]:
    """Return the images whose attention is farthest from the mean, as lines, and their weights by sample id."""
    names = run.record["arrays"]
    order = np.argsort(-np.abs(weights - weights.mean(0)).sum(1), kind="stable")[:IMAGES]
    lines, kept = [], {}
    for place in order:
        sample = str(run.predictions["sample_id"][place])
        best = np.argsort(-weights[place], kind="stable")[:3]
        said = ", ".join(f"{names[layer].removeprefix('layers/')} {weights[place, layer]:.2f}" for layer in best)
        lines.append((Picture(sample), run.predictions["label"][place], run.predictions["pred"][place], said))
        kept[sample] = weights[place].tolist()
    return lines, kept
