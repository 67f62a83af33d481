"""MambaMIL: state-space models with sequence reordering."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil_zoo.aggregators.base import Aggregator, Paper
from mil_zoo.aggregators.blocks.attention import Attention
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.blocks.order import ORDERS, Order, sequence_order
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.registry import register_aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.kernels import linear, seeded_dropout, segment_attention_pool, selective_scan
from mil_zoo.kernels.draws import from_host

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu}


class Sequences(NamedTuple):
    """Where the sequences of packed bags lie: ``offsets`` ``[B + 1]`` on the device, ``lengths`` on the host."""

    offsets: Tensor
    lengths: Sequence[int]


class Reordered(NamedTuple):
    """A second order of the same instances: row i of it is row ``rows[i]`` (the number of rows: zeros).

    ``back`` ``[ΣN]`` says where each instance went; ``sequences`` are those of the second order.
    """

    rows: Tensor
    back: Tensor
    sequences: Sequences


class Direction(nn.Module):
    """Scans sequences one way: a short causal convolution, then a selective scan whose coefficients it decides.

    ::

        c = silu(conv(u));  (p, B, C) = W_x c;  dt = softplus(W_dt p + b_dt)
        y = selective_scan(c, dt, -exp(A_log), B, C, D) * silu(z)

    Args:
        channels: d.
        states: n of each channel.
        taps: of the convolution.
        rank: of dt before its projection.
    """

    def __init__(self, channels: int, states: int, taps: int, rank: int) -> None:
        super().__init__()
        self.sizes = rank, states, states
        self.conv = nn.Conv1d(channels, channels, taps, groups=channels)
        self.x_proj = Linear(channels, sum(self.sizes), bias=False)
        self.dt_proj = Linear(rank, channels)
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))

    def forward(self, u: Tensor, z: Tensor, sequences: Sequences) -> Tensor:
        """``[L, d]`` and its gate ``[L, d]`` to ``[L, d]``."""
        c = F.silu(self.convolve(u, sequences))
        p, B, C = self.x_proj(c).split(self.sizes, dim=1)
        return selective_scan(
            u=c,
            delta=linear(p, self.dt_proj.weight),
            A=-self.A_log.exp(),
            B=B,
            C=C,
            D=self.D,
            z=z,
            delta_bias=self.dt_proj.bias,
            softplus=True,
            offsets=sequences.offsets,
        )

    def convolve(self, u: Tensor, sequences: Sequences) -> Tensor:
        """The convolution ``[L, d]``, which sees zeros before the start of every bag."""
        before = u.new_zeros(self.conv.kernel_size[0] - 1, u.shape[1])
        rows = torch.cat([part for bag in u.split(sequences.lengths) for part in (before, bag)])
        # An image of L x 1 pixels with channels last, as u lies in memory, is convolved far faster than [d, L].
        out = F.conv2d(rows.T[None, :, :, None], self.conv.weight[..., None], self.conv.bias, groups=u.shape[1])
        out = out[0, :, :, 0].T
        if len(sequences.lengths) == 1:
            return out
        first = [start + bag * len(before) for bag, start in enumerate(_starts(sequences.lengths))]
        return torch.cat([out[s : s + n] for s, n in zip(first, sequences.lengths, strict=True)])


class Mixer(nn.Module):
    """Mixes the instances of each bag by one scan, or by two in different orders that share their projections."""

    def __init__(self, dim: int, mixer: str, rate: int, states: int, taps: int) -> None:
        super().__init__()
        self.mixer, self.rate, channels = mixer, rate, 2 * dim
        sizes = channels, states, taps, math.ceil(dim / 16)
        self.in_proj = Linear(dim, 2 * channels, bias=False)
        self.first = Direction(*sizes)
        self.second = None if mixer == "mamba" else Direction(*sizes)
        self.out_proj = Linear(channels, dim, bias=False)

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """``[L, W]`` to ``[L, W]``."""
        both = self.in_proj(x)
        y = self.first(*both.chunk(2, dim=1), sequences)
        if self.second is not None:
            other = self.reorder(sequences.lengths, x.device)
            padded = F.pad(both, (0, 0, 0, 1))  # row L holds zeros
            again = self.second(*padded.index_select(0, other.rows).chunk(2, dim=1), other.sequences)
            y = y + again.index_select(0, other.back)
        return self.out_proj(y)

    def reorder(self, lengths: Sequence[int], device: torch.device) -> Reordered:
        """The second order: each bag from its end ("bimamba"), or every ``rate``-th instance after the other.

        The latter pads a bag with zeros to a multiple of ``rate``, M, and instance q * rate + w becomes number
        w * M / rate + q.
        """
        rows, back, padded, total, start = [], [], [], sum(lengths), 0
        for first, n in zip(_starts(lengths), lengths, strict=True):
            number = torch.arange(n, device=device)
            if self.mixer == "bimamba":
                size, order, places = n, number.flip(0), n - 1 - number
            else:
                columns = -(-n // self.rate)
                size = columns * self.rate
                order = torch.arange(size, device=device).view(columns, self.rate).T.flatten()
                places = number % self.rate * columns + number // self.rate
            rows.append(torch.where(order < n, order + first, total))
            back.append(places + start)
            padded.append(size)
            start += size
        offsets = from_host(lambda: torch.tensor([*_starts(padded), start]), device)
        return Reordered(torch.cat(rows), torch.cat(back), Sequences(offsets, padded))


@register_aggregator("mambamil")
class MambaMIL(Aggregator):
    """Runs state-space layers along the instances in two orders, and pools them by attention.

    With ``h = act(W x)`` in the order of the bag, each layer adds to h, of its layer norm n::

        (u, z) = W_in n
        mixer "mamba":    W_out scan(u, z)
        mixer "bimamba":  W_out (scan(u, z) + scan'(u, z) from the last instance to the first)
        mixer "srmamba":  W_out (scan(u, z) + scan'(u, z) with every rate-th instance after the other)

    where scan is a causal convolution and a selective scan (``Direction``). Then attention pooling of ``LN(h)``, with
    ``a = softmax(w^T tanh(V LN(h)))``, and a linear classifier.

    The order of instances matters, and with it how the features were stored: their authors' are CLAM's patches, contour
    by contour. ``order`` can choose another by the coordinates. Attention is that of the pooling.

    Source: Yang, Wang & Chen, MICCAI 2024; github isyangshu/MambaMIL. The selective scan: Gu & Dao, Mamba, 2023.

    Deviations: none in the numbers for the mixers that run in the authors' code (the fused ones). Zeros that fill a bag
    up to a multiple of ``rate`` pass through the second scan as theirs do, and change its state. ``rate`` is 5 as in
    all of their scripts (10 in their class). They initialise every linear layer alike, which also overwrites Mamba's
    own start of dt; ``dt_init="mamba"`` keeps that.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        embed_dim: width W of h; the scans have 2 W channels.
        attention_dim: rows of the attention's V.
        mixer: "srmamba", "bimamba" or "mamba".
        num_layers: state-space layers.
        rate: step R between the instances that follow each other in srmamba's second scan.
        state_dim: states of each channel.
        conv_width: taps of the convolution.
        act: "gelu" or "relu".
        dropout: dropout rate of h.
        dt_init: "authors" starts dt at softplus(0), "mamba" between 0.001 and 0.1.
        order: "stored", "raster" or "hilbert", see ``blocks.order.sequence_order``.

    Raises:
        InputError: an option outside its range, or bags without coordinates where ``order`` needs them.
    """

    family = "state space"
    replayable = True
    not_in_onnx = "its scan takes as many steps as the bag has patches, which torch's exporter would fix"
    paper = Paper(
        "MambaMIL: Enhancing Long Sequence Modeling with Sequence Reordering in Computational Pathology",
        2024,
        "https://arxiv.org/abs/2403.06800",
        "https://github.com/isyangshu/MambaMIL",
        licence="MIT",
    )
    permutation_invariant = False
    published_renames = (
        (r"^_fc1\.0\.", "embed."),
        (r"^attention\.0\.", "attention.V."),
        (r"^attention\.2\.", "attention.w."),
        (r"^layers\.(\d+)\.0\.", r"norms.\1."),
        (r"^layers\.(\d+)\.1\.(in_proj|out_proj)\.", r"mixers.\1.\2."),
        (r"^layers\.(\d+)\.1\.(A|D)_b(_log)?$", r"mixers.\1.second.\2\3"),
        (r"^layers\.(\d+)\.1\.(A_log|D)$", r"mixers.\1.first.\2"),
        (r"^layers\.(\d+)\.1\.conv1d\.", r"mixers.\1.first.conv."),
        (r"^layers\.(\d+)\.1\.conv1d_b\.", r"mixers.\1.second.conv."),
        (r"^layers\.(\d+)\.1\.(x_proj|dt_proj)\.", r"mixers.\1.first.\2."),
        (r"^layers\.(\d+)\.1\.(x_proj|dt_proj)_b\.", r"mixers.\1.second.\2."),
    )

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        embed_dim: int = 512,
        attention_dim: int = 128,
        mixer: Literal["srmamba", "bimamba", "mamba"] = "srmamba",
        num_layers: int = 2,
        rate: int = 5,
        state_dim: int = 16,
        conv_width: int = 4,
        act: Literal["gelu", "relu"] = "gelu",
        dropout: float = 0.0,
        dt_init: Literal["authors", "mamba"] = "authors",
        order: Order = "stored",
    ) -> None:
        super().__init__(in_dim, num_classes)
        choices = {"mixer": (mixer, ("srmamba", "bimamba", "mamba")), "act": (act, tuple(ACTIVATIONS))}
        choices |= {"dt_init": (dt_init, ("authors", "mamba")), "order": (order, ORDERS)}
        for name, (value, known) in choices.items():
            if value not in known:
                raise InputError(f"mambamil: {name} must be one of {', '.join(known)}, not {value!r}")
        if min(embed_dim, attention_dim, num_layers, rate, state_dim, conv_width) < 1 or not 0 <= dropout < 1:
            raise InputError(
                f"mambamil: embed_dim ({embed_dim}), attention_dim ({attention_dim}), num_layers ({num_layers}), rate "
                f"({rate}), state_dim ({state_dim}) and conv_width ({conv_width}) must be at least 1, and dropout "
                f"({dropout}) at least 0 and below 1"
            )
        self.act, self.dropout, self.order = act, dropout, order
        self.embed = Linear(in_dim, embed_dim)
        self.norms = nn.ModuleList(nn.LayerNorm(embed_dim) for _ in range(num_layers))
        self.mixers = nn.ModuleList(Mixer(embed_dim, mixer, rate, state_dim, conv_width) for _ in range(num_layers))
        self.norm = nn.LayerNorm(embed_dim)
        self.attention = Attention(embed_dim, attention_dim)
        self.classifier = Linear(embed_dim, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if dt_init == "mamba":
            for module in self.modules():
                if isinstance(module, Direction):
                    _start_dt_as_mamba(module.dt_proj)

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``; attention ``[ΣN]``."""
        rows, sequences = sequence_order(batch, self.order), Sequences(batch.offsets, batch.lengths)
        h = ACTIVATIONS[self.act](self.embed(batch.features))  # [ΣN, W]
        if self.training and self.dropout:
            h = seeded_dropout(h, self.dropout)
        h = h if rows is None else h.index_select(0, rows)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            h = h + mixer(norm(h), sequences)
        h = self.norm(h)
        scores = self.attention(h)  # [ΣN, 1]
        pooled, attention = segment_attention_pool(scores, h, batch.offsets)
        embedding, attention, scores = pooled[:, 0], attention[:, 0], scores[:, 0]
        if rows is not None:  # back to the order of the batch
            attention, scores = (torch.empty_like(x).index_copy(0, rows, x) for x in (attention, scores))
        return AggregatorOutput(self.classifier(embedding), embedding, attention, scores)


def _start_dt_as_mamba(projection: nn.Linear) -> None:
    """Mamba's own start: dt between 0.001 and 0.1, log-uniform."""
    nn.init.uniform_(projection.weight, -(projection.in_features**-0.5), projection.in_features**-0.5)
    dt = torch.exp(torch.empty(projection.out_features).uniform_(math.log(1e-3), math.log(0.1)))
    with torch.no_grad():
        projection.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus


def _starts(lengths: Sequence[int]) -> list[int]:
    starts = [0]
    for n in lengths[:-1]:
        starts.append(starts[-1] + n)
    return starts
