"""Scores of gated attention in plain PyTorch: the oracle."""

from __future__ import annotations

import torch

from mil_zoo.kernels.ops.seeded_dropout import seeded_dropout


def forward(x, weight, dropout_p, seed):
    """See ``gated_scores``."""
    left, right = x.chunk(2, dim=1)
    left, right = torch.tanh(left), torch.sigmoid(right)
    if dropout_p > 0:
        left, right = seeded_dropout(torch.cat([left, right], dim=1), dropout_p, seed=seed).chunk(2, dim=1)
    return (left * right) @ weight.T
