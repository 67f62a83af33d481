"""Attention over instances, plain and gated, and the layer that comes before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mil_zoo.aggregators.blocks.dropout import Dropout
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.kernels import gated_scores, linear


class Attention(nn.Module):
    """Scores instances by ``w^T tanh(V h)`` (Ilse et al. 2018, equation 8).

    Args:
        in_dim: width of h.
        attention_dim: rows of V.
        branches: number K of attention distributions.
    """

    def __init__(self, in_dim: int, attention_dim: int, branches: int = 1) -> None:
        super().__init__()
        self.V = Linear(in_dim, attention_dim)
        self.w = Linear(attention_dim, branches)

    def forward(self, h: Tensor) -> Tensor:
        """``[N, in_dim]`` to attention logits ``[N, K]``."""
        return self.w(torch.tanh(self.V(h)))


class GatedAttention(nn.Module):
    """Scores instances by ``w^T (tanh(V h) * sigmoid(U h))`` (Ilse et al. 2018, equation 9).

    Args:
        in_dim: width of h.
        attention_dim: rows of V and U.
        branches: number K of attention distributions.
        dropout: dropout rate of both hidden vectors.
    """

    def __init__(self, in_dim: int, attention_dim: int, branches: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.V = Linear(in_dim, attention_dim)
        self.U = Linear(in_dim, attention_dim)
        self.w = Linear(attention_dim, branches)
        self.drop = Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        """``[N, in_dim]`` to attention logits ``[N, K]``."""
        # One product for both halves; after it nothing as wide is kept for backward but its result.
        x = linear(h, torch.cat([self.V.weight, self.U.weight]), torch.cat([self.V.bias, self.U.bias]))
        rate = self.drop.p if self.drop.training else 0.0
        return gated_scores(x, self.w.weight, dropout_p=rate) + self.w.bias


def feature_layer(in_dim: int, embed_dim: int | None) -> tuple[nn.Module, int]:
    """Makes an instance-wise Linear + ReLU of width ``embed_dim``, or the identity for None; returns its width too."""
    if embed_dim is None:
        return nn.Identity(), in_dim
    return nn.Sequential(Linear(in_dim, embed_dim), nn.ReLU(inplace=True)), embed_dim
