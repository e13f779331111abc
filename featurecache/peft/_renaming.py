"""Names from one code to another by pairs of patterns; {i} in both stands for the index of a block.

A table is one array there that has a row for each block that has such a part here, in the order of the blocks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

Pairs = tuple[tuple[str, str], ...]
"""(name here, name there)."""


def renamed_from(state: Mapping[str, Tensor], ours: Collection[str], names: Pairs, tables: Pairs) -> dict[str, Tensor]:
    """Return what `state` holds of the names `ours`, by these; a name without a pair is the same on both sides."""
    places = _places(ours, names, tables, state)
    return {
        name: state[there] if row is None else state[there][row]
        for name, (there, row) in places.items() if there in state and (row is None or row < len(state[there]))
    }  # fmt: skip


def renamed_to(values: Mapping[str, Tensor], names: Pairs, tables: Pairs) -> dict[str, Tensor]:
    """Return values by their names there; where a table has several names, the first."""
    places = _places(values, names, tables, {})
    found = {there: values[name] for name, (there, row) in places.items() if row is None}
    for table in dict.fromkeys(there for there, row in places.values() if row is not None):
        found[table] = torch.stack([values[name] for name, (there, _) in places.items() if there == table])
    return found


def _places(
    ours: Iterable[str], names: Pairs, tables: Pairs, state: Mapping[str, Tensor]
) -> dict[str, tuple[str, int | None]]:
    """Return name here -> (name there, row of a table or None)."""
    found: dict[str, tuple[str, int | None]] = {}
    rows: dict[str, int] = {}
    for name in sorted(ours, key=_index):
        known = [there for pair in tables if (there := _matched(*pair, name))]
        if known:
            table = next((there for there in known if there in state), known[0])
            rows[table] = rows.get(table, -1) + 1
            found[name] = (table, rows[table])
        else:
            found[name] = (next(filter(None, (_matched(*pair, name) for pair in names)), name), None)
    return found


def _index(name: str) -> int:
    """Return the first number in a name, so that block 10 comes after block 9."""
    number = re.search(r"\.(\d+)\.", name)
    return int(number[1]) if number else -1


def _matched(here: str, there: str, name: str) -> str | None:
    """Return the name there of what is called `name` here, if `here` is its pattern."""
    match = re.fullmatch(re.escape(here).replace(r"\{i\}", r"(?P<i>\d+)"), name)
    if match is None:
        return None
    return there.replace("{i}", match["i"]) if "{i}" in there else there
