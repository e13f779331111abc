"""What is particular to each protocol: its rows, its classes, what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featurecache.errors import ConfigError, StoreContentsError
from featurecache.stores import FeatureStore, open_store
from pipelines.protocols import of_classes, parse
from pipelines.protocols.base_to_new import harmonic
from tests.pipelines.protocols.samples import balanced, splits, store_of
from tests.pipelines.stores import made_store


def opened(path: Path, rows: int = 60, classes: int = 3, **given) -> FeatureStore:
    given = {"split": splits(rows, classes), "class_names": tuple("abcdefgh"[:classes]), **given}
    return open_store(store_of(path / f"{len(list(path.iterdir()))}.zarr", balanced(rows, classes), **given))


def classes_in(part) -> list[int]:
    return np.bincount(np.asarray(part.store.table().target)[part.rows]).tolist()


def test_folds_test_every_row_once_by_class_and_never_part_a_group(tmp_path):
    store = opened(tmp_path, group=[f"patient {row // 3}" for row in range(60)])

    trials = parse("holdout?folds=5&seed=4").plan([store]).trials

    tested = np.sort(np.concatenate([trial.tests["test"].rows for trial in trials]))
    assert tested.tolist() == list(range(60))
    assert all(classes_in(trial.tests["test"]) == [4, 4, 4] for trial in trials)
    for trial in trials:
        assert not trial.tests["test"].groups() & (trial.fold.train.groups() | trial.fold.validation.groups())
        assert not trial.fold.train.groups() & trial.fold.validation.groups()


def test_folds_of_values_divide_groups_too(tmp_path):
    store = open_store(made_store(tmp_path / "x.zarr", "regression", group=[f"g{row // 3}" for row in range(120)]))

    trials = parse("holdout?folds=4").plan([store]).trials

    assert sorted(row for trial in trials for row in trial.tests["test"].rows.tolist()) == list(range(120))


def test_a_class_that_is_one_group_cannot_be_divided(tmp_path):
    target = balanced(60)
    store = opened(tmp_path, group=["all" if target[row] == 1 else "" for row in range(60)])

    with pytest.raises(StoreContentsError, match="all rows of b are in one group"):
        parse("holdout?folds=2").plan([store])


def test_a_split_that_does_not_exist_is_named_with_those_that_do(tmp_path):
    store = opened(tmp_path)

    with pytest.raises(StoreContentsError, match=r"has no split 'tset'. Did you mean 'test'\? It has test, train, val"):
        parse("holdout?test=tset").plan([store])
    with pytest.raises(ConfigError, match="train rows are learnt from or chosen on"):
        parse("holdout?test=train").plan([store])


def test_shots_are_so_many_of_every_class_and_validation_at_most_four(tmp_path):
    store = opened(tmp_path)

    for trial in parse("few-shot:1,2,5?seed=1").plan([store]).trials:
        shots = trial.labels["shots"]
        assert classes_in(trial.fold.train) == [shots] * 3
        assert classes_in(trial.fold.validation) == [min(shots, 4)] * 3
        assert len(trial.tests["test"].rows) == 12


def test_draws_depend_on_fingerprint_shots_and_seed_and_not_on_the_order_of_rows(tmp_path):
    def drawn(store, text="few-shot:2?seed=1"):
        return sorted(parse(text).plan([store]).trials[0].fold.train.ids())

    store = opened(tmp_path)
    other = opened(tmp_path, rows=60)  # another name, so another fingerprint

    assert drawn(store) == drawn(open_store(store.path))
    assert len({tuple(drawn(store, f"few-shot:2?seed={seed}")) for seed in range(5)}) > 1
    assert drawn(store) != drawn(other)


def test_validation_shots_that_val_lacks_come_from_unused_train_rows_of_other_groups(tmp_path):
    split = ["train" if row < 48 else "test" for row in range(60)]
    groups = [f"g{row // 6}" for row in range(60)]
    store = opened(tmp_path, split=split, group=groups)

    (trial,) = parse("few-shot:2?seed=1").plan([store]).trials

    assert classes_in(trial.fold.validation) == [2, 2, 2]
    assert not trial.fold.train.groups() & trial.fold.validation.groups()


def test_too_few_images_for_the_shots_names_the_classes(tmp_path):
    store = opened(tmp_path)

    with pytest.raises(StoreContentsError, match=r"too few images for 16 of every class in train: a \(12\), b \(12\)"):
        parse("few-shot:16").plan([store])
    with pytest.raises(StoreContentsError, match="few-shot draws rows by class, and .* holds a regression task"):
        parse("few-shot:1").plan([open_store(made_store(tmp_path / "r.zarr", "regression"))])


def test_the_first_half_of_the_classes_is_base_and_each_half_is_numbered_from_zero(tmp_path):
    store = opened(tmp_path, rows=75, classes=5)

    (trial,) = parse("base-to-new:2?seed=1").plan([store]).trials

    assert trial.fold.train.store.header.class_names == ("a", "b", "c")
    assert trial.tests["new"].store.header.class_names == ("d", "e")
    assert classes_in(trial.fold.train) == [2, 2, 2]
    assert classes_in(trial.tests["base"]) == [3, 3, 3] and classes_in(trial.tests["new"]) == [3, 3]
    assert harmonic({"base": 0.5, "new": 1.0}) == pytest.approx(2 / 3) and harmonic({"base": 0.0, "new": 1.0}) == 0
    with pytest.raises(StoreContentsError, match="has 3 classes; two halves of two need at least 4"):
        parse("base-to-new").plan([opened(tmp_path)])


def test_a_store_read_through_other_classes_has_their_texts_and_labels(tmp_path):
    store = opened(tmp_path, text=True)

    view = of_classes(store, ["c", "a"])

    assert np.asarray(view.table().target)[:3].tolist() == [1, -1, 0]
    np.testing.assert_array_equal(view.constant("text/embedding"), store.constant("text/embedding")[[2, 0]])
    assert view.header.constant("text/embedding").tail[0] == 2
    assert view.header.constant("text/logit_scale") == store.header.constant("text/logit_scale")
    assert of_classes(store, ["a", "z"]).header.constants == ()


def test_another_data_set_is_measured_on_the_classes_that_have_the_same_name(tmp_path):
    first = opened(tmp_path)
    second = opened(tmp_path, class_names=("c", "x", "a"))

    (trial,) = parse("cross-data-set?seed=1").plan([first, second]).trials

    other = trial.tests["1"]
    assert sorted({*np.asarray(second.table().target)[other.rows].tolist()}) == [0, 2]
    assert classes_in(other) == [4, 0, 4]
    with pytest.raises(StoreContentsError, match="the names of the classes have nothing in common"):
        parse("cross-data-set").plan([first, opened(tmp_path, class_names=("x", "y", "z"))])
    with pytest.raises(ConfigError, match="holds other features than .*name: 'made', 'other'"):
        parse("cross-data-set").plan([first, opened(tmp_path, backbone="other")])
    with pytest.raises(ConfigError, match="at least one other to measure"):
        parse("cross-data-set").plan([first])


DOMAINS = [("art", "photo", "sketch")[row // 3 % 3] for row in range(60)]


def test_each_domain_is_the_target_once_whole_in_honest_roles_and_without_its_fifth_in_reference_roles(tmp_path):
    store = opened(tmp_path, domain=DOMAINS)
    column = np.array(DOMAINS)

    honest, reference = (
        parse(f"leave-one-domain-out?roles={roles}&trials=1").plan([store]).trials for roles in ("honest", "reference")
    )

    for number, name in enumerate(("art", "photo", "sketch")):
        assert honest[number].tests["target"].rows.tolist() == np.flatnonzero(column == name).tolist()
        count = int((column == name).sum())
        assert len(reference[number].tests["target"].rows) == count - int(0.2 * count)
        assert set(column[honest[number].fold.train.rows]) == {"art", "photo", "sketch"} - {name}


def test_the_oracle_chooses_on_target_rows_that_it_does_not_measure_and_keeps_the_last_values(tmp_path):
    store = opened(tmp_path, domain=DOMAINS)

    oracle, *_ = parse("leave-one-domain-out?select=oracle&trials=1").plan([store]).trials

    (judge,) = oracle.judges
    whole = np.union1d(judge.part.rows, oracle.tests["target"].rows)
    assert oracle.fold.validation is None
    assert whole.tolist() == np.flatnonzero(np.array(DOMAINS) == "art").tolist()


def test_leaving_one_out_judges_by_trainings_that_saw_neither_domain_and_shares_them_between_targets(tmp_path):
    store = opened(tmp_path, domain=DOMAINS)

    trials = parse("leave-one-domain-out?select=leave-one-out&trials=1").plan([store]).trials

    assert [[judge.fold.name for judge in trial.judges] for trial in trials] == [
        ["without-0-1-trial-0", "without-0-2-trial-0"], ["without-0-1-trial-0", "without-1-2-trial-0"],
        ["without-0-2-trial-0", "without-1-2-trial-0"],
    ]  # fmt: skip
    for judge in (judge for trial in trials for judge in trial.judges):
        assert set(np.array(DOMAINS)[judge.part.rows]).isdisjoint(np.array(DOMAINS)[judge.fold.train.rows])


def test_honest_roles_keep_groups_together_where_reference_roles_are_refused(tmp_path):
    groups = [f"g{row // 9}-{DOMAINS[row]}" for row in range(60)]
    store = opened(tmp_path, domain=DOMAINS, group=groups)
    text = "leave-one-domain-out?select=oracle&trials=1"

    (judge,) = parse(text).plan([store]).trials[0].judges

    assert not judge.part.groups() & parse(text).plan([store]).trials[0].tests["target"].groups()
    with pytest.raises(ConfigError, match="groups, such as .*, are on both sides of the test"):
        parse(f"{text}&roles=reference").plan([store])


def test_a_store_without_domains_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(
        StoreContentsError, match="has 0 domains, and leave-one-domain-out needs at least 2. Give the data"
    ):
        parse("leave-one-domain-out").plan([opened(tmp_path)])
    two = opened(tmp_path, domain=[("art", "photo")[row // 3 % 2] for row in range(60)])
    with pytest.raises(StoreContentsError, match=r"2 domains \(art, photo\), and .* at least 3"):
        parse("leave-one-domain-out?select=leave-one-out").plan([two])
