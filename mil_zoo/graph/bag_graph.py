"""The graph of a batch: one CSR for the kernels, and the DGLGraph that it stands for, for who asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from mil_zoo.kernels.csr import CSR

if TYPE_CHECKING:
    from mil_zoo._dgl import DGLGraph


@dataclass(frozen=True, eq=False)
class BagGraph:
    """The graphs of the bags of a batch, nodes numbered as in the packed features.

    Attributes:
        csr: all edges by destination, int32, on the compute device.
        num_nodes: patches of each bag.
        num_edges: edges of each bag.
    """

    csr: CSR
    num_nodes: tuple[int, ...]
    num_edges: tuple[int, ...]

    @classmethod
    def batch(cls, graphs: Sequence[CSR]) -> BagGraph:
        """Packs the graphs of several bags."""
        nodes, edges = tuple(graph.num_dst for graph in graphs), tuple(graph.num_edges for graph in graphs)
        return cls(CSR.concat(graphs), nodes, edges)

    @cached_property
    def dgl(self) -> DGLGraph:
        """The batched ``DGLGraph`` (``batch_num_nodes`` set), on the CPU; edge ids are CSR positions.

        Raises:
            InputError: DGL cannot be imported.
        """
        graph = self.csr.dgl
        graph.set_batch_num_nodes(torch.tensor(self.num_nodes, dtype=torch.int32))
        graph.set_batch_num_edges(torch.tensor(self.num_edges, dtype=torch.int32))
        return graph

    def to(self, device: torch.device | str) -> BagGraph:
        """The same graph with its CSR on ``device``."""
        return BagGraph(self.csr.to(device), self.num_nodes, self.num_edges)
