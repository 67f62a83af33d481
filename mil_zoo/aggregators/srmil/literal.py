"""SRMIL as its paper writes it, to be read beside the equations: three passes, one after another, over plain edges.

Every pass reforms and encodes its own masked copy of the features, the global node is a node of the graph, and
attention holds a tensor of all edges. Names of parameters, losses and gradients are those of the authors' code and of
:class:`mil_zoo.aggregators.srmil.fast.SRMIL`, which computes the same faster; the tests hold one against the other.

Source: Wu et al., WACV 2026, arXiv 2602.19487; github wwyi1828/SRMIL.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil_zoo.aggregators.base import Aggregator
from mil_zoo.aggregators.blocks.masking import draw_rows
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.data.bag import BagBatch


class Edges(NamedTuple):
    """Holds a graph of ``count`` nodes: int64 ``[E]`` each, edge e runs from ``source[e]`` to ``target[e]``."""

    source: Tensor
    target: Tensor
    count: int

    def with_global_node(self) -> Edges:
        """Adds a last node, joined to and from every other, without a self-loop."""
        patches = torch.arange(self.count, device=self.source.device)
        node = torch.full_like(patches, self.count)
        source = torch.cat([self.source, node, patches])
        return Edges(source, torch.cat([self.target, patches, node]), self.count + 1)


class GraphAttention(nn.Module):
    """Attends over the edges of a graph. For an edge j -> i, in each head::

        z = W h,   e_ij = leaky_relu(<a_l, z_j> + <a_r, z_i>, 0.2),   alpha_ij = softmax_j(e_ij)
        out_i = act(norm(sum_j alpha_ij z_j + bias + W_res h_i))

    ``W_res`` is there only where ``residual`` is on and the widths differ: where they are equal the authors add none.
    """

    def __init__(
        self,
        in_dim: int,
        heads: int,
        head_dim: int,
        feat_drop: float,
        attn_drop: float,
        residual: bool = True,
        norm: bool = True,
        activation: type[nn.Module] = nn.PReLU,
    ) -> None:
        super().__init__()
        out_dim = heads * head_dim
        self.heads, self.head_dim = heads, head_dim
        self.feat_drop, self.attn_drop = nn.Dropout(feat_drop), nn.Dropout(attn_drop)
        self.fc = nn.Linear(in_dim, out_dim, bias=False)
        self.attn_l, self.attn_r = (nn.Parameter(torch.empty(1, heads, head_dim)) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        self.res_fc = nn.Linear(in_dim, out_dim, bias=False) if residual and in_dim != out_dim else None
        self.norm = nn.LayerNorm(out_dim) if norm else nn.Identity()
        self.activation = activation()
        for weight in [self.fc.weight, self.attn_l, self.attn_r] + ([self.res_fc.weight] if self.res_fc else []):
            nn.init.xavier_normal_(weight, gain=2**0.5)

    def forward(self, h: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        """Maps ``[N, in_dim]`` to ``[N, H * F]``; returns the attention of each edge before dropout ``[E, H]`` too."""
        h = self.feat_drop(h)
        z = self.fc(h).view(len(h), self.heads, self.head_dim)  # [N, H, F]
        left, right = (z * self.attn_l).sum(-1), (z * self.attn_r).sum(-1)  # [N, H]
        out, attention = self.gather(z, left, right, edges)
        out = out.flatten(1) + self.bias
        if self.res_fc is not None:
            out = out + self.res_fc(h)
        return self.activation(self.norm(out)), attention

    def gather(self, z: Tensor, left: Tensor, right: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        """Computes ``sum_j alpha_ij z_j`` ``[N, H, F]`` and alpha ``[E, H]``."""
        scores = F.leaky_relu(left[edges.source] + right[edges.target], 0.2)  # [E, H]
        into = edges.target[:, None].expand_as(scores)
        highest = scores.new_full((edges.count, self.heads), -torch.inf).scatter_reduce(0, into, scores, "amax")
        weights = (scores - highest.detach()[edges.target]).exp()
        attention = (
            weights / weights.new_zeros(edges.count, self.heads).index_add(0, edges.target, weights)[edges.target]
        )
        messages = self.attn_drop(attention)[:, :, None] * z[edges.source]  # [E, H, F]
        return torch.zeros_like(z).index_add(0, edges.target, messages), attention


class Layers(nn.Module):
    """Runs graph attention layers one after another."""

    def __init__(self, *layers: GraphAttention) -> None:
        super().__init__()
        self.gat_layers = nn.ModuleList(layers)

    def forward(self, h: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        """Maps ``[N, in_dim]`` to ``[N, out_dim]``; returns the attention of the last layer ``[E, H]`` too."""
        attention = h.new_empty(0)
        for layer in self.gat_layers:
            h, attention = layer(h, edges)
        return h, attention


class LiteralSRMIL(Aggregator):
    """Computes SRMIL slide by slide; options and terms are those of :class:`mil_zoo.aggregators.srmil.fast.SRMIL`."""

    graph = "window:2"

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        hidden: int = 256,
        heads: int = 4,
        head_hidden: int = 128,
        feat_drop: float = 0.11,
        attn_drop: float = 0.15,
        cls_drop: float = 0.059,
        mask_rate: float = 0.7,
        w_gen: float = 1.8,
        w_ce: float = 1.0,
        alpha: float = 1.0,
        readout: Literal["global_node", "attention"] = "global_node",
    ) -> None:
        super().__init__(in_dim, num_classes)
        drops, head_dim = {"feat_drop": feat_drop, "attn_drop": attn_drop}, hidden // heads
        self.heads, self.mask_rate, self.w_gen, self.w_ce, self.alpha = heads, mask_rate, w_gen, w_ce, alpha
        self.enc_mask_token = nn.Parameter(0.01 * torch.randn(1, in_dim))
        self.dec_mask_token = nn.Parameter(0.01 * torch.randn(1, hidden))
        self.reformer = nn.Sequential(nn.Linear(in_dim, in_dim))
        self.encoder = Layers(
            GraphAttention(in_dim, heads, head_dim, **drops), GraphAttention(hidden, heads, head_dim, **drops)
        )
        self.encoder_to_decoder = nn.Linear(hidden, hidden, bias=False)
        self.decoder = Layers(
            GraphAttention(hidden, heads, head_dim, **drops),
            GraphAttention(hidden, 1, in_dim, **drops, residual=False, norm=False, activation=nn.Identity),
        )
        self.classifier = nn.Sequential(
            nn.Linear(head_dim, head_hidden), nn.ReLU(), nn.Dropout(cls_drop), nn.Linear(head_hidden, num_classes)
        )
        self.super_tokens = self.attender = None
        if readout == "global_node":
            self.super_tokens = nn.Parameter(0.01 * torch.randn(1, in_dim))
        else:
            self.attender = Layers(
                GraphAttention(head_dim, 1, head_hidden, **drops, norm=False, activation=nn.ReLU),
                GraphAttention(head_hidden, 1, 1, **drops, residual=False, norm=False, activation=nn.Identity),
            )
        nn.init.xavier_uniform_(self.reformer[0].weight, gain=1.414)
        nn.init.zeros_(self.reformer[0].bias)
        nn.init.xavier_normal_(self.encoder_to_decoder.weight, gain=1.414)

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """Classifies the complete bags, one by one; attention ``[ΣN]``, of a global node head_attention ``[ΣN, H]``."""
        slides = [self.classify(features, edges) for features, edges in self.slides(batch)]
        logits, embedding, attention = (torch.cat(parts) for parts in zip(*slides, strict=True))
        if self.attender is not None:
            return AggregatorOutput(logits, embedding, attention[:, 0])
        return AggregatorOutput(logits, embedding, attention.mean(1), head_attention=attention)

    def losses(self, batch: BagBatch, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Takes the three passes of each slide, and the mean of their losses over the slides.

        Args:
            batch: labelled bags with their graph.
            mask: int64, rows of ``batch.features`` to mask; None draws int(mask_rate * N) rows of each bag.

        Returns:
            "loss", "reconstruction", "ce_masked" and "ce_full".
        """
        if mask is None:
            mask = draw_rows(self._needs_graph(batch).graph.num_nodes, self.mask_rate, batch.features.device)
        reconstruction, masked_logits, full_logits = [], [], []
        for (features, edges), first in zip(self.slides(batch), batch.offsets.tolist(), strict=False):
            rows = mask[(mask >= first) & (mask < first + len(features))] - first
            masked = features.clone()
            masked[rows] = self.enc_mask_token
            reconstruction.append(self.reconstruction_loss(features, masked, rows, edges))
            masked_logits.append(self.classify(masked, edges)[0])
            full_logits.append(self.classify(features, edges)[0])
        l_rec = torch.stack(reconstruction).mean()
        ce_masked = self.bag_loss(torch.cat(masked_logits), batch.targets, batch.weights)
        ce_full = self.bag_loss(torch.cat(full_logits), batch.targets, batch.weights)
        loss = (2 - self.w_gen) * ((2 - self.w_ce) * ce_masked + self.w_ce * ce_full) + self.w_gen * l_rec
        return {"loss": loss, "reconstruction": l_rec, "ce_masked": ce_masked, "ce_full": ce_full}

    def reconstruction_loss(self, features: Tensor, masked: Tensor, rows: Tensor, edges: Edges) -> Tensor:
        """Averages ``(1 - cos(x_hat, x)) ** alpha`` over masked patches, on the graph without the global node."""
        if len(rows) == 0:
            return features.new_zeros(())
        code, _ = self.encoder(self.reformer(masked), edges)
        code = self.encoder_to_decoder(code)
        code[rows] = self.dec_mask_token  # fixed re-mask
        reconstructed, _ = self.decoder(code, edges)
        return (1 - F.cosine_similarity(reconstructed[rows], features[rows])).clamp(min=0).pow(self.alpha).mean()

    def classify(self, features: Tensor, edges: Edges) -> tuple[Tensor, Tensor, Tensor]:
        """Returns logits ``[1, C]``, embedding ``[1, hidden / heads]`` and attention ``[N, H]`` of a slide."""
        if self.attender is not None:
            h, _ = self.encoder(self.reformer(features), edges)
            h = h.view(len(h), self.heads, -1).mean(1)
            attention = self.attender(h, edges)[0].softmax(0)  # [N, 1]
            embedding = attention.T @ h
        else:
            extended = edges.with_global_node()
            h, weights = self.encoder(self.reformer(torch.cat([features, self.super_tokens])), extended)
            embedding = h[-1:].view(1, self.heads, -1).mean(1)
            attention = weights[extended.target == edges.count]  # the edges patch -> global node, patches in order
        return self.classifier(embedding), embedding, attention

    def slides(self, batch: BagBatch) -> list[tuple[Tensor, Edges]]:
        """Takes a batch apart: of each bag its features and the edges of its graph, self-loops included."""
        csr = self._needs_graph(batch).graph.csr
        source = csr.indices.long()
        target = torch.repeat_interleave(csr.indptr.diff().long())
        slides = []
        for first, last in pairwise(batch.offsets.tolist()):
            inside = (target >= first) & (target < last)
            edges = Edges(source[inside] - first, target[inside] - first, last - first)
            slides.append((batch.features[first:last], edges))
        return slides
