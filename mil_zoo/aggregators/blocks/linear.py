"""The linear layer of every aggregator."""

from __future__ import annotations

from torch import Tensor, nn

from mil_zoo.kernels import linear


class Linear(nn.Linear):
    """``torch.nn.Linear`` through :func:`mil_zoo.kernels.linear`: the same parameters and numbers, faster products."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[..., in_features]`` to ``[..., out_features]``."""
        return linear(x, self.weight, self.bias)
