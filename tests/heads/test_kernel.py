"""The kernel against its formula row by row, the solution against scikit-learn's, and the landmarks that travel with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge

from featurecache.errors import ConfigError
from heads._checkpoint import load_head, save_head
from heads.kernel import Kernel, build, likeness
from tests.heads.samples import LAYERS, batches, joined, spec_of

SHAPE = (2.0, 0.25, 2.0)


def by_hand(x: list[np.ndarray], y: list[np.ndarray], shape: tuple[float, float, float]) -> np.ndarray:
    """Return the (B, M) kernel of L arrays, written out."""
    depth, sharpness, power = shape
    found = np.zeros((len(x[0]), len(y[0])))
    for i, j in np.ndindex(found.shape):
        total, weights = 0.0, 0.0
        for number, (a, b) in enumerate(zip(x, y, strict=True), 1):
            weight = (number / len(x)) ** depth
            total += weight * math.exp(-sharpness * sum((a[i] - b[j]) ** 2) / a.shape[1])
            weights += weight
        found[i, j] = (total / weights) ** power
    return found


def standardised(parts: list) -> list[np.ndarray]:
    arrays = [values.double().numpy() for values in joined(parts).arrays.values()]
    return [(values - values.mean(0)) / values.std(0) for values in arrays]


def solved(parts: list, task: str = "regression", **options: object) -> Kernel:
    head = build(spec_of(task, LAYERS, standardised_by=parts), **{"depth": 2.0, "power": 2.0, **options})
    head.solve(parts)
    return head


def test_rows_are_compared_as_the_formula_says():
    x, y = ([values[piece] for values in standardised(batches(widths=LAYERS))] for piece in (slice(9), slice(9, 20)))

    said = likeness([torch.from_numpy(v).float() for v in x], [torch.from_numpy(v).float() for v in y], SHAPE)

    np.testing.assert_allclose(said.numpy(), by_hand(x, y, SHAPE), rtol=1e-4)


def test_with_every_row_a_landmark_it_is_scikit_learns_kernel_ridge_of_the_centred_kernel():
    parts = batches("regression", LAYERS, rows=60)
    head = solved(parts, lambdas=(0.01,))

    rows = standardised(parts)
    kernel, targets = by_hand(rows, rows, SHAPE), joined(parts).targets.double().numpy()
    centred = kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()
    model = KernelRidge(alpha=0.01 * 60, kernel="precomputed").fit(centred, targets - targets.mean(0))
    expected = model.predict(centred) + targets.mean(0)
    np.testing.assert_allclose(head(joined(parts).arrays).numpy(), expected, rtol=2e-2, atol=5e-3)


def test_its_leave_one_out_error_is_that_of_refitting_without_each_row():
    parts = batches("regression", LAYERS, rows=40)
    head = build(spec_of("regression", LAYERS, standardised_by=parts), lambdas=(0.01,), power=2.0)

    said = head.solve(parts)["leave_one_out_error"]

    rows, targets = standardised(parts), joined(parts).targets.double().numpy()
    kernel, errors = by_hand(rows, rows, SHAPE), []
    for row in range(40):
        rest = np.arange(40) != row
        inner, seen = kernel[np.ix_(rest, rest)], targets[rest]
        centre = inner.mean(0)
        model = KernelRidge(alpha=0.01 * 40, kernel="precomputed")
        model.fit(inner - centre - centre[:, None] + inner.mean(), seen - seen.mean(0))
        asked = kernel[row, rest] - kernel[row, rest].mean() - centre + inner.mean()
        errors.append(np.square(model.predict(asked[None])[0] + seen.mean(0) - targets[row]).mean())
    assert said == pytest.approx(np.mean(errors), rel=2e-2)


def test_few_landmarks_say_nearly_what_all_rows_say():
    parts = batches("regression", LAYERS, rows=300)

    few, all_rows = solved(parts, landmarks=150), solved(parts, landmarks=300)

    assert len(few.landmarks) == 150
    arrays = joined(batches("regression", LAYERS, rows=300)).arrays
    away = (few(arrays) - all_rows(arrays)).square().mean() / all_rows(arrays).var()
    assert float(away) < 0.05


def test_the_landmarks_do_not_depend_on_the_batches():
    parts = batches("regression", LAYERS, rows=90, size=32)
    spec = spec_of("regression", LAYERS, standardised_by=parts)
    one, other = build(spec, landmarks=20), build(spec, landmarks=20)

    one.solve(parts), other.solve([joined(parts)])

    assert torch.equal(one.landmarks, other.landmarks)


def test_it_tells_apart_what_no_affine_map_of_a_layer_can():
    torch.manual_seed(0)
    parts = batches(widths=LAYERS, rows=300, classes=2)
    for part in parts:
        values = part.arrays["layers/cls/05"]
        part.targets[:] = ((values[:, 0] > 3) ^ (values[:, 1] > 3)).long()
    spec = spec_of(widths=LAYERS, classes=2, standardised_by=parts)
    head = build(spec)

    head.solve(parts)

    assert (head(joined(parts).arrays).argmax(1) == joined(parts).targets).float().mean() > 0.9


def test_a_head_built_anew_takes_as_many_landmarks_as_were_saved(tmp_path):
    parts = batches(widths=LAYERS, rows=77)
    head = solved(parts, "classification")
    spec = spec_of(widths=LAYERS, standardised_by=parts)

    save_head(tmp_path, head, "kernel", spec, {"power": 2.0})
    again, _ = load_head(tmp_path)

    assert again.landmarks.shape == (77, sum(LAYERS.values()))
    assert torch.equal(again(parts[0].arrays), head(parts[0].arrays))


def test_every_option_out_of_range_is_told():
    with pytest.raises(ConfigError) as refused:
        build(spec_of(), depth=-1.0, sharpness=0.0, power=0.0, landmarks=1, lambdas=(0.0,))

    assert [problem.split()[0] for problem in refused.value.problems] == [
        "depth", "sharpness", "power", "landmarks", "lambdas",
    ]  # fmt: skip


def test_one_row_is_refused():
    with pytest.raises(ConfigError, match="kernel needs at least two training rows, got 1"):
        build(spec_of()).solve(batches(rows=1))
