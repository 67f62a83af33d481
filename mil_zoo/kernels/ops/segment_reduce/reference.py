"""Reductions over packed bags in plain PyTorch: the oracle."""

from __future__ import annotations

import torch


def forward(values, offsets, reduce):
    """See ``segment_reduce``. Returns reduced ``[B, F]`` and, for "max", argmax ``[B, F]`` (else None)."""
    num_bags, sizes = len(offsets) - 1, offsets.diff()
    bag = torch.repeat_interleave(torch.arange(num_bags, device=offsets.device), sizes, output_size=len(values))
    if reduce in ("sum", "mean"):
        total = values.new_zeros(num_bags, values.shape[1]).index_add(0, bag, values)
        return (total if reduce == "sum" else total / sizes[:, None]), None
    index = bag[:, None].expand_as(values)
    top = values.new_full((num_bags, values.shape[1]), -torch.inf).scatter_reduce(0, index, values.detach(), "amax")
    if reduce == "logsumexp":
        top = top.nan_to_num(nan=torch.nan)  # finite, for differences of two infinities are NaN
        total = values.new_zeros(num_bags, values.shape[1]).index_add(0, bag, (values - top[bag]).exp())
        return top + total.log(), None
    rows = torch.arange(len(values), device=values.device)[:, None].expand_as(values)
    candidates = torch.where((values.detach() == top[bag]) | values.detach().isnan(), rows, len(values))
    argmax = torch.full_like(top, len(values), dtype=torch.int64).scatter_reduce(0, index, candidates, "amin")
    return values.gather(0, argmax), argmax
