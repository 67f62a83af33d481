"""CLAM: clustering-constrained-attention multiple-instance learning, single-branch and multi-branch."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from mil_zoo.aggregators.base import Aggregator, Paper
from mil_zoo.aggregators.blocks.attention import GatedAttention
from mil_zoo.aggregators.blocks.dropout import Dropout
from mil_zoo.aggregators.blocks.instance_loss import instance_clustering_loss
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.registry import register_aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.kernels import segment_attention_pool
from mil_zoo.tasks import Classification, Task


class _CLAM(Aggregator):
    multi_branch: ClassVar[bool]
    family = "attention"
    paper = Paper(
        "Data-efficient and weakly supervised computational pathology on whole-slide images",
        2021,
        "https://arxiv.org/abs/2004.09666",
        "https://github.com/mahmoodlab/CLAM",
        licence="GPL-3.0",
    )
    published_renames = (
        (r"^attention_net\.0\.", "embed.0."),
        (r"^attention_net\.[23]\.attention_a\.0\.", "attention.V."),
        (r"^attention_net\.[23]\.attention_b\.0\.", "attention.U."),
        (r"^attention_net\.[23]\.attention_c\.", "attention.w."),
    )
    published_unused = (r"instance_loss_fn\..*",)  # constants of their smooth SVM loss

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        embed_dim: int = 512,
        attention_dim: int = 256,
        k_sample: int = 8,
        subtyping: bool = False,
        bag_weight: float = 0.7,
        dropout: float = 0.25,
    ) -> None:
        super().__init__(in_dim, num_classes)
        if k_sample < 1 or not 0 <= bag_weight <= 1:
            raise InputError(
                f"clam: k_sample must be at least 1 and bag_weight lie between 0 and 1, not {k_sample} and {bag_weight}"
            )
        self.k_sample, self.subtyping, self.bag_weight = k_sample, subtyping, bag_weight
        self.embed = nn.Sequential(Linear(in_dim, embed_dim), nn.ReLU(inplace=True), Dropout(dropout))
        branches = num_classes if self.multi_branch else 1
        self.attention = GatedAttention(embed_dim, attention_dim, branches, dropout)
        self.classifiers = (
            nn.ModuleList(Linear(embed_dim, 1) for _ in range(num_classes))
            if self.multi_branch
            else Linear(embed_dim, num_classes)
        )
        self.instance_classifiers = nn.ModuleList(Linear(embed_dim, 2) for _ in range(num_classes))

    def set_task(self, task: Task) -> None:
        """See ``Aggregator.set_task``; instances are clustered by class, so other tasks train with the bag's alone."""
        if not isinstance(task, Classification):
            self.left_out = "instance loss"
            self.instance_classifiers = nn.ModuleList()
        super().set_task(task)

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``; attention ``[ΣN]``, or with branches ``[ΣN, C]`` and embedding ``[B, C * E]``."""
        return self._score(batch)[0]

    def losses(self, batch: BagBatch) -> dict[str, Tensor]:
        """Computes the terms "bag" (cross-entropy) and "instance" (clustering), and their weighted sum, "loss"."""
        output, h = self._score(batch)
        bag = self.bag_loss(output.logits, batch.targets, batch.weights)
        if not isinstance(self.task, Classification):
            return {"loss": bag, "bag": bag}
        scores = output.attention_logits.detach().view(len(h), -1)
        instance = instance_clustering_loss(h, scores, self.instance_classifiers, batch, self.k_sample, self.subtyping)
        return {"loss": self.bag_weight * bag + (1 - self.bag_weight) * instance, "bag": bag, "instance": instance}

    def _score(self, batch: BagBatch) -> tuple[AggregatorOutput, Tensor]:
        h = self.embed(batch.features)  # [ΣN, E]
        scores = self.attention(h)  # [ΣN, K]
        pooled, attention = segment_attention_pool(scores, h, batch.offsets)  # [B, K, E]
        if self.multi_branch:
            logits = torch.cat([classifier(pooled[:, c]) for c, classifier in enumerate(self.classifiers)], dim=1)
            return AggregatorOutput(logits, pooled.flatten(1), attention, scores), h
        embedding = pooled[:, 0]
        return AggregatorOutput(self.classifiers(embedding), embedding, attention[:, 0], scores[:, 0]), h


@register_aggregator("clam_sb")
class CLAM_SB(_CLAM):
    """Pools by one gated attention branch and clusters its most and least attended instances by class.

    With ``h = ReLU(W x)`` and gated attention ``a``, the embedding is ``z = sum_n a_n h_n`` and the logits are linear
    in it. Each class c has an instance classifier ``g_c`` (in it, out of it). In training, with the k = ``k_sample``
    instances of highest and of lowest attention::

        in the slide's class        CE(g_c(top), 1) and CE(g_c(bottom), 0), mean over the 2 k instances
        in every other class        CE(g_c(top), 0), mean over the k instances, with subtyping; else nothing
        instance                    their sum over classes, with subtyping divided by C
        loss                        bag_weight CE(logits) + (1 - bag_weight) instance

    Source: Lu et al., Nature Biomedical Engineering 2021; github mahmoodlab/CLAM (its default, ``clam_sb``).

    Deviations: the instance loss is cross-entropy, the code's default; the paper's experiments use a smooth SVM loss.
    A bag of N < k_sample instances, which the authors' code cannot train on, gives its N as top and as bottom.
    ``num_classes=1`` has the instance classifier of the positive class alone.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        embed_dim: width of h.
        attention_dim: rows of the gated attention's V and U.
        k_sample: instances clustered on either end.
        subtyping: the classes exclude each other, so that top instances are negative for every other class.
        bag_weight: weight of the slide's cross-entropy, in [0, 1].
        dropout: dropout rate of h and of the attention's two hidden vectors.

    Raises:
        InputError: an option outside its range.
    """

    multi_branch = False
    replayable = True


@register_aggregator("clam_mb")
class CLAM_MB(_CLAM):
    """Pools by a gated attention branch for each class and clusters what each attends to most and least.

    As ``clam_sb``, with attention ``a_c``, embedding ``z_c = sum_n a_nc h_n`` and a linear logit of it for each class
    c; the instances clustered by ``g_c`` are those of highest and lowest ``a_c``.

    Source: Lu et al., Nature Biomedical Engineering 2021; github mahmoodlab/CLAM (``clam_mb``).

    Deviations: as ``clam_sb``. ``num_classes=1`` has one branch, that of the positive class.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        embed_dim: width of h.
        attention_dim: rows of the gated attention's V and U.
        k_sample: instances clustered on either end.
        subtyping: the classes exclude each other, so that top instances are negative for every other class.
        bag_weight: weight of the slide's cross-entropy, in [0, 1].
        dropout: dropout rate of h and of the attention's two hidden vectors.

    Raises:
        InputError: an option outside its range.
    """

    multi_branch = True
    replayable = True
