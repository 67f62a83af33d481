"""Mean of the top-k instance scores: the instance-level baseline between max and mean."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mil_zoo.aggregators.base import Aggregator, Paper
from mil_zoo.aggregators.blocks.attention import feature_layer
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.blocks.segments import segment_topk
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.registry import register_aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.kernels import segment_reduce


@register_aggregator("topk")
class TopKPooling(Aggregator):
    """Averages the ``k`` highest instance scores of each class: ``logit_c = 1/k sum of top-k_n (w_c^T h_n + b_c)``.

    k = 1 is max pooling of instance scores, k = N their mean; a smaller bag uses all its instances.

    ``attention`` ``[ΣN, C]`` is 1/k at the instances selected for a class and 0 elsewhere: exactly the weight with
    which an instance score enters the logit of that class. The embedding is the mean, over classes, of the mean
    embedding of the instances selected for a class.

    Source: Li & Vasconcelos, Multiple Instance Learning for Soft Bags via Top Instances, CVPR 2015: a bag scored by the
    mean of its top instances (there with a latent SVM, and with the number of instances a share of the bag).

    Deviations: a linear classifier trained by cross-entropy on frozen features, one number of instances for all bags.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        embed_dim: width of an instance-wise Linear + ReLU before the classifier, or None for no such layer.
        k: instances selected for each class.

    Raises:
        InputError: ``k`` is not positive.
    """

    family = "pooling"
    replayable = True
    paper = Paper(
        "Multiple Instance Learning for Soft Bags via Top Instances",
        2015,
        "https://www.cv-foundation.org/openaccess/content_cvpr_2015/papers/Li_Multiple_Instance_Learning_2015_CVPR_paper.pdf",
    )

    def __init__(self, in_dim: int, num_classes: int, embed_dim: int | None = 512, k: int = 8) -> None:
        super().__init__(in_dim, num_classes)
        if k < 1:
            raise InputError(f"topk: k must be positive, not {k}")
        self.k = k
        self.embed, width = feature_layer(in_dim, embed_dim)
        self.classifier = Linear(width, num_classes)

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``; attention and instance_logits ``[ΣN, C]``."""
        h = self.embed(batch.features)  # [ΣN, E]
        instance_logits = self.classifier(h)
        taken = batch.sizes.clamp(max=self.k)
        total = sum(torch.sym_min(n, self.k) for n in batch.lengths)  # M; a symbol where it is exported
        rows = segment_topk(instance_logits, batch.offsets, taken, total)  # [M, C]
        chosen = F.pad(taken.cumsum(0), (1, 0))  # where the rows of each bag start
        logits = segment_reduce(instance_logits.gather(0, rows), chosen, "mean")
        share = (1 / taken).to(h.dtype).index_select(0, batch.bag_index)[:, None].expand_as(instance_logits)
        attention = share.new_zeros(instance_logits.shape).scatter(0, rows, share.gather(0, rows))
        selected = h.index_select(0, rows.flatten()).view(*rows.shape, -1).mean(1)  # [M, E]
        embedding = segment_reduce(selected, chosen, "mean")
        return AggregatorOutput(logits, embedding, attention, instance_logits=instance_logits)
