"""Products of pairs of matrices, by the fastest that the CPU has."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mil_zoo.kernels import onednn
from mil_zoo.kernels.backends import choose_backend
from mil_zoo.kernels.checks import check_tensor
from mil_zoo.kernels.ops.bmm import onednn_cpu

LARGE = 2**25  # multiplications of a pair from which several threads are worth waking for each

IMPLEMENTATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"reference": torch.bmm, "onednn": onednn_cpu.forward}


def bmm(a: Tensor, b: Tensor, *, backend: str = "auto") -> Tensor:
    """``a_h @ b_h`` of every h: ``torch.bmm``, faster on some CPUs (see :func:`mil_zoo.kernels.linear`).

    Args:
        a: ``[H, M, K]`` float.
        b: ``[H, K, N]``.
        backend: "auto", "reference" (PyTorch's own), or "onednn" (float32 on a CPU).

    Returns:
        ``[H, M, N]``; under autocast in its precision, as PyTorch's.

    Raises:
        InputError: a backend that cannot run, or tensors that it does not take.
    """
    if backend == "auto":
        each = a.shape[1] * a.shape[2] * b.shape[2]
        # MKL deals the pairs out to threads, which wake once; oneDNN takes them one after another.
        is_faster = onednn.pays(each, a, b) and (torch.get_num_threads() == 1 or each >= LARGE)
        is_faster = is_faster and len(a) == len(b) and a.shape[2] == b.shape[1]  # PyTorch refuses what does not fit
        return (onednn_cpu.forward if is_faster else torch.bmm)(a, b)
    name = choose_backend("bmm", IMPLEMENTATIONS, backend, a.device, a.dtype)
    if name == "onednn":
        onednn.check(a)
        check_tensor("b", b, (len(a), a.shape[2], None), like=a)
    return IMPLEMENTATIONS[name](a, b)
