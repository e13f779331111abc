"""One thing, one file, one name: a registry lists the modules of a folder and imports one when it is asked for."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType

from featurecache.errors import UnknownNameError


def plain(name: str) -> str:
    """Return `name` as a file stem: `-` and `_` are equal on input."""
    return name.replace("-", "_")


def nearest(name: str, known: list[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest of `known`, or an empty string."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


class Registry:
    """The members of a room, by file name."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        """What a member is called in messages, e.g. "head"."""
        self.package = package
        """Import name of the folder, e.g. "heads"."""

    def names(self) -> list[str]:
        """Return the sorted names of the public modules of the folder; nothing is imported."""
        spec = importlib.util.find_spec(self.package)
        folders = list(spec.submodule_search_locations or []) if spec else []
        found = pkgutil.iter_modules(folders)
        return sorted(m.name for m in found if not m.ispkg and not m.name.startswith("_"))

    def summary(self, name: str) -> tuple[str, str]:
        """Return (first sentence of the file of `name`, its constant `PAPER` or ""); nothing is imported."""
        spec = importlib.util.find_spec(f"{self.package}.{name}")
        source = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
        tree = ast.parse(source)
        sentence = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ").partition(". ")[0]
        papers = (
            node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            if any(isinstance(target, ast.Name) and target.id == "PAPER" for target in node.targets)
        )
        return sentence.rstrip("."), str(next(papers, ""))

    def load(self, name: str) -> ModuleType:
        """Import and return the module called `name`.

        Raises:
            UnknownNameError: no file of the folder has that name; the message lists those that exist.
        """
        stem, known = plain(name), self.names()
        if stem not in known:
            folder = self.package.replace(".", "/")
            raise UnknownNameError(
                f"there is no {self.kind} called {name!r}.{nearest(stem, known)} "
                f"Known: {', '.join(known)}. To add one, write {folder}/{stem}.py."
            )
        return importlib.import_module(f"{self.package}.{stem}")
