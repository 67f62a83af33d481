"""Strata of targets: what folds are balanced by, what bags are weighted by, what a linear probe of sites is given."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def quantile_strata(values: Floats, parts: int) -> NDArray[np.int64]:
    """The part of each value ``[n]``, from 0, between the quantiles ``1/parts, 2/parts, ...`` of all of them."""
    edges = np.quantile(values, np.arange(1, parts) / parts) if len(values) else values
    return np.searchsorted(edges, values, side="right").astype(np.int64)


def one_hot(strata: NDArray[np.int64]) -> Floats:
    """``[n, K]``: which of the strata that occur each row is in."""
    return (strata[:, None] == np.unique(strata)).astype(np.float64)


def inverse_frequencies(strata: NDArray[np.int64]) -> NDArray[np.float32]:
    """A weight ``[n]`` of each row, the inverse frequency of its stratum, with mean 1."""
    counts = np.bincount(strata)
    inverse = np.float32(len(strata)) / (counts.clip(min=1) * (counts > 0).sum()).astype(np.float32)
    return np.asarray(inverse[strata], dtype=np.float32)


def within(values: Floats, members: Floats) -> Floats:
    """Numbers ``[n, P]``, and again those of each stratum alone: ``[n, P + P K]``, of ``members`` ``[n, K]``."""
    return np.concatenate([values, (values[:, :, None] * members[:, None, :]).reshape(len(values), -1)], axis=1)
