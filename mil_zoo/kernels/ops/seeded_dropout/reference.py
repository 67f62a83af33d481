"""Seeded dropout in plain PyTorch: the oracle."""

from __future__ import annotations

from mil_zoo.kernels.dropout import dropout_scale


def forward(x, dropout_p, seed):
    """See ``seeded_dropout``."""
    return x * dropout_scale(x.numel(), dropout_p, seed, x.device, x.dtype).view_as(x)
