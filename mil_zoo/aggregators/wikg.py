"""WiKG: a slide as a dynamic knowledge graph."""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mil_zoo.aggregators.base import Aggregator, Paper
from mil_zoo.aggregators.blocks.dropout import Dropout
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.registry import register_aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.kernels import linear, segment_attention_pool, segment_reduce

AT_ONCE = 2**22
"""Numbers held at a time (16 MiB in float32) while neighbours are searched and while their tails are attended to."""


@register_aggregator("wikg")
class WiKG(Aggregator):
    """Lets every instance attend to the few instances whose tail embeddings answer its head embedding best.

    With x the projected instances, each averaged with the mean of its bag, h = W_head x and t = W_tail x::

        neighbours of i: the topk instances j of its bag with the largest h_i . t_j
        p_ij = softmax_j(h_i . t_j / sqrt(E))
        r_ij = p_ij t_j + (1 - p_ij) h_i                                    (edge embedding)
        w_ij = softmax_j(sum(t_j) * sum(tanh(h_i + r_ij)))                  (knowledge-aware attention)
        n_i  = sum_j w_ij t_j
        g_i  = leaky_relu(W_1 (h_i + n_i)) + leaky_relu(W_2 (h_i * n_i))    (bi-interaction)

    and attention pooling of the g_i, layer norm and a linear classifier. ``attention`` is that of the pooling; how a
    neighbour contributes through the graph is not in it.

    Source: Li et al., Dynamic Graph Representation with Knowledge-aware Attention for Histopathology Whole Slide Image
    Analysis, CVPR 2024; github WonderLandxD/WiKG. The product of sums in w_ij is what the authors' code computes.

    Deviations: none in the numbers. The N x N products are searched in slices and only the neighbours' are kept (an
    ONNX model holds them at once); a bag of fewer than ``topk`` instances, which the authors' code refuses, uses all it
    has.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        embed_dim: width E.
        topk: neighbours of an instance.
        dropout: rate at which the updated instances are dropped out.

    Raises:
        InputError: ``topk`` is not positive.
    """

    family = "spatial"
    replayable = True
    paper = Paper(
        "Dynamic Graph Representation with Knowledge-aware Attention for Histopathology Whole Slide Image Analysis",
        2024,
        "https://arxiv.org/abs/2403.07719",
        "https://github.com/WonderLandxD/WiKG",
    )
    published_renames = ((r"^_fc1\.0\.", "embed.0."), (r"^readout\.gate_nn\.", "readout."), (r"^fc\.", "classifier."))
    published_unused = (r"gate_[UVW]\..*",)

    def __init__(
        self, in_dim: int, num_classes: int, embed_dim: int = 512, topk: int = 6, dropout: float = 0.3
    ) -> None:
        super().__init__(in_dim, num_classes)
        if topk < 1:
            raise InputError(f"wikg: topk must be positive, not {topk}")
        self.topk = topk
        self.embed = nn.Sequential(Linear(in_dim, embed_dim), nn.LeakyReLU())
        self.W_head, self.W_tail = Linear(embed_dim, embed_dim), Linear(embed_dim, embed_dim)
        self.linear1, self.linear2 = Linear(embed_dim, embed_dim), Linear(embed_dim, embed_dim)
        self.message_dropout = Dropout(dropout)
        self.readout = nn.Sequential(Linear(embed_dim, embed_dim // 2), nn.LeakyReLU(), Linear(embed_dim // 2, 1))
        self.norm = nn.LayerNorm(embed_dim)
        self.classifier = Linear(embed_dim, num_classes)

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``; attention ``[ΣN]``."""
        x = self.embed(batch.features)  # [ΣN, E]
        x = (x + segment_reduce(x, batch.offsets, "mean").index_select(0, batch.bag_index)) * 0.5
        head, tail = self.W_head(x), self.W_tail(x)
        message = self._messages(head, tail, *self._neighbours(head, tail, batch))
        g = F.leaky_relu(self.linear1(head + message)) + F.leaky_relu(self.linear2(head * message))
        g = self.message_dropout(g)
        scores = self.readout(g)  # [ΣN, 1]
        pooled, attention = segment_attention_pool(scores, g, batch.offsets)
        embedding = self.norm(pooled[:, 0])
        return AggregatorOutput(self.classifier(embedding), embedding, attention[:, 0], scores[:, 0])

    @torch.no_grad()
    def _neighbours(self, head: Tensor, tail: Tensor, batch: BagBatch) -> tuple[Tensor, Tensor]:
        """Finds the rows of the neighbours, int64 ``[ΣN, topk]``, and where there is none because the bag is too small.

        No kernel searches, so bags are taken one by one; the choice itself has no gradient.
        """
        neighbours = []
        for start, end in pairwise(accumulate(batch.lengths, initial=0)):
            for rows in _slices(head[start:end], AT_ONCE // (end - start + self.topk)):
                likeness = F.pad(
                    linear(rows, tail[start:end]), (0, self.topk), value=-torch.inf
                )  # room for absent ones
                best = likeness.topk(self.topk, dim=1).indices
                neighbours.append(torch.where(best < end - start, best, 0) + start)
        place = torch.arange(self.topk, device=head.device)
        return torch.cat(neighbours), place >= batch.sizes[batch.bag_index][:, None]

    def _messages(self, head: Tensor, tail: Tensor, neighbours: Tensor, absent: Tensor) -> Tensor:
        """Computes ``n_i`` ``[N, E]`` by slices; the backward pass computes a slice again instead of keeping it."""
        count = AT_ONCE // (self.topk * head.shape[1])
        if torch.compiler.is_exporting() or len(head) <= count:  # few enough to keep
            return _message(tail, head, neighbours, absent)
        slices = zip(*(_slices(x, count) for x in (head, neighbours, absent)), strict=True)
        return torch.cat(
            [checkpoint(_message, tail, *parts, use_reentrant=False, preserve_rng_state=False) for parts in slices]
        )


def _slices(x: Tensor, count: int) -> tuple[Tensor, ...]:
    """``x`` in parts of ``count`` rows, at least one; whole where it is exported, as the number of parts would be."""
    return (x,) if torch.compiler.is_exporting() else x.split(max(1, count))


def _message(tail: Tensor, head: Tensor, neighbours: Tensor, absent: Tensor) -> Tensor:
    """Computes ``n_i`` ``[n, E]`` of tails ``[N, E]``, n heads ``[n, E]`` and their neighbours' rows ``[n, topk]``."""
    tails = tail.index_select(0, neighbours.flatten()).view(*neighbours.shape, -1)  # [n, topk, E]
    scores = (tails @ head[:, :, None])[..., 0] * head.shape[1] ** -0.5
    p = scores.masked_fill(absent, -torch.inf).softmax(dim=1)[..., None]
    gate = torch.tanh((2 - p) * head[:, None] + p * tails)  # h_i + r_ij
    weights = (tails.sum(-1) * gate.sum(-1)).masked_fill(absent, -torch.inf).softmax(dim=1)
    return (weights[:, None] @ tails)[:, 0]
