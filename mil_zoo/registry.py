"""A registry: names to objects, filled by decorators, by this package, by entry points and by plugin files."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from mil_zoo.errors import InputError, did_you_mean

T = TypeVar("T")
Registered = TypeVar("Registered")

ENTRY_POINT_GROUP = "mil_zoo.plugins"


class Registry(Generic[T]):
    """Maps names to objects of one kind.

    Args:
        kind: what is registered, for messages ("aggregator").
        package: a package all of whose modules are imported on first use, so that adding a file registers it.
    """

    def __init__(self, kind: str, package: str | None = None) -> None:
        self.kind = kind
        self._package = package
        self._loaded = package is None
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """Decorator that registers a class or function under ``name``.

        Raises:
            InputError: the name is taken by another object, or is not lowercase letters, digits and ``_``.
        """
        if not (name.isidentifier() and name == name.lower()):
            raise InputError(f"{self.kind} name {name!r} must be lowercase letters, digits and underscores")

        def decorate(obj: Registered) -> Registered:
            previous = self._entries.get(name)
            if previous is not None and previous is not obj:
                raise InputError(
                    f"{self.kind} {name!r} is already registered by {_origin(previous)}; choose another name"
                )
            self._entries[name] = obj  # type: ignore[assignment]
            return obj

        return decorate

    def get(self, name: str) -> T:
        """The object registered under ``name``; an ``InputError`` names the near matches on a miss."""
        self._load()
        if name not in self._entries:
            raise InputError(f"unknown {self.kind} {name!r}{did_you_mean(name, self._entries)}")
        return self._entries[name]

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._load()
        return sorted(self._entries)

    def __contains__(self, name: str) -> bool:
        self._load()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self._package or "")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
        self._loaded = True  # before the plugins: theirs may look names up
        load_entry_points()


_entry_points_loaded = False


def load_entry_points() -> None:
    """Imports every module that an installed package names in the entry point group ``mil_zoo.plugins``, once."""
    global _entry_points_loaded
    if _entry_points_loaded:
        return
    _entry_points_loaded = True
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            entry_point.load()
        except Exception as error:
            raise InputError(
                f"plugin {entry_point.name!r} ({entry_point.value}) failed to import: {error}; fix or uninstall it"
            ) from error


def loaded_plugins() -> tuple[Path, ...]:
    """The plugin files imported so far, for another process to import too."""
    return tuple(_plugins)


_plugins: list[Path] = []


def load_plugin(path: str | Path) -> None:
    """Imports a Python file so that its ``@register_...`` decorators run.

    The file is code of the user's own choosing and is executed.

    Raises:
        InputError: the file is missing or fails to import (a syntax error names its line).
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise InputError(f"plugin file {path} does not exist; pass --plugin a Python file")
    name = f"mil_zoo_plugin_{path.stem}"
    if name in sys.modules:
        if getattr(sys.modules[name], "__file__", None) == str(path):
            return
        raise InputError(f"two plugin files are called {path.name}; rename one of them")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"plugin file {path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        del sys.modules[name]
        raise InputError(f"plugin {path}, line {error.lineno}: {error.msg}; correct it and start again") from error
    except InputError:
        del sys.modules[name]
        raise
    except Exception as error:
        del sys.modules[name]
        raise InputError(f"plugin {path} failed to import: {type(error).__name__}: {error}") from error
    _plugins.append(path)


def _origin(obj: object) -> str:
    return f"{getattr(obj, '__module__', '?')}.{getattr(obj, '__qualname__', repr(obj))}"
