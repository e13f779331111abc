"""Which arrays of a store a head is to read: the words of `--layers` and `--tokens`."""

from __future__ import annotations

from typing import Literal

from featurecache.errors import ConfigError, StoreContentsError
from featurecache.features import Header, layer_array, parse_indices

Combine = Literal["concat", "mean"]


def select_arrays(header: Header, consumes: str, layers: str | None, tokens: str) -> tuple[tuple[str, ...], Combine]:
    """Return (array names, shallow to deep; how a head that reads one vector joins them).

    Args:
        header: of the store.
        consumes: what the head reads when `layers` is None: "last" or "all".
        layers: "last", "embedding", "mean", "concat" (or "all"), or indices such as "0,3,6-11".
        tokens: kinds joined by +, or "auto" for cls, else mean, else the store's first kind.

    Raises:
        ConfigError: the words mean nothing.
        StoreContentsError: the store does not hold what they ask for.
    """
    words = layers or consumes
    combine: Combine = "mean" if words == "mean" else "concat"
    if words == "embedding" or (words == "last" and layers is None and not header.layers):
        return ("embedding",), combine
    held = [layer.index for layer in header.layers]
    if not held:
        raise StoreContentsError(
            "the store holds the embedding, but no layers. Give --layers embedding, or extract again with --layers all --extend."
        )
    preferred = [*(kind for kind in ("cls", "mean") if kind in header.tokens), *header.tokens]
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
