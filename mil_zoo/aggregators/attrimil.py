"""AttriMIL: attribute scores of instances, trained to be alike among neighbours and ranked across slides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mil_zoo.aggregators.base import Aggregator, Paper
from mil_zoo.aggregators.blocks.attention import GatedAttention
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.registry import register_aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.kernels import segment_attention_pool, segment_reduce
from mil_zoo.kernels.devices import require
from mil_zoo.tasks import Classification, Task


class Queue(NamedTuple):
    """The last instances of one kind for each class, oldest first.

    Attributes:
        rows: ``[C, Q, D]``, features.
        count: int64 ``[C]``, how many of the Q places of each class are taken.
    """

    rows: Tensor
    count: Tensor

    def push(self, row: Tensor, where: Tensor) -> Queue:
        """Puts ``row`` ``[C, D]`` behind the newest of the classes ``where`` (bool ``[C]``); a full queue loses one."""
        size = self.rows.shape[1]
        full = self.count == size
        rows = torch.where(full[:, None, None], self.rows.roll(-1, dims=1), self.rows)
        place = torch.arange(size, device=row.device) == torch.where(full, size - 1, self.count)[:, None]  # [C, Q]
        rows = torch.where(place[:, :, None], row[:, None], rows)
        return self._changed(where, Queue(rows, torch.where(full, size, self.count + 1)))

    def turn(self, where: Tensor) -> Queue:
        """Makes the oldest the newest of the classes ``where`` (bool ``[C]``)."""
        place = torch.arange(self.rows.shape[1], device=where.device)
        count = self.count[:, None]
        order = torch.where(place < count, (place + 1) % count.clamp(min=1), place)  # [C, Q]
        rows = self.rows.gather(1, order[:, :, None].expand_as(self.rows))
        return self._changed(where, Queue(rows, self.count))

    def _changed(self, where: Tensor, other: Queue) -> Queue:
        rows = torch.where(where[:, None, None], other.rows, self.rows)
        return Queue(rows, torch.where(where, other.count, self.count))


class _Scores(NamedTuple):
    """What instances score for each class: h ``[N, D]``, r, s and ``u = r exp(s)`` ``[N, C]``."""

    h: Tensor
    score: Tensor
    attention: Tensor
    attribute: Tensor


@register_aggregator("attrimil")
class AttriMIL(Aggregator):
    """Scores every instance for each class, asks neighbours to score alike, and ranks top instances across slides.

    With h = x + MLP(x), and for each class c a gated attention score s_ci and a linear instance score r_ci of h_i::

        u_ci    = r_ci exp(s_ci)                                       (attribute score)
        logit_c = sum_i u_ci / sum_i exp(s_ci) + b_c
        spatial = sum over c > 0 of mean_i |tanh(u_ci - u_cj)|     (j: of i and its neighbours the largest |u_cj|)
        rank    = sum_c rank_c / C
        loss    = cross-entropy + spatial_weight spatial + rank_weight rank

    For the ranking each class keeps two queues of instances, P_c of slides of the class and N_c of others. A slide's
    top instance of class c, with v its attribute score, enters one of them. The oldest of the other, where there is
    one, is scored anew as w, and becomes its newest::

        slide of class c:   rank_c = (w - v)+ + (-v)+ + (w)+           (c = 0: without the first)
        slide of another:   rank_c = (v - w)+ + (v)+                   (c = 0: (v)+ + (-w)+)

    Queues fill in training mode and are emptied when an epoch begins; in evaluation mode the ranking is 0, unless
    queues are given. The prediction uses neither graph nor queues. ``instance_logits`` are the attribute scores.

    Source: Cai et al., Medical Image Analysis 2025; github MedCAI/AttriMIL, its errors in the spatial term and the
    training loop mended.

    Deviations: the logits subtract the largest s before they exponentiate. Neighbours are those of ``window:1``, where
    theirs compares every patch with every other. ``num_classes=1`` has the attribute of the positive class alone. A
    batch of several slides takes them in order. Tasks without classes train without the ranking, and there the spatial
    term takes every output.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        queue_size: instances that a queue holds.
        spatial_weight: weight of the spatial term.
        rank_weight: weight of the ranking.

    Raises:
        InputError: an option outside its range; in training, an attribute score that is not finite.
    """

    graph = "window:1"
    family = "spatial"
    paper = Paper(
        "AttriMIL: Revisiting attention-based multiple instance learning for whole-slide pathological image "
        "classification from a perspective of instance attributes",
        2025,
        "https://arxiv.org/abs/2404.00351",
        "https://github.com/MedCAI/AttriMIL",
        licence="Apache-2.0",
    )
    published_renames = (
        (r"^attention_nets\.(\d+)\.attention_a\.0\.", r"attentions.\1.V."),
        (r"^attention_nets\.(\d+)\.attention_b\.0\.", r"attentions.\1.U."),
        (r"^attention_nets\.(\d+)\.attention_c\.", r"attentions.\1.w."),
    )

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        queue_size: int = 4,
        spatial_weight: float = 1.0,
        rank_weight: float = 5.0,
    ) -> None:
        super().__init__(in_dim, num_classes)
        if queue_size < 1 or min(spatial_weight, rank_weight) < 0:
            raise InputError(
                f"attrimil: queue_size ({queue_size}) must be positive, spatial_weight ({spatial_weight}) and "
                f"rank_weight ({rank_weight}) not negative"
            )
        self.spatial_weight, self.rank_weight = spatial_weight, rank_weight
        width = max(in_dim // 2, 1)
        self.adaptor = nn.Sequential(Linear(in_dim, width), nn.ReLU(), Linear(width, in_dim))
        self.attentions = nn.ModuleList(GatedAttention(in_dim, width) for _ in range(num_classes))
        self.classifiers = nn.ModuleList(Linear(in_dim, 1) for _ in range(num_classes))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        for kind in ("positive", "negative"):
            self.register_buffer(f"{kind}_rows", torch.zeros(num_classes, queue_size, in_dim))
            self.register_buffer(f"{kind}_count", torch.zeros(num_classes, dtype=torch.int64))

    def set_task(self, task: Task) -> None:
        """See ``Aggregator.set_task``; slides are ranked by class, and not at all in other tasks."""
        if self.rank_weight and not isinstance(task, Classification):
            self.left_out, self.rank_weight = "ranking of slides", 0.0
        super().set_task(task)

    def start_epoch(self) -> None:
        """Empties the queues."""
        self.positive_count.zero_()
        self.negative_count.zero_()

    def load_published_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """See ``Aggregator.load_published_state_dict``; the queues stay as they are."""
        super().load_published_state_dict({**state_dict, **dict(self.named_buffers())})

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``; attention and instance_logits ``[ΣN, C]``, embedding ``[B, C * D]``."""
        return self._output(self._scores(batch.features), batch)

    def losses(self, batch: BagBatch, queues: tuple[Tensor, Tensor] | None = None) -> dict[str, Tensor]:
        """Computes the terms "bag" (cross-entropy), "spatial" and "rank", and their weighted sum, "loss".

        Args:
            batch: labelled bags with their graph.
            queues: the instances of P and N, ``[C, q, D]`` each, oldest first; None for the aggregator's own, which
                this then changes, in training mode.
        """
        scores = self._scores(batch.features)
        bag = self.bag_loss(self._output(scores, batch).logits, batch.targets, batch.weights)
        require(
            scores.attribute.isfinite().all(),
            lambda: (
                f"attrimil: an attribute score of the slides {', '.join(batch.slide_ids)} is not finite; lower "
                "training.learning_rate"
            ),
        )
        terms = {"bag": bag, "spatial": self._spatial(scores.attribute, batch), "rank": bag.new_zeros(())}
        if self.rank_weight and (self.training or queues is not None):
            terms["rank"] = self._rank(scores.attribute, batch, queues)
        loss = bag + self.spatial_weight * terms["spatial"] + self.rank_weight * terms["rank"]
        return {"loss": loss, **terms}

    def _scores(self, features: Tensor) -> _Scores:
        h = features + self.adaptor(features)
        attention = torch.cat([score(h) for score in self.attentions], dim=1)
        score = torch.cat([classifier(h) for classifier in self.classifiers], dim=1)
        return _Scores(h, score, attention, score * attention.exp())

    def _output(self, scores: _Scores, batch: BagBatch) -> AggregatorOutput:
        pooled, attention = segment_attention_pool(scores.attention, scores.h, batch.offsets)  # [B, C, D]
        # Scores are linear in h, so the pooled h has the pooled score.
        logits = [classifier(pooled[:, c]) for c, classifier in enumerate(self.classifiers)]
        return AggregatorOutput(
            torch.cat(logits, dim=1) + self.bias,
            pooled.flatten(1),
            attention,
            scores.attention,
            instance_logits=scores.attribute,
        )

    def _spatial(self, attribute: Tensor, batch: BagBatch) -> Tensor:
        """Computes the spatial term of attribute scores ``[ΣN, C]``, the mean over bags."""
        negative = isinstance(self.task, Classification) and self.num_classes > 1  # class 0 is left out
        u = attribute[:, 1:] if negative else attribute
        graph, own = self._needs_graph(batch).graph.csr, u.detach().abs()
        source, target = graph.indices.long(), graph.destinations
        index = target[:, None].expand(-1, u.shape[1])
        there = own.index_select(0, source)  # [E, C]
        largest = own.scatter_reduce(0, index, there, "amax")  # itself included
        found = torch.where(there == largest.index_select(0, target), source[:, None], len(u))
        itself = torch.arange(len(u), device=u.device)[:, None]
        strongest = torch.where(own == largest, itself, len(u)).scatter_reduce(0, index, found, "amin")  # [ΣN, C]
        away = (u - u.gather(0, strongest)).tanh().abs()
        return segment_reduce(away, batch.offsets, "mean").sum(1).mean()

    def _rank(self, attribute: Tensor, batch: BagBatch, queues: tuple[Tensor, Tensor] | None) -> Tensor:
        """Computes the ranking, the mean over bags; without ``queues`` the own ones take in the top instances."""
        positive, negative = self._queues(queues)
        top, row = segment_reduce(attribute, batch.offsets, "max", return_argmax=True)  # [B, C]
        classes = torch.arange(self.num_classes, device=top.device) + (self.num_classes == 1)
        inside = batch.labels[:, None] == classes  # [B, C]
        oldest, there = [], []
        for rows, own in zip(batch.features[row], inside, strict=True):  # [C, D], [C]
            positive, negative = positive.push(rows, own), negative.push(rows, ~own)
            oldest.append(torch.where(own[:, None], negative.rows[:, 0], positive.rows[:, 0]))
            there.append(torch.where(own, negative.count, positive.count) > 0)
            positive, negative = positive.turn(~own), negative.turn(own)
        if queues is None:
            for kind, queue in (("positive", positive), ("negative", negative)):
                getattr(self, f"{kind}_rows").copy_(queue.rows)
                getattr(self, f"{kind}_count").copy_(queue.count)
        scored = self._scores(torch.stack(oldest).flatten(0, 1)).attribute.view(*top.shape, -1)  # [B, C, C]
        other = scored.diagonal(dim1=1, dim2=2)  # w [B, C]
        first = classes == 0
        inside_rank = torch.where(first, 0, (other - top).relu()) + (-top).relu() + other.relu()
        outside_rank = top.relu() + torch.where(first, (-other).relu(), (top - other).relu())
        rank = torch.where(torch.stack(there), torch.where(inside, inside_rank, outside_rank), 0)
        return rank.sum(1).mean() / self.num_classes

    def _queues(self, given: tuple[Tensor, Tensor] | None) -> tuple[Queue, Queue]:
        if given is None:
            own = (Queue(self.positive_rows, self.positive_count), Queue(self.negative_rows, self.negative_count))
            return own[0], own[1]
        size, device = self.positive_rows.shape[1], self.bias.device
        queues = []
        for rows in given:
            rows = torch.as_tensor(rows).to(self.positive_rows)
            if rows.ndim != 3 or (len(rows), rows.shape[2]) != (self.num_classes, self.in_dim) or rows.shape[1] > size:
                raise InputError(
                    f"attrimil: a queue must be [{self.num_classes}, at most {size}, {self.in_dim}], not "
                    f"{list(rows.shape)}"
                )
            count = torch.full((len(rows),), rows.shape[1], dtype=torch.int64, device=device)
            free = rows.new_zeros(len(rows), size - rows.shape[1], self.in_dim)
            queues.append(Queue(torch.cat([rows, free], dim=1), count))
        return queues[0], queues[1]
