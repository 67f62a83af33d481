"""Relational graph convolution: each relation of the edges has a weight matrix of its own.

A sparse convolution is one with a relation for every offset of its window (Graham & van der Maaten, Submanifold Sparse
Convolutional Networks, 2017); the sum over relations is that of R-GCN (Schlichtkrull et al., ESWC 2018, equation 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mil_zoo.errors import InputError
from mil_zoo.kernels.backends import choose_backend
from mil_zoo.kernels.checks import check_tensor
from mil_zoo.kernels.ops.relational_gather_gemm import reference

IMPLEMENTATIONS = {"reference": reference.forward}


@dataclass(frozen=True, eq=False)
class RelationalEdges:
    """Edges grouped by relation.

    Attributes:
        src: int64 ``[E]``, sources; those of relation 0 first, and so on.
        dst: int64 ``[E]``, destinations.
        counts: how many edges each of the R relations has.
        num_src: number of source nodes ``Ns``.
        num_dst: number of destination nodes ``Nd``.
    """

    src: Tensor
    dst: Tensor
    counts: tuple[int, ...]
    num_src: int
    num_dst: int

    @cached_property
    def problem(self) -> str | None:
        """What is wrong with the edges, in one sentence; None for valid ones. Their values are read once."""
        if not len(self.src) == len(self.dst) == sum(self.counts):
            return f"{sum(self.counts)} edges need as many sources and destinations, not {len(self.src)}"
        for what, index, size in (("sources", self.src, self.num_src), ("destinations", self.dst, self.num_dst)):
            if index.dtype != torch.int64 or (len(index) and not 0 <= int(index.min()) <= int(index.max()) < size):
                return f"{what} must be int64 in 0..{size - 1}"
        return None


def relational_gather_gemm(x: Tensor, weight: Tensor, edges: RelationalEdges, *, backend: str = "auto") -> Tensor:
    """``out_i = sum over relations r and edges j -> i of r: x_j W_r``.

    Under autocast the products are taken in its dtype; sums over edges are in float32 or better.

    Args:
        x: ``[Ns, Ci]`` float, features of the sources.
        weight: ``[R, Ci, Co]``.
        edges: of R relations.
        backend: "auto", or one of ``available_backends()``.

    Returns:
        ``[Nd, Co]``; zeros where a destination has no edge.

    Raises:
        InputError: shapes, dtypes or devices that do not fit, edges that point outside, or a backend that cannot run.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    check_tensor("x", x, (edges.num_src, None))
    check_tensor("weight", weight, (len(edges.counts), x.shape[1], None), like=x)
    _check_edges(edges, x.device)
    name = choose_backend("relational_gather_gemm", IMPLEMENTATIONS, backend, x.device)
    out: Tensor = IMPLEMENTATIONS[name](x, weight, edges)
    return out


def _check_edges(edges: RelationalEdges, device: torch.device) -> None:
    if edges.src.device != device or edges.dst.device != device:
        raise InputError(f"the edges are on {edges.src.device}, the tensors on {device}; make them on one device")
    if edges.problem is not None:
        raise InputError(edges.problem)
