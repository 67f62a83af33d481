"""Blocks that three or more papers share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Attention logits ``w^T tanh(V h)`` (Ilse et al. 2018, equation 8).

    Args:
        in_dim: width of h.
        attention_dim: rows of V.
        branches: number K of attention distributions.
    """

    def __init__(self, in_dim: int, attention_dim: int, branches: int = 1) -> None:
        super().__init__()
        self.V = nn.Linear(in_dim, attention_dim)
        self.w = nn.Linear(attention_dim, branches)

    def forward(self, h: Tensor) -> Tensor:
        """``[N, in_dim]`` to attention logits ``[N, K]``."""
        return self.w(torch.tanh(self.V(h)))


class GatedAttention(nn.Module):
    """Attention logits ``w^T (tanh(V h) * sigmoid(U h))`` (Ilse et al. 2018, equation 9).

    Args:
        in_dim: width of h.
        attention_dim: rows of V and U.
        branches: number K of attention distributions.
    """

    def __init__(self, in_dim: int, attention_dim: int, branches: int = 1) -> None:
        super().__init__()
        self.V = nn.Linear(in_dim, attention_dim)
        self.U = nn.Linear(in_dim, attention_dim)
        self.w = nn.Linear(attention_dim, branches)

    def forward(self, h: Tensor) -> Tensor:
        """``[N, in_dim]`` to attention logits ``[N, K]``."""
        return self.w(torch.tanh(self.V(h)) * torch.sigmoid(self.U(h)))


def feature_layer(in_dim: int, embed_dim: int | None) -> tuple[nn.Module, int]:
    """An instance-wise Linear + ReLU of width ``embed_dim``, and that width; the identity where it is None."""
    if embed_dim is None:
        return nn.Identity(), in_dim
    return nn.Sequential(nn.Linear(in_dim, embed_dim), nn.ReLU()), embed_dim


def segment_topk(scores: Tensor, offsets: Tensor, k: Tensor) -> Tensor:
    """The k highest scores of each bag, in each column.

    Args:
        scores: ``[N, K]``.
        offsets: integer ``[B + 1]``; bag b is rows ``offsets[b]:offsets[b + 1]``.
        k: int64 ``[B]``, how many of each bag, at most its size.

    Returns:
        int64 ``[sum k, K]``, rows of ``scores``: the bags in order, highest score first (equal: the earlier row).
    """
    bag = torch.repeat_interleave(offsets.diff(), output_size=len(scores))
    order = scores.argsort(dim=0, descending=True, stable=True)
    order = order.gather(0, bag[order].argsort(dim=0, stable=True))  # the bags apart again, each by falling score
    place = torch.arange(len(scores), device=scores.device) - offsets[bag]
    return order[place < k[bag]]
