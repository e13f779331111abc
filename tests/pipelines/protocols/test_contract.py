"""Every protocol keeps the room's promises; the grammar that names them."""

from __future__ import annotations

import pytest

from featurecache.errors import ConfigError, UnknownNameError
from featurecache.stores import open_store
from pipelines.protocols import PROTOCOLS, Fold, Part, Trial, parse
from tests.pipelines.protocols.contract import ProtocolContract
from tests.pipelines.protocols.samples import balanced, splits, store_of


class TestHoldout(ProtocolContract):
    text = "holdout?seed=1,2"


class TestFolds(ProtocolContract):
    text = "holdout?folds=3&seed=0,1"


class TestFewShot(ProtocolContract):
    text = "few-shot:1,2?seed=1,2"


class TestBaseToNew(ProtocolContract):
    text = "base-to-new:2?seed=1"


class TestLeaveOneDomainOut(ProtocolContract):
    text = "leave-one-domain-out?select=training-domain,leave-one-out,oracle&trials=2&settings=2"


class TestReferenceRoles(ProtocolContract):
    text = "leave-one-domain-out?select=training-domain,leave-one-out,oracle&roles=reference&trials=1&settings=2"


class TestCrossDataSet(ProtocolContract):
    text = "cross-data-set?seed=1,2"
    stores = 2


def test_every_protocol_is_held_to_the_contract():
    held = {parse(one.text).name for one in ProtocolContract.__subclasses__()}

    assert held == {name.replace("_", "-") for name in PROTOCOLS.names()}


@pytest.mark.parametrize("name", PROTOCOLS.names())
def test_a_protocol_asked_to_select_on_test_is_refused_with_the_reason(name):
    with pytest.raises(ConfigError, match="selection never sees test rows"):
        parse(f"{name}?select=test")


def test_everything_wrong_with_a_name_is_told_together():
    with pytest.raises(ConfigError) as refused:
        parse("few-shot:one?sed=1&seed")

    said = " ".join(refused.value.problems)
    assert "shots must be a list of an integer" in said
    assert "has no option 'sed'. Did you mean 'seed'?" in said
    assert "'seed' is not key=value" in said
    with pytest.raises(UnknownNameError, match="no protocol called 'few-shots'. Did you mean 'few_shot'?"):
        parse("few-shots:1")
    with pytest.raises(ConfigError, match="holdout takes no argument, got '5'"):
        parse("holdout:5")


def test_a_trial_that_learns_from_what_it_measures_cannot_be_made(tmp_path):
    rows = 12
    store = open_store(store_of(
        tmp_path / "x.zarr", balanced(rows), split=splits(rows), group=[f"g{row // 4}" for row in range(rows)],
    ))  # fmt: skip
    first, second = (Part(store, balanced(rows, 12)[some]) for some in (slice(0, 4), slice(4, 8)))
    halved = Part(store, balanced(rows, 12)[2:6])

    Trial(name="t", labels={}, fold=Fold(name="f", train=first, validation=None), tests={"test": second})
    with pytest.raises(ConfigError, match=r"t: 4 test rows are also learnt from or chosen on, such as 000.jpg"):
        Trial(name="t", labels={}, fold=Fold(name="f", train=first, validation=None), tests={"test": first})
    with pytest.raises(ConfigError, match="2 test rows are also learnt from or chosen on"):
        Trial(name="t", labels={}, fold=Fold(name="f", train=first, validation=halved), tests={"test": second})
    rest = Part(store, balanced(rows, 12)[6:8])
    with pytest.raises(ConfigError, match="1 groups, such as g1, are on both sides of the test"):
        Trial(name="t", labels={}, fold=Fold(name="f", train=halved, validation=None), tests={"test": rest})
