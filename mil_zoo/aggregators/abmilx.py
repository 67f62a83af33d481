"""ABMILX: multi-head attention pooling whose scores are spread over similar instances."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mil_zoo.aggregators.base import Aggregator, Paper
from mil_zoo.aggregators.blocks.dropout import Dropout
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.registry import register_aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.kernels import dense_attention, segment_attention_pool


class Refinement(nn.Module):
    """Adds to the scores of each head what similar instances score: ``s + softmax(q k^T / sqrt(d)) (w s)``.

    Time is quadratic in the instances of a bag, memory linear.
    """

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(head_dim)
        self.qk = Linear(head_dim, 2 * head_dim, bias=False)
        self.v = Linear(1, 1, bias=False)

    def forward(self, x: Tensor, scores: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """Instances by head ``[ΣN, H, d]`` and their scores ``[ΣN, H]`` to scores ``[ΣN, H]``."""
        q, k = self.qk(self.norm(x)).chunk(2, dim=2)
        parts = q, k, self.v(scores[:, :, None])
        bags = zip(*(part.transpose(0, 1).split(lengths, dim=1) for part in parts), strict=True)
        spread = [dense_attention(*bag)[:, :, 0].T for bag in bags]
        return scores + torch.cat(spread)


@register_aggregator("abmilx")
class ABMILX(Aggregator):
    """Pools by the attention of several heads, whose scores are refined by the similarity of instances.

    Instances x, after a linear layer, are cut into heads x_h of width d, which share scorer and refinement::

        s_h  = w_2^T GELU(W_1 x_h)
        s'_h = s_h + softmax(q k^T / sqrt(d)) (w s_h),   (q, k) = W_qk LN(x_h)     (one learned number w)
        e    = W_p concat_h sum_n softmax_n(s'_h) x_hn
        e   <- e + FFN(LN(e))   with ffn (norm="ln": e + FFN(e));   e <- LN(e)   with norm="ln";   logits linear in e

    ``attention`` is the mean over heads, ``head_attention`` that of each.

    Source: Tang et al., NeurIPS 2025; github DearCaat/E2E-WSI-ABMILX (``DAttentionX``, the aggregator alone). Its
    training script leaves the refinement out unless asked for it; the class has it, and so has this one.

    Deviations: none in the numbers. A gated scorer, queries and keys of the whole width, and batch normalisation, which
    their code also has, are left out.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        embed_dim: width of x and e.
        num_heads: H; they divide ``embed_dim``.
        refine: refine the scores; without it this is multi-head ABMIL.
        ffn: run a feed-forward layer over e.
        norm: "ln" normalises the features and e, None neither.
        bias: biases of the first layer, ``W_p``, the classifier, and of the two layer norms.
        attention_bias: biases of the scorer.
        attention_ratio: hidden width of the scorer: d / attention_ratio below 10, D / H above; None for d.
        act: of the first layer, "gelu" or "relu".
        dropout: dropout rate of the first layer.

    Raises:
        InputError: an option outside its range.
    """

    family = "attention"
    replayable = True
    paper = Paper(
        "Revisiting End-to-End Learning with Slide-level Supervision in Computational Pathology",
        2025,
        "https://arxiv.org/abs/2506.02408",
        "https://github.com/DearCaat/E2E-WSI-ABMILX",
    )
    published_renames = (
        (r"^attn_plus_fn\.norm_x\.", "refinement.norm."),
        (r"^attn_plus_fn\.", "refinement."),
        (r"^attention\.fc1\.", "scorer.0."),
        (r"^attention\.fc2\.", "scorer.2."),
        (r"^mlp\.fc1\.", "ffn.1."),
        (r"^mlp\.fc2\.", "ffn.3."),
        (r"^norm_ffn\.", "ffn.0."),
        (r"^norm1\.", "norm."),
    )

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        embed_dim: int = 512,
        num_heads: int = 8,
        refine: bool = True,
        ffn: bool = False,
        norm: Literal["ln"] | None = None,
        bias: bool = True,
        attention_bias: bool = True,
        attention_ratio: float | None = None,
        act: Literal["gelu", "relu"] = "gelu",
        dropout: float = 0.25,
    ) -> None:
        super().__init__(in_dim, num_classes)
        if num_heads < 1 or embed_dim < 1 or embed_dim % num_heads:
            raise InputError(f"abmilx: embed_dim ({embed_dim}) must be a multiple of num_heads ({num_heads})")
        if norm not in (None, "ln") or act not in ("gelu", "relu"):
            raise InputError(f"abmilx: norm must be 'ln' or None, not {norm!r}, and act 'gelu' or 'relu', not {act!r}")
        self.heads, head_dim = num_heads, embed_dim // num_heads
        hidden = head_dim
        if attention_ratio is not None:
            hidden = int(head_dim / attention_ratio if attention_ratio < 10 else attention_ratio / num_heads)
            if hidden < 1:
                raise InputError(f"abmilx: attention_ratio ({attention_ratio}) leaves the scorer no width")
        first = [nn.LayerNorm(in_dim, bias=bias)] if norm else []
        activation = nn.GELU() if act == "gelu" else nn.ReLU()
        self.feature = nn.Sequential(*first, Linear(in_dim, embed_dim, bias), activation, Dropout(dropout))
        self.scorer = nn.Sequential(
            Linear(head_dim, hidden, attention_bias), nn.GELU(), Linear(hidden, 1, attention_bias)
        )
        self.refinement = Refinement(head_dim) if refine else None
        self.proj = Linear(embed_dim, embed_dim, bias)
        self.ffn = None
        if ffn:
            first = nn.Identity() if norm else nn.LayerNorm(embed_dim)
            layers = Linear(embed_dim, 4 * embed_dim), nn.GELU(), Linear(4 * embed_dim, embed_dim)
            self.ffn = nn.Sequential(first, *layers)
        self.norm = nn.LayerNorm(embed_dim, bias=bias) if norm else nn.Identity()
        self.classifier = Linear(embed_dim, num_classes, bias)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``; attention ``[ΣN]``, head_attention ``[ΣN, H]``."""
        x = self.feature(batch.features).unflatten(1, (self.heads, -1))  # [ΣN, H, d]
        scores = self.scorer(x)[:, :, 0]  # [ΣN, H]
        if self.refinement is not None:
            scores = self.refinement(x, scores, batch.lengths)
        pooled, attention = segment_attention_pool(scores, x, batch.offsets)  # [B, H, d]
        embedding = self.proj(pooled.flatten(1))
        if self.ffn is not None:
            embedding = embedding + self.ffn(embedding)
        embedding = self.norm(embedding)
        logits = self.classifier(embedding)
        return AggregatorOutput(logits, embedding, attention.mean(1), head_attention=attention)
