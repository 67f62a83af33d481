"""Dropout as the kernels draw it."""

from __future__ import annotations

from torch import Tensor, nn

from mil_zoo.kernels import seeded_dropout


class Dropout(nn.Dropout):
    """``nn.Dropout`` with the mask of ``seeded_dropout``, which takes a fraction of the time on a CPU.

    The mask is a function of a seed from torch's generator: backward draws it again, and nothing is stored.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Drops entries of ``[..., D]`` in training."""
        if not self.training or self.p == 0:
            return x
        return seeded_dropout(x.reshape(-1, x.shape[-1]), self.p).view(x.shape)
