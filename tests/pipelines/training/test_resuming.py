"""A training that was stopped goes on to the same bits, and never with the checkpoint of another one."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

from featurecache.errors import RunError
from heads._checkpoint import build_head
from pipelines.objectives import Loss
from pipelines.objectives.cross_entropy import build as objective_of
from pipelines.training import resuming
from pipelines.training.fitting import fit
from pipelines.training.recipe import Recipe
from pipelines.training.stack import Member
from tests.heads.samples import LAYERS, spec_of
from tests.pipelines.training.samples import member, sources


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_training_that_was_stopped_anywhere_ends_with_the_same_bits(tmp_path, monkeypatch, count, optimizer):
    monkeypatch.setattr(resuming, "SECONDS", 0.0)
    file = tmp_path / "checkpoint.pt"

    def trained(limit: float = math.inf, checkpoint: Path | None = None) -> list[Member]:
        train, validation = sources(widths=LAYERS)
        members = []
        for seed in range(count):
            torch.manual_seed(seed)
            head = build_head("lfa", spec_of(widths=LAYERS), {"dropout": 0.4, "start": "published"})
            members.append(Member(head, 0.01 * (1 + seed), 0.1, random_state=torch.get_rng_state()))
        steps = itertools.count(1)

        def stopping(outputs, batch) -> Loss:
            if next(steps) > limit:
                raise KeyboardInterrupt
            return objective_of("classification")(outputs, batch)

        recipe = Recipe(epochs=3, batch_size=50, optimizer=optimizer)
        fit(members, train, validation, stopping, recipe, "classification", checkpoint=checkpoint)
        return members

    whole = trained()
    for limit in (1, 2, 3, 2):
        with pytest.raises(KeyboardInterrupt):
            trained(limit, file)
        assert file.exists() or limit == 1
    resumed = trained(checkpoint=file)

    assert not file.exists()
    for one, other in zip(resumed, whole, strict=True):
        assert (one.best, one.best_epoch) == (other.best, other.best_epoch)
        assert one.history == other.history
        assert all(torch.equal(value, other.head.state_dict()[key]) for key, value in one.head.state_dict().items())


def test_a_checkpoint_that_is_damaged_or_of_another_training_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(resuming, "SECONDS", 0.0)
    file, (train, validation) = tmp_path / "checkpoint.pt", sources()

    def stop(outputs, batch) -> Loss:
        if file.exists():
            raise KeyboardInterrupt
        return objective_of("classification")(outputs, batch)

    def run(name: str, objective) -> None:
        one = member(name, train, "classification", 0.01, 0.0)
        fit([one], train, validation, objective, Recipe(epochs=2, batch_size=50), "classification", checkpoint=file)

    with pytest.raises(KeyboardInterrupt):
        run("linear", stop)
    with pytest.raises(RunError, match=r"holds no training that can be gone on with .* Remove it"):
        run("lfa", stop)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(RunError, match=r"holds no training that can be gone on with .* Remove it"):
        run("linear", stop)
