"""What users type becomes typed settings, or one error that lists every problem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from featurecache.checks import Config, bind_options, check, coerce, config_from, describe
from featurecache.errors import ConfigError
from featurecache.places import Place, Url


@dataclass(frozen=True, kw_only=True)
class Settings:
    store: Path
    epochs: int = 50
    lr: float | None = None
    schedule: Literal["cosine", "no_change"] = "cosine"
    layers: tuple[int, ...] = ()
    option: Mapping[str, Any] = field(default_factory=dict)
    quiet: bool = False

    def __post_init__(self) -> None:
        check((self.epochs > 0, f"epochs must be positive, got {self.epochs}"))


def options(first: int, *, width: int = 3, start: Literal["a", "b"] = "a", rate: float) -> None:
    """Take some options."""


def problems(**values: Any) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        config_from(Settings, values)
    return refused.value.problems


def test_every_false_condition_is_told():
    with pytest.raises(ConfigError, match="2 problems:\n  - one\n  - three"):
        check((False, "one"), (True, "two"), (False, "three"))
    check((True, "two"))


def test_text_from_a_command_line_becomes_the_types_of_the_config():
    given = {"store": "x.zarr", "epochs": "3", "lr": "1e-3", "layers": ["1", "2"], "quiet": "yes", "option": {"k": 1}}

    assert config_from(Settings, given) == Settings(
        store=Path("x.zarr"), epochs=3, lr=1e-3, layers=(1, 2), quiet=True, option={"k": 1}
    )


def test_names_and_choices_may_be_written_with_dashes():
    assert config_from(Settings, {"store": "x", "schedule": "no-change"}).schedule == "no_change"
    assert config_from(Settings, {"store": "x", "lr": None}).lr is None


def test_unknown_missing_mistyped_and_refused_values_are_told_together():
    found = problems(epochz=3, epochs="many", quiet="perhaps")

    assert found == [
        "Settings has no option 'epochz'. Did you mean 'epochs'? Known: epochs, layers, lr, option, quiet, schedule, store",
        "epochs must be an integer, got 'many'",
        "quiet must be true or false, got 'perhaps'",
        "store is required",
    ]


def test_values_that_the_config_refuses_are_told_with_the_others():
    assert problems(store="x", epochs=0, lr="fast") == [
        "lr must be a number or nothing, got 'fast'",
        "epochs must be positive, got 0",
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 2.5}, "epochs must be an integer, got 2.5"),
        ({"epochs": float("inf")}, "epochs must be an integer, got inf"),
        ({"epochs": True}, "epochs must be an integer, got True"),
        ({"lr": "nan"}, "lr must be a number or nothing, got 'nan'"),
        ({"lr": float("inf")}, "lr must be a number or nothing, got inf"),
        ({"layers": "0,1"}, "layers must be a list of an integer, got '0,1'"),
        ({"schedule": "linear"}, "schedule must be one of cosine, no_change, got 'linear'"),
        ({"option": "k"}, "option must be names with values, got 'k'"),
        ({"store": 3}, "store must be a path, got 3"),
        ({"quiet": 1}, "quiet must be true or false, got 1"),
    ],
)
def test_a_value_of_the_wrong_type_is_told_with_the_right_one(values, message):
    assert message in problems(**{"store": "x", **values})


@pytest.mark.parametrize(("value", "hint", "expected"), [
    (4.0, int, 4), (3, float, 3.0), ("3", str, "3"), (3, str, "3"), (5, tuple[int, ...], (5,)), ("off", bool, False),
    ("a", Any, "a"), (None, int | None, None), ("7", int | str, 7), ("seven", int | str, "seven"),
])  # fmt: skip
def test_values_that_fit_without_loss_are_taken(value, hint, expected):
    found = coerce(value, hint)

    assert found == expected
    assert type(found) is type(expected)


def test_options_are_bound_to_the_keyword_parameters_of_a_function():
    assert bind_options(options, {"rate": "0.5", "start": "b"}, "head x") == {"rate": 0.5, "start": "b"}


def test_every_problem_of_options_is_told_with_their_owner():
    with pytest.raises(ConfigError) as refused:
        bind_options(options, {"widht": 4, "start": "c", "first": 1}, "head x")

    assert refused.value.problems == [
        "head x has no option 'widht'. Did you mean 'width'? Known: rate, start, width",
        "start must be one of a, b, got 'c'",
        "head x has no option 'first'. Known: rate, start, width",
        "head x needs the option rate",
    ]


def test_types_are_told_in_words():
    assert describe(tuple[float, ...]) == "a list of a number"
    assert describe(Path | None) == "a path or nothing"


@dataclass(frozen=True, kw_only=True)
class Base(Config):
    """Fields that a verb shares with others."""

    out: Path
    weights: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reading(Base):
    """Every kind of field that names a place."""

    stores: tuple[Place, ...]
    pictures: Path | None = None
    pair: tuple[str, Path] | None = None
    names: tuple[str, ...] = ()
    count: int = 1

    def __post_init__(self) -> None:
        check((self.count > 0, f"count must be positive, got {self.count}"))


def test_paths_are_given_as_text_and_alone_where_there_may_be_several():
    config = Reading(out="runs/x", stores="a.zarr", pictures="p", pair=["lfa", "f.pt"], names="one", weights=Path("w"))

    assert config == Reading(
        out=Path("runs/x"), stores=(Path("a.zarr"),), pictures=Path("p"), pair=("lfa", Path("f.pt")), names=("one",),
        weights="w",
    )  # fmt: skip


def test_urls_are_urls_where_these_may_be_read_and_refused_where_not():
    assert Reading(out="x", stores=["s3://b/a.zarr", Path("b.zarr")]).stores == (Url("s3://b/a.zarr"), Path("b.zarr"))
    with pytest.raises(ConfigError, match="out must be a path, got 's3://b/x', which is not on this machine"):
        Reading(out="s3://b/x", stores="a.zarr")


def test_what_is_no_path_is_refused_with_every_problem():
    with pytest.raises(
        ConfigError, match="(?s)2 problems.*out must be a path, got 3.*pictures must be a path or nothing"
    ):
        Reading(out=3, stores="a.zarr", pictures=True)


def test_a_config_checks_its_values_after_its_paths():
    with pytest.raises(ConfigError, match="count must be positive, got 0"):
        Reading(out="x", stores="a", count=0)


def test_every_verb_takes_its_paths_as_text():
    from importlib import import_module

    import cli

    for place, _ in cli.VERBS.values():
        module, name = place.split(":")[:2]
        assert issubclass(getattr(import_module(module), name), Config), place
