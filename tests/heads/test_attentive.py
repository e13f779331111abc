"""The attentive probe against torch's own multi-head attention, and against what its weights must do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featurecache.errors import ConfigError
from heads.attentive import Attentive, build
from tests.heads.samples import READ, batches, joined, spec_of, statistics_of

TOKENS = READ["tokens"]


def drawn(**options: object) -> Attentive:
    torch.manual_seed(0)
    head = build(spec_of(widths=TOKENS), **{"width": 24, "heads": 4, "queries": 3, **options})
    nn.init.normal_(head.queries)
    return head


@torch.no_grad()
def test_pooling_is_torchs_multi_head_attention():
    arrays = joined(batches(widths=TOKENS)).arrays
    head = drawn()
    other = nn.MultiheadAttention(24, 4, kdim=8, vdim=8, batch_first=True)
    other.q_proj_weight.copy_(torch.eye(24))
    other.k_proj_weight.copy_(head.key.weight)
    other.v_proj_weight.copy_(head.value.weight)
    other.in_proj_bias.copy_(torch.cat([torch.zeros(48), head.value.bias]))
    other.out_proj.weight.copy_(torch.eye(24))
    other.out_proj.bias.zero_()

    tokens = arrays["layers/all/05"]
    pooled, weights = other(head.queries.expand(90, 3, 24), tokens, tokens, average_attn_weights=False)

    torch.testing.assert_close(head(arrays), head.map(pooled.flatten(1)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head.attention(arrays), weights, rtol=1e-4, atol=1e-5)


def test_the_order_of_the_tokens_does_not_count():
    arrays = joined(batches(widths=TOKENS)).arrays
    head = drawn()

    mixed = {name: values[:, torch.randperm(7)] for name, values in arrays.items()}

    torch.testing.assert_close(head(mixed), head(arrays), rtol=1e-4, atol=1e-5)


def test_every_query_and_head_spreads_one_over_the_tokens():
    weights = drawn().attention(joined(batches(widths=TOKENS)).arrays)

    assert weights.shape == (90, 4, 3, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(90, 4, 3))


def test_it_finds_the_token_that_tells():
    """One of seven tokens holds the class, at another place in every row, marked by its last feature."""
    torch.manual_seed(0)
    targets, place = torch.randint(4, (400,)), torch.randint(7, (400,))
    tokens = torch.randn(400, 7, 8)
    tokens[torch.arange(400), place] = torch.cat(
        [4 * torch.eye(4)[targets], torch.zeros(400, 3), torch.ones(400, 1) * 6], 1
    )
    head = build(spec_of(widths=TOKENS), width=16, heads=2)
    step = torch.optim.AdamW(head.parameters(), lr=1e-2)

    for _ in range(150):
        step.zero_grad()
        nn.functional.cross_entropy(head({"layers/all/05": tokens}), targets).backward()
        step.step()

    assert (head({"layers/all/05": tokens}).argmax(1) == targets).float().mean() > 0.95


def test_an_array_of_vectors_is_one_token_more():
    widths = {"layers/cls/05": 8, **TOKENS}
    arrays = joined(batches(widths=widths)).arrays
    head = build(spec_of(widths=widths))

    assert head.attention(arrays).shape[-1] == 8
    beside = torch.cat([arrays["layers/cls/05"][:, None], arrays["layers/all/05"]], dim=1)
    torch.testing.assert_close(head(arrays), head({"layers/cls/05": beside[:, 0], "layers/all/05": beside[:, 1:]}))


def test_all_positions_share_the_mean_and_deviation_over_all_of_them():
    parts = batches(widths=TOKENS)
    head = build(spec_of(widths=TOKENS, standardised_by=parts))

    flat = joined(parts).arrays["layers/all/05"].reshape(-1, 8)

    assert statistics_of(parts)["layers/all/05"][0].shape == (7, 8), "the source counts every position by itself"
    torch.testing.assert_close(head.inputs.mean_0, flat.mean(0))
    torch.testing.assert_close(head.inputs.deviation_0, flat.std(0, correction=0))


def test_every_option_out_of_range_is_told():
    with pytest.raises(ConfigError) as refused:
        build(spec_of(widths=TOKENS), queries=0, heads=3, width=8, dropout=1.0)

    assert refused.value.problems == [
        "queries must be positive, got 0",
        "width must be a multiple of heads 3, got 8",
        "dropout must lie in [0, 1), got 1.0",
    ]


def test_tokens_of_several_widths_are_refused_by_name():
    widths = {"layers/all/03": (5, 6), "layers/all/05": (7, 8)}

    with pytest.raises(ConfigError, match="tokens of one width, got layers/all/03 6, layers/all/05 8. Give one layer"):
        build(spec_of(widths=widths))
