"""Scores of gated attention from the products of both halves: tanh times sigmoid, times the weights of each branch."""

from __future__ import annotations

from torch import Tensor

from mil_zoo.kernels.backends import choose_backend, lazy
from mil_zoo.kernels.checks import check_dropout, check_tensor, in_float32
from mil_zoo.kernels.draws import draw_seed
from mil_zoo.kernels.ops.gated_scores import reference

IMPLEMENTATIONS = {
    "reference": reference.forward,
    "numba": lazy("mil_zoo.kernels.ops.gated_scores.numba_cpu"),
}


@in_float32
def gated_scores(
    x: Tensor, weight: Tensor, *, dropout_p: float = 0.0, seed: int | Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """Scores instances by gated attention: ``s_nk = sum_a w_ka drop(tanh x_na) drop(sigmoid x_n(A + a))``.

    The fused backend keeps ``x`` alone for backward, which computes the gates again.

    Args:
        x: ``[N, 2 A]`` float: ``V h`` and ``U h`` with their biases, side by side.
        weight: ``[K, A]``, of each of K attention distributions.
        dropout_p: dropout rate of both halves.
        seed: None draws one from torch's generator. Entry d of row n is keyed by ``n * 2 A + d``.
        backend: "auto", or one of ``available_backends()``.

    Returns:
        ``[N, K]``.

    Raises:
        InputError: shapes, dtypes or devices that do not fit, a rate outside [0, 1), or a backend that cannot run.

    Source: Ilse et al., ICML 2018, equation 9.
    """
    check_tensor("weight", weight, (None, None))
    check_tensor("x", x, (None, 2 * weight.shape[1]), like=weight)
    check_dropout(dropout_p)
    name = choose_backend("gated_scores", IMPLEMENTATIONS, backend, x.device, x.dtype)
    seed = (draw_seed() if dropout_p > 0 else 0) if seed is None else seed
    out: Tensor = IMPLEMENTATIONS[name](x, weight, dropout_p, seed)
    return out
