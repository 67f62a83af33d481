"""Mean pooling, then a multi-layer perceptron: the simplest baseline that is not linear in the slide's mean."""

from __future__ import annotations

from torch import nn

from mil_zoo.aggregators.base import Aggregator, Paper
from mil_zoo.aggregators.blocks.dropout import Dropout
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.registry import register_aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.kernels import segment_reduce


@register_aggregator("mlp")
class MeanMLP(Aggregator):
    """Averages the instance features as they are, and classifies the mean by an MLP with one hidden layer.

    ``logits = W_2 dropout(relu(W_1 mean_n x_n + b_1)) + b_2``. A slide is one vector before anything is learned, so
    that nothing can be learned of single instances: what it reaches needs no multiple-instance learning. ``mean``
    embeds the instances first.

    Source: the mean operator that Wang et al., Revisiting Multiple Instance Neural Networks (2018) compare, on frozen
    features.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        hidden: width of the hidden layer.
        dropout: dropout rate of the hidden layer.
    """

    family = "pooling"
    replayable = True
    paper = Paper("Revisiting Multiple Instance Neural Networks", 2018, "https://arxiv.org/abs/1610.02501")

    def __init__(self, in_dim: int, num_classes: int, hidden: int = 512, dropout: float = 0.25) -> None:
        super().__init__(in_dim, num_classes)
        self.embed = nn.Sequential(Linear(in_dim, hidden), nn.ReLU(inplace=True), Dropout(dropout))
        self.classifier = Linear(hidden, num_classes)

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``."""
        embedding = self.embed(segment_reduce(batch.features, batch.offsets, "mean"))
        return AggregatorOutput(self.classifier(embedding), embedding)
