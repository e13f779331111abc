"""A registry is its folder: names without imports, and an answer to every mistyped name."""

from __future__ import annotations

import sys

import pytest

from featurecache.errors import FeatureCacheError, UnknownNameError
from featurecache.registry import Registry, nearest, plain


@pytest.fixture
def room(tmp_path, monkeypatch) -> Registry:
    """Return a registry over a folder of its own."""
    folder = tmp_path / "colours_of_test"
    (folder / "nested").mkdir(parents=True)
    (folder / "nested" / "__init__.py").write_text("")
    (folder / "__init__.py").write_text("")
    for name in ("deep_blue", "red", "_private"):
        (folder / f"{name}.py").write_text(f"NAME = {name!r}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Registry("colour", "colours_of_test")
    for name in [name for name in sys.modules if name.startswith("colours_of_test")]:
        del sys.modules[name]


def test_names_are_the_public_files_and_nothing_is_imported(room):
    assert room.names() == ["deep_blue", "red"]
    assert "colours_of_test.red" not in sys.modules


@pytest.mark.parametrize("name", ["deep-blue", "deep_blue"])
def test_dash_and_underscore_are_equal(room, name):
    assert room.load(name).NAME == "deep_blue"


def test_a_new_file_is_a_new_member(room, tmp_path):
    (tmp_path / "colours_of_test" / "green.py").write_text("NAME = 'green'\n")

    assert room.load("green").NAME == "green"


@pytest.mark.parametrize("name", ["_private", "nested", "..red", "red.x", ""])
def test_what_is_no_member_cannot_be_loaded(room, name):
    with pytest.raises(UnknownNameError, match="there is no colour called"):
        room.load(name)


def test_an_unknown_name_is_answered_with_the_nearest_the_list_and_the_file_to_write(room):
    with pytest.raises(UnknownNameError) as refused:
        room.load("rad")

    assert str(refused.value) == (
        "there is no colour called 'rad'. Did you mean 'red'? Known: deep_blue, red. "
        "To add one, write colours_of_test/rad.py."
    )
    assert isinstance(refused.value, (FeatureCacheError, KeyError))


@pytest.mark.parametrize("installed_by", ["site-packages", "dist-packages", "target"])
def test_users_of_an_installed_package_are_not_told_to_write_files_into_it(installed_by, tmp_path, monkeypatch):
    root = tmp_path / installed_by
    (root / "shades_of_test").mkdir(parents=True)
    (root / "shades_of_test/__init__.py").write_text("")
    (root / "shades_of_test/grey.py").write_text("")
    if installed_by == "target":
        (root / "featurecache-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(root))

    with pytest.raises(UnknownNameError) as refused:
        Registry("shade", "shades_of_test").load("gray")

    assert str(refused.value) == "there is no shade called 'gray'. Did you mean 'grey'? Known: grey."


def test_a_name_like_none_is_not_given_a_neighbour():
    assert nearest("zzz", ["red", "blue"]) == ""
    assert nearest("blu", ["red", "blue"]) == " Did you mean 'blue'?"
    assert plain("a-b_c") == "a_b_c"


def test_a_constant_of_a_member_is_read_without_importing_it(room):
    assert room.constant("red", "NAME") == "red" and room.constant("red", "PAPER") == ""
    assert "colours_of_test.red" not in sys.modules
