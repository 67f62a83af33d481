"""A CSR as a DGLGraph, for the ``dgl`` backends and for users who want DGL's own tools."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mil_zoo import _dgl
from mil_zoo.kernels.csr import CSR

if TYPE_CHECKING:
    from mil_zoo._dgl import DGLGraph


def dgl_graph(csr: CSR) -> DGLGraph:
    """The CSR as a CPU ``DGLGraph`` whose edge ids are CSR positions; made once for each CSR.

    Homogeneous where sources and destinations are the same nodes in number, else bipartite.
    """
    if "_dgl" not in csr.__dict__:
        dgl = _dgl.load()
        # The edge ids are given although they only count up: DGL's libxsmm kernels refuse a CSR without them.
        edge_ids = torch.arange(csr.num_edges, dtype=torch.int32)
        edges = ("csc", (csr.indptr.cpu(), csr.indices.cpu(), edge_ids))
        if csr.num_src == csr.num_dst:
            graph = dgl.graph(edges, num_nodes=csr.num_src, idtype=torch.int32)
        else:
            nodes = {"source": csr.num_src, "destination": csr.num_dst}
            graph = dgl.heterograph({("source", "to", "destination"): edges}, nodes, idtype=torch.int32)
        csr.__dict__["_dgl"] = graph
    return csr.__dict__["_dgl"]
