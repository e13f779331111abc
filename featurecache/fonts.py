"""Drawing with matplotlib without its remarks on fonts: which it looks for, which it caches, which letters they lack."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("featurecache")


@contextmanager
def quiet_fonts(*, letters_as_text: bool = True) -> Iterator[None]:
    """Import matplotlib and draw within the block; its other warnings are passed on.

    Where letters do not stay text, as they do in our SVG, a line says that boxes stand for those that the fonts lack.
    """
    fonts = logging.getLogger("matplotlib.font_manager")
    before = fonts.level
    fonts.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            yield
    finally:
        fonts.setLevel(before)
    lacking = [
        one for one in seen if "missing from font" in str(one.message) or "matching glyph" in str(one.message).lower()
    ]
    for one in seen:
        if one not in lacking:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if lacking and not letters_as_text:
        log.warning("the fonts of matplotlib lack letters of some names, so boxes stand for them in the picture")
