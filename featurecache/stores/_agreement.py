"""Whether a store is the one that a run wants: equal identity, and what it still lacks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from featurecache.errors import StoreMismatchError
from featurecache.features import Header, comparable_data, differences


def lacking(path: Path, held: Header, wanted: Header) -> tuple[str, ...]:
    """Return by name what of `wanted` the store at `path` does not hold; () where it holds as much or more.

    Raises:
        StoreMismatchError: the store holds other features; the message names every field that differs, with both values.
    """
    found = differences(_identity(wanted, held), _identity(held, wanted))
    if found:
        lines = "\n".join(
            f"  {name}: the store has {_shown(theirs)}, this run {_shown(ours)}" for name, ours, theirs in found
        )
        raise StoreMismatchError(
            f"{path} holds other features than this run would make:\n{lines}\n"
            "Features of two kinds cannot share a store. Give another --out, or the settings of the store."
        )
    return tuple(name for name in wanted.contents if name not in held.contents)


def _shown(value: Any) -> str:
    return f"{len(value)} of them, from {value[0]!r} on" if isinstance(value, tuple) and len(value) > 4 else repr(value)


def _identity(header: Header, other: Header) -> dict[str, Any]:
    """Return what may not differ.

    Prompts, and how views are drawn, count where both have such; so does a kind of token such as patch-grid:K, with any K.
    """
    kinds = {token.partition(":")[0] for token in other.tokens}
    return {
        "backbone": {k: v for k, v in header.backbone.items() if k != "views" or "views" in other.backbone},
        "data": {**comparable_data(header.dataset), "rows": header.rows},
        "prompts": header.prompts if other.prompts else (),
        "dtype": "+".join(sorted({spec.dtype for spec in header.arrays})),
        "tokens": {kind: token for token in header.tokens if (kind := token.partition(":")[0]) in kinds},
    }


def united(held: Header, wanted: Header) -> Header:
    """Return the header of a store that holds what both do, as if all had been asked for from the start."""
    layers = {layer.index: layer for layer in (*wanted.layers, *held.layers)}
    arrays = {spec.name: spec for spec in (*wanted.arrays, *held.arrays)}
    constants = {spec.name: spec for spec in (*wanted.constants, *held.constants)}
    how_drawn = {"views": wanted.backbone["views"]} if wanted.views > held.views else {}
    return dataclasses.replace(
        held,
        backbone={**held.backbone, **how_drawn},
        views=max(held.views, wanted.views),
        layers=tuple(layer for _, layer in sorted(layers.items())),
        tokens=tuple(sorted({*held.tokens, *wanted.tokens})),
        arrays=tuple(spec for _, spec in sorted(arrays.items())),
        constants=tuple(spec for _, spec in sorted(constants.items())),
        prompts=held.prompts or wanted.prompts,
    )


def check_extends(path: Path, held: Header, header: Header) -> None:
    """Refuse a header that is not the store's own with more in it.

    Raises:
        StoreMismatchError: it would change or drop something.
    """
    lacking(path, held, header)
    if united(held, header) != header:
        raise StoreMismatchError(f"{path} can be extended only by a header that keeps everything it holds.")
