"""TransMIL: transformer-based correlated multiple-instance learning."""

from __future__ import annotations

import math
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil_zoo.aggregators.base import Aggregator, Paper
from mil_zoo.aggregators.blocks.dropout import Dropout
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.blocks.nystrom import Zeros, pseudo_inverse, softmax
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.registry import register_aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.kernels import bmm, dense_attention, depthwise_conv, linear

TAPS = 33  # of the residual convolution
BLOCK = 65_536  # tokens whose output is computed at a time where nothing is kept for gradients


class NystromAttention(nn.Module):
    """Attends among T tokens through m landmarks, with memory and time linear in T.

    With ``~`` the means of m consecutive runs of tokens, and + the pseudo-inverse::

        softmax(Q K^T) V  ~=  softmax(Q K~^T) softmax(Q~ K~^T)^+ (softmax(Q~ K^T) V)

    evaluated from the right, so that nothing of size T x m is ever stored, plus a depthwise convolution of V over the
    tokens. Zero tokens are put in front until m divides the length: to a landmark they are keys of logit 0 and value 0.

    Source: Xiong et al., AAAI 2021; github lucidrains/nystrom-attention, the package that TransMIL uses.

    Args:
        dim: width E of the tokens.
        heads: H.
        landmarks: m.
        dropout: dropout rate of the output.
    """

    def __init__(self, dim: int, heads: int, landmarks: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.landmarks = heads, landmarks
        self.to_qkv = Linear(dim, 3 * dim, bias=False)
        self.to_out = Linear(dim, dim)
        self.drop = Dropout(dropout)
        self.res_conv = nn.Conv2d(heads, heads, (TAPS, 1), groups=heads, bias=False)

    def forward(self, x: Tensor, rows: int, with_attention: bool = False) -> tuple[Tensor, Tensor | None]:
        """Computes the attention's output at the first ``rows`` tokens.

        Args:
            x: ``[T, E]``.
            rows: how many of the first tokens need an output.
            with_attention: also return the first row of the approximate attention matrix (without gradient). It
                need be neither positive nor of sum 1.

        Returns:
            ``[rows, E]``, and ``[H, T]`` or None.
        """
        dim, zeros = x.shape[1], Zeros.before(len(x), self.landmarks)
        pad, means = zeros.tokens, zeros.means(x, self.landmarks)
        x = zeros.prepend(x)
        to_landmarks, to_tokens = zeros.landmark_bias(means), zeros.token_bias(x)
        to_q, to_k, _ = self.to_qkv.weight.chunk(3)
        # Projections commute with means, and queries are needed at the wanted rows only.
        q_mean, k_mean = self._split(linear(means, to_q)), self._split(linear(means, to_k))  # [H, m, d]
        k, v = linear(x, self.to_qkv.weight[dim:]).chunk(2, dim=1)  # [pad + T, E]
        keys = self._split(k)

        inverse = pseudo_inverse(softmax(q_mean, k_mean, to_landmarks), zeros.landmarks)  # [H, m, m]
        summary = bmm(inverse, dense_attention(q_mean, keys, self._split(v), to_tokens))  # [H, m, d]

        def read(first: int, last: int) -> Tensor:
            q = self._split(linear(x[pad + first : pad + last], to_q))  # [H, last - first, d]
            out = dense_attention(q, k_mean, summary, to_landmarks).transpose(0, 1).flatten(1)
            return self.drop(self.to_out(out + self._convolve(v[pad:], first, last)))

        if torch.is_grad_enabled() or rows <= BLOCK:
            out = read(0, rows)
        else:  # so that a million tokens need three arrays of this size less
            out = x.new_empty(rows, dim)
            for first in range(0, rows, BLOCK):
                out[first : first + BLOCK] = read(first, min(first + BLOCK, rows))
        if not with_attention:
            return out, None
        with torch.no_grad():
            q = self._split(linear(x[pad : pad + 1], to_q))
            weights = softmax(q, k_mean, to_landmarks) @ inverse  # [H, 1, m]
            row = x.new_zeros(self.heads, len(x))
            for head, first in product(range(self.heads), range(0, len(means), 32)):  # at most 32 x T at a time
                some = slice(first, first + 32)
                row[head] += (weights[head, :, some] @ softmax(q_mean[head, some], keys[head], to_tokens))[0]
            return out, row[:, pad:]

    def _split(self, x: Tensor) -> Tensor:
        return x.view(len(x), self.heads, -1).transpose(0, 1)  # [H, T, d]

    def _convolve(self, v: Tensor, first: int, last: int) -> Tensor:
        """Computes rows ``first`` to ``last`` of the convolution, from these and the ``TAPS // 2`` on either side."""
        start = max(first - TAPS // 2, 0)
        taps = self.res_conv.weight.repeat_interleave(v.shape[1] // self.heads, dim=0)  # [E, 1, TAPS, 1]
        near = v[start : last + TAPS // 2]
        return depthwise_conv(near, taps, shape=(len(near), 1))[first - start : last - start]


class PPEG(nn.Module):
    """Adds to tokens on a square their depthwise 7 x 7, 5 x 5 and 3 x 3 convolutions (pyramid position encoding).

    The three kernels and the identity are one 7 x 7 kernel, so one convolution is run.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(dim, dim, size, groups=dim) for size in (7, 5, 3))

    def forward(self, x: Tensor, side: int) -> Tensor:
        """``[side * side, E]``, row by row, to the same shape."""
        kernel = sum(F.pad(conv.weight, 4 * [3 - conv.kernel_size[0] // 2]) for conv in self.convolutions)
        kernel = kernel + F.pad(kernel.new_ones(1, 1, 1, 1), 4 * [3])
        bias = sum(conv.bias for conv in self.convolutions)
        return depthwise_conv(x, kernel, bias, shape=(side, side))


class TransLayer(nn.Module):
    """Adds to tokens the Nystrom attention of their layer norm."""

    def __init__(self, dim: int, heads: int, landmarks: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attn = NystromAttention(dim, heads, landmarks, dropout)

    def forward(self, x: Tensor, rows: int, with_attention: bool = False) -> tuple[Tensor, Tensor | None]:
        """See ``NystromAttention.forward``."""
        out, attention = self.attn(self.norm(x), rows, with_attention)
        return x[:rows] + out, attention


@register_aggregator("transmil")
class TransMIL(Aggregator):
    """Runs two Nystrom self-attention layers with a convolutional position encoding between, and reads a class token.

    With ``h = ReLU(W x)``, the bag repeated from its start until its length is a square, and the class token in
    front::

        t = t + Nystrom(LN(t));  t[1:] = PPEG(t[1:]);  t = t + Nystrom(LN(t));  logits = W' LN(t[0])

    Attention is the class token's row of the last layer's approximate attention matrix, without the class token's
    own entry: repeats are added to their originals, negative entries set to 0, and the rest normalised (uniform where
    nothing is left). ``head_attention`` is that of each head, ``attention`` that of the mean row of all heads.

    The order of instances matters: it places them on the square and in runs of landmarks. Bags are taken one by one:
    their squares, runs and padding differ, and attention between the tokens of a bag leaves nothing to share.

    Source: Shao et al., NeurIPS 2021; github szc19990412/TransMIL.

    Deviations: none in the numbers for a bag at a time. The last layer computes the class token's row alone, and the
    pseudo-inverse starts from a scale of each bag (the package takes one maximum over the batch).

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        embed_dim: width E of h and the tokens.
        heads: attention heads; they divide ``embed_dim``.
        landmarks: landmarks of each layer, or None for ``embed_dim // 2``.
        dropout: dropout rate of the output of each attention layer.

    Raises:
        InputError: an option outside its range.
    """

    family = "transformer"
    replayable = True
    not_in_onnx = (
        "its square of tokens and its landmarks follow from the size of the bag, which torch's exporter would fix"
    )
    paper = Paper(
        "TransMIL: Transformer based Correlated Multiple Instance Learning for Whole Slide Image Classification",
        2021,
        "https://arxiv.org/abs/2106.00908",
        "https://github.com/szc19990412/TransMIL",
        licence="GPL-3.0",
    )
    permutation_invariant = False
    published_renames = (
        (r"^_fc1\.0\.", "embed.0."),
        (r"^_fc2\.", "classifier."),
        (r"^pos_layer\.proj\.", "ppeg.convolutions.0."),
        (r"^pos_layer\.proj([12])\.", r"ppeg.convolutions.\1."),
        (r"\.to_out\.0\.", ".to_out."),
    )

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        embed_dim: int = 512,
        heads: int = 8,
        landmarks: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(in_dim, num_classes)
        landmarks = embed_dim // 2 if landmarks is None else landmarks
        if embed_dim < 1 or heads < 1 or embed_dim % heads:
            raise InputError(f"transmil: embed_dim ({embed_dim}) must be a multiple of heads ({heads})")
        if landmarks < 1:
            raise InputError(f"transmil: landmarks must be at least 1, not {landmarks}")
        self.embed = nn.Sequential(Linear(in_dim, embed_dim), nn.ReLU(inplace=True))
        self.cls_token = nn.Parameter(torch.randn(1, 1, embed_dim))
        self.layer1 = TransLayer(embed_dim, heads, landmarks, dropout)
        self.ppeg = PPEG(embed_dim)
        self.layer2 = TransLayer(embed_dim, heads, landmarks, dropout)
        self.norm = nn.LayerNorm(embed_dim)
        self.classifier = Linear(embed_dim, num_classes)

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``; attention ``[ΣN]``, head_attention ``[ΣN, H]``, both without gradient."""
        tokens, rows = zip(*self._class_tokens(batch, with_attention=True), strict=True)
        embedding = self.norm(torch.cat(tokens))
        per_bag = [_fold(row[:, 1:], n) for row, n in zip(rows, batch.lengths, strict=True)]
        attention = torch.cat([_normalised(part.mean(0)) for part in per_bag])
        heads = torch.cat([_normalised(part).T for part in per_bag])
        return AggregatorOutput(self.classifier(embedding), embedding, attention, head_attention=heads)

    def losses(self, batch: BagBatch) -> dict[str, Tensor]:
        """Computes the cross-entropy, "loss"; unlike ``forward`` it spends nothing on attention as an output."""
        tokens = [token for token, _ in self._class_tokens(batch, with_attention=False)]
        logits = self.classifier(self.norm(torch.cat(tokens)))
        return {"loss": self.bag_loss(logits, batch.targets, batch.weights)}

    def _class_tokens(self, batch: BagBatch, with_attention: bool) -> list[tuple[Tensor, Tensor | None]]:
        """Of each bag the class token ``[1, E]`` and its row of attention ``[H, 1 + side ** 2]``."""
        results = []
        for features in batch.features.split(batch.lengths):
            side = math.isqrt(len(features) - 1) + 1
            tokens = self._tokens(features, side)
            tokens, _ = self.layer1(tokens, rows=len(tokens))
            tokens = torch.cat([tokens[:1], self.ppeg(tokens[1:], side)])
            results.append(self.layer2(tokens, rows=1, with_attention=with_attention))
        return results

    def _tokens(self, features: Tensor, side: int) -> Tensor:
        h = self.embed(features)
        return torch.cat([self.cls_token[0], h, h[: side * side - len(h)]])


def _fold(row: Tensor, n: int) -> Tensor:
    """``[H, side ** 2]`` to ``[H, n]``: repeats, which come last, are added to the first instances."""
    repeats = row[:, n:]
    return row[:, :n] + F.pad(repeats, (0, n - repeats.shape[1]))


def _normalised(attention: Tensor) -> Tensor:
    """Sets negative entries to 0 and scales to sum 1 along the last dimension (uniform where nothing is left)."""
    attention = attention.clamp(min=0)
    total = attention.sum(-1, keepdim=True)
    return torch.where(total > 0, attention / total, 1 / attention.shape[-1])
