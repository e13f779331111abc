"""LFA on CLIP, as published: attention over the layers of both towers, asked by the last layer of the image.

    q = W_Q h_L,                 z = sum_l softmax_l(q . W_K h_l / sqrt(E)) W_V h_l                     the image
    u_c = mean_p sum_l softmax_l(q . W_K' t_cpl / sqrt(E)) W_V' t_cpl                                   the class, asked by the image
    s_c = mean_p sum_l softmax_l(W_Q" t_cpL . W_K" t_cpl / sqrt(E)) W_V" t_cpl                          the class, asked by itself
    logits = tau (beta cos(z, u_c) + (1 - beta) cos(z, s_c))
The u_c of an image are never formed: with the values v_k = W_V' t_ck of the K = P L keys of a class and their weights w,
z . u = sum_k w_k (z . v_k) and |u|^2 = w' G w with G = V V', so that memory is B C K and not B C E.

In the published repository's few-shot form all values begin at CLIP's projections, in its domain-generalisation form
(`start=dg`) queries and keys too. Its names are ours so: `visual_self_{Q,K,V}` is `image.{query,key,value}`,
`textual_self_{Q,K,V}` is `text_self.{...}`, `textual_cross_{K,V}` is `text_cross.{key,value}`; of each, `origin` (in, out)
is `weight` transposed, and `down` and `up` are `down.weight` and `up.weight`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from featurecache.checks import check
from featurecache.errors import ConfigError
from heads import HeadSpec
from heads._checkpoint import load_head
from heads._clip import EOT, IMAGE_PROJECTION, LOGIT_SCALE, TEXT_PROJECTION, Adapter, check_constants, unit
from heads._clip_maps import Maps
from heads._inputs import Inputs
from heads.clip_adapter import ClipAdapter

PAPER = "Efficient Transfer Learning driven by Layer-wise Features Aggregation (2024)"
CONSUMES = "all"
CONSTANTS = (EOT, IMAGE_PROJECTION, TEXT_PROJECTION, LOGIT_SCALE)
STANDARDISED = False
LEARNING_RATE = 1e-4
"""Of AdamW, whose steps have the size of the rate: the entries of CLIP's projections are of 1/sqrt(D), some hundredths.
Published: 2e-3, of SGD with momentum 0.1."""

PIECE = 2**24
"""Elements of (rows, class, template, layer) that are weighed at once: what is evaluated comes in large batches."""

Start = Literal["few-shot", "dg"]


@dataclass(frozen=True, slots=True, eq=False)
class Attended:
    """What every attention of the head sees and gives; B images, C classes, P templates, L layers each side, E wide."""

    query: Tensor
    """(B, E), what the image asks."""
    image: Tensor
    """(B, E), z."""
    image_weights: Tensor
    """(B, L)."""
    cross: Tensor
    """(B, C, P, E), u before the mean over templates."""
    cross_weights: Tensor
    """(B, C, P, L)."""
    own: Tensor
    """(C, P, E), s before the mean over templates."""
    own_weights: Tensor
    """(C, P, L)."""


class LayerAggregation(nn.Module):
    """The published head; see the head of this file."""

    scale: Tensor
    text: Tensor

    def __init__(self, spec: HeadSpec, beta: float, dropout: float, rank: int | None, adapter_width: int) -> None:
        super().__init__()
        self.inputs, self.beta = Inputs(spec), beta
        width, joint = spec.constants[IMAGE_PROJECTION].shape[1:]
        text_width = spec.constants[TEXT_PROJECTION].shape[1]
        self.image = Maps(("query", "key", "value"), width, joint, rank)
        self.text_self = Maps(("query", "key", "value"), text_width, joint, rank)
        self.text_cross = Maps(("key", "value"), text_width, joint, rank)
        self.image_dropout, self.text_dropout = nn.Dropout(dropout), nn.Dropout(dropout)
        """Element by element of all layers: of a batch of images; of all texts at every forward, for both attentions."""
        self.adapter: Adapter | None = Adapter(joint, adapter_width, 0.0) if adapter_width else None
        if self.adapter is not None:
            self.adapter.requires_grad_(False)
        self.travelling = {"adapter": None, "adapter_width": adapter_width} if adapter_width else {}
        """Options that rebuild the head without the run folder that the adapter came from."""
        self.register_buffer("scale", spec.constants[LOGIT_SCALE].float().exp().reshape(()), persistent=False)
        self.register_buffer("text", spec.constants[EOT].float().movedim(0, 2).contiguous(), persistent=False)

    def forward(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """L arrays of (B, D) -> (B, C) logits."""
        text = self.text_dropout(self.text)
        q, z, _ = self._image(arrays)
        z = unit(self.adapter(z) if self.adapter is not None else z)
        own = unit(self._own(text)[0].mean(dim=1))
        return self.scale * (self.beta * self._cross(q, z, text) + (1 - self.beta) * z @ own.T)

    def attention(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """L arrays of (B, D) -> (B, L) weights of the image's layers, each row summing to one."""
        return self._image(arrays)[2]

    def attended(self, arrays: Mapping[str, Tensor]) -> Attended:
        """Return everything that the attentions see, of a few images: this has an (E) for every image, class and template."""
        text = self.text_dropout(self.text)
        q, z, weights = self._image(arrays)
        values = self.text_cross("value", text)
        over_text = _weights(self.text_cross("key", text) @ q.T, q.shape[-1]).permute(3, 0, 1, 2)
        own, own_weights = self._own(text)
        return Attended(
            query=q, image=z, image_weights=weights, cross=torch.einsum("bcpl,cple->bcpe", over_text, values),
            cross_weights=over_text, own=own, own_weights=own_weights,
        )  # fmt: skip

    def _image(self, arrays: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return q (B, E), z (B, E) and the weights (B, L)."""
        layers = self.image_dropout(torch.stack(self.inputs(arrays)))
        q = self.image("query", layers[-1])
        weights = (torch.einsum("be,lbe->bl", q, self.image("key", layers)) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        return q, torch.einsum("bl,lbe->be", weights, self.image("value", layers)), weights

    def _own(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """(C, P, L, Dt) -> s (C, P, E) and the weights (C, P, L)."""
        q = self.text_self("query", text[:, :, -1])
        scores = torch.einsum("cpe,cple->cpl", q, self.text_self("key", text))
        weights = (scores / math.sqrt(q.shape[-1])).softmax(dim=-1)
        return torch.einsum("cpl,cple->cpe", weights, self.text_self("value", text)), weights

    def _cross(self, q: Tensor, z: Tensor, text: Tensor) -> Tensor:
        """Return the (B, C) cosines of z, of length one, to what each image makes of each class."""
        keys, values = self.text_cross("key", text), self.text_cross("value", text)
        of_class = values.flatten(1, 2)
        gram = of_class @ of_class.transpose(1, 2)
        if torch.compiler.is_exporting():  # a loop over pieces would fix the number of images
            return _cosines(q, z, keys, of_class, gram)
        rows = max(1, PIECE // keys[..., 0].numel())
        spans = [slice(first, first + rows) for first in range(0, len(q), rows)]
        pieces = [_cosines(q[span], z[span], keys, of_class, gram) for span in spans]
        return torch.cat(pieces)


def _weights(scores: Tensor, width: int) -> Tensor:
    """(C, P, L, B) products of keys and queries -> weights of the same shape, summing to one over L."""
    return (scores / math.sqrt(width)).softmax(dim=2)


def _cosines(q: Tensor, z: Tensor, keys: Tensor, values: Tensor, gram: Tensor) -> Tensor:
    """(B, E) twice, keys (C, P, L, E), values (C, K, E) and their products (C, K, K) -> (B, C); see the head of this file.

    The mean over templates is left out: it is a factor of u, and u is brought to length one.
    """
    weights = _weights(keys @ q.T, q.shape[-1]).flatten(1, 2)
    along = (weights * (values @ z.T)).sum(dim=1)
    squared = (weights * (gram @ weights)).sum(dim=1)
    return (along * squared.clamp_min(torch.finfo(squared.dtype).tiny).rsqrt()).T


def build(
    spec: HeadSpec,
    *,
    start: Start = "few-shot",
    beta: float = 0.9,
    dropout: float | None = None,
    rank: int | None = None,
    adapter: Path | None = None,
    adapter_width: int = 0,
) -> LayerAggregation:
    """Return the head for the layers of `spec`, shallow to deep; the last one asks.

    Args:
        spec: of equal widths, with the arrays of `CONSTANTS`.
        start: "few-shot": values begin at CLIP's projections; "dg": queries and keys too.
        beta: share of the classes as the image sees them.
        dropout: share of elements of either side's layers that a training step drops; as published 0.2, for "dg" 0.
        rank: train maps of this rank beside frozen ones; None: the maps themselves.
        adapter: run folder of a trained `clip_adapter`, put frozen behind z; its values travel with the head.
        adapter_width: bottleneck of an adapter whose values are loaded afterwards, as from this head's own file.

    Raises:
        ConfigError: lists every option out of range, and what of the arrays does not fit.
        RunError: the run folder holds no head.
    """
    dropped = dropout if dropout is not None else 0.2 if start == "few-shot" else 0.0
    check_constants("lfa_clip", spec, CONSTANTS)
    check(
        (spec.combine == "concat", "lfa_clip reads every layer by itself: --layers mean does not apply"),
        (0 <= beta <= 1, f"beta must lie in [0, 1], got {beta}"),
        (0 <= dropped < 1, f"dropout must lie in [0, 1), got {dropped}"),
        (rank is None or rank > 0, f"rank must be positive, got {rank}"),
        (adapter_width >= 0, f"adapter_width must not be negative, got {adapter_width}"),
        (adapter is None or not adapter_width, "adapter and adapter_width exclude each other: the run says the width"),
        *_fitting(spec),
    )
    trained = _adapter_of(adapter, spec) if adapter is not None else None
    head = LayerAggregation(spec, beta, dropped, rank, trained.down.out_features if trained else adapter_width)
    names = ("value",) if start == "few-shot" else ("query", "key", "value")
    head.image.start_at(spec.constants[IMAGE_PROJECTION][0], names)
    for maps in (head.text_self, head.text_cross):
        maps.start_at(spec.constants[TEXT_PROJECTION][0], names)
    if trained is not None and head.adapter is not None:
        for name, value in head.adapter.state_dict().items():
            value.copy_(trained.state_dict()[name])
    return head


def _fitting(spec: HeadSpec) -> list[tuple[bool, str]]:
    """Return the conditions under which layers, texts and projections belong together."""
    image, text = (spec.constants[name].shape[1:] for name in (IMAGE_PROJECTION, TEXT_PROJECTION))
    widths = {name: shape[0] for name, shape in spec.shapes.items() if len(shape) == 1}
    unlike = [f"{name} {width}" for name, width in widths.items() if width != image[0]]
    return [
        (
            not unlike,
            f"lfa_clip reads layers as wide as the {image[0]} of CLIP's projection, those of a ViT; "
            f"got {', '.join(unlike)}. Take lfa, which reads layers of any width",
        ),
        (
            spec.constants[EOT].shape[-1] == text[0],
            f"the texts have {spec.constants[EOT].shape[-1]} dimensions, their projection takes {text[0]}",
        ),
        (image[1] == text[1], f"the projections end in {image[1]} and {text[1]} dimensions, not in one space"),
    ]


def _adapter_of(run: Path, spec: HeadSpec) -> Adapter:
    with torch.device("cpu"):  # where building is only tried, other tensors have no memory
        head, _ = load_head(run)
    if not isinstance(head, ClipAdapter):
        raise ConfigError([f"{run} holds no clip_adapter, but {type(head).__name__}. Train one: --head clip_adapter"])
    width, joint = head.adapter.down.in_features, spec.constants[IMAGE_PROJECTION].shape[-1]
    check((width == joint, f"the adapter of {run} is {width} wide, the joint space {joint}: it is of another model"))
    return head.adapter
