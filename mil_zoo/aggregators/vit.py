"""ViT: the plain Transformer of STAMP, with and without ALiBi on coordinates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mil_zoo.aggregators.base import Aggregator, Paper
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.checkpoints import flat_state_dict
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.registry import register_aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.kernels import dense_attention, linear, seeded_dropout

PAIRS = 2**24  # distances that are held at a time


class Distances(torch.autograd.Function):
    """The product of the matrix of distances between places ``[N, 2]`` with ``[N, K]``, in blocks of its rows.

    The matrix is symmetric: backward is the same product.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor) -> Tensor:
        """``[N, K]`` and places ``[N, 2]`` to ``[N, K]``."""
        ctx.save_for_backward(places)
        return torch.cat([block @ values for block in _distances(places)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient of the values."""
        (places,) = ctx.saved_tensors
        return torch.cat([block @ grad for block in _distances(places)]), None


def _distances(places: Tensor):
    for rows in places.split(max(1, PAIRS // len(places))):
        yield torch.cdist(rows, places, compute_mode="donot_use_mm_for_euclid_dist")


class SelfAttention(nn.Module):
    """Attends among a class token and the tiles of a bag.

    Without ALiBi ``softmax(q k^T / sqrt(d)) v`` for each head of width d. With it, what distance takes away is
    subtracted after the softmax::

        (softmax(q k^T / sqrt(d)) - b dist / m) v  =  softmax(q k^T / sqrt(d)) v - b / m (dist v)

    with a learned b and the running mean m of distances for each head. The second product is taken in blocks, so that
    nothing of size N x N is ever stored.
    """

    def __init__(self, dim: int, heads: int, dropout: float, alibi: bool, token_penalty: bool, see_token: bool) -> None:
        super().__init__()
        self.heads, self.dropout, self.alibi = heads, dropout, alibi
        self.token_penalty, self.see_token = token_penalty, see_token
        self.in_proj, self.out_proj = Linear(dim, 3 * dim), Linear(dim, dim)
        if alibi:
            self.bias_scale = nn.Parameter(torch.rand(heads))
            self.register_buffer("running_mean", torch.ones(heads))
            self.register_buffer("items_so_far", torch.ones(heads))
        else:  # as nn.MultiheadAttention
            nn.init.xavier_uniform_(self.in_proj.weight)
            nn.init.zeros_(self.in_proj.bias)
            nn.init.zeros_(self.out_proj.bias)

    @torch.no_grad()
    def follow(self, mean: Tensor) -> None:
        """Moves the running mean towards the mean distance of a batch; the first one replaces it."""
        self.running_mean += (mean - self.running_mean) / self.items_so_far
        self.items_so_far += 1

    def tiles(self, x: Tensor, lengths: list[int], places: list[Tensor] | None) -> Tensor:
        """The output at every token, ``[T, W]`` with the class token of each bag before its tiles, to ``[T, W]``."""
        outputs = []
        for number, part in enumerate(self.in_proj(x).split(lengths)):
            q, k, v = self._heads(part)
            if self.see_token:
                out = self._attend(q, k, v)
            elif self.alibi:  # what tiles take from the class token is nothing; it stays in their softmax
                hidden = torch.cat([torch.zeros_like(v[:, :1]), v[:, 1:]], dim=1)
                out = torch.cat([self._attend(q[:, :1], k, v), self._attend(q[:, 1:], k, hidden)], dim=1)
            else:
                out = torch.cat([self._attend(q[:, :1], k, v), self._attend(q[:, 1:], k[:, 1:], v[:, 1:])], dim=1)
            if places is not None:
                out = out - self._penalty(v, places[number])
            outputs.append(out.transpose(0, 1).flatten(1))
        return self.out_proj(torch.cat(outputs))

    def token(self, x: Tensor, lengths: list[int], places: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """The output at the class tokens alone, ``[B, W]``, and the softmax of each bag's, ``[H, N + 1]``."""
        outputs, weights = [], []
        dim = x.shape[1]
        k_v = linear(x, self.in_proj.weight[dim:], self.in_proj.bias[dim:])
        for number, (tokens, part) in enumerate(zip(x.split(lengths), k_v.split(lengths), strict=True)):
            q = linear(tokens[:1], self.in_proj.weight[:dim], self.in_proj.bias[:dim])
            q = q.view(1, self.heads, -1).transpose(0, 1)  # [H, 1, d]
            k, v = part.view(len(part), 2, self.heads, -1).permute(1, 2, 0, 3)  # [H, N + 1, d]
            weight = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1)
            weights.append(weight[:, 0])
            if self.training and self.dropout and not self.alibi:
                weight = F.dropout(weight, self.dropout)
            if places is not None:  # where the token has no place, the b of the last layer gets a gradient of 0
                weight = weight - self._rate() * (places[number].norm(dim=1) * self.token_penalty)
            outputs.append((weight @ v)[:, 0].flatten())
        return self.out_proj(torch.stack(outputs)), weights

    def _heads(self, packed: Tensor) -> Tensor:
        return packed.view(len(packed), 3, self.heads, -1).permute(1, 2, 0, 3)  # [3, H, N + 1, d]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dropped = self.dropout if self.training and not self.alibi else 0.0
        if dropped == 0:
            return dense_attention(q, k, v)
        return F.scaled_dot_product_attention(q[None], k[None], v[None], dropout_p=dropped)[0]

    def _penalty(self, v: Tensor, places: Tensor) -> Tensor:
        """``b / m`` times distances times v, ``[H, N + 1, d]``; the class token is at (0, 0) or takes no part."""
        first = 0 if self.token_penalty else 1
        flat = v[:, first:].transpose(0, 1).flatten(1)
        with torch.autocast(v.device.type, enabled=False):
            summed = Distances.apply(flat.to(places.dtype), places[first:])
        summed = summed.view(-1, self.heads, v.shape[2]).transpose(0, 1)
        return self._rate() * F.pad(summed, (0, 0, first, 0))

    def _rate(self) -> Tensor:
        return (self.bias_scale / self.running_mean.clamp(min=1e-12))[:, None, None]


class Layer(nn.Module):
    """Adds to tokens their self-attention, and then a two-layer perceptron of each."""

    def __init__(self, dim: int, ff_dim: int, ff_dropout: float, attention: SelfAttention) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(dim), attention
        self.ff_norm, self.up, self.down = nn.LayerNorm(dim), Linear(dim, ff_dim), Linear(ff_dim, dim)
        self.ff_dropout = ff_dropout

    def feed_forward(self, x: Tensor) -> Tensor:
        """``[T, W]`` to ``[T, W]``."""
        out = self._drop(self.down(self._drop(F.gelu(self.up(self.ff_norm(x))))))
        return x + out

    def _drop(self, x: Tensor) -> Tensor:
        return seeded_dropout(x, self.ff_dropout) if self.training and self.ff_dropout else x


@register_aggregator("vit")
class ViT(Aggregator):
    """Runs a pre-norm Transformer over a class token and the tiles of a bag, and classifies the token.

    With ``x = [class token; GELU(W tiles)]``, in each of ``num_layers``::

        x = x + attention(LN(x));  x = x + FF(LN(x));  at the end logits = W' LN(x[0])

    With ``alibi`` every head subtracts from its softmax the distance between two tiles times a learned scalar
    (``SelfAttention``), so that tiles attend to what is near. Time is quadratic in N, memory linear: attention is a
    fused product (with ``dropout`` above 0 torch stores N x N weights), distances are made in blocks. The last
    layer computes the class token's row alone.

    Attention is the softmax of the last layer's class token on the tiles: ``head_attention`` each head's, normalised
    over tiles, ``attention`` that of their mean. Under ALiBi it is the softmax part only.

    Source: Wagner et al., Cancer Cell 2023; El Nahhas et al., Nature Protocols 2024; github KatherLab/STAMP. ALiBi:
    Press et al., 2022, where the distance is subtracted before the softmax.

    Deviations: bags are packed; theirs of fewer than 512 tiles are filled with zeros at (0, 0) that are attended to.
    The class token stands at (0, 0) with them, so that a shifted slide gives another answer: ``class_token_penalty``
    keeps that, and without it distances to the token, and their part in the running mean, are left out. In a batch the
    running mean follows the mean of the bags' mean distances. ``ff_dropout`` is .5 as in their code, which never passes
    its dropout rate there.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        embed_dim: width W of the tokens.
        num_layers: layers.
        num_heads: attention heads; they divide ``embed_dim``.
        ff_dim: width of the perceptrons.
        alibi: subtract distances; needs coordinates.
        class_token_penalty: whether the class token has a place, the origin, and distances as the tiles do.
        tiles_see_class_token: whether tiles attend to the class token.
        dropout: dropout rate of the embedded tiles and (without ALiBi) of attention weights.
        ff_dropout: dropout rates in the perceptrons.

    Raises:
        InputError: an option outside its range, or bags without coordinates with ``alibi``.
    """

    family = "transformer"
    replayable = True
    paper = Paper(
        "From whole-slide image to biomarker prediction: end-to-end weakly supervised deep learning in computational "
        "pathology",
        2024,
        "https://arxiv.org/abs/2312.10944",
        "https://github.com/KatherLab/STAMP",
        licence="MIT",
    )
    published_renames = (
        (r"^project_features\.0\.", "embed."),
        (r"^transformer\.layers\.(\d+)\.0\.norm\.", r"layers.\1.norm."),
        (r"^transformer\.layers\.(\d+)\.0\.mhsa\.in_proj_", r"layers.\1.attention.in_proj."),
        (r"^transformer\.layers\.(\d+)\.0\.mhsa\.(out_proj|fc)\.", r"layers.\1.attention.out_proj."),
        (r"^transformer\.layers\.(\d+)\.0\.mhsa\.(bias_scale|running_mean|items_so_far)$", r"layers.\1.attention.\2"),
        (r"^transformer\.layers\.(\d+)\.1\.0\.", r"layers.\1.ff_norm."),
        (r"^transformer\.layers\.(\d+)\.1\.1\.", r"layers.\1.up."),
        (r"^transformer\.layers\.(\d+)\.1\.4\.", r"layers.\1.down."),
        (r"^transformer\.norm\.", "norm."),
        (r"^mlp_head\.0\.", "classifier."),
    )

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        embed_dim: int = 512,
        num_layers: int = 2,
        num_heads: int = 8,
        ff_dim: int = 512,
        alibi: bool = False,
        class_token_penalty: bool = False,
        tiles_see_class_token: bool = True,
        dropout: float = 0.0,
        ff_dropout: float = 0.5,
    ) -> None:
        super().__init__(in_dim, num_classes)
        if min(embed_dim, num_layers, num_heads, ff_dim) < 1 or embed_dim % num_heads:
            raise InputError(
                f"vit: embed_dim ({embed_dim}) must be a multiple of num_heads ({num_heads}), and num_layers "
                f"({num_layers}) and ff_dim ({ff_dim}) at least 1"
            )
        if not 0 <= dropout < 1 or not 0 <= ff_dropout < 1:
            raise InputError(f"vit: dropout ({dropout}) and ff_dropout ({ff_dropout}) must be at least 0 and below 1")
        self.alibi, self.class_token_penalty, self.dropout = alibi, class_token_penalty, dropout
        self.embed = Linear(in_dim, embed_dim)
        self.class_token = nn.Parameter(torch.randn(embed_dim))
        settings = dropout, alibi, class_token_penalty, tiles_see_class_token
        self.layers = nn.ModuleList(
            Layer(embed_dim, ff_dim, ff_dropout, SelfAttention(embed_dim, num_heads, *settings))
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.classifier = Linear(embed_dim, num_classes)

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``; attention ``[ΣN]``, head_attention ``[ΣN, H]``."""
        h = F.gelu(self.embed(batch.features))
        if self.training and self.dropout:
            h = seeded_dropout(h, self.dropout)
        places, lengths = self._places(batch), [n + 1 for n in batch.lengths]
        x = torch.cat([part for bag in h.split(batch.lengths) for part in (self.class_token[None], bag)])  # [ΣN + B, W]
        for layer in self.layers[:-1]:
            x = layer.feed_forward(x + layer.attention.tiles(layer.norm(x), lengths, places))
        last = self.layers[-1]
        out, weights = last.attention.token(last.norm(x), lengths, places)
        tokens = torch.stack([bag[0] for bag in x.split(lengths)])
        embedding = self.norm(last.feed_forward(tokens + out))
        heads = torch.cat([_normalised(weight[:, 1:]).T for weight in weights])
        attention = torch.cat([_normalised(weight[:, 1:].mean(0)) for weight in weights])
        return AggregatorOutput(self.classifier(embedding), embedding, attention, head_attention=heads)

    def _places(self, batch: BagBatch) -> list[Tensor] | None:
        """With ALiBi the places ``[N + 1, 2]`` of each bag, the class token's first; moves the running means."""
        if not self.alibi:
            return None
        if batch.coords is None:
            raise InputError("vit with alibi needs coordinates in every bag; use alibi=False")
        coords = batch.coords.to(self.class_token.dtype)
        places = [F.pad(bag, (0, 0, 1, 0)) for bag in coords.split(batch.lengths)]
        if self.training:
            first = 0 if self.class_token_penalty else 1
            mean = torch.stack([_mean_distance(bag[first:]) for bag in places]).mean()
            for layer in self.layers:
                layer.attention.follow(mean)
        return places

    def load_published_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """See ``Aggregator.load_published_state_dict``; the authors' ALiBi has linear layers for each head."""
        flat, apart = (
            dict(flat_state_dict(state_dict)),
            re.compile(
                r"(.*\.mhsa)\.(?:(query|key|value)_encoders\.(\d+)\.(weight|bias)|attentions\.(\d+)\.(?:scale_distance\.)?(\w+))"
            ),
        )
        joined: dict[str, dict[tuple[int, int], Tensor]] = {}
        for name in [name for name in flat if apart.fullmatch(name)]:
            mhsa, kind, head, what, other, scalar = apart.fullmatch(name).groups()
            whole = f"{mhsa}.{scalar}" if kind is None else f"{mhsa}.in_proj_{what}"
            place = (0, int(other)) if kind is None else (("query", "key", "value").index(kind), int(head))
            joined.setdefault(whole, {})[place] = torch.as_tensor(flat.pop(name))
        flat |= {name: torch.cat([parts[key] for key in sorted(parts)]) for name, parts in joined.items()}
        super().load_published_state_dict(flat)


def _mean_distance(places: Tensor) -> Tensor:
    total = torch.stack([block.sum(dtype=torch.float64) for block in _distances(places)]).sum()
    return (total / len(places) ** 2).to(places.dtype)


def _normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True)
