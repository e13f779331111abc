"""Which arrays of a store a head is to read: the words of `--layers` and `--tokens`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from featurecache.backbones import Backbone, Request
from featurecache.errors import ConfigError, StoreContentsError
from featurecache.features import Header, as_numbers, layer_array, parse_indices, parse_layer_array
from featurecache.stores import FeatureStore

Combine = Literal["concat", "mean"]

EMBEDDING = "embedding"

RepeatsEmbedding = Callable[[str], bool]
"""Name of an array of a layer, as wide as the embedding -> whether it holds the embedding once more."""

COMPARED = 8
"""Rows that are compared to tell whether two arrays hold the same vectors."""
SAME = 1e-2
"""Largest relative difference of two arrays that hold the same vectors: both may be bfloat16, computed in another order."""


def select_arrays(
    header: Header, consumes: str, layers: str | None, tokens: str, repeats_embedding: RepeatsEmbedding | None = None
) -> tuple[tuple[str, ...], Combine]:
    """Return (array names, shallow to deep; how a head that reads one vector joins them).

    "last" with `tokens` "auto" is the vector that linear probes read: the token of the last layer where the embedding is that
    token, as in a ViT that pools its class token, and else the embedding: the output of a CNN's last convolution, a mean under
    a norm of its own, a pooling by attention.

    Args:
        header: of the store.
        consumes: what the head reads: "last" or "all" layers when `layers` is None, "tokens", or "projected".
        layers: "last", "embedding", "mean", "concat" (or "all"), or indices such as "0,3,6-11".
        tokens: kinds joined by +, or "auto" for cls, else mean, else the store's first kind; of a head that reads many
            tokens, for the first kind that has many.
        repeats_embedding: whether a layer's array holds the embedding, where the header leaves it open; None: it does.

    Raises:
        ConfigError: the words mean nothing.
        StoreContentsError: the store does not hold what they ask for.
    """
    if consumes == "projected":
        return _projected(header, layers), "concat"
    words = {"tokens": "last"}.get(consumes, consumes) if layers is None else layers
    combine: Combine = "mean" if words == "mean" else "concat"
    pools = consumes != "tokens" and words == "last" and tokens == "auto"
    if words == EMBEDDING or (pools and not _is_last_token(header, repeats_embedding)):
        return (EMBEDDING,), combine
    held = [layer.index for layer in header.layers]
    if not held:
        raise StoreContentsError(
            "the store holds the embedding, but no layers. Give --layers embedding, or extract again with --layers all --extend."
        )
    preferred = _preferred(header)
    many = [kind for kind in header.tokens if _has_many(header, kind, held[-1])]
    if consumes == "tokens" and tokens == "auto":
        if not many:
            raise StoreContentsError(
                f"the head reads many tokens a layer, and the store holds {', '.join(header.tokens)} only. Extract again "
                "with --tokens all (or patch-grid:4) and --extend."
            )
        preferred = many
    kinds = preferred[:1] if tokens == "auto" else list(dict.fromkeys(tokens.split("+")))
    absent = [kind for kind in kinds if kind not in header.tokens]
    if absent:
        raise StoreContentsError(
            f"the store holds no tokens {', '.join(map(repr, absent))}; it holds {', '.join(header.tokens)}. "
            "Extract again with --tokens and --extend."
        )
    named = {"last": held[-1:], "mean": held, "concat": held, "all": held}
    wanted = named[words] if words in named else _indices(words, held)
    names = tuple(layer_array(kind.partition(":")[0], index) for index in wanted for kind in kinds)
    lacking = [name for name in names if name not in {spec.name for spec in header.arrays}]
    if lacking:  # extended by a kind of token for some of the layers only
        raise StoreContentsError(
            f"the store does not hold {', '.join(lacking)}. Name the layers that it holds with --layers, or extract again "
            "with --tokens and --extend."
        )
    return names, combine


def _preferred(header: Header) -> list[str]:
    return [*(kind for kind in ("cls", "mean") if kind in header.tokens), *header.tokens]


def _is_last_token(header: Header, repeats_embedding: RepeatsEmbedding | None) -> bool:
    """Return whether a token of the last layer is to be read for "last", not the embedding."""
    shapes = {spec.name: spec.tail for spec in header.arrays}
    if EMBEDDING not in shapes or not header.layers:
        return EMBEDDING not in shapes
    name = layer_array(_preferred(header)[0].partition(":")[0], header.layers[-1].index)
    if not name.startswith(("layers/cls/", "layers/mean/")) or shapes.get(name) != shapes[EMBEDDING]:
        return False
    return repeats_embedding is None or repeats_embedding(name)


def compare_stored(store: FeatureStore) -> RepeatsEmbedding:
    """Return what tells by rows of a store whether an array of a layer holds the embedding; it reads a few, once an array."""

    @cache
    def repeats(name: str) -> bool:
        rows = np.flatnonzero(store.readable([name, EMBEDDING]))[:COMPARED]
        return _are_same(
            *(as_numbers(store.read(one, rows), store.header.array(one).dtype) for one in (name, EMBEDDING))
        )

    return repeats


def compare_live(backbone: Backbone) -> RepeatsEmbedding:
    """Return what tells by noise as images whether an array of a layer holds the embedding of a backbone."""

    def repeats(name: str) -> bool:
        noise = torch.randn(2, *backbone.input_size, generator=torch.Generator().manual_seed(0))
        kind, index = parse_layer_array(name) or ("", 0)
        found = backbone.forward(noise.to(backbone.device), Request((index,), (kind,)))
        return _are_same(*(found[one].cpu().numpy() for one in (name, EMBEDDING)))

    return repeats


def _are_same(one: npt.NDArray[np.generic], other: npt.NDArray[np.generic]) -> bool:
    """Return whether two arrays (N, D) hold the same vectors, up to how they were rounded."""
    first, second = one.astype(np.float64), other.astype(np.float64)
    return float(np.linalg.norm(first - second)) <= SAME * float(np.linalg.norm(second))


def _projected(header: Header, layers: str | None) -> tuple[str, ...]:
    if layers is not None:
        raise ConfigError([f"the head reads the joint space of image and text, so --layers {layers} does not apply"])
    if "projected" not in {spec.name for spec in header.arrays}:
        raise StoreContentsError(
            "the store holds no array projected, the joint space of image and text: it is of models with a text side. "
            "Extract such a model, e.g. --backbone open_clip:ViT-B-32/openai."
        )
    return ("projected",)


def _has_many(header: Header, kind: str, layer: int) -> bool:
    name = layer_array(kind.partition(":")[0], layer)
    return any(spec.name == name and len(spec.tail) > 1 for spec in header.arrays)


def _indices(words: str, held: list[int]) -> list[int]:
    try:
        wanted = parse_indices(words)
    except ValueError as problem:
        known = "last, embedding, mean, concat, or indices such as 0,3,6-11"
        raise ConfigError([f"layers must be {known}; got {words!r}: {problem}"]) from None
    if not wanted or not set(wanted) <= set(held):
        raise StoreContentsError(
            f"--layers {words} asks for layers that the store does not hold; it holds {', '.join(map(str, held))}."
        )
    return wanted
