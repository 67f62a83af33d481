"""Which training bags an epoch shows, and which of their instances."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from mil_zoo.data.bag import Bag

Ints = NDArray[np.int64]


def epoch_order(strata: Ints, sampling: str, draws: np.random.Generator) -> Ints:
    """Indices of the bags of an epoch, as many as there are.

    Args:
        strata: ``[n]`` of the bags (with classes: the class).
        sampling: "shuffled", each bag once, or "balanced", with replacement, each stratum as often as any other.
        draws: where chance comes from.
    """
    if sampling == "shuffled":
        return draws.permutation(len(strata))
    weights = 1 / np.bincount(strata)[strata]
    return draws.choice(len(strata), len(strata), p=weights / weights.sum())


def subsample(bag: Bag, max_instances: int, draws: np.random.Generator) -> Bag:
    """The bag with ``max_instances`` random instances at most, in their order."""
    rows = draw_instances(len(bag), max_instances, draws)
    return bag if rows is None else bag.subset(torch.from_numpy(rows))


def draw_instances(n: int, max_instances: int, draws: np.random.Generator) -> Ints | None:
    """Which of ``n`` instances a step sees, ascending; None for all."""
    return None if n <= max_instances else np.sort(draws.choice(n, max_instances, replace=False))
