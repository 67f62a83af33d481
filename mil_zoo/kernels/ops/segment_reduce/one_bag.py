"""Reductions of one bag by PyTorch's own operations: of few numbers they take less than the kernels' call."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(values: Tensor, offsets: Tensor, reduce: str) -> tuple[Tensor, Tensor | None]:
    """See ``segment_reduce``. Returns reduced ``[1, F]`` and, for "max", argmax ``[1, F]`` (else None)."""
    if reduce == "max":
        argmax = values.detach().max(0, keepdim=True).indices
        return values.gather(0, argmax), argmax
    if reduce == "logsumexp":
        return torch.logsumexp(values, 0, keepdim=True), None
    return (values.sum if reduce == "sum" else values.mean)(0, keepdim=True), None
