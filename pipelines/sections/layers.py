"""Which layer and which token: LogME of every array of the stores, and the accuracy of heads that read one array."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from featurecache.features import parse_layer_array
from featurecache.scoring import saved_scores
from featurecache.stores import FeatureStore
from pipelines.sections import Figure, Page, Run, Section, heat_map

Found = Mapping[str, float]
"""Array -> value."""


def section(page: Page) -> Section | None:
    """Draw a map of layers and tokens for the scores of every store, and for what single-array heads reached."""
    figures: list[Figure] = []
    values: dict[str, dict[str, float]] = {}
    for store in _stores(page):
        scores = {entry["array"]: float(entry["score"]) for entry in saved_scores(store)}
        figures += _map(scores, f"LogME, {store.path.name}")
        values[f"logme {store.path.name}"] = scores
    for metric, split in _measured(page):
        reached = _reached(page, metric, split)
        if len(reached) > 1:
            figures += _map(reached, f"{split} {metric} of heads that read one array")
            values[f"{split} {metric}"] = reached
    if not values:
        return None
    text = "Scores are computed from the stored training rows; higher is better. Heads that read one array show whether they were right."
    return Section(title="Layers and tokens", text=text, figures=figures, values=values)


def _stores(page: Page) -> list[FeatureStore]:
    found = {str(run.store.path): run.store for run in page.runs if run.store is not None}
    return list(found.values())


def _measured(page: Page) -> list[tuple[str, str]]:
    pairs = [
        (run.record["selected_by"].partition(" ")[2], split) for run in page.runs for split in run.record["metrics"]
    ]
    return list(dict.fromkeys(pairs))


def _reached(page: Page, metric: str, split: str) -> dict[str, float]:
    """Return the best value of a head on each array alone; cells of sweeps speak of validation."""
    found: dict[str, float] = {}
    for run in page.runs:
        measured = run.record["metrics"].get(split, {}).get(metric)
        if len(run.record["arrays"]) == 1 and measured and measured["value"] is not None:
            name = run.record["arrays"][0]
            found[name] = max(found.get(name, -np.inf), measured["value"])
        for name, value in _cells(run, metric) if split == "val" else ():
            found[name] = max(found.get(name, -np.inf), value)
    return found


def _cells(run: Run, metric: str) -> list[tuple[str, float]]:
    lines = run.record.get("sweep", {}).get("cells", [])
    return [
        (line["arrays"], line[f"val_{metric}"])
        for line in lines
        if "," not in line["arrays"] and line[f"val_{metric}"] is not None
    ]


def _map(found: Found, caption: str) -> list[Figure]:
    """Return a drawing of values by token and layer; what is no layer has a line of its own."""
    places = {name: parse_layer_array(name) or (name, 0) for name in found}
    tokens = list(dict.fromkeys(token for token, _ in places.values()))
    layers = sorted({layer for name, (_, layer) in places.items() if parse_layer_array(name)}) or [0]
    values = np.full((len(tokens), len(layers)), np.nan)
    for name, (token, layer) in places.items():
        column = layers.index(layer) if parse_layer_array(name) else len(layers) - 1
        values[tokens.index(token), column] = found[name]
    return [heat_map(values, tokens, [str(layer) for layer in layers], caption)] if found else []
