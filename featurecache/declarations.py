"""What a source file declares, read without importing it: the fields of a config, the options of a function.

A config stands beside the flow that needs torch; help and the answer to a typo need neither. The types are those that
`typing.get_type_hints` gives, the names in them looked up in the file that uses them, and then where it imports them from.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from functools import cache
from typing import Any

from featurecache.registry import find_source
from featurecache.shadowing import qualify_name


@dataclass(frozen=True, slots=True)
class Declared:
    """A field of a config, or an option of a function."""

    name: str
    hint: Any
    """Its type."""
    default: Any
    """Its default; MISSING of what a factory makes, and of what has none."""
    required: bool
    text: str
    """What the docstring below a field says of it; "" of an option."""
    owner: str
    """Class or function that declares it."""


@dataclass(frozen=True, slots=True)
class DeclaredConfig:
    """A config dataclass."""

    text: str
    """Its docstring."""
    fields: tuple[Declared, ...]
    """In the order of `dataclasses.fields`."""
    methods: frozenset[str]
    """Names of what it and its bases define."""


@cache
def read_config(module: str, name: str) -> DeclaredConfig:
    """Return what the dataclass `name` of `module` and the dataclasses that it extends declare."""
    order = _bases_first(_Source.of(module), name)
    fields: dict[str, Declared] = {}
    methods: set[str] = set()
    for source, node in order:
        fields |= {field.name: field for field in _fields(source, node)} if _is_dataclass(node) else {}
        methods |= {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
    return DeclaredConfig(ast.get_docstring(order[-1][1]) or "", tuple(fields.values()), frozenset(methods))


def read_options(module: str, function: str) -> tuple[Declared, ...]:
    """Return the keyword-only parameters of a function of `module`: the options that it takes; () where there is none."""
    source = _Source.of(module)
    node = source.definitions.get(function)
    if isinstance(node, ast.ImportFrom):
        return read_options(str(node.module), _original(node, function))
    if not isinstance(node, ast.FunctionDef):
        return ()
    return tuple(
        Declared(
            argument.arg,
            source.value(argument.annotation) if argument.annotation else Any,
            source.value(default) if default else MISSING,
            default is None,
            "",
            function,
        )
        for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    )


def read_docstring(module: str, function: str) -> str:
    """Return the docstring of a function of `module`, or ""."""
    node = _Source.of(module).definitions.get(function)
    return (ast.get_docstring(node) or "") if isinstance(node, ast.FunctionDef) else ""


def defines(module: str, name: str) -> bool:
    """Return whether a function or method called `name` is defined anywhere in `module`."""
    return name in _Source.of(module).functions


def read_constant(module: str, name: str) -> Any:
    """Return the value that `module` assigns to `name` at its top, or None where it assigns none."""
    node = _Source.of(module).definitions.get(name)
    return None if node is None else _Source.of(module)[name]


class _Source(Mapping[str, Any]):
    """The names of a module's top level, each with its value; looked up when asked for."""

    @staticmethod
    @cache
    def of(module: str) -> _Source:
        return _Source(module)

    def __init__(self, module: str) -> None:
        self.module = module
        self.definitions: dict[str, ast.AST] = {}
        tree = ast.parse(find_source(module).read_text(encoding="utf-8"))
        self.functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        for node in _top(tree):
            for name in _defined(node):
                self.definitions.setdefault(name, node)

    def __getitem__(self, name: str) -> Any:
        node = self.definitions.get(name)
        if isinstance(node, ast.ImportFrom):
            return self._imported(node, name)
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            found = self.value(node.value)
            several = _defined(node)
            return found if several == [name] else found[several.index(name)]
        if node is None and hasattr(builtins, name):
            return getattr(builtins, name)
        return getattr(importlib.import_module(qualify_name(self.module)), name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.definitions)

    def __len__(self) -> int:
        return len(self.definitions)

    def value(self, expression: ast.expr) -> Any:
        """Return the value of an expression of this module."""
        text = expression.value if isinstance(expression, ast.Constant) else None
        if isinstance(text, str) and text in self.definitions:
            return self[text]
        return eval(compile(ast.Expression(expression), self.module, "eval"), {}, self)

    def class_called(self, name: str) -> tuple[_Source, ast.ClassDef] | None:
        """Return the class of that name, and the module that defines it; None of a class that is not ours."""
        node = self.definitions.get(name)
        if isinstance(node, ast.ImportFrom) and not _is_standard(str(node.module)):
            return _Source.of(str(node.module)).class_called(_original(node, name))
        return (self, node) if isinstance(node, ast.ClassDef) else None

    def _imported(self, node: ast.ImportFrom, name: str) -> Any:
        module, original = str(node.module), _original(node, name)
        if _is_standard(module):
            return getattr(importlib.import_module(module), original)
        return _Source.of(module)[original]


def _top(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the statements of a module's top level, and those that it has for typing only."""
    for node in ast.iter_child_nodes(tree):
        yield from _top(node) if isinstance(node, ast.If) else (node,)


def _defined(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    if isinstance(node, ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    parts = [part for target in targets for part in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return [part.id for part in parts if isinstance(part, ast.Name)]


def _is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def _is_dataclass(node: ast.ClassDef) -> bool:
    called = [one.func if isinstance(one, ast.Call) else one for one in node.decorator_list]
    return any(isinstance(one, ast.Name) and one.id == "dataclass" for one in called)


def _original(node: ast.ImportFrom, name: str) -> str:
    return next(alias.name for alias in node.names if name in (alias.asname, alias.name))


def _bases_first(source: _Source, name: str) -> list[tuple[_Source, ast.ClassDef]]:
    """Return the class and those of ours that it extends, in Python's order turned round: what comes later wins."""
    found: dict[type, tuple[_Source, ast.ClassDef]] = {}

    def stand_in(place: _Source, called: str) -> type:
        found_class = place.class_called(called)
        if found_class is None:
            return object
        home, node = found_class
        known = next((one for one, (_, other) in found.items() if other is node), None)
        if known is None:
            bases = [stand_in(home, base.id) for base in node.bases if isinstance(base, ast.Name)]
            known = type(node.name, tuple(base for base in bases if base is not object), {})
            found[known] = home, node
        return known

    return [found[one] for one in reversed(stand_in(source, name).__mro__) if one in found]


def _fields(source: _Source, node: ast.ClassDef) -> Iterator[Declared]:
    for part, below in zip(node.body, [*node.body[1:], None], strict=True):
        if not (isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)):
            continue
        said = below.value if isinstance(below, ast.Expr) else None
        text = inspect.cleandoc(str(ast.literal_eval(said))) if isinstance(said, ast.Constant) else ""
        default = MISSING if part.value is None else _default(source, part.value)
        yield Declared(
            part.target.id, source.value(part.annotation), default, part.value is None, text, node.name
        )  # fmt: skip


def _default(source: _Source, expression: ast.expr) -> Any:
    """Return the default of a field; of `field(...)` the one that it is given."""
    if isinstance(expression, ast.Call) and isinstance(expression.func, ast.Name) and expression.func.id == "field":
        given = {word.arg: word.value for word in expression.keywords}
        return source.value(given["default"]) if "default" in given else MISSING
    return source.value(expression)
