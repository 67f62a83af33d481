"""ABMIL: attention-based deep multiple-instance learning."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mil_zoo.aggregators.base import Aggregator, Paper
from mil_zoo.aggregators.blocks.attention import Attention, GatedAttention, feature_layer
from mil_zoo.aggregators.blocks.instance_loss import instance_clustering_loss
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.blocks.masking import draw_top_rows
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.registry import register_aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.kernels import segment_attention_pool, segment_reduce
from mil_zoo.tasks import Classification, Task


@register_aggregator("abmil")
class ABMIL(Aggregator):
    """Pools instances by attention, ``z = sum_k a_k h_k``, ``a = softmax_k(w^T tanh(V h_k))``; classifies z linearly.

    Source: Ilse, Tomczak, Welling, ICML 2018, equations 7 to 9; github AMLab-Amsterdam/AttentionDeepMIL.

    Deviations: the instance features come from a frozen encoder, so the paper's convolutional part is absent; its last
    fully connected layer is ``embed_dim``. The official one-logit binary head is ``num_classes=1`` (its probability
    clamp to [1e-5, 1 - 1e-5] is replaced by the numerically stable cross-entropy of the logit).

    Three regularisers of other papers can be switched on to set against spatial ones. They act in training only:

    - attention entropy maximisation: the loss becomes ``cross_entropy + entropy_weight * negative_entropy`` with the
      mean over bags of ``sum_k a_k log a_k`` (Zhang et al., AEM, 2024, arXiv 2406.15303; github dazhangyu123/AEM)
    - stochastic top-k masking: of the ``topk_mask`` most attended instances of a bag, int(mask_drop * topk_mask) drawn
      at random get no attention (Zhang et al., ACMIL, ECCV 2024, arXiv 2311.07125; github dazhangyu123/ACMIL). A bag
      always keeps an instance.
    - label consistency of instances: ``instance_weight`` times CLAM's instance loss is added, which asks that a bag's
      ``k_sample`` most attended instances belong to its class and the least attended do not (Lu et al., 2021; github
      mahmoodlab/CLAM, whose weights 0.7 and 0.3 are an ``instance_weight`` of 0.43)

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        embed_dim: width of an instance-wise Linear + ReLU before the attention, or None for no such layer.
        attention_dim: rows of V (and U).
        gated: multiply tanh(V h) by sigmoid(U h) (equation 9).
        entropy_weight: weight of the negative entropy of the attention; 0 switches it off.
        topk_mask: number of most attended instances of a bag among which some are masked; 0 switches it off.
        mask_drop: share of those that is masked, in [0, 1].
        instance_weight: weight of the instance loss; 0 switches it off.
        k_sample: instances on either end that it looks at.

    Raises:
        InputError: an option outside its range.
    """

    family = "attention"
    replayable = True
    paper = Paper(
        "Attention-based Deep Multiple Instance Learning",
        2018,
        "https://arxiv.org/abs/1802.04712",
        "https://github.com/AMLab-Amsterdam/AttentionDeepMIL",
        licence="MIT",
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
        embed_dim: int | None = 512,
        attention_dim: int = 128,
        gated: bool = False,
        entropy_weight: float = 0.0,
        topk_mask: int = 0,
        mask_drop: float = 0.6,
        instance_weight: float = 0.0,
        k_sample: int = 8,
    ) -> None:
        super().__init__(in_dim, num_classes)
        if min(entropy_weight, topk_mask, instance_weight) < 0 or not 0 <= mask_drop <= 1 or k_sample < 1:
            raise InputError(
                f"abmil: entropy_weight ({entropy_weight}), topk_mask ({topk_mask}) and instance_weight "
                f"({instance_weight}) must not be negative, mask_drop ({mask_drop}) must lie between 0 and 1, and "
                f"k_sample ({k_sample}) be at least 1"
            )
        self.entropy_weight, self.topk_mask, self.mask_drop = entropy_weight, topk_mask, mask_drop
        self.embed, width = feature_layer(in_dim, embed_dim)
        self.attention = (GatedAttention if gated else Attention)(width, attention_dim)
        self.classifier = Linear(width, num_classes)
        self.instance_weight, self.k_sample = instance_weight, k_sample
        if instance_weight:
            self.instance_classifiers = nn.ModuleList(Linear(width, 2) for _ in range(num_classes))

    def set_task(self, task: Task) -> None:
        """See ``Aggregator.set_task``; ``instance_weight`` clusters instances by class."""
        if self.instance_weight and not isinstance(task, Classification):
            raise InputError(
                f"its instance loss needs classes, which the task {task.name} has not; leave instance_weight at 0"
            )
        super().set_task(task)

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``; attention ``[ΣN]``."""
        return self._score(batch)[0]

    def _score(self, batch: BagBatch) -> tuple[AggregatorOutput, Tensor]:
        h = self.embed(batch.features)  # [ΣN, E]
        scores = self.attention(h)  # [ΣN, 1]
        if self.training and self.topk_mask:
            masked = draw_top_rows(scores.detach(), batch, self.topk_mask, self.mask_drop)[:, 0]
            scores = scores.index_fill(0, masked, -torch.inf)
        pooled, attention = segment_attention_pool(scores, h, batch.offsets)
        embedding = pooled[:, 0]
        return AggregatorOutput(self.classifier(embedding), embedding, attention[:, 0], scores[:, 0]), h

    def without_each(self, batch: BagBatch) -> Tensor | None:
        """See ``Aggregator.without_each``: the pooled features without instance i are
        ``(sum_j a_j h_j - a_i h_i) / (1 - a_i)``.
        """
        output, h = self._score(batch)
        a = output.attention[:, None].double()
        pooled = (output.embedding.double() - a * h.double()) / (1 - a)
        for row in (a[:, 0] >= 0.5).nonzero()[:, 0]:  # 1 - a_i would lose its digits
            others = output.attention_logits.double().index_fill(0, row, -torch.inf).softmax(0)
            pooled[row] = others @ h.double()
        return self.classifier(pooled.to(h.dtype))

    def losses(self, batch: BagBatch) -> dict[str, Tensor]:
        """Computes "loss"; with a regulariser also "cross_entropy" and "negative_entropy" or "instance"."""
        output, h = self._score(batch)
        loss = cross_entropy = self.bag_loss(output.logits, batch.targets, batch.weights)
        terms = {}
        if self.entropy_weight:
            a = output.attention[:, None]
            # 0 log 0 = 0, also in the gradient: masked instances, and those whose attention underflows.
            parts = a * a.clamp(min=torch.finfo(a.dtype).tiny).log()
            terms["negative_entropy"] = segment_reduce(parts, batch.offsets, "sum").mean()
            loss = loss + self.entropy_weight * terms["negative_entropy"]
        if self.instance_weight:
            scores = output.attention_logits.detach()[:, None]
            terms["instance"] = instance_clustering_loss(h, scores, self.instance_classifiers, batch, self.k_sample)
            loss = loss + self.instance_weight * terms["instance"]
        return {"loss": loss} | ({"cross_entropy": cross_entropy, **terms} if terms else {})
