"""Scaled dot-product attention over the edges of a graph (graph transformers, WiKG-like and windowed attention)."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from mil_zoo.kernels.backends import choose_backend, lazy
from mil_zoo.kernels.checks import check_dropout, check_graph, check_tensor, in_float32
from mil_zoo.kernels.csr import CSR
from mil_zoo.kernels.draws import draw_seed
from mil_zoo.kernels.ops.graph_dot_attention import reference

IMPLEMENTATIONS = {
    "reference": reference.forward,
    "dgl": lazy("mil_zoo.kernels.ops.graph_dot_attention.dgl_ops"),
    "numba": lazy("mil_zoo.kernels.ops.graph_dot_attention.numba_cpu"),
    "triton": lazy("mil_zoo.kernels.ops.graph_dot_attention.triton_gpu"),
}


@overload
def graph_dot_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    graph: CSR,
    *,
    scale: float | None = ...,
    bias: Tensor | None = ...,
    dropout_p: float = ...,
    seed: int | Tensor | None = ...,
    return_attention: Literal[False] = ...,
    backend: str = ...,
) -> Tensor: ...


@overload
def graph_dot_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    graph: CSR,
    *,
    scale: float | None = ...,
    bias: Tensor | None = ...,
    dropout_p: float = ...,
    seed: int | Tensor | None = ...,
    return_attention: Literal[True],
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...


@in_float32
def graph_dot_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    graph: CSR,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    return_attention: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of every destination over its sources, scored by dot products.

    ``a_ij = softmax_j(scale * <q_i, k_j> + bias_ij)``, ``out_i = sum_j dropout(a_ij) v_j``. A destination without
    sources gets zeros.

    Args:
        q: ``[Nd, H, F]`` float.
        k: ``[Ns, H, F]``.
        v: ``[Ns, H, Fv]``.
        graph: CSR by destination, Nd rows.
        scale: None for ``F ** -0.5``.
        bias: ``[E, H]`` in CSR order, or None.
        dropout_p: rate at which attention weights are dropped.
        seed: of the dropout, keyed as in ``graph_attention``.
        return_attention: also return the weights ``[E, H]`` before dropout.
        backend: "auto", or one of ``available_backends()``.

    Returns:
        ``[Nd, H, Fv]``, with ``return_attention`` also ``[E, H]``.

    Raises:
        InputError: shapes, dtypes or devices that do not fit, or a backend that cannot run.
    """
    check_tensor("q", q, (None, None, None))
    num_dst, heads, width = q.shape
    check_tensor("k", k, (None, heads, width), like=q)
    check_tensor("v", v, (len(k), heads, None), like=q)
    check_graph(graph, len(k), num_dst, q.device)
    check_dropout(dropout_p)
    if bias is not None:
        check_tensor("bias", bias, (graph.num_edges, heads), like=q)
    if dropout_p > 0 and seed is None:
        seed = draw_seed()
    if return_attention:  # of each edge
        graph = graph.without_room
    scale = max(1, width) ** -0.5 if scale is None else scale
    name = choose_backend("graph_dot_attention", IMPLEMENTATIONS, backend, q.device, q.dtype)
    out, attention = IMPLEMENTATIONS[name](
        q,
        k,
        v,
        graph,
        scale=scale,
        bias=bias,
        dropout_p=dropout_p,
        seed=0 if seed is None else seed,
        return_attention=return_attention,
    )
    return (out, attention) if return_attention else out
