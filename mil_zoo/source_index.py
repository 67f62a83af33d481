"""Reads what a package registers from its source text, so that a list of names needs no import of torch.

Importing torch takes seconds; parsing the files of a package takes hundredths of one. The price: a class attribute
must be written as a literal (or a call with literal arguments), or it is not seen here. :class:`NotLiteral` says so,
and the caller imports the package instead.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class NotLiteral(Exception):
    """The source does not state the value as a literal; only an import can tell it."""


@dataclass(frozen=True)
class Registered:
    """A class or function below a ``@register_...("name")`` decorator.

    Attributes:
        name: that it is registered under.
        keywords: literal keyword arguments of the decorator.
        docstring: as ``inspect.getdoc`` gives it; empty without one.
        parameters: of the function or constructor (without ``self``), with ``inspect.Parameter.empty`` where there is
            no default. Keyword-only parameters are in ``keyword_only`` too.
        keyword_only: names of the parameters after ``*``.
    """

    name: str
    keywords: dict[str, Any]
    docstring: str
    parameters: dict[str, Any]
    keyword_only: frozenset[str]
    _classes: tuple[ast.ClassDef, ...] = field(repr=False, default=())

    def attribute(self, name: str) -> Any:
        """A class attribute, its own or inherited within the package: a literal, or the keyword arguments of a call.

        Positional arguments of a call have the keys 0, 1, ...; None where no class states the attribute.

        Raises:
            NotLiteral: the value is neither.
        """
        for cls in self._classes:
            for statement in cls.body:
                if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
                    continue
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                    return _value(statement.value)
        return None

    def overrides(self, method: str, base: str) -> bool:
        """Whether its own class, or one between it and the class called ``base``, defines ``method``."""
        return any(
            isinstance(statement, ast.FunctionDef) and statement.name == method
            for cls in self._classes
            if cls.name != base
            for statement in cls.body
        )


def registered_in(package: str, decorator: str) -> dict[str, Registered]:
    """What the files of ``package`` and of its subpackages register with ``@decorator("name", ...)``, by name.

    Args:
        package: "mil_zoo.aggregators"; it is found and not imported (its parents are).
        decorator: "register_aggregator".

    Raises:
        NotLiteral: a name, keyword or default is not a literal.
    """
    spec = importlib.util.find_spec(package)
    entries: dict[str, Registered] = {}
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        source = _Source(Path(folder), package)
        for path in sorted(Path(folder).rglob("*.py")):
            if f"@{decorator}(" not in path.read_text(encoding="utf-8"):
                continue
            for node in source.module(path).body:
                call = _decorated(node, decorator)
                if call is not None:
                    entry = _entry(node, call, source, path)
                    entries[entry.name] = entry
    return dict(sorted(entries.items()))


class _Source:
    """The parsed files of a package, each once."""

    def __init__(self, root: Path, package: str) -> None:
        self.root, self.package = root, package
        self._modules: dict[Path, ast.Module] = {}

    def module(self, path: Path) -> ast.Module:
        if path not in self._modules:
            self._modules[path] = ast.parse(path.read_text(encoding="utf-8"), str(path))
        return self._modules[path]

    def find_class(self, name: str, path: Path) -> tuple[ast.ClassDef, Path] | None:
        """The class that ``name`` is in the file ``path``, defined there or imported from a file of the package."""
        for node in self.module(path).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                return node, path
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{self.package}."):
                if name not in {alias.asname or alias.name for alias in node.names}:
                    continue
                place = self.root.joinpath(*str(node.module).removeprefix(f"{self.package}.").split("."))
                file = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
                original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
                return self.find_class(original, file) if file.is_file() else None
        return None

    def lineage(self, cls: ast.ClassDef, path: Path) -> tuple[ast.ClassDef, ...]:
        """The class and those that it inherits from, as far as the package defines them, nearest first."""
        classes = [cls]
        for base in cls.bases:
            parent = self.find_class(base.id, path) if isinstance(base, ast.Name) else None
            classes += self.lineage(*parent) if parent else ()
        return tuple(classes)


def _decorated(node: ast.stmt, decorator: str) -> ast.Call | None:
    for call in getattr(node, "decorator_list", ()):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == decorator:
            return call
    return None


def _entry(node: Any, call: ast.Call, source: _Source, path: Path) -> Registered:
    classes = source.lineage(node, path) if isinstance(node, ast.ClassDef) else ()
    function: Any = node
    if classes:
        constructors = (
            s for cls in classes for s in cls.body if isinstance(s, ast.FunctionDef) and s.name == "__init__"
        )
        function = next(constructors, None)
    return Registered(
        name=str(_value(call.args[0])),
        keywords={str(keyword.arg): _value(keyword.value) for keyword in call.keywords},
        docstring=inspect.cleandoc(ast.get_docstring(node, clean=False) or ""),
        parameters=_parameters(function),
        keyword_only=frozenset(argument.arg for argument in function.args.kwonlyargs) if function else frozenset(),
        _classes=classes,
    )


def _parameters(function: ast.FunctionDef | None) -> dict[str, Any]:
    if function is None:
        return {}
    signature = function.args
    positional = [*signature.posonlyargs, *signature.args]
    defaults: list[ast.expr | None] = [*[None] * (len(positional) - len(signature.defaults)), *signature.defaults]
    pairs = [*zip(positional, defaults, strict=True), *zip(signature.kwonlyargs, signature.kw_defaults, strict=True)]
    return {
        argument.arg: inspect.Parameter.empty if default is None else _value(default)
        for argument, default in pairs
        if argument.arg != "self"
    }


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        return dict(enumerate(map(_value, node.args))) | {str(k.arg): _value(k.value) for k in node.keywords}
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise NotLiteral(ast.unparse(node)) from None
