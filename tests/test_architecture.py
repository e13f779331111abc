"""The house stands: imports go down only, no cycles, no overgrown file, no room without a name."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("featurecache", "heads", "pipelines")
FILES = sorted(
    path for place in (*ROOMS, "cli.py", "save_features.py", "logme.py")
    for path in ([ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py"))
)  # fmt: skip

BESIDE = sorted(
    path for place in ("tests", "benchmarks") for path in (ROOT / place).rglob("*.py") if path.name != "__init__.py"
)
"""Files beside the house."""

MAY_IMPORT = {
    "logme": set(),
    "featurecache": {"featurecache", "logme"},
    "heads": {"featurecache", "heads"},
    "save_features": {"featurecache"},
    "pipelines": {"featurecache", "heads", "pipelines", "logme", "save_features"},
    "cli": {"featurecache"},
}
"""Part of the house -> parts it may import; `cli` names its flows as text and imports one when a verb is called."""

LEVELS = (
    {"errors", "shadowing"},
    {
        "casting",
        "checks",
        "costs",
        "declarations",
        "options",
        "registry",
        "decoders",
        "rgb_conversion",
        "features",
        "files",
        "fonts",
        "path_kinds",
        "places",
        "seeding",
        "threads",
        "devices",
        "extracted",
        "bootstrap",
        "metrics",
        "runs",
        "reports",
        "repetition",
        "processes",
        "progress",
        "provenance",
        "views",
    },
    {"datasets", "backbones", "stores", "peft"},
    {
        "sources",
        "prompting",
        "requests",
        "recomputing",
        "scoring",
        "constant_features",
        "mending",
        "opening",
        "growing",
        "division",
        "verbs",
    },
)
"""Inside featurecache: a module imports its own level or a lower one; rooms of the third level never import each other."""

DOORS_SHARED_FOR_TYPES = {("stores", "datasets")}
"""A store keeps the data set's row table, a plain record that stands at the door of `datasets`."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_main_block(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.dump(node.test)


def imports(path: Path) -> set[str]:
    """Return the modules a file imports anywhere but in its `__main__` block and for typing only."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if is_main_block(node) or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        waiting.extend(ast.iter_child_nodes(node))
    return found


def part(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path):
    here = module_name(path)
    ours = {name for name in imports(path) if part(name) in MAY_IMPORT}

    upward = {name for name in ours if part(name) not in MAY_IMPORT[part(here)]}

    assert not upward, f"{here} imports {sorted(upward)}"


@pytest.mark.parametrize("path", sorted((ROOT / "featurecache").rglob("*.py")), ids=lambda p: p.stem)
def test_the_ground_floor_keeps_its_levels(path):
    level = {name: number for number, names in enumerate(LEVELS) for name in names}
    here = (*module_name(path).split("."), "")[1]
    if not here:
        return
    there = {name.split(".")[1] for name in imports(path) if name.startswith("featurecache.")} - {here}

    too_high = {name for name in there if level.get(name, 0) > level[here]}
    beside = {name for name in there if level[here] == 2 and level.get(name) == 2}

    assert not too_high, f"{here} imports {sorted(too_high)}"
    assert not {name for name in beside if (here, name) not in DOORS_SHARED_FOR_TYPES}


def test_no_cycles():
    known = {module_name(path) for path in FILES}
    graph = {module_name(p): {n for n in imports(p) if n in known and n != module_name(p)} for p in FILES}
    packages = {name for name in graph if (ROOT / name.replace(".", "/")).is_dir()}
    # a file of a room may import its own door, which never imports the file
    edges = {
        name: {n for n in needs if not (n in packages and name.startswith(f"{n}."))} for name, needs in graph.items()
    }

    TopologicalSorter(edges).prepare()


@pytest.mark.parametrize("path", [*FILES, *BESIDE], ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_is_one_thing(path):
    assert len(path.read_text().splitlines()) <= 400
    assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc"}
    assert ast.get_docstring(ast.parse(path.read_text())), "a file says at its head what it is"


def test_there_is_no_main_module():
    assert not [path for path in FILES if path.name == "__main__.py"]
    assert not (ROOT / "__main__.py").exists()


def test_one_file_of_the_ground_floor_knows_a_score():
    there = [path.stem for path in (ROOT / "featurecache").rglob("*.py") if "logme" in imports(path)]

    assert there == ["scoring"]
