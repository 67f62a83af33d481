"""RRT: re-embedding of instances by a regional transformer."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil_zoo.aggregators.base import Aggregator, Paper
from mil_zoo.aggregators.blocks.dropout import Dropout
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.registry import register_aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.kernels import segment_attention_pool

CROSS_REGIONS = 8
"""Regions a side of the cross-region layer: the authors' code fixes them whatever ``region_num`` is."""


class Regions:
    """Lays the instances of a bag out on a grid, in their order, and cuts it into squares.

    The grid is the smallest square with room for all instances whose side is a multiple of ``num``. Its empty cells are
    zeros, and as in the authors' code they are attended to like instances.

    Args:
        count: instances N.
        num: regions a side.
    """

    def __init__(self, count: int, num: int) -> None:
        self.count, self.num = count, num
        self.size = -(-(math.isqrt(count - 1) + 1) // num)  # cells a side of a region

    def cut(self, x: Tensor) -> Tensor:
        """``[N, E]`` to ``[regions, cells, E]``."""
        x = F.pad(x, (0, 0, 0, (self.num * self.size) ** 2 - self.count))
        x = x.view(self.num, self.size, self.num, self.size, -1).transpose(1, 2)
        return x.reshape(self.num**2, self.size**2, -1)

    def join(self, x: Tensor) -> Tensor:
        """``[regions, cells, E]`` to ``[N, E]``."""
        x = x.view(self.num, self.num, self.size, self.size, -1).transpose(1, 2)
        return x.reshape((self.num * self.size) ** 2, -1)[: self.count]


class SelfAttention(nn.Module):
    """Attends within regions by several heads, with EPEG where ``epeg_k`` is given.

    EPEG adds to the attention logits their own convolution along the queries, one kernel a head:
    ``A + conv(A), A = Q K^T / sqrt(F)``. The convolution is linear, so it is done on the queries,
    ``(Q + conv(Q)) K^T``, and no logits are stored.

    Args:
        dim: width.
        heads: attention heads.
        proj_drop: dropout rate of the output.
        epeg_k: length of the kernel, or None.
    """

    def __init__(self, dim: int, heads: int, proj_drop: float, epeg_k: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.proj_drop = Dropout(proj_drop)
        self.pe = None
        if epeg_k is not None:
            self.pe = nn.Conv2d(heads, heads, (epeg_k, 1), padding=(epeg_k // 2, 0), groups=heads, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[R, P, dim]`` to the same: P cells attend to each other in each of R regions."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # [R, P, 3, H, F]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [R, H, P, F]
        if self.pe is not None:
            q = q + self.pe(q)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))


class RegionLayer(nn.Module):
    """``x + attention(norm(x))`` within each region (R-MSA).

    Args:
        dim: width.
        heads: attention heads.
        region_num: regions a side.
        epeg_k: length of the EPEG kernel.
        proj_drop: dropout rate of the attention's output.
    """

    def __init__(self, dim: int, heads: int, region_num: int, epeg_k: int, proj_drop: float) -> None:
        super().__init__()
        self.region_num = region_num
        self.norm = nn.LayerNorm(dim)
        self.attn = SelfAttention(dim, heads, proj_drop, epeg_k)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, dim]`` of one bag to the same."""
        regions = Regions(len(x), self.region_num)
        return x + regions.join(self.attn(regions.cut(self.norm(x))))


class CrossRegionLayer(nn.Module):
    """``x + cross(norm(x))``: prototypes of each region attend to those of the other regions (CR-MSA).

    With s = x phi the scores of a region's cells for k prototypes, a prototype is the mean of the cells weighted by
    softmax of s over the cells. After attention among the regions, for each prototype apart, a cell receives the
    prototypes weighted by softmax of s over the prototypes, times s scaled to [0, 1] within the region.

    Args:
        dim: width.
        heads: attention heads.
        prototypes: k.
        proj_drop: dropout rate of the attention's output.
    """

    def __init__(self, dim: int, heads: int, prototypes: int, proj_drop: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attn = SelfAttention(dim, heads, proj_drop)
        self.phi = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(dim, prototypes), a=math.sqrt(5)))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, dim]`` of one bag to the same."""
        regions = Regions(len(x), CROSS_REGIONS)
        cells = regions.cut(self.norm(x))  # [R, P, dim]
        scores = (cells @ self.phi).transpose(1, 2)  # [R, k, P]
        # Scaled in float32 also under autocast: 1e-8 is 0 in half precision, and a region of one cell has low = high.
        full = scores.float() if scores.dtype.itemsize < 4 else scores
        low, high = full.min(dim=2, keepdim=True).values, full.max(dim=2, keepdim=True).values
        prototypes = (scores.softmax(dim=2) @ cells).transpose(0, 1)  # [k, R, dim]
        prototypes = self.attn(prototypes).transpose(0, 1)
        weights = (full - low) / (high - low + 1e-8) * scores.softmax(dim=1)
        weights = weights.to(scores.dtype)
        return x + regions.join(weights.transpose(1, 2) @ prototypes)


@register_aggregator("rrt")
class RRT(Aggregator):
    """Re-embeds instances by a regional transformer, then pools by attention ``softmax(w^T act(V x))``.

    A projection with ReLU, self-attention within ``region_num x region_num`` regions (:class:`RegionLayer`), attention
    between regions (:class:`CrossRegionLayer`), layer norm. Regions are squares of a grid that holds the instances in
    the order of the bag (not by their coordinates), so the order matters; patches stored along the slide's rows or
    columns keep neighbours together. ``attention`` is that of the pooling, over the re-embedded instances.

    Source: Tang et al., Feature Re-Embedding: Towards Foundation Model-Level Performance in Computational Pathology,
    CVPR 2024; github DearCaat/RRT-MIL.

    Deviations: none in the numbers. The bias of the EPEG kernel is not created: a constant on all logits of a softmax
    has no effect. Kept as it is in the authors' code: empty cells of the grid are zeros that take part in the
    attention, and the cross-region layer has 8 x 8 regions whatever ``region_num`` says (in bags of up to 64 instances
    its regions hold one cell and it adds nothing).

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        embed_dim: width of the instances.
        n_heads: heads of the regional attention.
        region_num: regions a side.
        epeg_k: length of the EPEG kernel; odd.
        crmsa_k: prototypes of a region.
        crmsa_heads: heads of the attention between regions.
        all_shortcut: add the projected instances to the re-embedded ones (the authors' commands do for some datasets).
        pool_act: "tanh" (all training commands of the authors) or "relu" (their class's own default) in the pooling.
        dropout: rate after the projection.
        proj_drop: rate of the output of both attentions.

    Raises:
        InputError: an option outside its range.
    """

    family = "transformer"
    replayable = True
    not_in_onnx = "its regions follow from the size of the bag, which torch's exporter would fix"
    paper = Paper(
        "Feature Re-Embedding: Towards Foundation Model-Level Performance in Computational Pathology",
        2024,
        "https://arxiv.org/abs/2402.17228",
        "https://github.com/DearCaat/RRT-MIL",
    )
    permutation_invariant = False
    published_renames = (
        (r"^patch_to_emb\.0\.", "embed.0."),
        (r"^online_encoder\.layers\.0\.", "region."),
        (r"^online_encoder\.cr_msa\.", "cross."),
        (r"^online_encoder\.norm\.", "norm."),
        (r"\.attn\.attn\.", ".attn."),
        (r"\.attn\.phi$", ".phi"),
        (r"^pool_fn\.attention\.attention\.", "pool."),
        (r"^predictor\.", "classifier."),
    )
    published_unused = (r".*\.pe\.bias",)

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        embed_dim: int = 512,
        n_heads: int = 8,
        region_num: int = 8,
        epeg_k: int = 15,
        crmsa_k: int = 3,
        crmsa_heads: int = 8,
        all_shortcut: bool = False,
        pool_act: Literal["relu", "tanh"] = "tanh",
        dropout: float = 0.25,
        proj_drop: float = 0.1,
    ) -> None:
        super().__init__(in_dim, num_classes)
        _check_options(embed_dim, n_heads, crmsa_heads, region_num, epeg_k, crmsa_k, pool_act)
        self.all_shortcut = all_shortcut
        self.embed = nn.Sequential(Linear(in_dim, embed_dim), nn.ReLU(inplace=True), Dropout(dropout))
        self.region = RegionLayer(embed_dim, n_heads, region_num, epeg_k, proj_drop)
        self.cross = CrossRegionLayer(embed_dim, crmsa_heads, crmsa_k, proj_drop)
        self.norm = nn.LayerNorm(embed_dim)
        activation = nn.ReLU() if pool_act == "relu" else nn.Tanh()
        self.pool = nn.Sequential(Linear(embed_dim, 128, bias=False), activation, Linear(128, 1, bias=False))
        self.classifier = Linear(embed_dim, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``; attention ``[ΣN]``."""
        h = self.embed(batch.features)
        # Bag by bag: each has a grid, and so regions, of its own size.
        re_embedded = torch.cat([self.cross(self.region(bag)) for bag in h.split(batch.lengths)])
        h = self.norm(re_embedded + h if self.all_shortcut else re_embedded)
        scores = self.pool(h)  # [ΣN, 1]
        pooled, attention = segment_attention_pool(scores, h, batch.offsets)
        embedding = pooled[:, 0]
        return AggregatorOutput(self.classifier(embedding), embedding, attention[:, 0], scores[:, 0])


def _check_options(
    embed_dim: int, n_heads: int, crmsa_heads: int, region_num: int, epeg_k: int, crmsa_k: int, pool_act: str
) -> None:
    if n_heads < 1 or crmsa_heads < 1 or embed_dim % n_heads or embed_dim % crmsa_heads:
        raise InputError(
            f"rrt: embed_dim ({embed_dim}) must be a multiple of n_heads ({n_heads}) and of crmsa_heads ({crmsa_heads})"
        )
    if epeg_k < 1 or epeg_k % 2 == 0:
        raise InputError(f"rrt: epeg_k must be odd and positive, not {epeg_k}")
    if region_num < 1 or crmsa_k < 1:
        raise InputError(f"rrt: region_num and crmsa_k must be positive, not {region_num} and {crmsa_k}")
    if pool_act not in ("relu", "tanh"):
        raise InputError(f"rrt: pool_act must be 'relu' or 'tanh', not {pool_act!r}")
