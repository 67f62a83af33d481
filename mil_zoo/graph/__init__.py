"""Patch graphs: registered builders over coordinates or features, and the packed graph of a batch."""

from mil_zoo.graph.bag_graph import BagGraph, csr_of
from mil_zoo.graph.base import GRAPHS, build, parse_spec, register_graph

__all__ = ["GRAPHS", "BagGraph", "build", "csr_of", "parse_spec", "register_graph"]
