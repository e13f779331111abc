"""Keep our modules ours where a user has files of the same names: `heads.py`, `pipelines/`, `cli.py` beside a notebook.

The package is installed flat, so that `heads`, `pipelines`, `cli`, `logme` and `save_features` are names at the top, and
Python resolves such a name to the first file on `sys.path`: in a notebook's folder, to the user's own. Hence:

1. Every one of these modules is loaded once, as `featurecache.heads` and so on, from the folder beside this package.
2. The short name is an alias: `import heads` gives that very module, unless a file of the user comes first on the path,
   and then it gives the user's. No module exists twice, so that registries are single and `isinstance` holds.
3. In our own modules the short names always mean ours, whatever the path says. Each is loaded with an `__import__` of its
   own, which looks for them under `featurecache`; the `__import__` of everybody else is left as it is.

Code that imports by text goes through `qualify_name`, since `importlib` knows nothing of the module that calls it.
"""

from __future__ import annotations

import builtins
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

PACKAGE = "featurecache"
NAMES = ("heads", "pipelines", "cli", "logme", "save_features")
"""Our modules beside this package, by their names at the top."""

HERE = os.path.dirname(os.path.abspath(__file__))


def qualify_name(name: str) -> str:
    """Return the name under which a module of ours is never anybody else's: `heads.linear` -> `featurecache.heads.linear`.

    Other names are returned as they are.
    """
    return f"{PACKAGE}.{name}" if name.partition(".")[0] in NAMES else name


def import_ours(
    name: str,
    globals: Mapping[str, object] | None = None,
    locals: Mapping[str, object] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """Import as `builtins.__import__` does, but take the short names of our modules for ours; see 3. above."""
    qualified = qualify_name(name) if not level else name
    if qualified == name:
        return builtins.__import__(name, globals, locals, fromlist, level)
    found = builtins.__import__(qualified, globals, locals, fromlist, 0)
    # without names to take, `import heads.linear` binds `heads`, and not the package around it
    return found if fromlist else sys.modules[qualify_name(name.partition(".")[0])]


BUILTINS: dict[str, Any] = {**vars(builtins), "__import__": import_ours}
"""What code in our modules finds as its builtins."""


class OwnLoader(SourceFileLoader):
    """Loads a module of ours, in which the short names mean ours."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code."""
        module.__dict__["__builtins__"] = BUILTINS
        super().exec_module(module)
        make_callable(module)


class NamedFunction(ModuleType):
    """A module that is called as the function of its own name: `featurecache.logme(features, targets)`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return vars(self)[self.__name__.rpartition(".")[2]](*args, **kwargs)


def make_callable(module: ModuleType) -> None:
    """Let `logme`, the one module of ours that is named as its function, be called as it."""
    if module.__name__ in ("logme", f"{PACKAGE}.logme"):
        module.__class__ = NamedFunction


class AliasLoader:
    """Gives a module that is there already, under another name."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module itself, imported where it was not yet."""
        module = importlib.import_module(qualify_name(spec.name))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing but undo what the import machinery notes in every module that it is given."""
        alias = module.__spec__
        module.__spec__ = alias.loader_state if alias else None


class OwnFinder:
    """Finds our modules under `featurecache`, and their short names where these are not taken by the user."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module of ours, or None for the other finders to decide."""
        if fullname.startswith(f"{PACKAGE}."):
            return _own_spec(fullname)
        if fullname.partition(".")[0] in NAMES and self._is_ours(fullname, path, target):
            return _alias_spec(fullname)
        return None

    def _is_ours(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None) -> bool:
        """Return whether the file that Python would load for a short name is ours."""
        top, _, below = fullname.partition(".")
        if below:
            return sys.modules.get(top) is sys.modules.get(qualify_name(top))
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)  # finders of old packages have none
            spec = find_spec(fullname, path, target) if find_spec and finder is not self else None
            if spec is not None:
                own = _own_spec(qualify_name(fullname))
                return own is not None and _same_file(spec.origin, own.origin)
        return False


def _own_spec(fullname: str) -> ModuleSpec | None:
    """Return the spec of the module that is called `featurecache.…`; None where there is no such file."""
    _, *folders, _ = fullname.split(".")
    name = fullname.removeprefix(f"{PACKAGE}.")
    root = os.path.dirname(HERE) if name.partition(".")[0] in NAMES else HERE
    spec = PathFinder.find_spec(fullname, [os.path.join(root, *folders)])
    if spec is None or spec.loader is None:
        return None
    if type(spec.loader) is SourceFileLoader:
        spec.loader = OwnLoader(spec.loader.name, spec.loader.path)
    return spec


def _alias_spec(fullname: str) -> ModuleSpec | None:
    own = _own_spec(qualify_name(fullname))
    if own is None:
        return None
    spec = spec_from_loader(fullname, AliasLoader(), origin=own.origin)  # type: ignore[arg-type]
    if spec is not None:
        spec.submodule_search_locations = own.submodule_search_locations
    return spec


def _same_file(one: str | None, other: str | None) -> bool:
    return one is not None and other is not None and os.path.realpath(one) == os.path.realpath(other)


def install_finder() -> None:
    """Let Python find our modules so from now on; what was imported under a short name before is the same module."""
    if any(type(finder).__name__ == OwnFinder.__name__ for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, OwnFinder())
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in NAMES or module is None:
            continue
        own = _own_spec(qualify_name(name))
        if own is not None and _same_file(getattr(module, "__file__", None), own.origin):
            module.__dict__["__builtins__"] = BUILTINS
            sys.modules[qualify_name(name)] = module
            make_callable(module)
