"""Whether two trainings of an aggregator, apart in nothing but the seed, attend to the same instances of a slide."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from mil_zoo.errors import InputError

TOP = 10


def stability(attentions: Sequence[ArrayLike]) -> dict[str, float]:
    """Agreement of the attention of one slide across seeds, mean over pairs of seeds.

    Args:
        attentions: float ``[N]``, one a seed, of the same instances in the same order.

    Returns:
        - ``seed_spearman``: rank correlation (Spearman, ties by mean rank); absent where a seed's attention is constant
        - ``seed_top10_overlap``: share of the 10 most attended instances in common (all in a smaller bag: then 1)
        - ``seed_top1pct_overlap``: the same of the ceil(0.01 N) most attended

        Equal attention: the earlier instance first. Empty for fewer than two seeds.

    Raises:
        InputError: arrays of different length.
    """
    values = [np.asarray(attention, dtype=np.float64) for attention in attentions]
    if len({len(value) for value in values}) > 1:
        raise InputError("attention of one slide differs in length between seeds; the slide's file was changed")
    if len(values) < 2:
        return {}
    n = len(values[0])
    numbers = {
        "seed_top10_overlap": _mean_overlap(values, min(TOP, n)),
        "seed_top1pct_overlap": _mean_overlap(values, -(-n // 100)),
    }
    if all(np.ptp(value) > 0 for value in values):
        ranks = np.corrcoef([rankdata(value) for value in values])
        numbers["seed_spearman"] = float(ranks[np.triu_indices(len(values), 1)].mean())
    return numbers


def _mean_overlap(values: list[NDArray[np.float64]], k: int) -> float:
    tops = [set(np.argsort(-value, kind="stable")[:k].tolist()) for value in values]
    return float(np.mean([len(a & b) / k for a, b in itertools.combinations(tops, 2)]))
