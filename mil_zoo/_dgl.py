"""The one import of DGL.

DGL 2.1.0 loads its GraphBolt extension on import and fails where no GraphBolt library was built for the installed
torch. GraphBolt serves neighbour sampling, which this package does not use: where its library is missing, an empty
module takes its place. ``DGLBACKEND`` is set so that DGL neither prints nor writes a configuration file.
"""

import importlib.metadata
import importlib.util
import os
import sys
import types
from pathlib import Path


def _graphbolt_library_exists() -> bool:
    spec = importlib.util.find_spec("dgl")
    if spec is None or spec.origin is None:
        raise ImportError("dgl is not installed: pip install 'dgl>=2.1,<3'")
    torch_version = importlib.metadata.version("torch").split("+")[0]
    return any((Path(spec.origin).parent / "graphbolt").glob(f"*graphbolt_pytorch_{torch_version}.*"))


os.environ.setdefault("DGLBACKEND", "pytorch")
if "dgl" not in sys.modules and not _graphbolt_library_exists():
    sys.modules["dgl.graphbolt"] = types.ModuleType("dgl.graphbolt")

import dgl  # noqa: E402

DGLGraph = dgl.DGLGraph
ops = dgl.ops

__all__ = ["DGLGraph", "dgl", "ops"]
