"""Labels of a manifest that may not mean what they are read as: several in a cell, one class a row, words for nothing."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

log = logging.getLogger("featurecache")

BAR = "|"
SEPARATORS = {",": "comma", ";": "semicolon", " ": "space", "/": "slash", "+": "plus", "\t": "tab", "&": "ampersand"}
"""Character between labels -> what to write for it in a spec."""
FEW_ROWS = 10
"""Fewer classes than that are not compared with the number of rows."""
MISSING = ("nan", "none", "null", "na", "n/a", "nil", "#n/a", "?", "-", "missing", "unknown")
"""Words by which many tables say that nothing is known."""
SHOWN = 3


def warn_of_no_separator(values: Sequence[str]) -> None:
    """Say that no cell holds several labels, though several were said to be there."""
    filled = [value for value in values if value]
    found = find_separator(filled, least=1)
    if found is None:
        log.warning("no cell of `label` holds a bar, so every cell is one label; several are written as cat|dog")
        return
    examples = ", ".join(map(repr, list(dict.fromkeys(value for value in filled if found in value))[:SHOWN]))
    log.warning(
        "no cell of `label` holds a bar, so every cell is one label, such as %s as a whole. If a cell holds several, give "
        "?label_separator=%s behind the manifest",
        examples, SEPARATORS[found],
    )  # fmt: skip


def warn_of_odd_classes(values: Sequence[str], *, sure: bool) -> None:
    """Say that classes look like several labels in a cell, like no classes at all, or like words for nothing.

    `sure`: the user has said that they are classes.
    """
    filled = [value for value in values if value]
    classes = sorted(set(filled))
    words = [name for name in classes if name.lower() in MISSING]
    if words:
        log.warning(
            "labels that are read as names of classes, like any text: %s. Leave the cell empty where there is no label",
            ", ".join(map(repr, words)),
        )
    separator = None if sure else find_separator(filled)
    if separator is not None:
        examples = ", ".join(map(repr, [name for name in classes if separator in name][:SHOWN]))
        log.warning(
            "the %d classes of `label` look like combinations of the same labels, such as %s. If a cell holds several, give "
            "?label_separator=%s behind the manifest; if these are classes, --task classification",
            len(classes), examples, SEPARATORS[separator],
        )  # fmt: skip
    elif not sure and len(classes) >= FEW_ROWS and 2 * len(classes) > len(filled):
        log.warning(
            "%d labelled rows have %d classes, such as %s: hardly two of a kind. For numbers to predict give --task "
            "regression; if these are classes, --task classification",
            len(filled), len(classes), ", ".join(map(repr, classes[:SHOWN])),
        )  # fmt: skip


def find_separator(values: Sequence[str], least: int = 2) -> str | None:
    """Return the character by which cells seem to hold several labels, None where they do not.

    Names with a space are common and no combinations. Cells are, where at least `least` of them consist of labels that also
    stand alone, or where many are made of half as many words, each in several of them.
    """
    classes = set(values)
    best: tuple[int, str] | None = None
    for separator in SEPARATORS:
        split = {name: [part.strip() for part in name.split(separator) if part.strip()] for name in classes}
        several = {name: parts for name, parts in split.items() if len(parts) > 1}
        uses = Counter(part for parts in several.values() for part in set(parts))
        known = sum(all(part in classes for part in parts) for parts in several.values())
        repeated = len(several) > 3 and 2 * len(uses) <= len(several) and min(uses.values()) > 1
        if known >= least or repeated:
            best = max(best or (0, ""), (max(known, len(several) * repeated), separator))
    return best[1] if best else None
