"""Sums over the neighbours of a graph: the product of a sparse matrix and features (GIN, GCN, smoothing)."""

from __future__ import annotations

from torch import Tensor

from mil_zoo.errors import InputError
from mil_zoo.kernels.backends import choose_backend, lazy
from mil_zoo.kernels.checks import check_graph, check_tensor, in_float32
from mil_zoo.kernels.csr import CSR
from mil_zoo.kernels.ops.graph_sum import reference

IMPLEMENTATIONS = {
    "reference": reference.forward,
    "numba": lazy("mil_zoo.kernels.ops.graph_sum.numba_cpu"),
    "triton": lazy("mil_zoo.kernels.ops.graph_sum.triton_gpu"),
}


@in_float32
def graph_sum(x: Tensor, graph: CSR, *, weight: Tensor | None = None, backend: str = "auto") -> Tensor:
    """Sums what the sources of every destination hold: ``out_i = sum over edges j -> i of weight_ij x_j``.

    Args:
        x: ``[Ns, F]`` float.
        graph: CSR by destination, Nd rows.
        weight: ``[E]`` in CSR order, without gradient; None for one each.
        backend: "auto", or one of ``available_backends()``.

    Returns:
        ``[Nd, F]``; zeros where a destination has no source.

    Raises:
        InputError: shapes, dtypes or devices that do not fit, a weight that asks for a gradient, or a backend that
            cannot run.
    """
    check_tensor("x", x, (None, None))
    check_graph(graph, len(x), graph.num_dst, x.device)
    if weight is not None:
        check_tensor("weight", weight, (graph.num_edges,), like=x)
        if weight.requires_grad:
            raise InputError("graph_sum gives its weights no gradient; detach them, or use graph_dot_attention")
    name = choose_backend("graph_sum", IMPLEMENTATIONS, backend, x.device, x.dtype)
    out: Tensor = IMPLEMENTATIONS[name](x, graph, weight)
    return out
