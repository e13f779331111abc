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
        consumes: what the head reads: "last" or "all" layers when `layers` is None, "tokens", or "projected".
        layers: "last", "embedding", "mean", "concat" (or "all"), or indices such as "0,3,6-11".
        tokens: kinds joined by +, or "auto" for cls, else mean, else the store's first kind; of a head that reads many
            tokens, for the first kind that has many.

    Raises:
        ConfigError: the words mean nothing.
        StoreContentsError: the store does not hold what they ask for.
    """
    if consumes == "projected":
        return _projected(header, layers), "concat"
    words = {"tokens": "last"}.get(consumes, consumes) if layers is None else layers
    combine: Combine = "mean" if words == "mean" else "concat"
    if words == "embedding" or (words == "last" and layers is None and not header.layers):
        return ("embedding",), combine
    held = [layer.index for layer in header.layers]
    if not held:
        raise StoreContentsError(
            "the store holds the embedding, but no layers. Give --layers embedding, or extract again with --layers all --extend."
        )
    preferred = [*(kind for kind in ("cls", "mean") if kind in header.tokens), *header.tokens]
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
