"""Graph attention (GAT): leaky_relu, softmax over each destination's sources, dropout, weighted sum.

Source: Velickovic et al., Graph Attention Networks, ICLR 2018 (equations 3 and 4, with the score split into a source
and a destination part as all implementations do).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, overload

from torch import Tensor

from mil_zoo.errors import InputError
from mil_zoo.kernels.backends import choose_backend, lazy
from mil_zoo.kernels.checks import check_dropout, check_graph, check_tensor, in_float32
from mil_zoo.kernels.csr import CSR
from mil_zoo.kernels.draws import draw_seed
from mil_zoo.kernels.ops.graph_attention import reference

IMPLEMENTATIONS = {
    "reference": reference.forward,
    "dgl": lazy("mil_zoo.kernels.ops.graph_attention.dgl_ops"),
    "numba": lazy("mil_zoo.kernels.ops.graph_attention.numba_cpu"),
    "triton": lazy("mil_zoo.kernels.ops.graph_attention.triton_gpu"),
}


class GlobalKey(NamedTuple):
    """One extra source for each bag, that every destination of the bag also attends to.

    Attributes:
        feat: ``[B, H, F]``.
        score: ``[B, H]``; -inf where a bag has no global node.
        bag: int64 ``[Nd]``, the bag of every destination.
        offsets: int64 ``[B + 1]`` where the destinations lie bag after bag, as ``bag`` says; None where they need not.
    """

    feat: Tensor
    score: Tensor
    bag: Tensor
    offsets: Tensor | None = None


@overload
def graph_attention(
    feat: Tensor,
    src_score: Tensor,
    dst_score: Tensor,
    graph: CSR,
    *,
    negative_slope: float = ...,
    dropout_p: float = ...,
    seed: int | Tensor | None = ...,
    global_key: GlobalKey | None = ...,
    return_attention: Literal[False] = ...,
    backend: str = ...,
) -> Tensor: ...


@overload
def graph_attention(
    feat: Tensor,
    src_score: Tensor,
    dst_score: Tensor,
    graph: CSR,
    *,
    negative_slope: float = ...,
    dropout_p: float = ...,
    seed: int | Tensor | None = ...,
    global_key: GlobalKey | None = ...,
    return_attention: Literal[True],
    backend: str = ...,
) -> tuple[Tensor, ...]: ...


@in_float32
def graph_attention(
    feat: Tensor,
    src_score: Tensor,
    dst_score: Tensor,
    graph: CSR,
    *,
    negative_slope: float = 0.2,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    global_key: GlobalKey | None = None,
    return_attention: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, ...]:
    """Attention of every destination over its sources.

    For an edge j -> i and head h, ``a_ij = softmax_j(leaky_relu(src_score_j + dst_score_i))`` and
    ``out_i = sum_j dropout(a_ij) feat_j``. A destination without sources (and without a global key) gets zeros.

    Args:
        feat: ``[Ns, H, F]`` float.
        src_score: ``[Ns, H]``.
        dst_score: ``[Nd, H]``.
        graph: CSR by destination, Nd rows.
        negative_slope: of the leaky ReLU.
        dropout_p: rate at which attention weights are dropped (after the softmax); 0 switches it off.
        seed: of the dropout; None draws one from torch's generator. Edge e and head h are keyed by ``e * H + h`` with
            e the position in CSR order; the global key of destination i counts as edge ``E + i``.
        global_key: an extra source for each bag.
        return_attention: also return the weights before dropout.
        backend: "auto", or one of ``available_backends()``.

    Returns:
        ``[Nd, H, F]``; with ``return_attention`` also ``[E, H]`` and, with a global key, ``[Nd, H]``.

    Raises:
        InputError: shapes, dtypes or devices that do not fit, or a backend that cannot run.
    """
    check_tensor("feat", feat, (None, None, None))
    num_src, heads, width = feat.shape
    check_tensor("src_score", src_score, (num_src, heads), like=feat)
    check_tensor("dst_score", dst_score, (graph.num_dst, heads), like=feat)
    check_graph(graph, num_src, len(dst_score), feat.device)
    check_dropout(dropout_p)
    if global_key is not None:
        check_tensor("global_key.feat", global_key.feat, (None, heads, width), like=feat)
        check_tensor("global_key.score", global_key.score, (len(global_key.feat), heads), like=feat)
        if global_key.bag.shape != (len(dst_score),):
            raise InputError(f"global_key.bag must be [{len(dst_score)}], not {list(global_key.bag.shape)}")
        if global_key.offsets is not None and global_key.offsets.shape != (len(global_key.feat) + 1,):
            raise InputError(
                f"global_key.offsets must be [{len(global_key.feat) + 1}], not {list(global_key.offsets.shape)}"
            )
        if global_key.bag.is_floating_point() or global_key.bag.device != feat.device:
            bag = global_key.bag
            raise InputError(f"global_key.bag must be integer on {feat.device}, not {bag.dtype} on {bag.device}")
    if dropout_p > 0 and seed is None:
        seed = draw_seed()
    if return_attention or global_key is not None:  # both count the edges
        graph = graph.without_room
    name = choose_backend("graph_attention", IMPLEMENTATIONS, backend, feat.device, feat.dtype)
    out, attention, global_attention = IMPLEMENTATIONS[name](
        feat,
        src_score,
        dst_score,
        graph,
        negative_slope=negative_slope,
        dropout_p=dropout_p,
        seed=0 if seed is None else seed,
        global_key=global_key,
        return_attention=return_attention,
    )
    if not return_attention:
        return out
    return (out, attention) if global_key is None else (out, attention, global_attention)
