"""DTFD-MIL: double-tier feature distillation."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mil_zoo.aggregators.base import Aggregator, Paper
from mil_zoo.aggregators.blocks.attention import GatedAttention
from mil_zoo.aggregators.blocks.dropout import Dropout
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.blocks.segments import segment_topk
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.registry import register_aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.kernels import linear, segment_attention_pool
from mil_zoo.kernels.draws import from_host


class FirstTier(NamedTuple):
    """Holds the first tier on instances sorted by pseudo-bag.

    Attributes:
        order: int64 ``[N]``, the row of the batch that each sorted instance is.
        sizes: the instances of each pseudo-bag, bag by bag; known to the host, which need not wait for a device.
        offsets: int64 ``[G + 1]``, pseudo-bag g is sorted instances ``offsets[g]:offsets[g + 1]``.
        bag: int64 ``[G]``, the bag of every pseudo-bag; ascending.
        h: ``[N, E]``, sorted instances.
        attention: ``[N]``, sums to 1 in each pseudo-bag.
        pooled: ``[G, E]``.
        logits: ``[G, C]``.
        instance_logits: ``[N, C]``.
    """

    order: Tensor
    sizes: list[list[int]]
    offsets: Tensor
    bag: Tensor
    h: Tensor
    attention: Tensor
    pooled: Tensor
    logits: Tensor
    instance_logits: Tensor


@register_aggregator("dtfd")
class DTFD(Aggregator):
    """Runs gated attention MIL twice: on pseudo-bags of a slide, then on features distilled from them.

    A bag is split into ``num_groups`` pseudo-bags. Tier 1 classifies each: ``z = sum_n a_n h_n`` with the label of the
    slide, and scores every instance by its part of that, ``a_n W h_n`` (``instance_logits``). From each pseudo-bag
    features are distilled:

    - "maxs": h of the ``instances_per_group`` instances with the highest probability of the last class (in another task
      than classification: with the highest last output against the others)
    - "maxmins": those and as many with the lowest (an instance of a small pseudo-bag may be taken twice)
    - "afs": z itself

    Tier 2 pools the distilled features of the slide by an attention of its own and classifies them. The loss is the
    cross-entropy of tier 1 (mean over the pseudo-bags of a slide) plus that of tier 2, which in training sees the
    distilled features as constants.

    ``attention`` is the weight with which an instance's h enters the slide embedding: for "afs" the tier-2 weight of
    its pseudo-bag times its tier-1 weight within it; for "maxs" and "maxmins" the tier-2 weight of the instance where
    it was distilled and 0 elsewhere (tier 1 only chooses there).

    In training the pseudo-bags are drawn at random each time; in evaluation instance i of a bag goes to pseudo-bag
    ``i mod num_groups``, so that answers repeat, and, as in training, every pseudo-bag is spread over the slide.

    Source: Zhang et al., DTFD-MIL, CVPR 2022; github hrzhang1123/DTFD-MIL.

    Deviations: the authors draw pseudo-bags at random in evaluation too (``groups`` gives any others). A bag of fewer
    instances than ``num_groups`` has one pseudo-bag an instance. The authors' second optimiser steps after the first
    on features from before that step; one step on both losses is the same, save their gradient clipping at norm 5.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        embed_dim: width of the instances after Linear (no bias) + ReLU.
        attention_dim: hidden width of both attentions.
        num_groups: pseudo-bags of a slide.
        instances_per_group: instances distilled from a pseudo-bag at each end ("maxs", "maxmins").
        distill: which features are distilled.
        tier1_drop: dropout rate before the classifier of tier 1.
        tier2_drop: dropout rate before the classifier of tier 2.

    Raises:
        InputError: an option outside its range.
    """

    family = "attention"
    replayable = True
    not_in_onnx = "how many pseudo-bags it makes follows from the size of the bag, which torch's exporter would fix"
    paper = Paper(
        "DTFD-MIL: Double-Tier Feature Distillation Multiple Instance Learning for Histopathology Whole Slide Image "
        "Classification",
        2022,
        "https://arxiv.org/abs/2203.12081",
        "https://github.com/hrzhang1123/DTFD-MIL",
        licence="MIT",
    )
    permutation_invariant = False  # evaluation deals instances into pseudo-bags in their order
    published_renames = (
        (r"^dim_reduction\.fc1\.", "embed."),
        (r"^att_classifier\.(attention|classifier)\.", r"tier2_\1."),
        (r"^(attention|classifier)\.", r"tier1_\1."),
        (r"\.attention_([VU])\.0\.", r".\1."),
        (r"\.attention_weights\.", ".w."),
        (r"_classifier\.fc\.", "_classifier."),
    )

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        embed_dim: int = 512,
        attention_dim: int = 128,
        num_groups: int = 4,
        instances_per_group: int = 1,
        distill: Literal["maxmins", "maxs", "afs"] = "afs",
        tier1_drop: float = 0.0,
        tier2_drop: float = 0.0,
    ) -> None:
        super().__init__(in_dim, num_classes)
        if num_groups < 1 or instances_per_group < 1:
            raise InputError(
                f"dtfd: num_groups and instances_per_group must be positive, not {num_groups} and {instances_per_group}"
            )
        if distill not in ("maxmins", "maxs", "afs"):
            raise InputError(f"dtfd: distill must be 'maxmins', 'maxs' or 'afs', not {distill!r}")
        self.num_groups, self.instances_per_group, self.distill = num_groups, instances_per_group, distill
        self.embed = Linear(in_dim, embed_dim, bias=False)
        self.tier1_attention, self.tier2_attention = (GatedAttention(embed_dim, attention_dim) for _ in range(2))
        self.tier1_classifier, self.tier2_classifier = (Linear(embed_dim, num_classes) for _ in range(2))
        self.tier1_dropout, self.tier2_dropout = Dropout(tier1_drop), Dropout(tier2_drop)

    def forward(self, batch: BagBatch, groups: Tensor | None = None) -> AggregatorOutput:
        """See ``Aggregator.forward``; attention ``[ΣN]``, instance_logits ``[ΣN, C]``.

        Args:
            batch: bags.
            groups: int64 ``[ΣN]``, the pseudo-bag of each instance, numbered in each bag apart; None for random ones in
                training mode and fixed ones in eval mode.
        """
        tier1 = self.first_tier(batch, groups)
        return self._second_tier(batch, tier1, *self._distilled(tier1))

    def losses(self, batch: BagBatch, groups: Tensor | None = None) -> dict[str, Tensor]:
        """Computes the losses of both tiers.

        Args:
            batch: labelled bags.
            groups: as in ``forward``.

        Returns:
            "loss", "tier1" and "tier2", each the mean over the bags of the batch.
        """
        tier1 = self.first_tier(batch, groups)
        features, rows = self._distilled(tier1)
        tier2 = self._second_tier(batch, tier1, features.detach(), rows)
        tier2_loss = self.bag_loss(tier2.logits, batch.targets, batch.weights)
        if self.task.risk_sets:  # a slide's own pseudo-bags are all of one patient: they compare with those of others
            weights = None if batch.weights is None else batch.weights[tier1.bag]
            tier1_loss = self.bag_loss(tier1.logits, batch.targets[tier1.bag], weights)
            return {"loss": tier1_loss + tier2_loss, "tier1": tier1_loss, "tier2": tier2_loss}
        # One slide after the other: the mean over pseudo-bags is within a slide, and small slides have fewer.
        counts = [len(sizes) for sizes in tier1.sizes]
        of_slides = [
            self.bag_loss(logits, target.expand(len(logits), -1))
            for logits, target in zip(tier1.logits.split(counts), batch.targets, strict=True)
        ]
        tier1_losses = torch.stack(of_slides)
        tier1_loss = (tier1_losses if batch.weights is None else tier1_losses * batch.weights).mean()
        return {"loss": tier1_loss + tier2_loss, "tier1": tier1_loss, "tier2": tier2_loss}

    def first_tier(self, batch: BagBatch, groups: Tensor | None = None) -> FirstTier:
        """Runs tier 1 on every pseudo-bag of ``batch``; ``groups`` as in ``forward``.

        Raises:
            InputError: ``groups`` is not a non-negative integer for each instance.
        """
        groups, sizes = self._draw_groups(batch) if groups is None else _checked(groups, batch)
        order = (batch.bag_index * (groups.max() + 1) + groups).argsort(stable=True)
        offsets = _offsets(itertools.chain(*sizes), groups.device)
        h = F.relu_(self.embed(batch.features)).index_select(0, order)
        pooled, attention = segment_attention_pool(self.tier1_attention(h), h, offsets)
        return FirstTier(
            order=order,
            sizes=sizes,
            offsets=offsets,
            bag=batch.bag_index[order[offsets[:-1]]],
            h=h,
            attention=attention[:, 0],
            pooled=pooled[:, 0],
            logits=self.tier1_classifier(self.tier1_dropout(pooled[:, 0])),
            instance_logits=attention * linear(h, self.tier1_classifier.weight),
        )

    def _draw_groups(self, batch: BagBatch) -> tuple[Tensor, list[list[int]]]:
        place = torch.arange(batch.num_instances, device=batch.offsets.device) - batch.offsets[batch.bag_index]
        if self.training:
            keys = torch.rand(batch.num_instances, 1, device=batch.offsets.device)
            place = place[segment_topk(keys, batch.offsets, batch.sizes, batch.num_instances)[:, 0].argsort()]
        sizes = [[(n - g - 1) // self.num_groups + 1 for g in range(min(n, self.num_groups))] for n in batch.lengths]
        return place % self.num_groups, sizes

    def _distilled(self, tier1: FirstTier) -> tuple[Tensor, Tensor]:
        """Returns distilled features ``[M, E]``, bags in order, and int64 ``[M]``: the sorted instance that each is.

        For "afs" it is the pseudo-bag.
        """
        if self.distill == "afs":
            return tier1.pooled, torch.arange(len(tier1.pooled), device=tier1.order.device)
        score = tier1.instance_logits.detach()[:, -1:]
        if self.num_classes > 1:  # rises with the softmax probability of the last class, and ties less
            score = score - tier1.instance_logits.detach()[:, :-1].logsumexp(1, keepdim=True)
        taken = tier1.offsets.diff().clamp(max=self.instances_per_group)
        total = sum(self._distilled_sizes(tier1, 1))
        rows = segment_topk(score, tier1.offsets, taken, total)[:, 0]
        if self.distill == "maxmins":
            # Sorted instances lie bag by bag, so ascending rows are in the order of the bags.
            rows = torch.cat([rows, segment_topk(-score, tier1.offsets, taken, total)[:, 0]]).sort().values
        return tier1.h.index_select(0, rows), rows

    def _distilled_sizes(self, tier1: FirstTier, ends: int) -> list[int]:
        """How many features each bag has, taken from one end or both ``ends`` of each pseudo-bag's ranking."""
        if self.distill == "afs":
            return [len(sizes) for sizes in tier1.sizes]
        return [ends * sum(min(size, self.instances_per_group) for size in sizes) for sizes in tier1.sizes]

    def _second_tier(self, batch: BagBatch, tier1: FirstTier, features: Tensor, rows: Tensor) -> AggregatorOutput:
        sizes = self._distilled_sizes(tier1, 2 if self.distill == "maxmins" else 1)
        offsets = _offsets(sizes, features.device)
        pooled, weights = segment_attention_pool(self.tier2_attention(features), features, offsets)
        embedding, weights = pooled[:, 0], weights[:, 0]
        if self.distill == "afs":
            attention = tier1.attention * weights.repeat_interleave(
                tier1.offsets.diff(), output_size=len(tier1.attention)
            )
        else:
            attention = torch.zeros_like(tier1.attention).index_add(0, rows, weights)
        unsorted = tier1.order.argsort()
        return AggregatorOutput(
            self.tier2_classifier(self.tier2_dropout(embedding)),
            embedding,
            attention.index_select(0, unsorted),
            instance_logits=tier1.instance_logits.index_select(0, unsorted),
        )


def _offsets(sizes: Iterable[int], device: torch.device) -> Tensor:
    offsets = [0, *itertools.accumulate(sizes)]
    return from_host(lambda: torch.tensor(offsets), device)


def _checked(groups: Tensor, batch: BagBatch) -> tuple[Tensor, list[list[int]]]:
    groups = torch.as_tensor(groups, device=batch.offsets.device)
    if groups.shape != (batch.num_instances,) or groups.is_floating_point() or bool((groups < 0).any()):
        raise InputError(
            f"dtfd: groups must hold a pseudo-bag number of 0 or more for each of the {batch.num_instances} instances, "
            f"not {groups.dtype} {list(groups.shape)}"
        )
    groups = groups.long()
    return groups, [some.unique(return_counts=True)[1].tolist() for some in groups.split(batch.lengths)]
