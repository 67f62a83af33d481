"""The contrastive loss of SimCLR."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mil_zoo.errors import InputError


def nt_xent(a: Tensor, b: Tensor, temperature: float = 0.05) -> Tensor:
    """Normalised temperature-scaled cross-entropy: each view must tell its slide's other view from all other views.

    ``mean over the 2 B views i of -log(exp(s_ij / t) / sum over k != i of exp(s_ik / t))`` with j the other view of the
    same slide and s the cosine similarity.

    Args:
        a: ``[B, F]``, a view of each slide, B >= 2.
        b: ``[B, F]``, another view of each.
        temperature: t > 0.

    Returns:
        a scalar, in float32 or better.

    Raises:
        InputError: fewer than two slides, shapes that differ, or a temperature that is not positive.

    Source: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020, equation 1;
    temperature of Lazard et al., Giga-SSL, CVPRW 2023.
    """
    if a.ndim != 2 or a.shape != b.shape:
        raise InputError(f"nt_xent takes two views [B, F] of the same slides, not {list(a.shape)} and {list(b.shape)}")
    if len(a) < 2:
        raise InputError(f"nt_xent tells slides apart, so it needs two of them in a batch, not {len(a)}")
    if not temperature > 0:
        raise InputError(f"the temperature of nt_xent must be positive, not {temperature}")
    views = torch.cat([a, b])
    views = F.normalize(views.to(torch.promote_types(views.dtype, torch.float32)), dim=1)
    with torch.autocast(a.device.type, enabled=False):
        logits = views @ views.T / temperature  # [2 B, 2 B]
    logits = logits.masked_fill(torch.eye(len(views), dtype=torch.bool, device=a.device), -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(views), device=a.device).roll(len(a)))
