"""Patch-GCN: graph convolutions over the patches of a slide, with softmax aggregation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mil_zoo.aggregators.base import Aggregator, Paper
from mil_zoo.aggregators.blocks.attention import GatedAttention
from mil_zoo.aggregators.blocks.dropout import Dropout
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.registry import register_aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.kernels import CSR, graph_softmax_sum, segment_attention_pool

EPSILON = 1e-7  # added to messages


class GENConv(nn.Module):
    """Adds to each node the softmax-weighted mean of its neighbours' messages, channel by channel, and runs an MLP.

    Source: Li et al., DeeperGCN, 2020 (arXiv 2006.07739); ``GENConv`` of torch_geometric 1.6.3, whose MLP has biases.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.t = nn.Parameter(torch.ones(1))
        self.mlp = nn.Sequential(Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.ReLU(), Linear(2 * width, width))

    def forward(self, x: Tensor, graph: CSR) -> Tensor:
        """``[N, width]`` to the same; a node without neighbours receives zeros."""
        return self.mlp(x + graph_softmax_sum(x.relu() + EPSILON, self.t, graph))


class AttentionHead(nn.Module):
    """Pools nodes by gated attention and classifies ``z = ReLU(W sum_i a_i h_i)`` linearly."""

    def __init__(self, width: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.attention = GatedAttention(width, width, dropout=dropout)
        self.rho = nn.Sequential(Linear(width, width), nn.ReLU())
        self.classifier = Linear(width, num_classes)

    def forward(self, h: Tensor, offsets: Tensor) -> AggregatorOutput:
        """``[ΣN, width]`` to the output of the aggregator."""
        scores = self.attention(h)  # [ΣN, 1]
        pooled, attention = segment_attention_pool(scores, h, offsets)
        embedding = self.rho(pooled[:, 0])  # [B, width]
        return AggregatorOutput(self.classifier(embedding), embedding, attention[:, 0], scores[:, 0])


PUBLISHED_HEAD = (
    (r"^path_attention_head\.attention_a\.0\.", "head.attention.V."),
    (r"^path_attention_head\.attention_b\.0\.", "head.attention.U."),
    (r"^path_attention_head\.attention_c\.", "head.attention.w."),
    (r"^path_rho\.", "head.rho."),
    (r"^classifier\.", "head.classifier."),
)
"""What :class:`AttentionHead` is called in the authors' models."""


@register_aggregator("patchgcn")
class PatchGCN(Aggregator):
    """Passes messages between neighbouring patches and pools what each patch knows after every layer.

    With m_j = ReLU(v_j) + 1e-7 the message of patch j, a convolution gives patch i, channel by channel::

        p_ij    = softmax over the neighbours j of i of t m_j         (one learned t a layer)
        conv(v) = MLP(v_i + sum_j p_ij m_j)                           (Linear, LayerNorm, ReLU, Linear)

        x_0 = ReLU(W x)    x_1 = conv_0(x_0)    x_(l+1) = x_l + ReLU(LayerNorm(conv_l(x_l)))
        h   = ReLU(W' [x_0, x_1, x_2, x_3])
        z   = ReLU(W'' sum_i a_i h_i)           (a: gated attention)
        logits linear in z

    Source: Chen et al., MICCAI 2021; github mahmoodlab/Patch-GCN with the torch_geometric 1.6.3 that it names (later
    ones take the biases out of the convolution's MLP and make its dropout of 0.1 act).

    Deviations: the graph is ``knn:8``, each patch and the 8 nearest joined both ways; the authors' edges run one way,
    from a patch to its 8 nearest by an approximate index. Self-loops are left out, as theirs has none. ``num_layers``
    other than 4 works, where the width of their head is fixed. On a grid many patches are equally far, and the order of
    instances decides which of them are the 8 nearest.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        hidden_dim: width of the convolutions; the head is ``num_layers`` times as wide.
        num_layers: one more than there are convolutions.
        dropout: dropout rate of the first layer, of h, and of the attention's two hidden vectors.

    Raises:
        InputError: an option outside its range.
    """

    graph = "knn:8"
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
    permutation_invariant = False
    published_renames = (
        (r"^fc\.0\.", "embed.0."),
        (r"^layers\.(\d+)\.conv\.", r"convolutions.\1."),
        (r"\.mlp\.4\.", ".mlp.3."),  # their dropout has a place of its own
        (r"^layers\.(\d+)\.norm\.", r"norms.\1."),
        (r"^path_phi\.0\.", "phi.0."),
        *PUBLISHED_HEAD,
    )
    published_unused = (r"layers\.0\.norm\..*",)

    def __init__(
        self, in_dim: int, num_classes: int, hidden_dim: int = 128, num_layers: int = 4, dropout: float = 0.25
    ) -> None:
        super().__init__(in_dim, num_classes)
        if num_layers < 2 or hidden_dim < 1:
            raise InputError(
                f"patchgcn: num_layers ({num_layers}) must be at least 2 and hidden_dim ({hidden_dim}) positive"
            )
        width = num_layers * hidden_dim
        self.embed = nn.Sequential(Linear(in_dim, hidden_dim), nn.ReLU(inplace=True), Dropout(dropout))
        self.convolutions = nn.ModuleList(GENConv(hidden_dim) for _ in range(num_layers - 1))
        self.norms = nn.ModuleDict({str(layer): nn.LayerNorm(hidden_dim) for layer in range(1, num_layers - 1)})
        self.phi = nn.Sequential(Linear(width, width), nn.ReLU(inplace=True), Dropout(dropout))
        self.head = AttentionHead(width, num_classes, dropout)

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``; attention ``[ΣN]``."""
        graph = self._needs_graph(batch).graph.csr.without_self_loops
        first, *others = self.convolutions
        layers = [self.embed(batch.features)]  # [ΣN, hidden_dim] each
        layers.append(first(layers[0], graph))
        for convolution, norm in zip(others, self.norms.values(), strict=True):
            layers.append(layers[-1] + norm(convolution(layers[-1], graph)).relu())
        return self.head(self.phi(torch.cat(layers, dim=1)), batch.offsets)
