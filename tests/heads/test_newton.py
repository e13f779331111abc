"""Many problems at once end where each has its minimum."""

from __future__ import annotations

import torch
from torch import Tensor

from heads._newton import Product, descend


class Bowls:
    """M parabolas of very different shape, or their exponentials: see `Problems`."""

    def __init__(self, count: int = 5, width: int = 12, *, steep: bool = False) -> None:
        draw = torch.Generator().manual_seed(0)
        turned = torch.linalg.qr(torch.randn(count, width, width, generator=draw, dtype=torch.float64))[0]
        scales = torch.stack([torch.logspace(0, number, width, dtype=torch.float64) for number in range(count)])
        self.matrices = turned @ (scales[:, :, None] * turned.mT)
        self.minima = torch.randn(count, width, generator=draw, dtype=torch.float64)
        self.least = torch.arange(1.0, count + 1).double()
        self.steep, self.asked = steep, list[int]()

    def _parabola(self, which: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        away = points - self.minima[which]
        slopes = (self.matrices[which] @ away[:, :, None])[:, :, 0]
        return (away * slopes).sum(1) / 2, slopes

    def evaluate(self, which: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        self.asked.append(len(which))
        heights, slopes = self._parabola(which, points)
        if not self.steep:
            return self.least[which] + heights, slopes
        return self.least[which] + (heights / 10).expm1() * 10, (heights / 10).exp()[:, None] * slopes

    def curvature(self, which: Tensor, points: Tensor) -> Product:
        heights, slopes = self._parabola(which, points)
        grown = (heights / 10).exp() if self.steep else torch.ones_like(heights)

        def product(places: Tensor, directions: Tensor) -> Tensor:
            bent = (self.matrices[which[places]] @ directions[:, :, None])[:, :, 0]
            if self.steep:
                bent += slopes[places] * (slopes[places] * directions).sum(1, keepdim=True) / 10
            return grown[places, None] * bent

        return product

    def preconditioned(self, which: Tensor, slopes: Tensor) -> Tensor:
        return slopes / self.matrices[which].diagonal(dim1=1, dim2=2)


def start(problems: Bowls) -> Tensor:
    return torch.zeros_like(problems.minima)


def test_every_problem_reaches_its_own_minimum():
    problems = Bowls()

    found = descend(problems, start(problems), tolerance=1e-12, noise=0.0)

    torch.testing.assert_close(found.values, problems.least, rtol=1e-9, atol=0)


def test_a_problem_that_has_ended_is_left_alone():
    problems, starts = Bowls(), torch.zeros(5, 12, dtype=torch.float64)
    starts[0] = problems.minima[0] + 1e-9

    found = descend(problems, starts, tolerance=1e-9, noise=0.0)

    assert problems.asked[0] == 5 and problems.asked[-1] < 5
    assert found.products[0] < found.products[-1]


def test_a_step_that_is_too_long_is_made_shorter():
    problems = Bowls(2, steep=True)

    found = descend(problems, start(problems), tolerance=1e-12, noise=0.0)

    torch.testing.assert_close(found.values, problems.least, rtol=1e-9, atol=0)
    assert len(problems.asked) > 3


def test_what_is_known_of_the_starts_is_not_asked_for():
    problems = Bowls()
    starts = start(problems)
    known = problems.evaluate(torch.arange(5), starts)
    problems.asked.clear()

    found = descend(problems, starts, tolerance=1e-9, noise=0.0, known=known)

    alone = Bowls()
    assert torch.equal(found.points, descend(alone, starts, tolerance=1e-9, noise=0.0).points)
    assert len(problems.asked) == len(alone.asked) - 1


def test_what_it_says_is_left_is_no_less_than_what_is_left():
    problems = Bowls()

    found = descend(problems, start(problems), tolerance=1e-3, noise=0.0)

    assert (found.values - problems.least <= found.left).all()
    assert (found.left <= 1e-3 * found.values).all()


def test_it_stops_where_values_are_no_numbers():
    class Nowhere(Bowls):
        def evaluate(self, which, points):
            return torch.full((len(which),), torch.nan, dtype=torch.float64), torch.ones_like(points)

    problems = Nowhere()

    found = descend(problems, start(problems), tolerance=1e-12, noise=0.0)

    assert torch.equal(found.points, start(problems))
    assert found.left.isinf().all()


def test_where_nothing_falls_nothing_is_left_and_nothing_is_tried():
    problems = Bowls()

    found = descend(problems, problems.minima.clone(), tolerance=1e-9, noise=0.0)

    assert problems.asked == [5]
    assert torch.equal(found.points, problems.minima) and not found.left.any()
