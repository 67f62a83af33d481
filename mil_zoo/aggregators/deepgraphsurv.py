"""DeepGraphConv: the stand-in for DeepGraphSurv in the repository of Patch-GCN."""

from __future__ import annotations

from torch import Tensor, nn

from mil_zoo.aggregators.base import Aggregator, Paper
from mil_zoo.aggregators.blocks.dropout import Dropout
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.patchgcn import PUBLISHED_HEAD, AttentionHead
from mil_zoo.aggregators.registry import register_aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.kernels import CSR, graph_sum, linear


class GINConv(nn.Module):
    """Runs an MLP over the sum of each node and its neighbours (Xu et al., ICLR 2019, with epsilon 0)."""

    def __init__(self, in_dim: int, width: int) -> None:
        super().__init__()
        self.nn = nn.Sequential(Linear(in_dim, width), nn.ReLU(), Linear(width, width))

    def forward(self, h: Tensor, graph: CSR) -> Tensor:
        """``[N, in_dim]`` to ``[N, width]``; ``graph`` is without self-loops."""
        first, _, second = self.nn
        y = linear(h, first.weight)  # sums commute with products, and features are wider before
        return second((y + graph_sum(y, graph) + first.bias).relu())


@register_aggregator("deepgraphsurv")
class DeepGraphConv(Aggregator):
    """Sums over neighbours in feature space, three times with an MLP after, and pools by gated attention.

    On a graph of patches with similar features::

        h <- ReLU(MLP(h_i + sum over neighbours j of h_j))     (three times; MLP: Linear, ReLU, Linear)
        z  = ReLU(W sum_i a_i h_i)                             (a: gated attention)
        logits linear in z

    This is not the spectral (Chebyshev) network of the paper DeepGraphSurv, Li et al., MICCAI 2018, but what the
    authors of Patch-GCN compare with under that name.

    Source: ``DeepGraphConv`` of Chen et al., MICCAI 2021; github mahmoodlab/Patch-GCN.

    Deviations: the graph is ``feature_knn:8`` without self-loops, joined both ways; the notebook that makes theirs
    looks up coordinates in an index of features. A pooling that their code asks for and never makes is left out.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        hidden_dim: width of h and of the head.
        resample: dropout rate of the features, as the authors call it.
        dropout: dropout rate of the attention's two hidden vectors.
    """

    graph = "feature_knn:8"
    family = "spatial"
    replayable = True
    paper = Paper(
        "Whole Slide Images are 2D Point Clouds: Context-Aware Survival Prediction using Patch-based Graph "
        "Convolutional Networks",
        2021,
        "https://arxiv.org/abs/2107.13048",
        "https://github.com/mahmoodlab/Patch-GCN",
        licence="GPL-3.0",
    )
    published_renames = (
        (r"^conv1\.", "convolutions.0."),
        (r"^conv2\.", "convolutions.1."),
        (r"^conv3\.", "convolutions.2."),
        *PUBLISHED_HEAD,
    )
    published_unused = (r"conv\d\.eps",)  # constants: 0

    def __init__(
        self, in_dim: int, num_classes: int, hidden_dim: int = 256, resample: float = 0.0, dropout: float = 0.25
    ) -> None:
        super().__init__(in_dim, num_classes)
        self.resample = Dropout(resample)
        self.convolutions = nn.ModuleList(GINConv(width, hidden_dim) for width in (in_dim, hidden_dim, hidden_dim))
        self.head = AttentionHead(hidden_dim, num_classes, dropout)

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``; attention ``[ΣN]``."""
        graph = self._needs_graph(batch).graph.csr.without_self_loops
        h = self.resample(batch.features)
        for convolution in self.convolutions:
            h = convolution(h, graph).relu()  # [ΣN, hidden_dim]
        return self.head(h, batch.offsets)
