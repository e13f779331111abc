"""The unbiased estimator, its matrix, and what is read from it, by other routes than the code's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from featurecache.errors import ConfigError
from pipelines.analyses.cka import MinibatchCKA, analyse, class_attention, coarse, gram, hsic, spread, summary


def matrix(*batches: list[torch.Tensor]) -> np.ndarray:
    engine = MinibatchCKA()
    for layers in batches:
        engine.update(layers)
    return engine.matrix()


def test_the_estimate_is_the_mean_over_all_samples_of_four():
    """Song et al. 2012, eq. 4: a U-statistic; every ordered choice of four different samples counts alike."""
    draw = torch.Generator().manual_seed(0)
    one, other = (gram(torch.randn(6, 3, generator=draw)) for _ in range(2))

    terms = [
        one[i, j] * (other[i, j] + other[q, r] - 2 * other[i, q])
        for i, j, q, r in itertools.permutations(range(6), 4)
    ]  # fmt: skip

    torch.testing.assert_close(hsic(one, other), torch.stack(terms).mean())


def test_turned_scaled_and_shifted_features_are_the_same():
    values = torch.randn(12, 5, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]

    found = matrix([values, 7 * values @ turn + 3])

    np.testing.assert_allclose(found, np.ones((2, 2)), atol=1e-9)


def test_what_has_nothing_in_common_is_at_zero_on_average():
    draw = torch.Generator().manual_seed(1)
    batches = [[torch.randn(8, 40, generator=draw) for _ in range(2)] for _ in range(200)]

    found = matrix(*batches)

    assert abs(found[0, 1]) < 0.05, "the biased estimate of eight samples would be near 0.9"


def test_a_constant_layer_is_like_nothing_and_spoils_nothing():
    values = torch.randn(8, 3)

    found = matrix([values, torch.zeros(8, 3), values])

    assert np.isnan(found[1]).all() and np.isnan(found[:, 1]).all()
    assert found[0, 2] == pytest.approx(1)


def test_too_few_samples_are_refused():
    with pytest.raises(ConfigError, match="batches of at least 4 samples, got 3"):
        gram(torch.randn(3, 2))
    with pytest.raises(ConfigError, match=r"2 problems:(.|\n)*batch_size must be at least 4(.|\n)*there are 2"):
        analyse([], ["a", "b"], 3)


def test_one_layer_alone_has_no_changes():
    found = summary(np.ones((1, 1)))

    assert np.isnan([found["mean"], *found["layer_mean"], *found["change_mean"], *found["change2_std"]]).all()


def test_tokens_that_have_collapsed_lie_on_each_other():
    same = spread(torch.ones(2, 5, 4))
    apart = spread(torch.eye(4)[None])

    assert same == {"length": 2.0, "distance": 0.0, "scaled_distance": 0.0}
    assert apart["distance"] == pytest.approx(2**0.5) and apart["scaled_distance"] == pytest.approx(1)


def test_patches_are_pooled_and_the_tokens_before_them_kept():
    tokens = torch.cat([torch.full((1, 2, 3), 9.0), torch.arange(16.0)[None, :, None].expand(1, 16, 3)], 1)

    found = coarse(tokens, 2, (4, 4), 2)

    assert found[0, :, 0].tolist() == [9, 9, 2.5, 4.5, 10.5, 12.5]


def test_attention_of_the_class_token_leaves_out_itself_and_registers():
    maps = torch.zeros(1, 2, 4, 4)
    maps[:, :, 0] = torch.tensor([0.5, 0.3, 0.1, 0.1])

    assert class_attention(maps, prefix=2) == {"mean": pytest.approx(0.1), "std": pytest.approx(0, abs=1e-8)}
