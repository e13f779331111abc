"""Computing rows of a store again: whether the backbone still gives what is stored, when something around it changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.backbones import Backbone
from featurecache.casting import stored_form
from featurecache.datasets import ImageDataset
from featurecache.decoders import Decoder, decoder_known_by
from featurecache.devices import environment
from featurecache.errors import StoreMismatchError
from featurecache.features import ArraySpec, Header, as_numbers
from featurecache.progress import Stopwatch
from featurecache.provenance import provenance
from featurecache.requests import request_of
from featurecache.sources.images import decoded, grid
from featurecache.stores import FeatureStore

SAMPLES, BATCHES = 16, 2
"""Rows that are compared, and whole batches they are taken from: a result depends on its batch in the last bits."""

STORED = {"float32": 1e-4, "float16": 1e-3, "bfloat16": 8e-3}
"""Accepted difference of a row, relative to its norm, by dtype of the store. Another version may add in another order:
about 1e-6 in float32, which a few dozen layers can raise to 1e-5. In 16 bits that shows as values that fall on the other
side of a rounding, one unit in the last place each: at most 2**-10 of a float16, 2**-7 of a bfloat16."""

COMPUTED = {"fp32": 0.0, "fp16": 5e-3, "tf32": 5e-3, "bf16": 4e-2}
"""The same, by arithmetic of the forward pass: in 16 bits every layer rounds, so another order of adding shows at about
five units in the last place."""

CLEAN = (0,)
"""The view that is compared: the picture as it is."""

DECIDING = ("torch", "torchvision", "timm", "open_clip_torch", "Pillow")
"""Libraries whose versions can change features; a change of another one is recorded only."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The row and array in which recomputed features are farthest from the stored ones."""

    sample_id: str
    array: str
    relative: float
    """Norm of the difference by the norm of the stored row."""
    absolute: float
    """Largest difference of one value."""


def changes(notes: Path, device: str, decoder: Decoder = "pillow") -> dict[str, tuple[str, str]]:
    """Return what -> (then, now) for each library and device that could make other features than the last run's."""
    deciding = DECIDING if decoder == "pillow" else (*DECIDING, decoder)
    lines = [line for line in provenance(notes) if "environment" in line]
    if not lines:
        return {"provenance": ("unknown", "this machine")}
    then = _surroundings(lines[-1]["environment"], lines[-1]["device"], deciding)
    now = _surroundings(environment(), device, deciding)
    return {name: (then[name], now[name]) for name in now if then[name] != now[name]}


def _surroundings(found: Mapping[str, Any], device: str, deciding: Sequence[str]) -> dict[str, str]:
    versions = {name: str(found["versions"].get(name, "absent")) for name in deciding}
    gpu = f" ({found['gpu']})" if device != "cpu" and found["gpu"] else ""
    return {**versions, "device": device + gpu}


def check_unchanged(
    backbone: Backbone, dataset: ImageDataset, store: FeatureStore, changes: Mapping[str, tuple[str, str]]
) -> Difference | None:
    """Compute some committed rows again and return the largest difference; None where nothing is committed.

    Raises:
        StoreMismatchError: it is above the tolerance; names what has changed, the sample, and the way out.
    """
    found, accepted = largest_difference(backbone, dataset, store), accepted_difference(store.header)
    if found is None or found.relative <= accepted:
        return found
    then = ", ".join(f"{name} {old}" for name, (old, _) in changes.items())
    now = ", ".join(f"{name} {new}" for name, (_, new) in changes.items())
    raise StoreMismatchError(
        f"{store.path} was written with {then}; now there is {now}, and this backbone no longer gives what is stored: "
        f"{found.array} of {found.sample_id!r} differs by {found.relative:.1e} of its size (at most {accepted:.0e} is "
        f"accepted), one value by {found.absolute:.3g}. Rows of both must not share a store. Go back to what wrote it "
        "(see provenance.jsonl), or give another --out."
    )


def accepted_difference(header: Header) -> float:
    """Return the difference of a row, relative to its norm, that another machine or version may make."""
    computed = COMPUTED.get(header.backbone.get("precision", "fp32"), 0.0)
    return max(max(STORED[spec.dtype] for spec in header.arrays), computed)


