"""Graphs of slides that lie on disk, kept between one reading of a slide and the next."""

from __future__ import annotations

import threading
from collections.abc import MutableMapping

from mil_zoo.kernels.csr import CSR

GRAPH_EDGES = 2**31 // 12  # kept in memory: 2 GiB, as an edge and its transposed one take 12 bytes


class GraphCache:
    """Graphs built of the slides used last, together at most ``GRAPH_EDGES`` edges (or those of one slide)."""

    def __init__(self) -> None:
        self._slides: dict[str, _SlideGraphs] = {}  # the slide used last comes last
        self._edges = 0
        self._lock = threading.Lock()  # slides are read ahead in another thread

    def of(self, slide_id: str) -> MutableMapping[str, CSR]:
        """The graphs of a slide by spec; what is put in is kept."""
        with self._lock:
            graphs = self._slides.pop(slide_id, None)
            graphs = _SlideGraphs(self) if graphs is None else graphs
            self._slides[slide_id] = graphs
            return graphs

    def add(self, edges: int) -> None:
        """Counts a graph that was put in, and makes room."""
        with self._lock:
            self._edges += edges
            while self._edges > GRAPH_EDGES and len(self._slides) > 1:
                oldest = self._slides.pop(next(iter(self._slides)))
                oldest.cache = None
                self._edges -= sum(csr.num_edges for csr in oldest.values())


class _SlideGraphs(dict[str, CSR]):
    """Graphs of one slide, counted by their cache until that drops them."""

    def __init__(self, cache: GraphCache) -> None:
        super().__init__()
        self.cache: GraphCache | None = cache

    def __setitem__(self, spec: str, graph: CSR) -> None:
        super().__setitem__(spec, graph)
        if self.cache is not None:
            self.cache.add(graph.num_edges)
