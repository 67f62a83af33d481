"""ILRA: iterative low-rank attention."""

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
from mil_zoo.kernels import linear, segment_attention_pool


class CrossAttention(nn.Module):
    """Lets queries Q attend to keys K by several heads, then applies a residual layer and, optionally, a gate.

    With ``A = MultiHead(fc_q Q, fc_k K, fc_v K)``, itself with projections of its own::

        O = ln0(fc_q Q + A);   O = ln1(O + relu(fc_o O));   O = O * silu(gate Q)

    One side is always a few tokens, so either direction costs and stores O(N).

    Args:
        query_dim: width of Q.
        key_dim: width of K.
        dim: width of the output.
        heads: attention heads.
        gated: whether there is the gate.
    """

    def __init__(self, query_dim: int, key_dim: int, dim: int, heads: int, gated: bool) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.fc_q, self.fc_k, self.fc_v = Linear(query_dim, dim), Linear(key_dim, dim), Linear(key_dim, dim)
        self.in_proj, self.out_proj = Linear(dim, 3 * dim), Linear(dim, dim)
        self.ln0, self.ln1, self.fc_o = nn.LayerNorm(dim), nn.LayerNorm(dim), Linear(dim, dim)
        self.gate = Linear(query_dim, dim) if gated else None
        for layer in (self.fc_q, self.fc_k, self.fc_v, self.out_proj, self.fc_o, self.gate):
            if layer is not None:
                nn.init.xavier_normal_(layer.weight)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def collect(self, tokens: Tensor, x: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Lets tokens attend to the instances of each bag.

        The same tokens ask in every bag, so keys are scored by ``x`` times a folded weight and values are projected
        after the pooling: no projected copy of the instances.

        Args:
            tokens: ``[T, query_dim]``, the same for every bag.
            x: ``[N, key_dim]``.
            offsets: int64 ``[B + 1]``.

        Returns:
            ``[B, T, dim]`` and attention ``[N, T * H]``.
        """
        query_weight, key_weight, value_weight = self.in_proj.weight.chunk(3)  # [dim, dim] each
        query_bias, key_bias, value_bias = self.in_proj.bias.chunk(3)
        queries = self.fc_q(tokens)  # [T, dim]
        q = self._split(linear(queries, query_weight, query_bias)) * self.head_dim**-0.5  # [T, H, F]
        folded = torch.einsum("thf,hfe->the", q, key_weight.view(self.heads, self.head_dim, -1))  # on fc_k x
        constant = folded @ self.fc_k.bias + (q * self._split(key_bias)).sum(-1)  # [T, H]
        scores = linear(x, (folded @ self.fc_k.weight).flatten(0, 1), constant.flatten())  # [N, T * H]
        pooled, attention = segment_attention_pool(scores, x, offsets)  # [B, T * H, key_dim]
        values = self.fc_v(pooled).view(len(offsets) - 1, len(tokens), self.heads, -1)
        attended = torch.einsum("bthe,hfe->bthf", values, value_weight.view(self.heads, self.head_dim, -1)).flatten(2)
        return self._finish(tokens, queries, attended + value_bias), attention

    def spread(self, x: Tensor, tokens: Tensor, bag: Tensor) -> Tensor:
        """Lets instances attend to the tokens of their own bag.

        Args:
            x: ``[N, query_dim]``.
            tokens: ``[B, T, key_dim]``.
            bag: int64 ``[N]``, the bag of every instance.

        Returns:
            ``[N, dim]``.
        """
        weights, biases = self.in_proj.weight.chunk(3), self.in_proj.bias.chunk(3)
        queries = self.fc_q(x)  # [N, dim]
        q = self._split(linear(queries, weights[0], biases[0]))  # [N, H, F]
        k = self._split(linear(self.fc_k(tokens), weights[1], biases[1])).index_select(0, bag)  # [N, T, H, F]
        v = self._split(linear(self.fc_v(tokens), weights[2], biases[2])).index_select(0, bag)
        scores = (q[:, None] * k).sum(-1, keepdim=True) * self.head_dim**-0.5  # [N, T, H, 1]
        attended = (scores.softmax(dim=1) * v).sum(1).flatten(1)
        return self._finish(x, queries, attended)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_dim))

    def _finish(self, inputs: Tensor, queries: Tensor, attended: Tensor) -> Tensor:
        out = self.ln0(queries + self.out_proj(attended))
        out = self.ln1(out + F.relu(self.fc_o(out)))
        return out if self.gate is None else out * F.silu(self.gate(inputs))


class LowRankBlock(nn.Module):
    """Passes instances to a few latent tokens and back, both gated (equation 16).

    Args:
        in_dim: width of the instances.
        dim: width of the latents and of the output.
        heads: attention heads.
        rank: number of latents.
    """

    def __init__(self, in_dim: int, dim: int, heads: int, rank: int) -> None:
        super().__init__()
        self.latent = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, rank, dim)))
        self.project_forward = CrossAttention(dim, in_dim, dim, heads, gated=True)
        self.project_backward = CrossAttention(in_dim, dim, dim, heads, gated=True)

    def forward(self, x: Tensor, offsets: Tensor, bag: Tensor) -> Tensor:
        """``[N, in_dim]`` to ``[N, dim]``."""
        summary, _ = self.project_forward.collect(self.latent[0], x, offsets)
        return self.project_backward.spread(x, summary, bag)


class NonLocalPooling(nn.Module):
    """Pools the instances of each bag by learned seeds that attend to them.

    Args:
        dim: width.
        heads: attention heads.
        seeds: number of seeds.
    """

    def __init__(self, dim: int, heads: int, seeds: int) -> None:
        super().__init__()
        self.S = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, seeds, dim)))
        self.mha = CrossAttention(dim, dim, dim, heads, gated=False)

    def forward(self, x: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """``[N, dim]`` to ``[B, seeds, dim]`` and attention ``[N, seeds * H]``."""
        return self.mha.collect(self.S[0], x, offsets)


@register_aggregator("ilra")
class ILRA(Aggregator):
    """Attends at rank ``topk``: two blocks pass all instances through a few latent tokens, and a pooling follows.

    With L the latents of a block, H = CrossAttention(L, X) is a summary of the bag, and every instance reads it,
    X' = CrossAttention(X, H). Learned seeds S then pool the last X, CrossAttention(S, X), into the slide embedding.
    ``head_attention`` are the softmax weights of the pooling over the instances (one column for each seed and head),
    ``attention`` their mean. The blocks' own attention is not part of it: it mixes the bag into every instance, which
    remains one row of X.

    Source: Xiang et al., Exploring Low-Rank Property in Multiple Instance Learning for Whole Slide Image
    Classification, ICLR 2023, equation 16; github jinxixiang/low_rank_wsi (with layer norm, as in its configuration).

    Deviations: none in the numbers for ``topk=1``. For more tokens the authors' classifier returns a row for each seed,
    which their loss refuses; here it reads the mean of the seeds.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        embed_dim: width of the blocks.
        num_heads: attention heads.
        topk: rank: number of latents of each block, and of seeds.

    Raises:
        InputError: ``embed_dim`` is not a multiple of ``num_heads``, or ``topk`` is not positive.
    """

    family = "transformer"
    replayable = True
    paper = Paper(
        "Exploring Low-Rank Property in Multiple Instance Learning for Whole Slide Image Classification",
        2023,
        "https://openreview.net/forum?id=01KmhBsEPFO",
        "https://github.com/jinxixiang/low_rank_wsi",
    )
    published_renames = (
        (r"\.multihead_attn\.in_proj_", ".in_proj."),
        (r"\.multihead_attn\.out_proj\.", ".out_proj."),
        (r"\.gate\.0\.", ".gate."),
    )

    def __init__(self, in_dim: int, num_classes: int, embed_dim: int = 256, num_heads: int = 8, topk: int = 1) -> None:
        super().__init__(in_dim, num_classes)
        if num_heads < 1 or embed_dim % num_heads:
            raise InputError(f"ilra: embed_dim ({embed_dim}) must be a multiple of num_heads ({num_heads})")
        if topk < 1:
            raise InputError(f"ilra: topk must be positive, not {topk}")
        self.gab_blocks = nn.ModuleList(LowRankBlock(dim, embed_dim, num_heads, topk) for dim in (in_dim, embed_dim))
        self.pooling = NonLocalPooling(embed_dim, num_heads, topk)
        self.classifier = Linear(embed_dim, num_classes)
        nn.init.xavier_normal_(self.classifier.weight)

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``; attention ``[ΣN]``, head_attention ``[ΣN, topk * num_heads]``."""
        x = batch.features
        for block in self.gab_blocks:
            x = block(x, batch.offsets, batch.bag_index)
        seeds, head_attention = self.pooling(x, batch.offsets)
        embedding = seeds.mean(1)
        attention = head_attention.mean(1)
        return AggregatorOutput(self.classifier(embedding), embedding, attention, head_attention=head_attention)
