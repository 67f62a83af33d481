"""Dropout whose mask is a function of a seed: nothing is stored for backward, which draws it again."""

from __future__ import annotations

from torch import Tensor

from mil_zoo.kernels.backends import choose_backend, lazy
from mil_zoo.kernels.checks import check_dropout, check_tensor
from mil_zoo.kernels.draws import draw_seed
from mil_zoo.kernels.ops.seeded_dropout import reference

IMPLEMENTATIONS = {
    "reference": reference.forward,
    "numba": lazy("mil_zoo.kernels.ops.seeded_dropout.numba_cpu"),
    "triton": lazy("mil_zoo.kernels.ops.seeded_dropout.triton_gpu"),
}


def seeded_dropout(x: Tensor, dropout_p: float, *, seed: int | Tensor | None = None, backend: str = "auto") -> Tensor:
    """Sets entries to 0 with probability ``dropout_p`` and multiplies the others by ``1 / (1 - dropout_p)``.

    Args:
        x: ``[N, D]`` float.
        dropout_p: the rate; 0 returns ``x`` itself.
        seed: None draws one from torch's generator. Entry d of row n is keyed by ``n * D + d``.
        backend: "auto", or one of ``available_backends()``.

    Raises:
        InputError: a rate outside [0, 1), or a backend that cannot run.
    """
    check_tensor("x", x, (None, None))
    check_dropout(dropout_p)
    if dropout_p == 0:
        return x
    name = choose_backend("seeded_dropout", IMPLEMENTATIONS, backend, x.device, x.dtype)
    out: Tensor = IMPLEMENTATIONS[name](x, dropout_p, draw_seed() if seed is None else seed)
    return out
