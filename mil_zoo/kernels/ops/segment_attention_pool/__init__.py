"""Attention pooling of packed bags: softmax of scores within each bag, dropout, weighted sum of values."""

from __future__ import annotations

from torch import Tensor

from mil_zoo.kernels.backends import choose_backend, is_small_bag, lazy
from mil_zoo.kernels.checks import check_dropout, check_offsets, check_tensor, in_float32
from mil_zoo.kernels.draws import draw_seed
from mil_zoo.kernels.ops.segment_attention_pool import one_bag, reference

IMPLEMENTATIONS = {
    "reference": reference.forward,
    "dgl": lazy("mil_zoo.kernels.ops.segment_attention_pool.dgl_ops"),
    "numba": lazy("mil_zoo.kernels.ops.segment_attention_pool.numba_cpu"),
    "triton": lazy("mil_zoo.kernels.ops.segment_attention_pool.triton_gpu"),
}


@in_float32
def segment_attention_pool(
    scores: Tensor,
    values: Tensor,
    offsets: Tensor,
    *,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Pools the instances of each bag by K attention distributions.

    ``a = softmax(scores)`` within each bag and column; ``pooled_bk = sum_n dropout(a_nk) values_n``.

    Args:
        scores: ``[N, K]`` float, the attention logits of all bags end to end.
        values: ``[N, F]`` (shared by the K distributions) or ``[N, K, F]`` (one for each).
        offsets: integer ``[B + 1]``; bag b is rows ``offsets[b]:offsets[b + 1]``. No bag may be empty.
        dropout_p: rate at which attention weights are dropped.
        seed: of the dropout; None draws one. Row n and column k are keyed by ``n * K + k``.
        backend: "auto", or one of ``available_backends()``. On a CPU "auto" takes PyTorch's own operations for one bag
            of few numbers.

    Returns:
        pooled ``[B, K, F]`` and attention ``[N, K]`` before dropout.

    Raises:
        InputError: shapes, dtypes or devices that do not fit, an empty bag, or a backend that cannot run.
    """
    check_tensor("scores", scores, (None, None))
    check_tensor(
        "values", values, (len(scores), *([None] if values.ndim == 2 else [scores.shape[1], None])), like=scores
    )
    check_offsets(offsets, len(scores), scores.device)
    check_dropout(dropout_p)
    if dropout_p > 0 and seed is None:
        seed = draw_seed()
    name = choose_backend("segment_attention_pool", IMPLEMENTATIONS, backend, scores.device, scores.dtype)
    multiplications = scores.numel() * values.shape[-1]
    if backend == "auto" and name == "numba" and dropout_p == 0 and is_small_bag(scores, offsets, multiplications):
        return one_bag.forward(scores, values)
    pooled, attention = IMPLEMENTATIONS[name](
        scores, values, offsets, dropout_p=dropout_p, seed=0 if seed is None else seed
    )
    return pooled, attention
