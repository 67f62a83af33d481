"""Stands in for packages that the package's other parts import and no step needs, where a GPU machine lacks them."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types

UNUSED = ("shapely", "pydantic", "pydantic_core", "filelock", "cattrs", "docstring_parser", "h5py", "seaborn", "rich")


class _Module(types.ModuleType):
    __path__ = ()

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {})


class _Finder:
    def find_spec(self, name: str, path: object = None, target: object = None):
        if name.partition(".")[0] in self.missing:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def __init__(self, missing: list[str]) -> None:
        self.missing = missing

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def stand_in() -> list[str]:
    """Puts empty modules in the place of those of ``UNUSED`` that are not installed, and returns their names."""
    missing = [name for name in UNUSED if importlib.util.find_spec(name) is None]
    for name in missing:
        sys.modules.pop(name, None)
    sys.meta_path.append(_Finder(missing))
    return missing
