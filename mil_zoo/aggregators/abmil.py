"""ABMIL: attention-based deep multiple-instance learning."""

from __future__ import annotations

from torch import nn

from mil_zoo.aggregators.base import Aggregator, AggregatorOutput, Paper, register_aggregator
from mil_zoo.aggregators.layers import Attention, GatedAttention, feature_layer
from mil_zoo.data.bag import BagBatch
from mil_zoo.kernels import segment_attention_pool


@register_aggregator("abmil")
class ABMIL(Aggregator):
    """Attention pooling ``z = sum_k a_k h_k``, ``a = softmax_k(w^T tanh(V h_k))``, then a linear classifier.

    Source: Ilse, Tomczak, Welling, ICML 2018, equations 7 to 9; github AMLab-Amsterdam/AttentionDeepMIL.

    Deviations: the instance features come from a frozen encoder, so the paper's convolutional part is absent; its last
    fully connected layer is ``embed_dim``. The official one-logit binary head is ``num_classes=1`` (its probability
    clamp to [1e-5, 1 - 1e-5] is replaced by the numerically stable cross-entropy of the logit).

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        embed_dim: width of an instance-wise Linear + ReLU before the attention, or None for no such layer.
        attention_dim: rows of V (and U).
        gated: multiply tanh(V h) by sigmoid(U h) (equation 9).
    """

    paper = Paper(
        "Attention-based Deep Multiple Instance Learning",
        2018,
        "https://arxiv.org/abs/1802.04712",
        "https://github.com/AMLab-Amsterdam/AttentionDeepMIL",
    )
    published_renames = (
        (r"^attention\.0\.", "attention.V."),
        (r"^attention\.2\.", "attention.w."),
        (r"^attention_([VU])\.0\.", r"attention.\1."),
        (r"^attention_w\.", "attention.w."),
        (r"^classifier\.0\.", "classifier."),
    )

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        embed_dim: int | None = None,
        attention_dim: int = 128,
        gated: bool = False,
    ) -> None:
        super().__init__(in_dim, num_classes)
        self.embed, width = feature_layer(in_dim, embed_dim)
        self.attention = (GatedAttention if gated else Attention)(width, attention_dim)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``; attention ``[ΣN]``."""
        h = self.embed(batch.features)  # [ΣN, E]
        scores = self.attention(h)  # [ΣN, 1]
        pooled, attention = segment_attention_pool(scores, h, batch.offsets)
        embedding = pooled[:, 0]
        return AggregatorOutput(self.classifier(embedding), embedding, attention[:, 0], scores[:, 0])
