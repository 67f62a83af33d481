"""DSMIL: dual-stream multiple-instance learning."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mil_zoo.aggregators.base import Aggregator, Paper
from mil_zoo.aggregators.blocks.dropout import Dropout
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.blocks.one_vs_rest import one_vs_rest_logits, one_vs_rest_loss
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.registry import register_aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.kernels import linear, segment_attention_pool, segment_reduce

QUERY_DIM = 128


@register_aggregator("dsmil")
class DSMIL(Aggregator):
    """Finds the critical instance of each class, and pools the bag by similarity to it.

    With instance logits ``c_n = W h_n``, queries ``q_n = q(h_n)`` and values ``v_n = v(h_n)``::

        m_k    = argmax_n c_nk                                    the critical instance of class k
        a_nk   = softmax_n(<q_n, q_(m_k)> / sqrt(128))
        z_k    = sum_n a_nk v_n
        logits = a 1-d convolution over (z_1, ..., z_C): every logit reads the embeddings of all classes
        loss   = (BCE(logits, one-hot label) + BCE(max_n c_n, one-hot label)) / 2

    Source: Li, Li, Eliceiri, CVPR 2021; github binli123/dsmil-wsi.

    Deviations: probabilities are the sigmoids of the bag logits over their sum (``probability``); the authors take each
    sigmoid with a threshold of its own for each class. ``dropout`` also acts without a value layer
    (``passing_v=False``), where theirs is ignored. ``num_classes=1`` is the authors' setting for positive against
    negative slides. Weights from the first version of their repository, whose values had a layer without ReLU, would
    load with ``nonlinear=False, passing_v=True`` and mean something else here.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        nonlinear: the query is Linear, ReLU, Linear, Tanh; else one Linear.
        passing_v: values are Linear + ReLU of the features; else the features themselves.
        dropout: dropout rate of the features that become values.
        probability: "sigmoid" takes the sigmoid of each class's logit, which is what the loss trains, divided by their
            sum; "softmax" the softmax of the logits.

    Raises:
        InputError: ``probability`` is neither.
    """

    family = "attention"
    replayable = True
    paper = Paper(
        "Dual-stream Multiple Instance Learning Network for Whole Slide Image Classification with Self-supervised "
        "Contrastive Learning",
        2021,
        "https://arxiv.org/abs/2011.08939",
        "https://github.com/binli123/dsmil-wsi",
        licence="MIT",
    )
    published_renames = (
        (r"^i_classifier\.fc\.(0\.)?", "instance_classifier."),
        (r"^b_classifier\.q\.", "query."),
        (r"^b_classifier\.v\.", "value."),
        (r"^b_classifier\.fcc\.", "bag_classifier."),
    )
    published_unused = (r"i_classifier\.feature_extractor\..*",)  # the patch encoder of end-to-end checkpoints

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        nonlinear: bool = True,
        passing_v: bool = False,
        dropout: float = 0.0,
        probability: Literal["sigmoid", "softmax"] = "sigmoid",
    ) -> None:
        super().__init__(in_dim, num_classes)
        if probability not in ("sigmoid", "softmax"):
            raise InputError(f"dsmil: probability must be 'sigmoid' or 'softmax', not {probability!r}")
        self.probability = probability
        self.instance_classifier = Linear(in_dim, num_classes)
        self.query: nn.Module = Linear(in_dim, QUERY_DIM)
        if nonlinear:
            self.query = nn.Sequential(self.query, nn.ReLU(inplace=True), Linear(QUERY_DIM, QUERY_DIM), nn.Tanh())
        layer = (Linear(in_dim, in_dim), nn.ReLU()) if passing_v else ()
        self.value = nn.Sequential(Dropout(dropout), *layer)
        self.bag_classifier = nn.Conv1d(num_classes, num_classes, in_dim)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv1d)):
                nn.init.orthogonal_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``; attention and instance_logits ``[ΣN, C]``, embedding ``[B, C * D]``."""
        return self._score(batch)[0]

    def _score(self, batch: BagBatch) -> tuple[AggregatorOutput, Tensor]:
        """The output, and the critical instances int64 ``[B, C]``."""
        instance_logits = self.instance_classifier(batch.features)  # [ΣN, C]
        _, critical = segment_reduce(instance_logits.detach(), batch.offsets, "max", return_argmax=True)  # [B, C]
        query = self.query(batch.features)  # [ΣN, Q]
        critical_query = query.index_select(0, critical.flatten()).view(*critical.shape, -1)  # [B, C, Q]
        if len(batch) == 1:
            products = query @ critical_query[0].T
        else:  # a product a bag: an index would copy a query for every instance
            parts = zip(query.split(batch.lengths), critical_query, strict=True)
            products = torch.cat([instances @ of_bag.T for instances, of_bag in parts])
        scores = products / QUERY_DIM**0.5  # [ΣN, C]
        pooled, attention = segment_attention_pool(scores, self.value(batch.features), batch.offsets)  # [B, C, D]
        # The kernel is as long as its input, so the convolution is a linear map, which runs in a tenth of the time.
        logits = linear(pooled.flatten(1), self.bag_classifier.weight.flatten(1), self.bag_classifier.bias)
        output = AggregatorOutput(logits, pooled.flatten(1), attention, scores, instance_logits=instance_logits)
        return output, critical

    def task_logits(self, logits: Tensor) -> Tensor:
        """Returns log-sigmoids ``[B, C]``, whose softmax are the sigmoids over their sum (``probability``)."""
        return super().task_logits(logits) if self.probability == "softmax" else one_vs_rest_logits(self, logits)

    def losses(self, batch: BagBatch) -> dict[str, Tensor]:
        """Computes the binary cross-entropies "bag" and "instance" (of critical instances), and their mean, "loss"."""
        output, critical = self._score(batch)
        both = torch.stack([output.logits, output.instance_logits.gather(0, critical)])  # [2, B, C]
        bag, instance = one_vs_rest_loss(self, both, batch).unbind()
        return {"loss": (bag + instance) / 2, "bag": bag, "instance": instance}
