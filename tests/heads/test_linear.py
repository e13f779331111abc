"""The linear probe is one affine map of the standardised arrays, joined as asked."""

from __future__ import annotations

from dataclasses import replace

import torch

from heads.linear import build
from tests.heads.samples import LAYERS, batches, joined, spec_of

EQUAL = {"layers/cls/00": 8, "layers/cls/01": 8}


def test_logits_are_the_affine_map_of_the_concatenated_arrays():
    batch = joined(batches(widths=LAYERS))
    head = build(spec_of(widths=LAYERS))

    by_hand = torch.cat(list(batch.arrays.values()), dim=1) @ head.map.weight.T + head.map.bias

    assert torch.allclose(head(batch.arrays), by_hand, atol=1e-5)


def test_layers_of_equal_width_can_be_averaged():
    batch = joined(batches(widths=EQUAL))
    head = build(replace(spec_of(widths=EQUAL), combine="mean"))

    by_hand = head.map((batch.arrays["layers/cls/00"] + batch.arrays["layers/cls/01"]) / 2)

    assert head.map.in_features == 8
    assert torch.allclose(head(batch.arrays), by_hand, atol=1e-5)


def test_arrays_are_joined_in_the_order_of_the_spec_whatever_the_order_of_the_batch():
    batch = joined(batches(widths=LAYERS))
    head = build(spec_of(widths=LAYERS))

    backwards = dict(reversed(batch.arrays.items()))

    assert torch.equal(head(backwards), head(batch.arrays))


def test_without_bias_zero_gives_zero():
    head = build(spec_of(), bias=False)

    assert head.map.bias is None
    assert torch.equal(head({"layers/cls/05": torch.zeros(2, 8)}), torch.zeros(2, 4))
