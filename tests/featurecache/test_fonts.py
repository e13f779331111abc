"""Drawings say nothing of fonts, but where letters are lost."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from featurecache.fonts import quiet_fonts
from pipelines.sections import heat_map


def test_names_that_no_font_knows_stay_text_and_nobody_hears_of_fonts():
    names = ["猫", "犬", "\U0001f98a"]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = heat_map(np.eye(3), names, names, "confusion")

    assert all(name in figure.svg.decode() for name in names)


def test_other_warnings_are_passed_on():
    with pytest.warns(RuntimeWarning, match="of something else"), quiet_fonts():
        warnings.warn("of something else", RuntimeWarning, stacklevel=1)


def test_letters_that_become_boxes_are_told_once(caplog):
    with quiet_fonts(letters_as_text=False):
        for glyph in "猫犬":
            warnings.warn(f"Glyph ({glyph}) missing from font(s) DejaVu Sans.", UserWarning, stacklevel=1)

    assert caplog.messages == [
        "the fonts of matplotlib lack letters of some names, so boxes stand for them in the picture"
    ]