def largest_difference(backbone: Backbone, dataset: ImageDataset, store: FeatureStore) -> Difference | None:
    """Return where `SAMPLES` recomputed rows are farthest from the stored ones; None where no batch is committed."""
    found = recomputed(backbone, dataset, store, SAMPLES)
    return max(found, key=lambda difference: difference.relative, default=None)


def recomputed(backbone: Backbone, dataset: ImageDataset, store: FeatureStore, samples: int) -> list[Difference]:
    """Compute `samples` committed rows again or a few more, where there are so many, of the clean view.

    Return the difference of each, array by array.
    """
    arrays = committed_arrays(store)
    batches = sampled_batches(store, arrays, samples)
    header = store.header
    request, ids, status = request_of(header.tokens, arrays), np.asarray(dataset.table.sample_id), store.status()
    full = {
        rows: np.flatnonzero([str(text) in ("ok", "") for text in status[rows.start : rows.stop]]) for rows in batches
    }
    share = _share([len(places) for places in full.values()], samples)
    differences = []
    for rows, images, unread in decoded(
        backbone, dataset, batches, Stopwatch(), on_error="skip", decoder=decoder_known_by(header.backbone)
    ):
        outputs = [backbone.forward(images[0].to(backbone.device), request)]
        fresh = stored_form(outputs, arrays, [str(name) for name in ids[rows.start : rows.stop]], unread)
        places = _evenly(full[rows], share)
        places = np.setdiff1d(places, list(unread))  # an image that went bad says nothing of the backbone
        for spec in arrays:
            kept = store.read(spec.name, np.asarray(rows)[places])
            differences += _compared(fresh[spec.name][places, 0], kept, spec, ids[np.asarray(rows)[places]])
    return differences


def committed_arrays(store: FeatureStore) -> list[ArraySpec]:
    """Return the arrays of which some rows are committed."""
    return [s for s in store.header.arrays if store.missing([s.name], CLEAN) != [range(store.header.rows)]]


def sampled_batches(store: FeatureStore, arrays: Sequence[ArraySpec], samples: int) -> list[range]:
    """Return whole batches with at least `samples` committed rows, where there are so many, evenly over the store."""
    return _chosen(_committed_batches(store, arrays), samples)


def _committed_batches(store: FeatureStore, arrays: Sequence[ArraySpec]) -> list[range]:
    if not arrays:
        return []
    gaps = store.missing([spec.name for spec in arrays], CLEAN)
    edges = [0, *(edge for gap in gaps for edge in (gap.start, gap.stop)), store.header.rows]
    spans = [range(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if start < stop]
    return [rows for span in spans for rows in grid(span, int(store.header.backbone["batch_size"]))]


def _chosen(batches: Sequence[range], samples: int) -> list[range]:
    if not batches:
        return []
    count = min(len(batches), max(BATCHES, -(-samples // len(batches[0]))))
    places = np.unique(np.linspace(0, len(batches) - 1, count).round().astype(int))
    return [batches[place] for place in places]


def _share(counts: Sequence[int], samples: int) -> int:
    """Return how many rows of each batch make `samples`, where there are so many; batches have `counts` of them."""
    level, left = 0, samples
    for number, count in enumerate(sorted(counts)):
        level = max(level, -(-left // (len(counts) - number)))
        if count >= level:
            break
        left -= count
    return level


def _evenly(places: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Return so many of the places in a batch that hold features (a skipped row is zero in every array), evenly."""
    return places[np.unique(np.linspace(0, len(places) - 1, count).round().astype(int))] if len(places) else places


def _compared(
    fresh: npt.NDArray[np.generic], kept: npt.NDArray[np.generic], spec: ArraySpec, ids: npt.NDArray[np.str_]
) -> list[Difference]:
    ours = as_numbers(fresh, spec.dtype).reshape(len(ids), -1).astype(np.float64)
    theirs = as_numbers(kept, spec.dtype).reshape(len(ids), -1).astype(np.float64)
    sizes = np.maximum(np.linalg.norm(theirs, axis=1), np.finfo(np.float64).tiny)
    relative, absolute = np.linalg.norm(ours - theirs, axis=1) / sizes, np.abs(ours - theirs).max(1)
    return [Difference(str(i), spec.name, float(r), float(a)) for i, r, a in zip(ids, relative, absolute, strict=True)]
