"""What is read from a source is what importing it would give."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import typing

import pytest

import cli
from featurecache.declarations import defines, read_config, read_constant, read_docstring, read_options
from heads import HEADS


@pytest.mark.parametrize("verb", cli.VERBS)
def test_a_config_is_read_as_it_is_when_it_is_imported(verb):
    module, name = cli.VERBS[verb][0].split(":")[:2]
    config = getattr(importlib.import_module(module), name)
    hints = typing.get_type_hints(config)

    read = read_config(module, name)

    real = [(f.name, hints[f.name], f.default) for f in dataclasses.fields(config)]
    assert [(f.name, f.hint, f.default) for f in read.fields] == real
    assert [f.name for f in read.fields if f.required] == [
        f.name for f in dataclasses.fields(config) if f.default is f.default_factory is dataclasses.MISSING
    ]
    assert read.text == inspect.getdoc(config)


def test_every_field_of_every_verb_is_explained_below_it():
    for verb, (place, _) in cli.VERBS.items():
        bare = [field.name for field in read_config(*place.split(":")[:2]).fields if not field.text]

        assert not bare, f"{verb}: {bare}"


@pytest.mark.parametrize("head", HEADS.names())
def test_the_options_of_a_head_are_the_keyword_only_parameters_of_its_build(head):
    build = HEADS.load(head).build
    keywords = [p for p in inspect.signature(build).parameters.values() if p.kind is p.KEYWORD_ONLY]

    read = read_options(f"heads.{head}", "build")

    hints = typing.get_type_hints(build)
    assert [(o.name, o.hint, o.default) for o in read] == [(p.name, hints[p.name], p.default) for p in keywords]
    assert read_docstring(f"heads.{head}", "build") == (inspect.getdoc(build) or "")


def test_what_a_module_takes_from_another_is_found_there():
    assert read_options("featurecache.peft.linear", "apply") == ()
    assert read_constant("featurecache.stores.hdf5", "SUFFIXES") == (".h5", ".hdf5")
    assert read_constant("heads._checkpoint", "BUILD") == "head.json"  # one of two that are assigned together
    assert read_constant("heads._checkpoint", "ABSENT") is None


def test_methods_are_seen_wherever_they_stand():
    assert defines("heads.lfa", "attention")
    assert not defines("heads.linear", "attention")


def test_a_module_that_is_not_there_is_told():
    with pytest.raises(ModuleNotFoundError, match="there is no module heads.absent"):
        read_options("heads.absent", "build")
