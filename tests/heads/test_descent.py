"""Many problems at once end where each has its minimum."""

from __future__ import annotations

import torch

from heads._descent import Descent


def bowls(count: int = 5, width: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (M, P, P) curvatures of very different shape, (M, P) minima and (M,) least values."""
    draw = torch.Generator().manual_seed(0)
    turned = torch.linalg.qr(torch.randn(count, width, width, generator=draw, dtype=torch.float64))[0]
    scales = torch.stack([torch.logspace(0, number, width, dtype=torch.float64) for number in range(count)])
    minima = torch.randn(count, width, generator=draw, dtype=torch.float64)
    return turned @ (scales[:, :, None] * turned.mT), minima, torch.arange(1.0, count + 1).double()


def test_every_problem_reaches_its_own_minimum_and_is_then_left_alone():
    curvatures, minima, least = bowls()
    asked: list[int] = []

    def evaluate(which, points):
        asked.append(len(which))
        away = points - minima[which]
        slopes = (curvatures[which] @ away[:, :, None])[:, :, 0]
        return least[which] + (away * slopes).sum(1) / 2, slopes

    descent = Descent(torch.zeros(5, 12, dtype=torch.float64), memory=8)
    descent.run(evaluate, tolerance=1e-12, most=2000, noise=0.0)

    torch.testing.assert_close(descent.values, least, rtol=1e-10, atol=0)
    assert asked[0] == 5 and asked[-1] < 5
    assert sum(asked) == int(descent.evaluations.sum())
    assert descent.evaluations[0] < descent.evaluations[-1]


def test_a_step_that_is_too_long_is_made_shorter():
    def evaluate(which, points):  # a valley so narrow that the slope is far longer than the way
        return 1 + 1e6 * points.square().sum(1), 2e6 * points

    descent = Descent(torch.ones(1, 3, dtype=torch.float64), memory=4)
    descent.run(evaluate, tolerance=1e-12, most=100, noise=0.0)

    torch.testing.assert_close(descent.values, torch.ones(1, dtype=torch.float64))


def test_it_stops_where_values_are_no_numbers():
    def evaluate(which, points):
        return torch.full((len(which),), torch.nan, dtype=torch.float64), torch.ones_like(points)

    descent = Descent(torch.zeros(2, 3, dtype=torch.float64), memory=4)
    descent.run(evaluate, tolerance=1e-12, most=100, noise=0.0)

    assert torch.equal(descent.points, torch.zeros(2, 3, dtype=torch.float64))
