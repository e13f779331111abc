"""The cosine classifier hears angles and not lengths."""

from __future__ import annotations

import math

import pytest
import torch

from featurecache.errors import ConfigError
from heads.cosine import build
from tests.heads.samples import LAYERS, batches, joined, spec_of


def test_logits_are_cosines_over_the_temperature():
    arrays = joined(batches(widths=LAYERS, rows=12)).arrays
    head = build(spec_of(widths=LAYERS), temperature=0.05).requires_grad_(False)

    said = head(arrays)

    x = torch.cat(list(arrays.values()), dim=1)
    for row in range(12):
        for c, way in enumerate(head.directions):
            cosine = float(x[row] @ way) / math.sqrt(float(x[row] @ x[row])) / math.sqrt(float(way @ way))
            assert float(said[row, c]) == pytest.approx(cosine / 0.05, rel=1e-4, abs=1e-4)


def test_the_length_of_features_and_of_directions_counts_nothing():
    arrays = joined(batches()).arrays
    head = build(spec_of())
    before = head(arrays)

    with torch.no_grad():
        head.directions *= torch.tensor([1.0, 5.0, 0.1, 30.0])[:, None]

    torch.testing.assert_close(head({name: 7 * values for name, values in arrays.items()}), before)


def test_the_temperature_is_learned():
    parts = batches(noise=0.1)
    head = build(spec_of(standardised_by=parts), temperature=1.0)
    step = torch.optim.AdamW(head.parameters(), lr=0.05)

    for _ in range(50):
        step.zero_grad()
        torch.nn.functional.cross_entropy(head(joined(parts).arrays), joined(parts).targets).backward()
        step.step()

    assert float(head.log_scale.detach().exp()) > 2, "classes that lie apart want sharper logits"


def test_only_several_labels_have_a_bias():
    assert build(spec_of()).bias is None
    assert build(spec_of("multilabel")).bias.shape == (4,)


def test_what_it_cannot_do_is_told_together():
    with pytest.raises(ConfigError) as refused:
        build(spec_of("regression"), temperature=0.0)

    assert len(refused.value.problems) == 2
    assert "temperature must be positive, got 0.0" in refused.value.problems[0]
    assert "cosine cannot do regression" in refused.value.problems[1]
