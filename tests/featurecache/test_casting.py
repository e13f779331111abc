"""Features go into the store's dtype whole, or are refused with the layer, the sample and the way out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featurecache.casting import WORST_ERROR, as_tensor, stored_form
from featurecache.errors import FeatureValueError
from featurecache.features import ArraySpec, as_numbers

IDS = ["a.jpg", "b.jpg", "c.jpg"]


def stored(values: torch.Tensor, dtype: str, skipped: dict[int, str] | None = None) -> np.ndarray:
    spec = ArraySpec("layers/cls/03", tuple(values.shape[1:]), dtype)
    return stored_form([{"layers/cls/03": values}], [spec], IDS, skipped or {})["layers/cls/03"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_values_come_back_as_torch_would_cast_them(dtype):
    values = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))

    kept = stored(values, dtype)

    expected = values.to(getattr(torch, dtype))
    assert kept.shape == (3, 1, 8)
    assert kept.dtype == ArraySpec("x", (8,), dtype).storage_dtype
    assert torch.equal(as_tensor(kept[:, 0], dtype), expected)
    np.testing.assert_array_equal(as_numbers(kept[:, 0], dtype).astype(np.float32), expected.float().numpy())


def test_bfloat16_reads_back_every_pattern_of_bits_but_those_of_no_number():
    bits = np.arange(2**16, dtype=np.uint16)

    numbers = as_numbers(bits, "bfloat16")

    reference = as_tensor(bits, "bfloat16").float().numpy()
    np.testing.assert_array_equal(numbers, reference)


def test_rows_of_skipped_samples_are_zero_and_the_others_stay():
    values = torch.ones(3, 4)
    values[1] = float("nan")

    kept = stored(values, "float16", {1: "truncated"})

    assert not kept[1].any()
    assert (kept[[0, 2]] == 1).all()
    assert torch.isnan(values[1]).all(), "the backbone's own tensor is left alone"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_what_is_not_a_number_is_refused_naming_layer_and_sample(dtype, bad):
    values = torch.ones(3, 4)
    values[2, 1] = bad

    with pytest.raises(FeatureValueError, match=r"NaN or infinity in layers/cls/03 for 'c\.jpg'.*--precision fp32"):
        stored(values, dtype)


def test_a_value_beyond_the_dtype_is_refused_with_dtypes_that_hold_it():
    values = torch.ones(3, 4)
    values[1, 2] = -70000.0

    with pytest.raises(FeatureValueError, match=r"layers/cls/03 of 'b\.jpg' reaches 7e\+04, which float16 cannot hold"):
        stored(values, "float16")
    assert np.isfinite(as_numbers(stored(values, "bfloat16"), "bfloat16")).all()


def test_values_that_the_dtype_swallows_are_refused():
    with pytest.raises(FeatureValueError, match=r"layers/cls/03 loses .* as float16 .*'a\.jpg'.* Give --dtype float32"):
        stored(torch.full((3, 4), 1e-8), "float16")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_ordinary_values_lose_less_than_is_accepted(dtype):
    values = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))

    kept = torch.from_numpy(as_numbers(stored(values, dtype)[:, 0], dtype).astype(np.float32))

    assert 0 < (values - kept).norm() / values.norm() < WORST_ERROR[dtype]


def test_zeros_are_kept():
    assert not stored(torch.zeros(3, 4), "float16").any()
