"""Batch normalisation whose statistics are those of the whole batch, also where it is spread over processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil_zoo.errors import InputError
from mil_zoo.ssl.distributed import all_sum, world


class BatchNorm(nn.Module):
    """Normalises each column over all rows of the batch: ``nn.BatchNorm1d`` in one process, for packed rows.

    torch's ``SyncBatchNorm`` needs a GPU; here sums are exchanged by any backend. Statistics are float32 or better,
    also under autocast.

    Args:
        width: number of columns.
        eps: added to the variance.
        momentum: share of a batch in the running statistics (torch's convention).
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """``[S, F]`` to ``[S, F]``.

        Raises:
            InputError: a single row in training, which has no variance.
        """
        dtype = x.dtype
        x = x.to(torch.promote_types(dtype, torch.float32))
        count = all_sum(x.new_tensor(float(len(x)))) if self.training else None
        if count is not None and count < 2:
            raise InputError(
                "batch statistics need two rows (active sites, slides), and this batch has one; put more slides into a "
                "batch, or call eval()"
            )
        if count is None or world()[1] == 1:
            statistics = (self.running_mean, self.running_var, self.weight, self.bias)
            return F.batch_norm(x, *statistics, self.training, self.momentum, self.eps).to(dtype)
        mean = all_sum(x.sum(0)) / count
        var = all_sum((x - mean).square().sum(0)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((var * count / (count - 1)).to(self.running_var.dtype), self.momentum)
        return ((x - mean) * (var + self.eps).rsqrt() * self.weight + self.bias).to(dtype)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        # Weights published without running statistics keep the present ones.
        for name in ("running_mean", "running_var"):
            state_dict.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *rest)
