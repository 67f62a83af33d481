"""GTP: a graph convolution, pooling of patches into clusters, and a transformer over the clusters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil_zoo.aggregators.base import Aggregator, Paper
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.registry import register_aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.kernels import CSR, graph_sum, linear, segment_reduce

LAYERS = 3  # of the transformer


class GraphConvolution(nn.Module):
    """Sums each patch and its neighbours, maps the sum to unit length in e dimensions, and batch-normalises it."""

    def __init__(self, in_dim: int, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(in_dim, width)), nn.Parameter(torch.zeros(width))
        self.norm = nn.BatchNorm1d(width)
        nn.init.xavier_normal_(self.weight)

    def forward(self, x: Tensor, graph: CSR) -> Tensor:
        """``[N, in_dim]`` to ``[N, width]``; ``graph`` is without self-loops."""
        y = linear(x, self.weight.t())  # sums commute with products, and features are wider before
        return self.norm(F.normalize(y + graph_sum(y, graph) + self.bias))


class Block(nn.Module):
    """A pre-norm transformer block: ``t <- t + MHSA(LN(t))``, then ``t <- t + MLP(LN(t))``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.qkv, self.proj = Linear(width, 3 * width, bias=False), Linear(width, width)
        self.mlp = nn.Sequential(Linear(width, 2 * width), nn.GELU(), Linear(2 * width, width))

    def forward(self, t: Tensor) -> Tensor:
        """``[B, T, width]`` to the same."""
        out = F.scaled_dot_product_attention(*self._qkv(t)).transpose(1, 2).flatten(2)
        t = t + self.proj(out)
        return t + self.mlp(self.norm2(t))

    def first_row(self, t: Tensor) -> Tensor:
        """The attention ``[B, T]`` of the first token, the mean over heads."""
        q, k, _ = self._qkv(t)
        return (q[:, :, :1] @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)[:, :, 0].mean(1)

    def _qkv(self, t: Tensor) -> Tensor:
        return self.qkv(self.norm1(t)).view(*t.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # [3, B, H, T, d]


@register_aggregator("gtp")
class GTP(Aggregator):
    """Assigns the patches of a graph softly to clusters and reads a class token among the clusters.

    With x_i the features, A the patch graph without self-loops and d_i its degrees, for each bag::

        y_i    = W (x_i + sum over neighbours j of x_j) + b
        h      = BatchNorm(y / |y|)
        S      = softmax over the K clusters of (W' h)
        tokens = [cls; S^T h], three transformer blocks, LayerNorm; logits linear in the class token
        cut    = - sum_ij A_ij <S_i, S_j> / sum_i d_i |S_i|^2                 (neighbours in one cluster)
        ortho  = | S^T S / |S^T S| - I / sqrt(K) |                            (clusters equally large)
        loss   = cross-entropy + cut + ortho

    ``attention`` is not the authors', who have none over instances: the class token attends to cluster k with weight
    c_k in the last block (mean over heads, scaled so that these sum to 1), and instance i has its share of each
    cluster, ``a_i = sum_k c_k S_ik / sum_j S_jk``. It sums to 1 over a bag.

    Source: Zheng et al., IEEE TMI 2022; github vkola-lab/tmi2022.

    Deviations: none in the numbers. The coarsened adjacency, which theirs computes and never uses, is left out. Batch
    normalisation in training takes the patches of all bags of a step together, as theirs does: the bags of a step then
    depend on each other, and a step of one bag of one patch is refused. Where a bag has no edge its cut is 0.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        embed_dim: width of h and the tokens.
        num_clusters: K.
        heads: attention heads; they divide ``embed_dim``.

    Raises:
        InputError: an option outside its range; in training, a batch of a single patch.
    """

    graph = "window:1"
    family = "spatial"
    replayable = True
    paper = Paper(
        "A Graph-Transformer for Whole Slide Image Classification",
        2022,
        "https://arxiv.org/abs/2205.09671",
        "https://github.com/vkola-lab/tmi2022",
        licence="MIT",
    )
    published_renames = (
        (r"^conv1\.bn_layer\.", "convolution.norm."),
        (r"^conv1\.", "convolution."),
        (r"^pool1\.", "assign."),
        (r"^transformer\.head\.", "classifier."),
        (r"^transformer\.", ""),
        (r"\.attn\.", "."),
        (r"\.mlp\.fc1\.", ".mlp.0."),
        (r"\.mlp\.fc2\.", ".mlp.2."),
    )

    def __init__(
        self, in_dim: int, num_classes: int, embed_dim: int = 64, num_clusters: int = 100, heads: int = 8
    ) -> None:
        super().__init__(in_dim, num_classes)
        if num_clusters < 1 or heads < 1 or embed_dim < 1 or embed_dim % heads:
            raise InputError(
                f"gtp: num_clusters ({num_clusters}) must be positive, and embed_dim ({embed_dim}) a multiple of heads "
                f"({heads})"
            )
        self.convolution = GraphConvolution(in_dim, embed_dim)
        self.assign = Linear(embed_dim, num_clusters)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.blocks = nn.ModuleList(Block(embed_dim, heads) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(embed_dim)
        self.classifier = Linear(embed_dim, num_classes)

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``; attention ``[ΣN]``, without gradient."""
        h, share = self._assigned(batch)
        embedding, tokens = self._class_token(h, share, batch.lengths)
        with torch.no_grad():
            cluster = self.blocks[-1].first_row(tokens)[:, 1:]  # [B, K]
            cluster = cluster / cluster.sum(1, keepdim=True)
            size = segment_reduce(share, batch.offsets, "sum").clamp(min=torch.finfo(share.dtype).tiny)  # [B, K]
            attention = (share * (cluster / size).index_select(0, batch.bag_index)).sum(1)
        return AggregatorOutput(self.classifier(embedding), embedding, attention)

    def losses(self, batch: BagBatch) -> dict[str, Tensor]:
        """Computes the bag's loss "ce", the cut "mincut" and "ortho", each a mean over bags, and their sum, "loss"."""
        h, share = self._assigned(batch)
        embedding, _ = self._class_token(h, share, batch.lengths)
        ce = self.bag_loss(self.classifier(embedding), batch.targets, batch.weights)
        mincut, ortho = self._cut(share, batch).mean(), self._overlap(share, batch.lengths).mean()
        return {"loss": ce + mincut + ortho, "ce": ce, "mincut": mincut, "ortho": ortho}

    def _assigned(self, batch: BagBatch) -> tuple[Tensor, Tensor]:
        """Computes h ``[ΣN, e]`` and S ``[ΣN, K]``."""
        graph = self._needs_graph(batch).graph.csr.without_self_loops
        if self.training and batch.num_instances == 1:
            raise InputError(
                f"slide {''.join(batch.slide_ids)!r} has a single patch and is alone in its training step, which gtp "
                "cannot batch-normalise; drop the slide, or put more of them in a step (bags_per_step)"
            )
        h = self.convolution(batch.features, graph)
        return h, self.assign(h).softmax(1)

    def _class_token(self, h: Tensor, share: Tensor, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Computes the class tokens ``[B, e]``, and all tokens ``[B, 1 + K, e]`` before the last block."""
        bags = zip(share.split(lengths), h.split(lengths), strict=True)
        pooled = torch.stack([s.T @ x for s, x in bags])  # [B, K, e]
        tokens = torch.cat([self.cls_token.expand(len(pooled), -1, -1), pooled], dim=1)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        return self.norm(self.blocks[-1](tokens)[:, 0]), tokens

    def _cut(self, share: Tensor, batch: BagBatch) -> Tensor:
        """Computes the cut of each bag ``[B]``."""
        graph = batch.graph.csr.without_self_loops
        within = (share * graph_sum(share, graph)).sum(1)
        all_edges = graph.indptr.diff() * share.square().sum(1)
        within, all_edges = segment_reduce(torch.stack([within, all_edges], dim=1), batch.offsets, "sum").unbind(1)
        return -within / torch.where(all_edges > 0, all_edges, 1)

    def _overlap(self, share: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """Computes how far the clusters of each bag are from equal size and no overlap ``[B]``."""
        gram = torch.stack([s.T @ s for s in share.split(lengths)])  # [B, K, K]
        k = gram.shape[1]
        even = torch.eye(k, device=gram.device, dtype=gram.dtype) * k**-0.5
        return (gram / gram.norm(dim=(1, 2), keepdim=True) - even).norm(dim=(1, 2))
