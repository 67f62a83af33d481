"""The graph as tensors: CSR by destination, the only graph format that the kernels know.

What is derived from a graph (its transpose, its long rows, the result of its check, its ``DGLGraph``) is a cached
property of it. A graph that was moved to another device derives at the graph that it was moved from, which outlives
it, and moves the result: nothing is sorted or checked again for each step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mil_zoo import _dgl
from mil_zoo.errors import InputError
from mil_zoo.kernels import devices
from mil_zoo.kernels.long_rows import LongRows

if TYPE_CHECKING:
    from mil_zoo._dgl import DGLGraph


@dataclass(frozen=True, eq=False)
class Transposed:
    """The same edges grouped by source: row j lists the destinations of j.

    Attributes:
        indptr: int32 ``[Ns + 1]``; of a symmetric graph the very tensor of its CSR.
        indices: int32 ``[E]``, destinations; of a symmetric graph the very tensor of its CSR.
        edge: int32 ``[E]``, the position of each of these edges in the CSR it was made from.
        origin: what this was moved from, or None.
        short: known to have no long row.
    """

    indptr: Tensor
    indices: Tensor
    edge: Tensor
    origin: Transposed | None = field(default=None, repr=False)
    short: bool = field(default=False, repr=False)

    @cached_property
    def long_rows(self) -> LongRows | None:
        """The rows with more than ``LONG_ROW`` edges, None where there are none."""
        return _long_rows(self)


class Selection(NamedTuple):
    """Which part of another graph a graph is.

    Attributes:
        whole: the other graph.
        rows: int64 ``[Nd]``, the row of it that each row is.
        edges: int32 ``[E]``, the edge of it that each edge is; with room after the last one they are not known.
        room: whether ``indices`` and ``edges`` are as long as those of the whole graph, and only their beginning is
            used. How many edges some rows have is then for the device to know, and no process waits for it.
    """

    whole: CSR
    rows: Tensor
    edges: Tensor
    room: bool


@dataclass(frozen=True, eq=False)
class CSR:
    """Edges grouped by destination: row i lists the sources of i.

    Attributes:
        indptr: int32 ``[Nd + 1]``, where each row starts.
        indices: int32 ``[E]``, sources. (A selection on a GPU has room after the last one.)
        num_src: number of source nodes ``Ns``.
        stored: the transpose, where it is known beforehand (a packed store keeps it); not checked.
        origin: the graph that this one was moved from, or None.
        parts: the graphs that :meth:`concat` joined to this one.
        selection: the graph and rows that :meth:`select` made this one of, or None.
        checked: known to be valid and to have no long rows: its values are not read.
        bare: the graph without self-loops, where it is known beforehand.
    """

    indptr: Tensor
    indices: Tensor
    num_src: int
    stored: Transposed | None = field(default=None, repr=False)
    origin: CSR | None = field(default=None, repr=False)
    parts: tuple[CSR, ...] = field(default=(), repr=False)
    selection: Selection | None = field(default=None, repr=False)
    checked: bool = field(default=False, repr=False)
    bare: CSR | None = field(default=None, repr=False)

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
        return self.indptr.shape[0] - 1

    @property
    def num_edges(self) -> int:
        """Number of edges ``E``; of a selection with room the most that there may be."""
        return self.indices.shape[0]

    @cached_property
    def without_room(self) -> CSR:
        """The same graph without room after its last edge; itself where it has none. A GPU has to be waited for."""
        if self.selection is None or not self.selection.room:
            return self
        count = int(self.indptr[-1])
        selection = self.selection._replace(edges=self.selection.edges[:count], room=False)
        return CSR(self.indptr, self.indices[:count], self.num_src, selection=selection)

    @cached_property
    def destinations(self) -> Tensor:
        """int64 ``[E]``: the destination of every edge, in CSR order; not of a graph with room."""
        assert self.without_room is self
        rows = torch.arange(self.num_dst, device=self.indptr.device)
        return torch.repeat_interleave(rows, self.indptr.diff().long(), output_size=self.num_edges)

    @cached_property
    def transposed(self) -> Transposed:
        """The edges grouped by source, for backward passes that must not use atomics; within a row by CSR position.

        Raises:
            InputError: the graph has a :attr:`problem`.
        """
        if self.problem is not None:
            raise InputError(self.problem)
        if self.stored is not None:
            return self.stored
        if self.origin is not None:
            return _moved(self.origin.transposed, self.origin, self)
        if self.parts:
            return self._transposed_parts()
        if self.selection is not None:
            return self._transposed_selection(self.selection)
        if self.indptr.device.type != "cpu":
            order = torch.argsort(self.indices.long() * self.num_dst + self.destinations)
            indptr = torch.zeros(self.num_src + 1, dtype=torch.int32, device=self.indptr.device)
            indptr[1:] = torch.bincount(self.indices.long(), minlength=self.num_src).cumsum(0)
            return Transposed(indptr, self.destinations[order].int(), order.int())
        return self._transposed_by_counting()

    def _transposed_by_counting(self) -> Transposed:
        # O(E), where a sort of 25 million edges takes seconds. The data of the sparse matrix are the edges' positions.
        from scipy.sparse import csr_array  # takes a tenth of a second to import

        edges = np.arange(self.num_edges, dtype=np.int32)
        shape = (self.num_dst, self.num_src)
        columns = csr_array((edges, self.indices.numpy(), self.indptr.numpy()), shape=shape).tocsc()
        arrays = columns.indptr, columns.indices, columns.data
        indptr, indices, edge = (torch.from_numpy(array.astype(np.int32, copy=False)) for array in arrays)
        if indptr.equal(self.indptr) and indices.equal(self.indices):  # symmetric, as built graphs are
            return Transposed(self.indptr, self.indices, edge)
        return Transposed(indptr, indices, edge)

    def _transposed_parts(self) -> Transposed:
        # Joined from those of the parts, which outlive this graph and so are sorted once.
        backs = [part.transposed for part in self.parts]
        shifts = _starts(part.num_edges for part in self.parts)
        edge = torch.cat([back.edge + shift for back, shift in zip(backs, shifts, strict=True)])
        short = all(back.long_rows is None for back in backs)
        if all(back.indices is part.indices for back, part in zip(backs, self.parts, strict=True)):
            return Transposed(self.indptr, self.indices, edge, short=short)
        nodes = _starts(part.num_dst for part in self.parts)
        indptrs = [back.indptr[1:] + shift for back, shift in zip(backs, shifts, strict=True)]
        indices = [back.indices + first for back, first in zip(backs, nodes, strict=True)]
        return Transposed(torch.cat([self.indptr[:1], *indptrs]), torch.cat(indices), edge, short=short)

    def _transposed_selection(self, selection: Selection) -> Transposed:
        # That of the whole graph, which is sorted once, without the rows that were not selected.
        whole, rows, edges, room = selection
        back, place = whole.transposed, torch.full((whole.num_edges + 1,), -1, dtype=torch.int32, device=rows.device)
        numbers = torch.arange(len(edges), dtype=torch.int32, device=rows.device)
        # What stands in the room goes to one more place, which no edge has.
        place[torch.where(numbers < self.indptr[-1], edges, whole.num_edges) if room else edges] = numbers
        place = place.index_select(0, back.edge)
        kept = place >= 0
        indptr = F.pad(kept.cumsum(0, dtype=torch.int32), (1, 0)).index_select(0, back.indptr)
        row = torch.empty(whole.num_dst, dtype=torch.int32, device=rows.device)
        row[rows] = torch.arange(len(rows), dtype=torch.int32, device=rows.device)
        chosen = devices.positions(kept, len(edges))
        indices = row.index_select(0, back.indices.index_select(0, chosen))
        return Transposed(indptr, indices, place.index_select(0, chosen), short=back.long_rows is None)

    @cached_property
    def long_rows(self) -> LongRows | None:
        """The rows with more than ``LONG_ROW`` edges, None where there are none."""
        return _long_rows(self)

    @cached_property
    def problem(self) -> str | None:
        """What is wrong with the tensors, in one sentence; None for a valid graph.

        Its values are read once: a graph moved, joined or selected from valid ones is valid.
        """
        if self.checked:
            return None
        if self.origin is not None:
            return self.origin.problem
        if self.parts:
            return next((part.problem for part in self.parts if part.problem is not None), None)
        if self.selection is not None and self.selection.whole.problem is None:
            return None
        indptr, indices = self.indptr, self.indices
        if indptr.dtype != torch.int32 or indices.dtype != torch.int32:
            return f"CSR must be int32, not indptr {indptr.dtype} and indices {indices.dtype}"
        if not len(indptr) or indptr[0] != 0 or indptr[-1] != len(indices) or bool((indptr.diff() < 0).any()):
            return "CSR indptr must rise from 0 to the number of edges"
        if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= self.num_src):
            return f"CSR indices must lie in 0..{self.num_src - 1}, not {int(indices.min())}..{int(indices.max())}"
        return None

    @cached_property
    def dgl(self) -> DGLGraph:
        """The same graph as a ``DGLGraph`` on the CPU, whose edge ids are CSR positions.

        Homogeneous where sources and destinations are the same nodes in number, else bipartite.

        Raises:
            InputError: DGL cannot be imported.
        """
        if self.origin is not None:
            return self.origin.dgl
        if self.without_room is not self:
            return self.without_room.dgl
        dgl = _dgl.load()
        # The edge ids are given although they only count up: DGL's libxsmm kernels refuse a CSR without them.
        edge_ids = torch.arange(self.num_edges, dtype=torch.int32)
        edges = ("csc", (self.indptr.cpu(), self.indices.cpu(), edge_ids))
        if self.num_src == self.num_dst:
            return dgl.graph(edges, num_nodes=self.num_src, idtype=torch.int32)
        nodes = {"source": self.num_src, "destination": self.num_dst}
        return dgl.heterograph({("source", "to", "destination"): edges}, nodes, idtype=torch.int32)

    @cached_property
    def without_self_loops(self) -> CSR:
        """The same nodes without the edges from a node to itself; this very graph where it has none.

        Raises:
            InputError: the graph has a :attr:`problem`.
        """
        if self.problem is not None:
            raise InputError(self.problem)
        if self.bare is not None:
            return self.bare
        if self.origin is not None:
            return self.origin.without_self_loops.to(self.indptr.device)
        if self.parts:
            return CSR.concat([part.without_self_loops for part in self.parts])
        kept = self.indices != torch.repeat_interleave(self.indptr.diff(), output_size=self.num_edges)
        if kept.all():
            return self
        indptr = F.pad(kept.cumsum(0, dtype=torch.int32), (1, 0))[self.indptr]
        return CSR(indptr, self.indices[kept], self.num_src)

    def select(self, rows: Tensor) -> CSR:
        """The destinations ``rows`` (int64, each at most once) alone, in that order; sources stay.

        On a GPU, whose process is not to wait for the number of their edges, there is room after the last one.
        """
        starts = self.indptr.index_select(0, rows)
        counts = self.indptr[1:].index_select(0, rows) - starts
        indptr = F.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
        shift = starts - indptr[:-1]  # of the place of a row's edges
        room = devices.runs_ahead(rows.device)
        if room:  # filled by one more row, whose edges stay where they are
            shift, counts = F.pad(shift, (0, 1)), torch.cat([counts, self.num_edges - indptr[-1:]])
        count = self.num_edges if room else int(indptr[-1])
        edges = torch.repeat_interleave(shift, counts, output_size=count)
        edges += torch.arange(count, dtype=torch.int32, device=rows.device)
        indices = self.indices.index_select(0, edges)
        return CSR(indptr, indices, self.num_src, selection=Selection(self, rows, edges, room))

    def to(self, device: torch.device | str) -> CSR:
        """The same graph on ``device``, with all that was or will be derived from it; itself if it is there already."""
        device = torch.device(device)
        indptr = devices.to_device(self.indptr, device)
        if indptr is self.indptr:
            return self
        return CSR(indptr, devices.to_device(self.indices, device), self.num_src, origin=self)

    @staticmethod
    def concat(graphs: Sequence[CSR]) -> CSR:
        """Graphs side by side as one, nodes numbered end to end.

        Raises:
            InputError: more edges than int32 counts.
        """
        if len(graphs) == 1:
            return graphs[0]
        nodes, edges = _starts(graph.num_src for graph in graphs), _starts(graph.num_edges for graph in graphs)
        num_edges = edges[-1] + graphs[-1].num_edges
        if num_edges >= 2**31:
            raise InputError(f"{num_edges} edges in one batch do not fit int32; put fewer bags in a batch")
        indptrs = [graph.indptr[1:] + first for graph, first in zip(graphs, edges, strict=True)]
        indices = [graph.indices + first for graph, first in zip(graphs, nodes, strict=True)]
        num_src = nodes[-1] + graphs[-1].num_src
        return CSR(torch.cat([graphs[0].indptr[:1], *indptrs]), torch.cat(indices), num_src, parts=tuple(graphs))


def _starts(sizes: Iterable[int]) -> list[int]:
    """Where each of things of these sizes starts, laid end to end."""
    return [0, *accumulate(sizes)][:-1]


def _moved(back: Transposed, graph: CSR, moved: CSR) -> Transposed:
    """The transpose of ``graph`` where ``moved`` is; that of a symmetric graph shares its tensors there too."""
    device = moved.indptr.device
    if back.indices is graph.indices:
        return Transposed(moved.indptr, moved.indices, devices.to_device(back.edge, device), origin=back)
    indptr, indices, edge = (devices.to_device(part, device) for part in (back.indptr, back.indices, back.edge))
    return Transposed(indptr, indices, edge, origin=back)


def _long_rows(graph: CSR | Transposed) -> LongRows | None:
    if isinstance(graph, Transposed):
        short = graph.short
    elif graph.checked:
        short = True
    elif graph.parts:
        short = all(part.long_rows is None for part in graph.parts)
    else:
        short = graph.selection is not None and graph.selection.whole.long_rows is None
    if short:
        return None
    if graph.origin is None:
        return LongRows.of(graph.indptr)
    long = graph.origin.long_rows
    return None if long is None else long.to(graph.indptr.device)
