"""Softmax aggregation over the neighbours of a graph, channel by channel (Li et al., DeeperGCN, 2020, equation 8)."""

from __future__ import annotations

from torch import Tensor

from mil_zoo.kernels.backends import choose_backend, lazy
from mil_zoo.kernels.checks import check_graph, check_tensor, in_float32
from mil_zoo.kernels.csr import CSR
from mil_zoo.kernels.ops.graph_softmax_sum import reference

IMPLEMENTATIONS = {
    "reference": reference.forward,
    "numba": lazy("mil_zoo.kernels.ops.graph_softmax_sum.numba_cpu"),
    "triton": lazy("mil_zoo.kernels.ops.graph_softmax_sum.triton_gpu"),
}


@in_float32
def graph_softmax_sum(x: Tensor, t: Tensor, graph: CSR, *, backend: str = "auto") -> Tensor:
    """Averages what the sources of every destination hold by the softmax of the values themselves.

    For each channel c, ``p_ijc = softmax over the sources j of i of t x_jc`` and ``out_ic = sum_j p_ijc x_jc``: with
    t = 0 that is the mean, and it nears the maximum as t grows.

    Args:
        x: ``[Ns, F]`` float.
        t: ``[1]``, the inverse temperature.
        graph: CSR by destination, Nd rows.
        backend: "auto", or one of ``available_backends()``.

    Returns:
        ``[Nd, F]``; zeros where a destination has no source.

    Raises:
        InputError: shapes, dtypes or devices that do not fit, or a backend that cannot run.
    """
    check_tensor("x", x, (None, None))
    check_tensor("t", t, (1,), like=x)
    check_graph(graph, len(x), graph.num_dst, x.device)
    name = choose_backend("graph_softmax_sum", IMPLEMENTATIONS, backend, x.device, x.dtype)
    out: Tensor = IMPLEMENTATIONS[name](x, t, graph)
    return out
