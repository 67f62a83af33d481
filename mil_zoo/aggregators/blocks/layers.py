"""Blocks that three or more papers share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil_zoo.data.bag import BagBatch
from mil_zoo.kernels import segment_reduce


class Attention(nn.Module):
    """Attention logits ``w^T tanh(V h)`` (Ilse et al. 2018, equation 8).

    Args:
        in_dim: width of h.
        attention_dim: rows of V.
        branches: number K of attention distributions.
    """

    def __init__(self, in_dim: int, attention_dim: int, branches: int = 1) -> None:
        super().__init__()
        self.V = nn.Linear(in_dim, attention_dim)
        self.w = nn.Linear(attention_dim, branches)

    def forward(self, h: Tensor) -> Tensor:
        """``[N, in_dim]`` to attention logits ``[N, K]``."""
        return self.w(torch.tanh(self.V(h)))


class GatedAttention(nn.Module):
    """Attention logits ``w^T (tanh(V h) * sigmoid(U h))`` (Ilse et al. 2018, equation 9).

    Args:
        in_dim: width of h.
        attention_dim: rows of V and U.
        branches: number K of attention distributions.
    """

    def __init__(self, in_dim: int, attention_dim: int, branches: int = 1) -> None:
        super().__init__()
        self.V = nn.Linear(in_dim, attention_dim)
        self.U = nn.Linear(in_dim, attention_dim)
        self.w = nn.Linear(attention_dim, branches)

    def forward(self, h: Tensor) -> Tensor:
        """``[N, in_dim]`` to attention logits ``[N, K]``."""
        return self.w(torch.tanh(self.V(h)) * torch.sigmoid(self.U(h)))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor``, drawn on the CPU, on ``device``; a CUDA device takes it without making the process wait."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def positions(mask: Tensor, count: int) -> Tensor:
    """int64 ``[count]``: where ``mask`` ``[N]`` is true, which is ``count`` times; no device is waited for."""
    if mask.device.type != "cuda":
        return mask.nonzero()[:, 0]
    return (~mask).argsort(stable=True)[:count]


def feature_layer(in_dim: int, embed_dim: int | None) -> tuple[nn.Module, int]:
    """An instance-wise Linear + ReLU of width ``embed_dim``, and that width; the identity where it is None."""
    if embed_dim is None:
        return nn.Identity(), in_dim
    return nn.Sequential(nn.Linear(in_dim, embed_dim), nn.ReLU()), embed_dim


def segment_topk(scores: Tensor, offsets: Tensor, k: Tensor) -> Tensor:
    """The k highest scores of each bag, in each column.

    Args:
        scores: ``[N, K]``.
        offsets: integer ``[B + 1]``; bag b is rows ``offsets[b]:offsets[b + 1]``.
        k: int64 ``[B]``, how many of each bag, at most its size.

    Returns:
        int64 ``[sum k, K]``, rows of ``scores``: the bags in order, highest score first (equal: the earlier row).
    """
    bag = torch.repeat_interleave(offsets.diff(), output_size=len(scores))
    order = scores.argsort(dim=0, descending=True, stable=True)
    order = order.gather(0, bag[order].argsort(dim=0, stable=True))  # the bags apart again, each by falling score
    place = torch.arange(len(scores), device=scores.device) - offsets[bag]
    return order[place < k[bag]]


def instance_clustering_loss(
    h: Tensor, scores: Tensor, heads: nn.ModuleList, batch: BagBatch, k_sample: int, subtyping: bool = False
) -> Tensor:
    """CLAM's instance loss: the most attended instances belong to the bag's class, the least attended do not.

    Args:
        h: ``[ΣN, E]`` instance embeddings.
        scores: ``[ΣN, 1]`` attention logits, or ``[ΣN, C]``, one for each class; without gradient.
        heads: C linear maps to (out of the class, in it); of the positive class alone with one logit.
        batch: labelled bags.
        k_sample: instances on either end; all of them in a smaller bag.
        subtyping: classes exclude each other, so that top instances are negative for every other class.

    Returns:
        scalar, the mean over bags.

    Source: Lu et al., Nature Biomedical Engineering 2021; github mahmoodlab/CLAM.
    """
    k = batch.sizes.clamp(max=k_sample)
    top = _log_probabilities(h, segment_topk(scores, batch.offsets, k), heads)  # [sum k, C, 2]
    bottom = _log_probabilities(h, segment_topk(-scores, batch.offsets, k), heads)
    inside = -(top[..., 1] + bottom[..., 0]) / 2
    outside = -top[..., 0] if subtyping else torch.zeros_like(inside)
    classes = torch.arange(len(heads), device=h.device) + (len(heads) == 1)
    own = batch.labels[:, None] == classes  # [B, C]
    error = torch.where(own.repeat_interleave(k, dim=0), inside, outside)
    total = segment_reduce(error, F.pad(k.cumsum(0), (1, 0)), "mean").sum(1)  # [B]
    return total.mean() / (len(heads) if subtyping else 1)


def _log_probabilities(h: Tensor, rows: Tensor, heads: nn.ModuleList) -> Tensor:
    """Of instances ``rows`` ``[M, K]`` under each class's head, ``[M, C, 2]``."""
    rows = rows.expand(-1, len(heads))
    logits = [head(h.index_select(0, rows[:, c])) for c, head in enumerate(heads)]
    return torch.stack(logits, dim=1).log_softmax(-1)
