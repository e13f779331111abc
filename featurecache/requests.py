"""From what was asked in words to a request a backbone understands, and to the header of the store that would hold it."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from featurecache.backbones import Backbone, Request
from featurecache.datasets import ImageDataset
from featurecache.decoders import Decoder, decoder_identity
from featurecache.errors import BackboneError
from featurecache.features import ArraySpec, Header, parse_indices, parse_layer_array
from featurecache.prompting import text_arrays
from featurecache.views import Views


def requested(backbone: Backbone, layers: str, tokens: str, *, logits: bool = False) -> Request:
    """Return the features that the words ask of this backbone, kinds of token in the order of their names.

    The projected embedding is always among them, where a backbone has one.

    Raises:
        BackboneError: a layer that the model does not have, one kind of token twice, or logits of a model without a head.
    """
    indices = parse_layers(layers, len(backbone.layers))
    kinds = set(backbone.tokens[:1] if tokens == "auto" else tokens.split("+"))
    if len({kind.partition(":")[0] for kind in kinds}) < len(kinds):
        raise BackboneError(f"--tokens {tokens} names one kind twice, but a store holds one grid of patches. Name one.")
    if logits and not backbone.num_logits:
        raise BackboneError(
            f"{backbone.name} has no classifier, so there are no logits. Leave --logits out, or give --weights a file that "
            "holds one (and --backbone-option num_classes its classes, not 0)."
        )
    return Request(
        layers=indices,
        tokens=tuple(sorted(kinds)) if indices else (),
        logits=logits,
        projected=backbone.projected_dim > 0,
    )


def parse_layers(text: str, count: int) -> tuple[int, ...]:
    """Return the ascending indices that "all", "last", "none" or "0,3,6-11" means for `count` layers.

    Raises:
        BackboneError: it is none of these, or names layers that are not there.
    """
    named = {"all": range(count), "last": range(max(count - 1, 0), count), "none": range(0)}
    if text in named:
        return tuple(named[text])
    try:
        found = parse_indices(text)
    except ValueError as problem:
        known = "all, last, none, or indices such as 0,3,6-11"
        raise BackboneError(f"--layers must be {known}; got {text!r}: {problem}") from None
    if found[-1] >= count:
        raise BackboneError(
            f"--layers {text} asks for layers that are not there: the model has layers 0 to {count - 1}"
        )
    return tuple(found)


def request_of(kinds: Iterable[str], arrays: Iterable[ArraySpec]) -> Request:
    """Return the request whose answer holds `arrays`; possibly more, where they are not every token of every layer.

    `kinds` are the kinds of token that a store was made with; an array's name does not say the K of a grid.
    """
    names = {spec.name for spec in arrays}
    found = [layer for layer in map(parse_layer_array, sorted(names)) if layer is not None]
    named = {kind for kind, _ in found}
    return Request(
        layers=tuple(sorted({index for _, index in found})),
        tokens=tuple(kind for kind in kinds if kind.partition(":")[0] in named),
        embedding="embedding" in names,
        logits="logits" in names,
        projected="projected" in names,
    )


def header_of(
    backbone: Backbone,
    dataset: ImageDataset,
    request: Request,
    *,
    dtype: str,
    batch_size: int,
    views: Views,
    prompts: tuple[str, ...] = (),
    decoder: Decoder = "pillow",
) -> Header:
    """Return the header of the store that would hold the requested features; one pass of each tower gives the shapes.

    Raises:
        BackboneError: there are prompts, and the text side cannot read them.
    """
    probe = torch.zeros(1, *backbone.input_size, device=backbone.device)
    shapes = {name: tuple(values.shape[1:]) for name, values in backbone.forward(probe, request).items()}
    return Header(
        backbone={**backbone.identity, "batch_size": batch_size, **views.identity, **decoder_identity(decoder)},
        dataset=dataset.identity,
        rows=len(dataset),
        views=views.count,
        task=dataset.task,
        class_names=dataset.class_names,
        layers=tuple(layer for layer in backbone.layers if layer.index in request.layers),
        tokens=request.tokens,
        arrays=tuple(ArraySpec(name, shape, dtype) for name, shape in sorted(shapes.items())),
        constants=text_arrays(backbone, dataset.class_names, prompts, dtype),
        prompts=prompts,
    )
