"""Counter-based dropout for the Numba kernels: the numbers of ``kernels.dropout.kept_scale``, made where needed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mil_zoo.kernels._numba.hash_vectors import HASH_LANES, hash_counters, hash_run
from mil_zoo.kernels._numba.jit import jit


class Dropout(NamedTuple):
    """What the kernels need to know of a dropout.

    Attributes:
        threshold: uint32; an element is dropped where its hash is below. 0: nothing is dropped.
        low: uint32, the low word of the seed.
        high: uint32, its high word.
        kept: what an element that is kept is multiplied by, in the dtype of the features.
    """

    threshold: np.uint32
    low: np.uint32
    high: np.uint32
    kept: np.floating

    @classmethod
    def of(cls, p: float, seed: int, dtype: np.dtype) -> Dropout:
        """Dropout at rate ``p``."""
        low, high = np.uint32(seed & 0xFFFFFFFF), np.uint32((seed >> 32) & 0xFFFFFFFF)
        return cls(np.uint32(int(p * 2**32)), low, high, dtype.type(1 / (1 - p)))


@jit()
def kept_scale(edges, dropout, counter, scale):
    """Fills ``scale`` ``[H, n]`` with what dropout multiplies each head of edges by: ``dropout.kept_scale``.

    There are n edges or fewer; what is beyond them in ``scale`` has no meaning. Nothing is written where nothing is
    dropped. ``counter`` is room for uint32 ``[2, n]``.
    """
    if dropout.threshold == 0:
        return
    heads, n = scale.shape
    whole = n // HASH_LANES * HASH_LANES
    for e in range(len(edges)):
        first = np.uint64(edges[e]) * np.uint64(heads)
        counter[0, e], counter[1, e] = np.uint32(first), np.uint32(first >> np.uint64(32))
    for h in range(heads):
        for e in range(0, min(len(edges), whole), HASH_LANES):
            hash_counters(counter, dropout, scale, (h, e))
        for e in range(whole, len(edges)):
            first = np.uint64(edges[e]) * np.uint64(heads) + np.uint64(h)
            scale[h, e] = _scale(first, dropout)


@jit()
def kept_scale_run(first, dropout, scale):
    """Fills ``scale`` ``[n]`` with what dropout multiplies elements ``first .. first + n - 1`` by."""
    if dropout.threshold == 0:
        for c in range(len(scale)):
            scale[c] = dropout.kept
        return
    for c in range(0, len(scale) - HASH_LANES + 1, HASH_LANES):
        hash_run(np.uint64(first), c, dropout, scale)
    for c in range(len(scale) // HASH_LANES * HASH_LANES, len(scale)):
        scale[c] = _scale(np.uint64(first) + np.uint64(c), dropout)


@jit()
def _scale(counter, dropout):
    """What the element of one counter is multiplied by: the loop that ``hash_run`` stands for."""
    word = _finalise(np.uint32(np.uint32(counter) ^ dropout.low))
    word = _finalise(np.uint32(word ^ np.uint32(counter >> np.uint64(32)) ^ dropout.high))
    return dropout.kept if word >= dropout.threshold else dropout.kept - dropout.kept


@jit()
def _finalise(x):
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))
