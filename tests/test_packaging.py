"""What is installed, not only what is written: every module, the weights of the demo, one console script."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import featurecache

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("featurecache", "heads", "pipelines")
MODULES = {"cli.py", "logme.py", "save_features.py"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    """Return the names of the files in the wheel that setuptools makes from what git would clone."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*MODULES, "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for path in (path for package in (*PACKAGES, "tests") for path in (ROOT / package).rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            copy = source / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    code = (
        f"import os; os.chdir({str(source)!r}); from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return set(zipfile.ZipFile(built).namelist())


def test_the_wheel_holds_every_module_and_the_weights_of_the_demo(wheel):
    written = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    installed = {name for name in wheel if ".dist-info/" not in name}

    recipes = {str(path.relative_to(ROOT)) for path in (ROOT / "pipelines/recipes").glob("*.yaml")}
    assert installed == written | MODULES | recipes | {
        "featurecache/backbones/demo.safetensors",
        "pipelines/report.html",
        *(f"{package}/py.typed" for package in PACKAGES),
    }


def test_the_weights_of_the_demo_are_small():
    assert (ROOT / "featurecache/backbones/demo.safetensors").stat().st_size <= 3 * 2**20


def test_one_console_script_is_installed(wheel):
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")

    assert config["options.entry_points"]["console_scripts"].split() == ["featurecache", "=", "featurecache.cli:main"]
    assert any(name.endswith("entry_points.txt") for name in wheel)


OF_EXTRAS = {
    "featurecache/sources/_fast_jpeg.py": {"simplejpeg"},
    "featurecache/places.py": {"fsspec"},
    "pipelines/exporting/standalone.py": {"onnxruntime"},
}
"""File -> what it imports when it is asked for, and an extra installs."""


def test_what_is_imported_is_required():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    required = {re.split("[<>=]", line)[0].lower() for line in config["options"]["install_requires"].split()}
    lines = "".join(config["options.extras_require"][name] for name in ("fast", "s3", "onnx")).split()
    extras = {re.split("[<>=]", line)[0] for line in lines}
    distributions = importlib.metadata.packages_distributions()

    optional = {str(path.relative_to(ROOT)): _imports(path) & extras for path in _written() if _imports(path) & extras}
    imported = {name for path in _written() for name in _imports(path)} - set(sys.stdlib_module_names) - extras
    foreign = imported - set(PACKAGES) - {name.removesuffix(".py") for name in MODULES}

    assert {distributions[name][0].lower() for name in foreign} <= required
    assert optional == OF_EXTRAS


def _written() -> list[Path]:
    return [
        *(ROOT / name for name in MODULES),
        *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")),
    ]


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_what_is_offered_lazily_is_imported_for_type_checkers():
    tree = ast.parse((ROOT / "featurecache/__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]

    typed = {alias.asname for node in block.body for alias in node.names}

    assert typed == {*featurecache._OBJECTS, "heads", "logme", "pipelines"}
