"""What every protocol promises of its trials, on a store that allows it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from featurecache.stores import FeatureStore, open_store
from pipelines.protocols import Plan, parse
from tests.pipelines.protocols.samples import balanced, splits, store_of

ROWS = 120
CLASSES = ("ant", "bee", "cow", "dog")


class ProtocolContract:
    """Inherit, and say how the protocol is asked for."""

    text: str
    """The protocol as users write it."""
    stores = 1

    @pytest.fixture
    def opened(self, tmp_path: Path) -> list[FeatureStore]:
        """Stores of four classes and three domains, each domain with all classes."""
        target = balanced(ROWS, 4)
        domain = [("air", "ground", "water")[row // 4 % 3] for row in range(ROWS)]
        return [
            open_store(store_of(
                tmp_path / f"store{n}.zarr", target, split=splits(ROWS, 4), domain=domain, class_names=CLASSES,
            )) for n in range(self.stores)
        ]  # fmt: skip

    def plan(self, opened: Sequence[FeatureStore]) -> Plan:
        """Return the trials of the protocol."""
        return parse(self.text).plan(opened)

    def test_no_row_of_a_test_is_learnt_from_or_chosen_on(self, opened):
        for trial in self.plan(opened).trials:
            known = [trial.fold.train, trial.fold.validation]
            known += [part for judge in trial.judges for part in (judge.part, judge.fold.train, judge.fold.validation)]
            for test in trial.tests.values():
                assert len(test.rows)
                for part in known:
                    same = part is not None and part.store.path == test.store.path
                    assert not same or not set(part.rows.tolist()) & set(test.rows.tolist())

    def test_the_trials_are_a_function_of_the_store_and_the_name(self, opened):
        first, again = self.plan(opened), self.plan([open_store(store.path) for store in opened])

        assert [trial.name for trial in first.trials] == [trial.name for trial in again.trials]
        for one, other in zip(first.trials, again.trials, strict=True):
            np.testing.assert_array_equal(one.fold.train.rows, other.fold.train.rows)
            assert [dict(setting) for setting in one.fold.settings] == [
                dict(setting) for setting in other.fold.settings
            ]

    def test_names_are_unique_and_good_for_files_and_labels_say_what_is_averaged(self, opened):
        plan = self.plan(opened)

        names = [trial.name for trial in plan.trials]
        assert len(set(names)) == len(names)
        assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for name in names)
        assert all(set(plan.over) <= set(trial.labels) for trial in plan.trials)

    def test_rows_of_a_part_are_ascending_and_each_there_once(self, opened):
        for trial in self.plan(opened).trials:
            for part in (trial.fold.train, trial.fold.validation, *trial.tests.values()):
                assert part is None or bool((np.diff(part.rows) > 0).all())

    def test_the_full_name_parses_to_the_same_protocol(self):
        asked = parse(self.text)

        assert parse(asked.full).full == asked.full
        assert parse(asked.full).options == asked.options
