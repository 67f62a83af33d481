"""The door to DGL: the one place that imports it, when it is first asked for.

Graphs are CSR inside the package. DGL serves who asks for a ``DGLGraph`` (``graph.build``, ``batch.graph.dgl``) or for
the ``dgl`` backend: ``from mil_zoo._dgl import dgl`` (or ``DGLGraph``, ``ops``) loads it at that line.

DGL 2 loads its GraphBolt extension on import and fails where GraphBolt was not built for the installed torch. GraphBolt
serves neighbour sampling, which this package does not use: where it cannot be loaded, an empty module takes its place.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mil_zoo.errors import InputError

if TYPE_CHECKING:
    from dgl import DGLGraph as DGLGraph

INSTEAD = "everything else works without DGL: graph.build_csr and batch.graph.csr give the graph as tensors"


def load() -> Any:
    """The ``dgl`` module, imported at the first call.

    Raises:
        InputError: it cannot be imported; the sentence says why, and what to do.
    """
    dgl, reason = _loaded()
    if reason is not None:
        raise InputError(reason)
    return dgl


def why_not() -> str | None:
    """Why DGL cannot be imported here and what to do, in one sentence; None where it can (and now is)."""
    return _loaded()[1]


def __getattr__(name: str) -> Any:
    if name == "dgl":
        return load()
    if name in ("DGLGraph", "ops"):
        return getattr(load(), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _loaded() -> tuple[Any, str | None]:
    """DGL and None, or None and the reason why there is none."""
    os.environ["DGLBACKEND"] = "pytorch"  # the one that tensors here have; unset, DGL prints and writes a file
    if sys.modules.get("dgl", ...) is None or importlib.util.find_spec("dgl") is None:
        return None, f"DGL is not installed: {_how_to_install()}; {INSTEAD}"
    try:
        if "dgl" not in sys.modules and not _graphbolt_loads():
            sys.modules["dgl.graphbolt"] = types.ModuleType("dgl.graphbolt")
        return importlib.import_module("dgl"), None
    except Exception as error:  # of any kind: it loads libraries built for other versions
        said = " ".join(str(error).split())
        return None, f"DGL cannot be imported ({type(error).__name__}: {said}): {_how_to_install()}; {INSTEAD}"


def _how_to_install() -> str:
    if sys.version_info >= (3, 13):
        here = f"this is Python {sys.version_info[0]}.{sys.version_info[1]}"
        return f"its wheels stop at Python 3.12 and {here}, so use an environment with Python 3.10 to 3.12"
    if sys.platform == "darwin" and platform.machine() != "arm64":
        return "it has no wheel for Macs with Intel processors, so use Linux, Windows or a Mac with an Apple processor"
    return "install it with pip install 'dgl>=2.1,<3'"


def _graphbolt_loads() -> bool:
    folder = Path(str(importlib.util.find_spec("dgl").origin)).parent / "graphbolt"  # type: ignore[union-attr]
    torch_version = importlib.metadata.version("torch").split("+")[0]
    libraries = list(folder.glob(f"*graphbolt_pytorch_{torch_version}.*"))
    try:
        for library in libraries:
            importlib.import_module("torch").classes.load_library(str(library))
    except (OSError, RuntimeError, ImportError):  # there, and built for something else
        return False
    return bool(libraries)
