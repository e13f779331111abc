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
from featurecache.shadowing import qualify_name

HOME = Path(__file__).resolve().parents[1]
"""Folder of all our modules: whatever else is called as they are, and comes first on the path, is not looked at."""


def plain(name: str) -> str:
    """Return `name` as a file stem: `-` and `_` are equal on input."""
    return name.replace("-", "_")


def nearest(name: str, known: list[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest of `known`, or an empty string."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def find_source(module: str) -> Path:
    """Return the file of a module; nothing of ours is imported.

    Raises:
        ModuleNotFoundError: there is no such file.
    """
    top, *parts = module.split(".")
    roots = [HOME / top] if (HOME / top).exists() or (HOME / f"{top}.py").exists() else _folders(top)
    for path in (root.joinpath(*parts) for root in roots):
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.exists():
                return file
    raise ModuleNotFoundError(f"there is no module {module}", name=module)


def _folders(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if spec and spec.origin and not places:
        places = [str(Path(spec.origin).with_suffix(""))]
    return [Path(place) for place in places]


class Registry:
    """The members of a room, by file name."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        """What a member is called in messages, e.g. "head"."""
        self.package = package
        """Import name of the folder, e.g. "heads"."""

    def names(self) -> list[str]:
        """Return the sorted names of the public modules of the folder; nothing is imported."""
        folders = [str(find_source(self.package).parent)]
        found = pkgutil.iter_modules(folders)
        return sorted(m.name for m in found if not m.ispkg and not m.name.startswith("_"))

    def summary(self, name: str) -> tuple[str, str]:
        """Return (first sentence of the file of `name`, its constant `PAPER` or ""); nothing is imported."""
        tree = self._tree(name)
        sentence = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ").partition(". ")[0]
        return sentence.rstrip("."), _constant(tree, "PAPER")

    def constant(self, name: str, constant: str) -> str:
        """Return a constant that the file of `name` assigns, as text, or ""; nothing is imported."""
        return _constant(self._tree(name), constant)

    def _tree(self, name: str) -> ast.Module:
        return ast.parse(find_source(f"{self.package}.{name}").read_text(encoding="utf-8"))

    def stem(self, name: str) -> str:
        """Return the name of the file that is called `name`; nothing is imported.

        Raises:
            UnknownNameError: no file of the folder has that name; the message lists those that exist.
        """
        stem, known = plain(name), self.names()
        if stem not in known:
            raise UnknownNameError(
                f"there is no {self.kind} called {name!r}.{nearest(stem, known)} "
                f"Known: {', '.join(known)}.{self._describe_way_to_add(stem)}"
            )
        return stem

    def load(self, name: str) -> ModuleType:
        """Import and return the module called `name`.

        Raises:
            UnknownNameError: no file of the folder has that name; the message lists those that exist.
        """
        return importlib.import_module(qualify_name(f"{self.package}.{self.stem(name)}"))

    def _describe_way_to_add(self, stem: str) -> str:
        """Return which file to write; "" of an installed package, into which users write no files."""
        spec = importlib.util.find_spec(qualify_name(self.package))
        folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
        roots = [folder.parents[self.package.count(".")] for folder in folders]
        if any(_is_installed(root) for root in roots) or not stem.isidentifier():
            return ""
        return f" To add one, write {self.package.replace('.', '/')}/{stem}.py."


def _is_installed(root: Path) -> bool:
    """Return whether packages were installed into a folder, and it is no source checkout."""
    return root.name in ("site-packages", "dist-packages") or any(root.glob("featurecache-*.dist-info"))


def _constant(tree: ast.Module, constant: str) -> str:
    values = (
        node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        if any(isinstance(target, ast.Name) and target.id == constant for target in node.targets)
    )
    return str(next(values, ""))
