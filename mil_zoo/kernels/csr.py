"""The graph as tensors: CSR by destination, the only graph format the kernels know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Transposed:
    """The same edges grouped by source: row j lists the destinations of j.

    Attributes:
        indptr: int32 ``[Ns + 1]``.
        indices: int32 ``[E]``, destinations.
        edge: int32 ``[E]``, the position of each of these edges in the CSR it was made from.
    """

    indptr: Tensor
    indices: Tensor
    edge: Tensor


@dataclass(frozen=True, eq=False)
class CSR:
    """Edges grouped by destination: row i lists the sources of i.

    Attributes:
        indptr: int32 ``[Nd + 1]``, where each row starts.
        indices: int32 ``[E]``, sources.
        num_src: number of source nodes ``Ns``.
    """

    indptr: Tensor
    indices: Tensor
    num_src: int

    @classmethod
    def from_edges(cls, src: Tensor, dst: Tensor, num_src: int, num_dst: int | None = None) -> CSR:
        """Groups ``src -> dst`` (integer ``[E]`` each) by destination, sources ascending within a row."""
        num_dst = num_src if num_dst is None else num_dst
        order = torch.argsort(dst.long() * num_src + src.long())
        counts = torch.bincount(dst.long(), minlength=num_dst)
        indptr = torch.zeros(num_dst + 1, dtype=torch.int32, device=dst.device)
        indptr[1:] = counts.cumsum(0)
        return cls(indptr, src[order].int(), num_src)

    @property
    def num_dst(self) -> int:
        """Number of destination nodes ``Nd``."""
        return len(self.indptr) - 1

    @property
    def num_edges(self) -> int:
        """Number of edges ``E``."""
        return len(self.indices)

    @cached_property
    def destinations(self) -> Tensor:
        """int64 ``[E]``: the destination of every edge, in CSR order."""
        rows = torch.arange(self.num_dst, device=self.indptr.device)
        return torch.repeat_interleave(rows, self.indptr.diff().long(), output_size=self.num_edges)

    @cached_property
    def transposed(self) -> Transposed:
        """The edges grouped by source, for backward passes that must not use atomics."""
        if "_parts" in self.__dict__:
            return self._transposed_parts()
        if "_selected" in self.__dict__:
            return self._transposed_selection()
        order = torch.argsort(self.indices.long() * self.num_dst + self.destinations)
        indptr = torch.zeros(self.num_src + 1, dtype=torch.int32, device=self.indptr.device)
        indptr[1:] = torch.bincount(self.indices.long(), minlength=self.num_src).cumsum(0)
        return Transposed(indptr, self.destinations[order].int(), order.int())

    def _transposed_parts(self) -> Transposed:
        # Joined from those of the parts, which outlive this graph and so are sorted once.
        indptrs, indices, edge, nodes, edges = [self.indptr[:1]], [], [], 0, 0
        for part in self.__dict__["_parts"]:
            back = part.transposed
            indptrs.append(back.indptr[1:] + edges)
            indices.append(back.indices + nodes)
            edge.append(back.edge + edges)
            nodes, edges = nodes + part.num_dst, edges + part.num_edges
        return Transposed(torch.cat(indptrs), torch.cat(indices), torch.cat(edge))

    def select(self, rows: Tensor) -> CSR:
        """The destinations ``rows`` (int64, each at most once) alone, in that order; sources stay."""
        counts, starts = self.indptr.diff()[rows], self.indptr[rows]
        indptr = torch.zeros(len(rows) + 1, dtype=torch.int32, device=rows.device)
        indptr[1:] = counts.cumsum(0)
        edges = torch.repeat_interleave(starts - indptr[:-1], counts, output_size=int(indptr[-1]))
        edges += torch.arange(len(edges), dtype=torch.int32, device=rows.device)
        selection = CSR(indptr, self.indices[edges], self.num_src)
        selection.__dict__["_selected"] = self, rows, edges
        return selection

    def _transposed_selection(self) -> Transposed:
        # That of the whole graph, which is sorted once, without the rows that were not selected.
        whole, rows, edges = self.__dict__["_selected"]
        back, place = whole.transposed, torch.full((whole.num_edges,), -1, dtype=torch.int32, device=rows.device)
        place[edges] = torch.arange(len(edges), dtype=torch.int32, device=rows.device)
        place = place[back.edge]
        kept = place >= 0
        indptr = F.pad(kept.cumsum(0, dtype=torch.int32), (1, 0))[back.indptr]
        row = torch.empty(whole.num_dst, dtype=torch.int32, device=rows.device)
        row[rows] = torch.arange(len(rows), dtype=torch.int32, device=rows.device)
        return Transposed(indptr, row[back.indices[kept]], place[kept])

    def to(self, device: torch.device | str) -> CSR:
        """The same graph on ``device``; itself if it is there already."""
        if self.indptr.device == torch.device(device):
            return self
        moved = CSR(self.indptr.to(device), self.indices.to(device), self.num_src)
        if "_checked" in self.__dict__:
            moved.__dict__["_checked"] = True
        return moved

    @staticmethod
    def concat(graphs: Sequence[CSR]) -> CSR:
        """Graphs side by side as one, nodes numbered end to end."""
        if len(graphs) == 1:
            return graphs[0]
        indptrs, indices, nodes, edges = [graphs[0].indptr[:1]], [], 0, 0
        for graph in graphs:
            indptrs.append(graph.indptr[1:] + edges)
            indices.append(graph.indices + nodes)
            nodes, edges = nodes + graph.num_src, edges + graph.num_edges
        if edges >= 2**31:
            raise ValueError(f"{edges} edges in one batch do not fit int32; put fewer bags in a batch")
        joined = CSR(torch.cat(indptrs), torch.cat(indices), nodes)
        joined.__dict__["_parts"] = tuple(graphs)
        return joined
