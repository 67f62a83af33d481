"""Binary cross-entropy of several labels a bag, of which some may be unknown."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_binary_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Binary cross-entropy over the known entries, divided by their number (weight).

    Args:
        logits: ``[B, L]``.
        labels: ``[B, L]``, 0, 1, or NaN where the label is unknown; there the gradient is 0, whatever stands there.
        weights: ``[B]``, or None for one each.

    Returns:
        ``[B]``: a bag has B / entries times the sum of its own, so that the mean over bags is that over known entries.
    """
    z = logits.float() if logits.dtype.itemsize < 4 else logits
    known = ~labels.isnan() if labels.is_floating_point() else torch.ones_like(labels, dtype=torch.bool)
    w = known * (torch.ones_like(z[:, 0]) if weights is None else weights.to(z))[:, None]
    truth = torch.where(known, labels, 0).to(z)
    each = F.binary_cross_entropy_with_logits(torch.where(known, z, 0), truth, reduction="none") * w
    return each.sum(1) * len(z) / w.sum().clamp(min=torch.finfo(z.dtype).tiny)
