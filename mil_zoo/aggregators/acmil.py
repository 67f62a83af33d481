"""ACMIL: attention-challenging multiple-instance learning."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mil_zoo.aggregators.base import Aggregator, Paper
from mil_zoo.aggregators.blocks.attention import GatedAttention
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.blocks.masking import draw_top_rows
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.registry import register_aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.kernels import segment_attention_pool, segment_reduce


@register_aggregator("acmil")
class ACMIL(Aggregator):
    """Pools by several gated attention branches that must differ; training masks some of their favourite instances.

    With ``h = ReLU(W x)``, M branches (``n_token``) and gated attention logits ``s_nm``::

        a_nm   = softmax_n(s_nm), in training with int(mask_drop * k) of the k = n_masked_patch highest of each branch
                 masked, drawn anew at every step (stochastic top-k instance masking)
        z_m    = sum_n a_nm h_n,  logits = W_slide mean_m z_m
        loss   = CE(logits) + mean_m CE(W_m z_m) + mean over pairs of branches of cos(a_m, a_m')

    Source: Zhang et al., ECCV 2024; github dazhangyu123/ACMIL (the gated-attention architecture, ``ga``).

    Deviations: none in the numbers. With one branch there is neither branch nor diversity loss, as in the authors'
    script, and the branch classifier it would leave untrained is not created. Where masking would take a whole bag, one
    instance is left; the authors' attention is then uniform.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        embed_dim: width of h.
        attention_dim: rows of the gated attention's V and U.
        n_token: attention branches M.
        n_masked_patch: the most attended instances of a branch among which masked ones are drawn (all, in a smaller
            bag); 0 for no masking.
        mask_drop: share of those that is masked, in [0, 1].

    Raises:
        InputError: an option outside its range.
    """

    family = "attention"
    replayable = True
    paper = Paper(
        "Attention-Challenging Multiple Instance Learning for Whole Slide Image Classification",
        2024,
        "https://arxiv.org/abs/2311.07125",
        "https://github.com/dazhangyu123/ACMIL",
        licence="MIT",
    )
    published_renames = (
        (r"^dimreduction\.fc1\.", "embed.0."),
        (r"^attention\.attention_([VU])\.0\.", r"attention.\1."),
        (r"^attention\.attention_weights\.", "attention.w."),
        (r"^classifier\.(\d+)\.fc\.", r"branch_classifiers.\1."),
        (r"^Slide_classifier\.fc\.", "slide_classifier."),
    )

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        embed_dim: int = 512,
        attention_dim: int = 128,
        n_token: int = 5,
        n_masked_patch: int = 10,
        mask_drop: float = 0.6,
    ) -> None:
        super().__init__(in_dim, num_classes)
        if n_token < 1:
            raise InputError(f"acmil: n_token must be at least 1, not {n_token}")
        if n_masked_patch < 0 or not 0 <= mask_drop <= 1:
            raise InputError(
                f"acmil: n_masked_patch ({n_masked_patch}) must not be negative, and mask_drop ({mask_drop}) must lie "
                "between 0 and 1"
            )
        self.n_token, self.n_masked_patch, self.mask_drop = n_token, n_masked_patch, mask_drop
        self.embed = nn.Sequential(Linear(in_dim, embed_dim, bias=False), nn.ReLU(inplace=True))
        self.attention = GatedAttention(embed_dim, attention_dim, n_token)
        branches = n_token if n_token > 1 else 0
        self.branch_classifiers = nn.ModuleList(Linear(embed_dim, num_classes) for _ in range(branches))
        self.slide_classifier = Linear(embed_dim, num_classes)
        self.published_unused = () if branches else (r"classifier\.0\..*",)

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``; attention ``[ΣN]`` is the mean of head_attention ``[ΣN, M]``."""
        pooled, attention = self._branches(batch)
        embedding = pooled.mean(1)
        logits = self.slide_classifier(embedding)
        return AggregatorOutput(logits, embedding, attention.mean(1), head_attention=attention)

    def losses(self, batch: BagBatch) -> dict[str, Tensor]:
        """Computes "slide", "branch" (mean over branches), "diversity" (over their pairs), and their sum, "loss"."""
        pooled, attention = self._branches(batch)
        slide = self.bag_loss(self.slide_classifier(pooled.mean(1)), batch.targets, batch.weights)
        if self.n_token == 1:
            return {"loss": slide, "slide": slide}
        logits = self.branch_logits(pooled).flatten(0, 1)  # [B * M, C]
        bags = torch.arange(len(batch), device=logits.device).repeat_interleave(self.n_token)
        branch = self.bag_loss(logits, batch.targets[bags], None if batch.weights is None else batch.weights[bags])
        diversity = _pairwise_cosine(attention, batch.offsets)
        return {"loss": slide + branch + diversity, "slide": slide, "branch": branch, "diversity": diversity}

    def branch_logits(self, pooled: Tensor) -> Tensor:
        """Maps the embedding of each branch ``[B, M, E]`` to its own logits ``[B, M, C]``."""
        return torch.stack([classifier(pooled[:, m]) for m, classifier in enumerate(self.branch_classifiers)], dim=1)

    def _branches(self, batch: BagBatch) -> tuple[Tensor, Tensor]:
        h = self.embed(batch.features)  # [ΣN, E]
        scores = self.attention(h)  # [ΣN, M]
        if self.training:
            masked = draw_top_rows(scores.detach(), batch, self.n_masked_patch, self.mask_drop)
            scores = scores.scatter(0, masked, -torch.inf)
        return segment_attention_pool(scores, h, batch.offsets)


def _pairwise_cosine(attention: Tensor, offsets: Tensor) -> Tensor:
    """Averages the cosine of the attention ``[ΣN, M]`` of two branches over pairs of branches and over bags."""
    branches = attention.shape[1]
    first, second = torch.triu_indices(branches, branches, 1, device=attention.device)  # pairs
    dots = segment_reduce(attention.index_select(1, first) * attention.index_select(1, second), offsets, "sum")
    norms = segment_reduce(attention.square(), offsets, "sum").sqrt()  # [B, M]
    return (dots / (norms.index_select(1, first) * norms.index_select(1, second))).mean()
