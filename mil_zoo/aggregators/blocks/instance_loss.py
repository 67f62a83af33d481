"""CLAM's clustering of the most and the least attended instances, which other aggregators can add to their loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil_zoo.aggregators.blocks.segments import segment_topk
from mil_zoo.data.bag import BagBatch
from mil_zoo.kernels import segment_reduce


def instance_clustering_loss(
    h: Tensor, scores: Tensor, classifiers: nn.ModuleList, batch: BagBatch, k_sample: int, subtyping: bool = False
) -> Tensor:
    """Asks that the most attended instances belong to the bag's class and the least attended do not (CLAM).

    Args:
        h: ``[ΣN, E]`` instance embeddings.
        scores: ``[ΣN, 1]`` attention logits, or ``[ΣN, C]``, one for each class; without gradient.
        classifiers: C linear maps to (out of the class, in it); of the positive class alone with one logit.
        batch: labelled bags.
        k_sample: instances on either end; all of them in a smaller bag.
        subtyping: classes exclude each other, so that top instances are negative for every other class.

    Returns:
        scalar, the mean over bags.

    Source: Lu et al., Nature Biomedical Engineering 2021; github mahmoodlab/CLAM.
    """
    k, total = batch.sizes.clamp(max=k_sample), sum(min(size, k_sample) for size in batch.lengths)
    ends = [segment_topk(sign * scores, batch.offsets, k, total) for sign in (1, -1)]
    top, bottom = _log_probabilities(h, torch.cat(ends), classifiers).chunk(2)  # [sum k, C, 2]
    inside = -(top[..., 1] + bottom[..., 0]) / 2
    outside = -top[..., 0] if subtyping else torch.zeros_like(inside)
    classes = torch.arange(len(classifiers), device=h.device) + (len(classifiers) == 1)
    own = batch.labels[:, None] == classes  # [B, C]
    error = torch.where(own.repeat_interleave(k, dim=0, output_size=total), inside, outside)
    of_bags = segment_reduce(error, F.pad(k.cumsum(0), (1, 0)), "mean").sum(1)  # [B]
    return of_bags.mean() / (len(classifiers) if subtyping else 1)


def _log_probabilities(h: Tensor, rows: Tensor, classifiers: nn.ModuleList) -> Tensor:
    """Of instances ``rows`` ``[M, C or 1]`` under each class's classifier, ``[M, C, 2]``."""
    weight = torch.stack([classifier.weight for classifier in classifiers])  # [C, 2, E]
    bias = torch.stack([classifier.bias for classifier in classifiers])
    # One index for all: backward of each is as large as h.
    picked = h.index_select(0, rows.T.flatten()).view(rows.shape[1], len(rows), -1)  # [C or 1, M, E]
    logits = picked @ weight.transpose(1, 2)
    return (logits.transpose(0, 1) + bias).log_softmax(-1)
