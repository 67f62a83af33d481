"""Patch graphs: registered builders over coordinates or features, and the packed graph of a batch."""

from mil_zoo.graph.bag_graph import BagGraph
from mil_zoo.graph.base import GRAPHS, build, build_csr, parse_spec, register_graph

__all__ = ["GRAPHS", "BagGraph", "build", "build_csr", "parse_spec", "register_graph"]
