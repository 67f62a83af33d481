"""Selective scan in plain PyTorch, a loop over the instances: the oracle."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F


def forward(inputs, softplus, offsets):
    """See ``selective_scan``. Returns y ``[L, d]`` and the last states ``[bags, d, n]``."""
    u, delta, A, B, C, D, z, delta_bias = inputs
    dt = delta if delta_bias is None else delta + delta_bias
    dt = F.softplus(dt) if softplus else dt
    steps = list(zip(dt.unbind(), (dt * u).unbind(), B.unbind(), C.unbind(), strict=True))
    rows, last = [], []
    for start, end in pairwise(offsets.tolist()):
        h = torch.zeros_like(A)
        for dt_t, x_t, B_t, C_t in steps[start:end]:
            h = (dt_t[:, None] * A).exp() * h + x_t[:, None] * B_t
            rows.append(h @ C_t)
        last.append(h.detach())
    y = torch.stack(rows)
    y = y if D is None else y + D * u
    return (y if z is None else y * F.silu(z)), torch.stack(last)
