"""What every objective with teachers promises; the suite runs over the registry."""

from __future__ import annotations

import inspect

import pytest
import torch

from pipelines.objectives import OBJECTIVES, names
from tests.pipelines.objectives.samples import DIMENSIONS, TinyStudent, objective_of, trained

GUIDED = [name for name in names() if name in OBJECTIVES.names()]
LEARN_THEMSELVES = {"aft", "kd", "kernel_kd", "feature_prior", "factor_transfer"}


class ObjectiveContract:
    """Inherited by `TestObjectives`."""

    name: str

    def test_after_twenty_steps_all_moved_that_should_and_no_teacher_did(self):
        before = TinyStudent()
        start = objective_of(self.name, before)

        values, objective, source, pace = trained(self.name)

        assert pace.steps == 20
        assert all(not torch.equal(values[name], value) for name, value in before.state().items())
        moved = {
            name for (name, old), new in zip(start.distance.named_parameters(), objective.distance.parameters(), strict=True)
            if not torch.equal(old, new)
        }  # fmt: skip
        assert moved == dict(start.distance.named_parameters()).keys()
        assert bool(moved) == (self.name in LEARN_THEMSELVES)
        assert all(torch.equal(rows, before.told[name]) for name, rows in source.told.items())
        fixed, kept = (dict(one.distance.named_buffers()) for one in (start, objective))
        assert all(torch.equal(fixed[name], kept[name]) for name in fixed)

    @pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
    def test_with_prec_0_the_weights_are_those_of_none_bit_for_bit(self, optimizer):
        alone, *_ = trained("none", optimizer=optimizer)

        values, *_ = trained(self.name, prec=0.0, optimizer=optimizer)

        assert all(torch.equal(values[name], value) for name, value in alone.items())

    def test_the_teachers_change_what_is_learnt(self):
        alone, *_ = trained("none")

        values, *_ = trained(self.name, prec=1.0)

        assert any(not torch.equal(values[name], value) for name, value in alone.items())

    def test_distances_are_of_float32_whatever_the_precision_of_the_student(self):
        source = TinyStudent()
        objective, batch = objective_of(self.name, source), source.batch(torch.arange(12).numpy())
        features = batch.arrays["embedding"].detach().bfloat16()

        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = objective.distance({"embedding": features}, batch).total
        high = objective.distance({"embedding": features.float()}, batch).total

        assert low.dtype == torch.float32 and torch.equal(low, high)

    def test_its_parts_are_told(self):
        source = TinyStudent()
        objective, batch = objective_of(self.name, source, prec=3.0), source.batch(torch.arange(12).numpy())

        total, parts = objective({**batch.arrays, "logits": torch.zeros(12, 3)}, batch)

        torch.testing.assert_close(total, parts["likelihood"] + 3 * parts["distance"])
        assert parts["distance"] > 0 and not any(part.requires_grad for part in parts.values())

    def test_its_file_says_where_it_is_from_and_how_it_learns(self):
        room = OBJECTIVES.load(self.name)

        assert room.PAPER and isinstance(room.PAIRS, bool) and isinstance(room.OWN_RATE, bool)
        options = [p for p in inspect.signature(room.build).parameters.values() if p.name != "dimensions"]
        assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in options)
        assert len(room.build(DIMENSIONS).scales()) in (0, len(DIMENSIONS.teachers))
        assert self._compares_rows() == room.PAIRS

    def _compares_rows(self) -> bool:
        """Return whether the distance of two halves of a batch is another than that of the whole."""
        source = TinyStudent()
        objective, rows = objective_of(self.name, source).distance, torch.arange(16).numpy()
        whole, *halves = (
            objective(dict(source.batch(some).arrays), source.batch(some)).total for some in (rows, rows[:8], rows[8:])
        )
        return not torch.allclose(whole, sum(halves) / 2, rtol=1e-4)
