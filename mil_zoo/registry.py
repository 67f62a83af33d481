"""A registry: names to objects, filled by decorators, by this package, by entry points and by plugin files."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import pkgutil
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

from mil_zoo.errors import InputError, unknown

T = TypeVar("T")
Registered = TypeVar("Registered")

ENTRY_POINT_GROUP = "mil_zoo.plugins"
_PREFIX = "mil_zoo_plugin_"  # of the modules that plugin files are imported as


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
        if not (isinstance(name, str) and name.isidentifier() and name == name.lower()):
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
        if not isinstance(name, str):
            raise InputError(f"the name of a registered {self.kind} is text, not {name!r:.60}")
        if name not in self._entries:
            raise unknown(self.kind, name, self._entries)
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
        PLUGINS.load_installed()


@dataclass
class Plugins:
    """The code from elsewhere that registers things: modules of installed packages, and files that the user names.

    Python keeps the modules that it imported for as long as the process lives; this says which of them are plugins.

    Attributes:
        files: the plugin files imported so far, in that order, for another process to import too.
        installed: whether the modules of installed packages have been imported.
    """

    files: list[Path] = field(default_factory=list)
    installed: bool = False

    def load(self, path: str | Path) -> None:
        """Imports a Python file so that its ``@register_...`` decorators run; a second time changes nothing.

        The file is code of the user's own choosing and is executed.

        Raises:
            InputError: the file is missing or fails to import (the message names the line), or another plugin has its
                name.
        """
        path = Path(path).resolve()
        if path in self.files:
            return
        if not path.is_file():
            raise InputError(f"plugin file {path} does not exist; pass --plugin a Python file")
        name = f"{_PREFIX}{path.stem}"
        if name in sys.modules:
            raise InputError(f"two plugin files are called {path.name}; rename one of them")
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise InputError(f"plugin file {path} is not a Python file; its name must end in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            with no_silent_exit():
                spec.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[name]
            if isinstance(error, InputError | KeyboardInterrupt):
                raise
            raise InputError(_why(path, error)) from error
        self.files.append(path)

    def load_installed(self) -> None:
        """Imports every module that an installed package names in the entry point group ``mil_zoo.plugins``, once.

        Raises:
            InputError: one of them fails to import.
        """
        if self.installed:
            return
        self.installed = True  # before they are imported: they may look names up
        for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
            try:
                with no_silent_exit():
                    entry_point.load()
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # SystemExit too: an exit without a word would end a run
                what = _what(error)
                raise InputError(
                    f"plugin {entry_point.name!r} ({entry_point.value}) failed to import: {what}; fix or uninstall it"
                ) from error


PLUGINS = Plugins()
"""The plugins of this process."""


def load_plugin(path: str | Path) -> None:
    """Imports a plugin file into this process, see :meth:`Plugins.load`."""
    PLUGINS.load(path)


@contextmanager
def no_silent_exit() -> Iterator[None]:
    """Lets ``os._exit`` raise ``SystemExit`` in this thread of this process: it would end a run without a word.

    ``sys.excepthook``, without which no thread starts, is there again in the end.
    """
    leave, process, thread = os._exit, os.getpid(), threading.get_ident()

    def raises(status: int) -> NoReturn:
        if (os.getpid(), threading.get_ident()) == (process, thread):
            raise SystemExit(status)
        leave(status)  # a fork of it ends as ever

    os._exit = raises
    try:
        yield
    finally:
        os._exit = leave
        sys.excepthook = getattr(sys, "excepthook", None) or sys.__excepthook__


def plugin_of(obj: object) -> Path | None:
    """The plugin file that defines a class or function; None where none does."""
    module = str(getattr(obj, "__module__", ""))
    return Path(str(sys.modules[module].__file__)) if module.startswith(_PREFIX) else None


def _why(path: Path, error: BaseException) -> str:
    """Why a plugin file failed to import, with the line of it that was at work."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"plugin {path}, line {error.lineno}: {error.msg}; correct it and start again"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f", line {lines[-1]}" if lines else ""
    return f"plugin {path}{where} failed to import: {type(error).__name__}: {_what(error)}"


def _what(error: BaseException) -> str:
    return f"it calls for an exit (code {error.code})" if isinstance(error, SystemExit) else str(error)


def _origin(obj: object) -> str:
    return f"{getattr(obj, '__module__', '?')}.{getattr(obj, '__qualname__', repr(obj))}"
