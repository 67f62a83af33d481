"""The yardstick of SRMIL's step: ``LiteralSRMIL`` with DGL's message passing, as the authors' GATConv has it.

The paper's order of work is the package's (``mil_zoo/aggregators/srmil/literal.py``); its plain edge tensors are
replaced by DGL's fused operations, so that the comparison is with what the authors run. One slide a batch.
"""

from __future__ import annotations

import functools

import torch.nn.functional as F
from torch import Tensor

from mil_zoo._dgl import dgl, ops
from mil_zoo.aggregators.srmil.literal import Edges, GraphAttention, LiteralSRMIL


def create_yardstick(in_dim: int, num_classes: int, **options: object) -> LiteralSRMIL:
    """``LiteralSRMIL`` whose layers gather through DGL; a graph is made once and kept, as the authors' loader does."""
    model = LiteralSRMIL(in_dim, num_classes, **options)
    graphs: dict[tuple[int, int], dgl.DGLGraph] = {}
    for layer in model.modules():
        if isinstance(layer, GraphAttention):
            layer.gather = functools.partial(_gather, layer, graphs)
    return model


def _gather(
    layer: GraphAttention, graphs: dict, z: Tensor, left: Tensor, right: Tensor, edges: Edges
) -> tuple[Tensor, Tensor]:
    key = edges.count, len(edges.source)
    if key not in graphs:
        graphs[key] = dgl.graph((edges.source, edges.target), num_nodes=edges.count)
    graph = graphs[key]
    scores = ops.u_add_v(graph, left[:, :, None], right[:, :, None])  # [E, H, 1]
    attention = ops.edge_softmax(graph, F.leaky_relu(scores, 0.2))
    return ops.u_mul_e_sum(graph, z, layer.attn_drop(attention)), attention[:, :, 0]
