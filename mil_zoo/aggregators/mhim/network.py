"""The network that MHIM-MIL's student, teacher and plain first stage all are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil_zoo.aggregators.base import Aggregator
from mil_zoo.aggregators.blocks.dropout import Dropout
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.transmil import PPEG, TransLayer, _normalised
from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.kernels import dense_attention, linear, seeded_dropout, segment_attention_pool
from mil_zoo.kernels.draws import from_host

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "tanh": torch.tanh}
HEADS, SMALLEST = 8, 7  # of transmil, and the side of the square that its convolutions need


class AttentionEncoder(nn.Module):
    """Attention pooling without biases: a = softmax(w^T act(V h))."""

    def __init__(self, dim: int, attention_dim: int, act: str) -> None:
        super().__init__()
        self.act = act
        self.V, self.w = Linear(dim, attention_dim, bias=False), Linear(attention_dim, 1, bias=False)

    def forward(self, bags: Sequence[Tensor], layer: int | None) -> tuple[Tensor, list[Tensor]]:
        """Embeddings ``[B, W]``, and of each bag its attention ``[N]``."""
        h, lengths = torch.cat(list(bags)), [len(bag) for bag in bags]
        offsets = from_host(lambda: torch.tensor([0, *accumulate(lengths)]), h.device)
        scores = self.w(ACTIVATIONS[self.act](self.V(h)))
        pooled, attention = segment_attention_pool(scores, h, offsets)
        return pooled[:, 0], list(attention[:, 0].split(lengths))

    def contributions(self, bag: Tensor, attention: Tensor) -> Tensor:
        """What each instance adds to the embedding, ``[N, W]``."""
        return attention[:, None] * bag


class TransformerEncoder(nn.Module):
    """TransMIL without squaring the bag: the class token is put before as many tokens as there are instances."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.layer1 = TransLayer(dim, HEADS, dim // 2, dropout)
        self.ppeg = PPEG(dim)
        self.layer2 = TransLayer(dim, HEADS, dim // 2, dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, bags: Sequence[Tensor], layer: int | None) -> tuple[Tensor, list[Tensor]]:
        """Embeddings ``[B, W]``, and of each bag the class token's row of ``layer``, ``[8, N]``; none for None."""
        tokens, rows = [], []
        for bag in bags:
            x = torch.cat([self.cls_token[0], bag])
            x, first = self.layer1(x, len(x), with_attention=layer == 0)
            x = torch.cat([x[:1], self._encode_places(x[1:])])
            token, second = self.layer2(x, 1, with_attention=layer == -1)
            tokens.append(token)
            rows += [] if layer is None else [(first if layer == 0 else second)[:, 1:]]
        return self.norm(torch.cat(tokens)), rows

    def contributions(self, bag: Tensor, attention: Tensor) -> Tensor:
        """What each instance adds to the first layer's output at the class token, ``[N, W]``."""
        layer = self.layer1
        # The class token takes part in no norm of another token.
        v = linear(layer.norm(bag), layer.attn.to_qkv.weight[2 * bag.shape[1] :]).view(len(bag), HEADS, -1)
        return layer.attn.to_out((attention.T[..., None] * v).flatten(1))

    def _encode_places(self, x: Tensor) -> Tensor:
        side = math.isqrt(len(x) - 1) + 1
        square = torch.cat([x, x[: side * side - len(x)]])
        if side < SMALLEST:
            square, side = F.pad(square, (0, 0, 0, SMALLEST**2 - len(square))), SMALLEST
        return self.ppeg(square, side)[: len(x)]


class Merge(nn.Module):
    """Summarises instances by k tokens, by cross-attention of 8 heads from queries that no gradient moves."""

    def __init__(self, dim: int, tokens: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("queries", torch.randn(1, tokens, dim))
        self.norm = nn.LayerNorm(dim)
        self.to_q, self.to_kv = Linear(dim, dim, bias=False), Linear(dim, 2 * dim, bias=False)
        self.to_out, self.drop = Linear(dim, dim), Dropout(dropout)

    def forward(self, rest: Tensor) -> Tensor:
        """``[n, W]`` to ``[k, W]``."""
        # A copy: the queries move before the next step's norm, and this step's gradient needs them as they were.
        q = self._heads(self.to_q(self.norm(self.queries[0].clone())))
        k, v = map(self._heads, self.to_kv(self.norm(rest)).chunk(2, dim=1))
        out = dense_attention(q, k, v).transpose(0, 1).flatten(1)
        return self.drop(self.to_out(out))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(len(x), HEADS, -1).transpose(0, 1)  # [8, n, W / 8]


class Network(Aggregator):
    """An embedding layer, an encoder of bags (attention pooling or a Transformer), and a linear classifier.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        baseline: "abmil" or "transmil".
        embed_dim: width W.
        attention_dim: hidden width of abmil's attention.
        act: activation of the embedding layer.
        attention_act: activation in abmil's attention.
        dropout: dropout rate after the embedding layer.
        attn_out_drop: dropout rate of the outputs of transmil's attention layers and of the merging.
        merge_k: tokens of the merging; 0 for none.

    Raises:
        InputError: a width that its 8 heads do not divide.
    """

    permutation_invariant = False

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        baseline: str,
        embed_dim: int,
        attention_dim: int,
        act: str,
        attention_act: str,
        dropout: float,
        attn_out_drop: float,
        merge_k: int = 0,
    ) -> None:
        super().__init__(in_dim, num_classes)
        if min(embed_dim, attention_dim) < 1 or ((baseline == "transmil" or merge_k) and embed_dim % HEADS):
            raise InputError(
                f"mhim: attention_dim ({attention_dim}) must be at least 1, and embed_dim ({embed_dim}) a multiple of "
                f"{HEADS} for transmil and version 2"
            )
        self.act, self.dropout = act, dropout
        self.embed = Linear(in_dim, embed_dim)
        transformer = baseline == "transmil"
        self.encoder = (
            TransformerEncoder(embed_dim, attn_out_drop)
            if transformer
            else AttentionEncoder(embed_dim, attention_dim, attention_act)
        )
        self.predictor = Linear(embed_dim, num_classes)
        self.merge = Merge(embed_dim, merge_k, attn_out_drop) if merge_k else None
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def make_constant(self) -> None:
        """Turns every parameter into a buffer, which no optimiser sees; names and values stay."""
        for module in self.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, parameter.detach().clone())

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``; attention ``[ΣN]``, of transmil also head_attention ``[ΣN, 8]``."""
        embedding, attention = self.encode(list(self.embed_rows(batch.features).split(batch.lengths)), 0)
        logits = self.predictor(embedding)
        if attention[0].ndim == 1:
            return AggregatorOutput(logits, embedding, torch.cat(attention))
        mean = torch.cat([_normalised(row.mean(0)) for row in attention])
        heads = torch.cat([_normalised(row).T for row in attention])
        return AggregatorOutput(logits, embedding, mean, head_attention=heads)

    def embed_rows(self, features: Tensor) -> Tensor:
        """``[n, D]`` to ``[n, W]``."""
        h = ACTIVATIONS[self.act](self.embed(features.to(self.embed.weight.dtype)))
        return seeded_dropout(h, self.dropout) if self.training and self.dropout else h

    def encode(self, bags: Sequence[Tensor], layer: int | None = None) -> tuple[Tensor, list[Tensor]]:
        """Embeds bags ``[n, W]``: ``[B, W]``, and their attention as the encoder says (``layer`` of transmil)."""
        return self.encoder(bags, layer)

    def class_scores(self, bag: Tensor, attention: Tensor) -> Tensor:
        """The highest class probability of what each instance adds, ``[N]``, without the classifier's bias."""
        logits = linear(self.encoder.contributions(bag, attention), self.predictor.weight)
        return logits.softmax(1).amax(1)
