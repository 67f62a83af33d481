"""Scaled dot-product attention of every query to every key, without a matrix of all pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mil_zoo.kernels import onednn
from mil_zoo.kernels.backends import choose_backend
from mil_zoo.kernels.checks import check_tensor
from mil_zoo.kernels.ops.dense_attention import by_products

FEW = 2**22  # multiplications of a head, below which the loops over heads and blocks take longer than they save
LANDMARKS = 512  # queries or keys that are few beside the others


def _pytorch(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    width = v.shape[2]
    if width < q.shape[2]:  # PyTorch's fused attention wants values as wide as keys
        v = F.pad(v, (0, q.shape[2] - width))
    return F.scaled_dot_product_attention(q[None], k[None], v[None], bias)[0, :, :, :width]


IMPLEMENTATIONS = {"reference": _pytorch, "onednn": by_products.on_a_cpu}


def dense_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """Attention of all queries to all keys: ``softmax(q k^T / sqrt(d) + bias) v``.

    PyTorch's fused attention, or products and a softmax, block by block: by oneDNN on some CPUs (see
    :func:`mil_zoo.kernels.linear`), and on a GPU in float32 where queries or keys are few, as with landmarks, for which
    PyTorch's takes twice as long. Both compute the weights again in backward.

    Args:
        q: ``[H, Q, d]`` float.
        k: ``[H, K, d]``.
        v: ``[H, K, e]``.
        bias: ``[1, K]``, finite, added to the logits of every query and head; a constant. PyTorch takes others too.
        backend: "auto", "reference" (PyTorch's own), or "onednn" (float32 on a CPU).

    Returns:
        ``[H, Q, e]``.

    Raises:
        InputError: a backend that cannot run, or tensors that it does not take.
    """
    if backend == "auto":
        each = q.shape[1] * k.shape[1] * q.shape[2]
        if onednn.pays(each, q, k, v) and each >= FEW and _fits(q, k, v, bias):
            return by_products.on_a_cpu(q, k, v, bias)
        if _has_landmarks(q, k, v) and _fits(q, k, v, bias):
            return by_products.on_a_gpu(q, k, v, bias)
        return _pytorch(q, k, v, bias)
    name = choose_backend("dense_attention", IMPLEMENTATIONS, backend, q.device, q.dtype)
    if name == "onednn":
        onednn.check(q)
        check_tensor("k", k, (len(q), None, q.shape[2]), like=q)
        check_tensor("v", v, (len(q), k.shape[1], None), like=q)
        if bias is not None:
            check_tensor("bias", bias, (1, k.shape[1]), like=q)
    return IMPLEMENTATIONS[name](q, k, v, bias)


def _has_landmarks(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Says whether PyTorch's fused attention on a GPU would leave it nearly idle: in float32, few with many.

    Few keys of many queries slow its backward only.
    """
    if not q.is_cuda or torch.compiler.is_compiling():
        return False
    few, many = sorted((q.shape[1], k.shape[1]))
    return (
        all(tensor.dtype == torch.float32 for tensor in (q, k, v))
        and not torch.is_autocast_enabled("cuda")
        and few <= LANDMARKS
        and len(q) * few * many >= FEW
        and (q.shape[1] == few or (torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))))
    )


def _fits(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> bool:
    """Says whether the tensors are those of the docstring: what else PyTorch takes or refuses is left to it."""
    if bias is not None and (bias.dtype != q.dtype or bias.shape != (1, k.shape[1]) or bias.requires_grad):
        return False
    return k.shape == (len(q), v.shape[1], q.shape[2]) and len(v) == len(q)
