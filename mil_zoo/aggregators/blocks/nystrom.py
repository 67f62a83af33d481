"""What Nystrom attentions share: landmarks of tokens that zeros precede, and the iterated pseudo-inverse."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mil_zoo.kernels import bmm

ITERATIONS = 6  # of the pseudo-inverse


class Zeros(NamedTuple):
    """The zeros that precede T tokens so that m landmarks, the means of runs of equal length, divide them.

    Where many landmarks are means of zeros alone, they are one landmark that counts as often, and the zeros are one
    token: queries, keys and values of zeros are zeros, so rows and columns of equal ones are equal in every matrix, and
    the pseudo-inverse's iterates keep that. A bag of 16 patches then needs matrices of 18 x 18 and not of 256 x 256.

    Attributes:
        padding: how many zeros there are.
        tokens: how many are kept, as one or as they are.
        landmarks: how many equal landmarks are one; 1 where they are few and stay apart.
    """

    padding: int
    tokens: int
    landmarks: int

    @classmethod
    def before(cls, tokens: int, landmarks: int) -> Zeros:
        """The zeros before ``tokens`` tokens with that many landmarks."""
        padding = -tokens % landmarks
        equal = padding * landmarks // (padding + tokens)
        return cls(padding, 1, equal) if equal > max(1, landmarks // 32) else cls(padding, padding, 1)

    def means(self, x: Tensor, landmarks: int) -> Tensor:
        """The landmarks ``[m - landmarks + 1, ...]`` of ``x`` ``[T, ...]``."""
        padded = F.pad(x, (0, 0) * (x.ndim - 1) + (self.padding, 0))
        return padded.unflatten(0, (landmarks, -1)).mean(1)[self.landmarks - 1 :]

    def prepend(self, x: Tensor) -> Tensor:
        """``[tokens + T, ...]``: the zeros that are kept, and ``x`` ``[T, ...]``."""
        return F.pad(x, (0, 0) * (x.ndim - 1) + (self.tokens, 0))

    def token_bias(self, tokens: Tensor) -> Tensor | None:
        """``[1, tokens + T]``, added to logits of ``tokens``: log of how many zeros the first of them is."""
        return None if self.landmarks == 1 else _log_count(self.padding, tokens)

    def landmark_bias(self, means: Tensor) -> Tensor | None:
        """The same for the landmarks ``means``: log of how many the first of them is."""
        return None if self.landmarks == 1 else _log_count(self.landmarks, means)


def _log_count(count: int, rows: Tensor) -> Tensor:
    """Log of ``count`` for the first of the ``rows`` and of 1 for the others."""
    return F.pad(rows.new_full((1, 1), math.log(count)), (0, len(rows) - 1))


def softmax(q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """Weights ``[..., Q, K]`` of scaled dot-product attention of ``q`` ``[..., Q, d]`` to ``k`` ``[..., K, d]``."""
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return (logits if bias is None else logits + bias).softmax(-1)


def pseudo_inverse(x: Tensor, equal: int = 1) -> Tensor:
    """Iterates to the Moore-Penrose pseudo-inverse of row-stochastic matrices, six times.

    ``z = z (13 I - x z (15 I - x z (7 I - x z))) / 4`` from ``z = x^T / s``, s the largest column sum (the largest row
    sum is 1), one for all heads.

    With ``equal`` the first row stands for so many equal ones, and the first column for the sum of so many: for w =
    (equal, 1, ..., 1) the full matrix's iterates are those of x from ``z_ij = x_ji w_j / (w_i s)``.

    Args:
        x: ``[H, m, m]`` of one bag.
        equal: how many landmarks the first one stands for.
    """
    identity = torch.eye(x.shape[-1], device=x.device, dtype=x.dtype)
    if equal == 1:
        z = x.transpose(-1, -2) / x.sum(-2).max()
    else:
        count = F.pad(x.new_full((1,), equal - 1), (0, x.shape[-1] - 1)) + 1
        largest = ((count @ x) / count).max()
        z = x.transpose(-1, -2) * count / (count[:, None] * largest)
    for _ in range(ITERATIONS):
        xz = bmm(x, z)
        z = 0.25 * bmm(z, 13 * identity - bmm(xz, 15 * identity - bmm(xz, 7 * identity - xz)))
    return z
