"""SRMIL as its paper writes it, the yardstick of the step: three passes over DGL graphs, one after another.

The reformer and the encoder run on every pass's own masked copy of the features, the global node is a node of the
graph, attention is DGL's message passing with a tensor of all edges, and dropout is torch's. Parameters, losses and
gradients are those of ``mil_zoo``'s SRMIL.

Source: Wu et al., WACV 2026, arXiv 2602.19487; github wwyi1828/SRMIL (GATConv of DGL, one slide a step).
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from mil_zoo._dgl import DGLGraph, dgl, ops
from mil_zoo.aggregators.base import AggregatorOutput
from mil_zoo.aggregators.blocks.gat import GATLayer
from mil_zoo.aggregators.srmil.fast import SRMIL
from mil_zoo.data.bag import BagBatch


class LiteralSRMIL(SRMIL):
    """The parameters of SRMIL with the authors' order of work. One bag a batch, readout by the global node."""

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """Complete classification in eval or training mode."""
        return self._classify_graph(batch.features, with_global_node(batch.graph.dgl))

    def losses(self, batch: BagBatch, mask: Tensor | None = None) -> dict[str, Tensor]:
        """The three passes of a training step; the same names as ``SRMIL.losses``."""
        features, graph = batch.features, batch.graph.dgl
        extended = with_global_node(graph)
        rows = torch.randperm(len(features))[: int(self.mask_rate * len(features))] if mask is None else mask
        masked = features.clone()
        masked[rows] = self.enc_mask_token

        code = self.encoder_to_decoder(self._encode(self.reformer(masked), graph))
        code = code.clone()
        code[rows] = self.dec_mask_token
        for layer in self.decoder.gat_layers:
            code = attend(layer, code, graph)
        cosine = (F.normalize(code[rows], dim=1) * F.normalize(features[rows], dim=1)).sum(1)
        reconstruction = (1 - cosine).pow(self.alpha).mean()

        ce_masked = self.bag_loss(self._classify_graph(masked, extended).logits, batch.labels)
        ce_full = self.bag_loss(self._classify_graph(features, extended).logits, batch.labels)
        classification = (2 - self.w_ce) * ce_masked + self.w_ce * ce_full
        loss = (2 - self.w_gen) * classification + self.w_gen * reconstruction
        return {"loss": loss, "reconstruction": reconstruction, "ce_masked": ce_masked, "ce_full": ce_full}

    def _classify_graph(self, features: Tensor, graph: DGLGraph) -> AggregatorOutput:
        h = self._encode(self.reformer(torch.cat([features, self.super_tokens])), graph)
        embedding = h[-1:].view(1, self.encoder.gat_layers[-1].heads, -1).mean(1)
        return AggregatorOutput(self.classifier(embedding), embedding)

    def _encode(self, h: Tensor, graph: DGLGraph) -> Tensor:
        for layer in self.encoder.gat_layers:
            h = attend(layer, h, graph)
        return h


@functools.lru_cache(maxsize=1)
def with_global_node(graph: DGLGraph) -> DGLGraph:
    """``graph`` and a last node with edges to and from every other; made once for the graph of a slide."""
    patches, node = torch.arange(graph.num_nodes()), torch.full((graph.num_nodes(),), graph.num_nodes())
    src, dst = (side.long() for side in graph.edges())
    return dgl.graph((torch.cat([src, node, patches]), torch.cat([dst, patches, node])))


def attend(layer: GATLayer, h: Tensor, graph: DGLGraph) -> Tensor:
    """A graph attention layer, ``[N, in_dim]`` to ``[N, H * F]``."""
    h = layer.feat_drop(h)
    z = layer.fc(h).view(len(h), layer.heads, layer.head_dim)  # [N, H, F]
    left, right = (z * layer.attn_l).sum(-1, keepdim=True), (z * layer.attn_r).sum(-1, keepdim=True)  # [N, H, 1]
    scores = F.leaky_relu(ops.u_add_v(graph, left, right), 0.2)  # [E, H, 1]
    attention = F.dropout(ops.edge_softmax(graph, scores), layer.attn_drop, layer.training)
    out = ops.u_mul_e_sum(graph, z, attention).flatten(1) + layer.bias
    if layer.res_fc is not None:
        out = out + layer.res_fc(h)
    return layer.activation(layer.norm(out))
