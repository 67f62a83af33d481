"""Counter-based dropout: the same seed drops the same elements in every backend, forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def dropout_scale(
    count: int, p: float, seed: int | Tensor, device: torch.device, dtype: torch.dtype, start: int = 0
) -> Tensor:
    """What dropout multiplies elements ``start .. start + count - 1`` by: 0 with probability p, else 1 / (1 - p).

    Element c is dropped where ``hash(seed, c) < p * 2^32``; ``hash`` is two rounds of a 32-bit finaliser (constants
    of C. Wellons' lowbias32) over the low and high words of the counter, each mixed with a word of the seed.

    Returns:
        ``[count]`` of ``dtype``.
    """
    counter = torch.arange(start, start + count, device=device)
    word = _finalise((counter & _MASK) ^ (seed & _MASK))
    word = _finalise(word ^ (counter >> 32) ^ ((seed >> 32) & _MASK))
    return (word >= int(p * 2**32)).to(dtype) / (1 - p)


def _finalise(x: Tensor) -> Tensor:
    # int64 products wrap, which leaves their low 32 bits right.
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)
