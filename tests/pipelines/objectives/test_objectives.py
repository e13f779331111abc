"""Objectives of students by other routes: products that are made, distances one by one, fits by hand; and what they refuse."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featurecache.errors import ConfigError
from featurecache.sources.joined import teacher_array
from logme import LogME
from pipelines.objectives import Dimensions, Guidance, Material, _triangles, guided
from pipelines.objectives import _paraphrasing as paraphrasing
from pipelines.objectives._kernels import cosine_kernel, product_kernel
from pipelines.objectives._triangles import angle_distance, angles, lengths_of, products_of
from pipelines.objectives.cross_entropy import build as likelihood
from pipelines.objectives.rkd import relative
from tests.pipelines.objectives.samples import TinyStudent, objective_of, trained


@pytest.mark.parametrize(("one", "other"), [(256, 256), (7, 3), (1, 1)])
def test_the_kernel_of_products_is_that_of_the_products_made(one, other):
    draw = torch.Generator().manual_seed(0)
    left, right = (
        torch.randn(20, width, generator=draw, dtype=torch.float64).requires_grad_() for width in (one, other)
    )
    made = torch.einsum("bi,bj->bij", left, right).flatten(1)

    ours, theirs = product_kernel(left, right), cosine_kernel(made)

    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    weights = torch.randn(20, 20, generator=draw, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((kernel * weights).sum(), (left, right), retain_graph=True) for kernel in (ours, theirs)
    ]
    for mine, brute in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, brute, rtol=1e-7, atol=1e-10)


def test_equal_rows_have_a_kernel_of_zeros_and_a_gradient():
    rows = torch.ones(4, 3, requires_grad=True)

    for kernel in (cosine_kernel(rows), product_kernel(rows, rows)):
        kernel.sum().backward()
        assert torch.equal(kernel, torch.zeros(4, 4)) and torch.isfinite(rows.grad).all()


def test_relations_are_those_of_the_differences_one_by_one():
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[5] = rows[4]  # two of them are one point
    far = torch.stack([torch.stack([(a - b).norm() for b in rows]) for a in rows])

    products = products_of(rows)
    lengths = lengths_of(products)

    torch.testing.assert_close(relative(lengths), far / far[far > 0].mean())
    cosines = angles(products, lengths)
    for i, j, k in product(range(6), repeat=3):
        one, other = (nn.functional.normalize(rows[place] - rows[i], dim=0) for place in (j, k))
        assert cosines[i, j, k].item() == pytest.approx((one @ other).item(), abs=1e-12)


@pytest.mark.parametrize("held", [1, 40, 10_000])
def test_the_distance_of_angles_is_that_of_all_triplets_and_so_is_its_gradient(held, monkeypatch):
    monkeypatch.setattr(_triangles, "HELD", held)
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(6, 4, generator=draw, dtype=torch.float64)
    rows[5] = rows[4]
    told = products_of(torch.randn(6, 3, generator=draw, dtype=torch.float64))

    def distance(rows: Tensor) -> Tensor:
        products = products_of(rows)
        return angle_distance(products, lengths_of(products), told, lengths_of(told), torch.float64)

    near = products_of(rows)
    found, wanted = angles(near, lengths_of(near)), angles(told, lengths_of(told))
    assert distance(rows).item() == pytest.approx(nn.functional.smooth_l1_loss(found, wanted).item(), rel=1e-12)
    assert (found - wanted).abs().max() > 1  # both branches of the loss are there
    assert torch.autograd.gradcheck(lambda some: distance(torch.cat([some, rows[4:]])), rows[:4].requires_grad_())


def test_b_tuning_mixes_the_predictions_of_logme():
    source = TinyStudent()

    tuning = objective_of("b_tuning", source, temperature=0.5).distance

    whole = source.batch(np.arange(len(source)))
    fits = [LogME().fit(values.detach().numpy(), whole.targets.numpy()) for values in whole.arrays.values()]
    *teachers, own = fits
    shares = torch.tensor([one.score_ for one in teachers]).div(0.5).softmax(0)
    torch.testing.assert_close(tuning.shares, shares.float())
    targets = sum(
        share * whole.arrays[teacher_array(n)].double() @ torch.from_numpy(one.weights_).T
        for n, (share, one) in enumerate(zip(shares, teachers, strict=True))
    )
    said = whole.arrays["embedding"].double() @ torch.from_numpy(own.weights_).T
    assert tuning(dict(whole.arrays), whole).total.item() == pytest.approx(
        (said - targets).square().mean().item(), rel=1e-5
    )


def test_b_tuning_says_why_logme_cannot_be_had():
    source = TinyStudent()
    source.told[teacher_array(1)][7, 2] = float("nan")

    with pytest.raises(ConfigError, match=r"b_tuning needs LogME of teacher/01, which cannot be had: .*row 7"):
        objective_of("b_tuning", source)


class TestFactorTransfer:
    @pytest.fixture(autouse=True)
    def short(self, monkeypatch):
        monkeypatch.setattr(paraphrasing, "EPOCHS", 30)
        monkeypatch.setattr(paraphrasing, "BATCH", 32)

    def test_codes_are_what_its_autoencoders_make_of_every_row(self):
        source = TinyStudent()

        distance = objective_of("factor_transfer", source).distance

        assert distance.codes.shape == (80, 10 // 2 + 6 // 2) and (distance.codes >= 0).all()
        rows = np.array([70, 3, 3])
        assert torch.equal(distance.of_rows(source.batch(rows))[0], distance.codes[[70, 3, 3]])

    def test_an_autoencoder_stops_early_on_validation_and_is_kept_for_the_next_training(self, tmp_path, monkeypatch):
        source, epochs = TinyStudent(), []
        fit = paraphrasing.fit
        monkeypatch.setattr(paraphrasing, "EPOCHS", 500)
        monkeypatch.setattr(paraphrasing, "PATIENCE", 1)
        monkeypatch.setattr(
            paraphrasing, "fit", lambda members, *rest: fit(members, *rest) and epochs.append(len(members[0].history))
        )
        monkeypatch.setattr(paraphrasing, "RATE", 10.0)  # nothing gets better so
        other = TinyStudent(rows=40)
        material = {"student": source, "cache": tmp_path}

        for keys in (("1", "2"), ("1", "2"), ("1", "3")):
            objective = guided("factor_transfer", Dimensions(5, (10, 6)), guidance(), {})
            objective.prepare(Material(**material, keys=keys, teachers={"train": source, "val": other}))

        assert len(epochs) == 3 and max(epochs) < 500, "three teachers, each compressed once"
        assert len(list(tmp_path.iterdir())) == 3

    def test_it_needs_validation_rows(self):
        source, empty = TinyStudent(), TinyStudent(rows=0)
        objective = guided("factor_transfer", Dimensions(5, (10, 6)), guidance(), {})

        with pytest.raises(
            ConfigError, match="stops early on validation rows, and there are none. Give the data a val"
        ):
            objective.prepare(Material(teachers={"train": source, "val": empty}, student=source))


def guidance() -> Guidance:
    return Guidance(likelihood=likelihood("classification"), prec=1.0)


def test_the_student_rests_between_every_third_step():
    frequent, *_ = trained("aft", epochs=1)
    values, objective, *_ = trained("aft", epochs=1, prior_freq=3)
    once, *_ = trained("aft", epochs=1, prior_freq=5)

    rests = [objective.detach_student(step) for step in range(5)]
    assert rests == [False, True, True, False, True]
    assert len({tuple(one["weight"].flatten().tolist()) for one in (frequent, values, once)}) == 3
    assert not torch.equal(objective.distance.s, torch.zeros(16))


def test_fixed_scales_stay():
    _, objective, *_ = trained("aft", learn_scales=False)

    assert torch.equal(objective.distance.s, torch.zeros(16)) and objective.parameter_groups() == []


def test_a_product_needs_two_teachers():
    with pytest.raises(ConfigError, match="kernel product multiplies two teachers, and there are 1"):
        guided("aft", Dimensions(5, (10,)), guidance(), {"kernel": "product"})
