"""Mean and max pooling: the baselines without parameters in the pooling."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from mil_zoo.aggregators.base import Aggregator, Paper
from mil_zoo.aggregators.blocks.attention import feature_layer
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.registry import register_aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.kernels import segment_reduce


class _Pooling(Aggregator):
    reduce: ClassVar[Literal["mean", "max"]]

    def __init__(self, in_dim: int, num_classes: int, embed_dim: int | None = 512) -> None:
        super().__init__(in_dim, num_classes)
        self.embed, width = feature_layer(in_dim, embed_dim)
        self.classifier = Linear(width, num_classes)

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``."""
        embedding = segment_reduce(self.embed(batch.features), batch.offsets, self.reduce)
        return AggregatorOutput(self.classifier(embedding), embedding)


@register_aggregator("mean")
class MeanPooling(_Pooling):
    """Averages the instance features and classifies the mean linearly. All instances weigh alike: it has no attention.

    Source: the mean operator that Wang et al., Revisiting Multiple Instance Neural Networks (2018) compare.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        embed_dim: width of an instance-wise Linear + ReLU before the pooling, or None for no such layer.
    """

    family = "pooling"
    replayable = True
    paper = Paper("Revisiting Multiple Instance Neural Networks", 2018, "https://arxiv.org/abs/1610.02501")
    reduce = "mean"

    def without_each(self, batch: BagBatch) -> Tensor | None:
        """See ``Aggregator.without_each``: the mean without instance i is ``(N mean - h_i) / (N - 1)``."""
        h = self.embed(batch.features)
        return self.classifier((h.sum(0) - h) / (len(h) - 1))


@register_aggregator("max")
class MaxPooling(_Pooling):
    """Takes the maximum of each feature over the instances and classifies it linearly. Each feature chooses an instance
    of its own, so there is no attention over instances.

    Source: the max operator that Wang et al., Revisiting Multiple Instance Neural Networks (2018) compare.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        embed_dim: width of an instance-wise Linear + ReLU before the pooling, or None for no such layer.
    """

    family = "pooling"
    replayable = True
    paper = Paper("Revisiting Multiple Instance Neural Networks", 2018, "https://arxiv.org/abs/1610.02501")
    reduce = "max"
