"""S4MIL: a structured state-space model for multiple-instance learning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil_zoo.aggregators.base import Aggregator, Paper
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.blocks.order import ORDERS, Order, sequence_order
from mil_zoo.aggregators.checkpoints import flat_state_dict
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.registry import register_aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.kernels import seeded_dropout, segment_reduce

BLOCK = 64  # instances whose outputs are one matrix product
ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu}


class S4D(nn.Module):
    """Convolves every channel of a sequence with a long kernel that a diagonal state-space model generates.

    With complex states s = 1 .. n, ``dt = exp(log_dt)``, ``A = -exp(log_A_real) + i A_imag``, for channel h::

        K(j) = 2 Re sum_s C_s (exp(dt A_s) - 1) / A_s exp(dt A_s j)
        y_t  = sum_(j <= t) K(j) u_(t - j) + D u_t
        out  = GLU(W gelu(y))

    The kernel is never written down in full: within blocks of ``BLOCK`` instances the sum is a product with a small
    Toeplitz matrix, and what came before a block enters through its states, ``h <- exp(dt A) h + u``. Time and memory
    are linear in the length of the sequence; the authors' Fourier transform stores n complex numbers for every
    instance and channel.

    Source: Gu et al., On the Parameterization and Initialization of Diagonal State Space Models, NeurIPS 2022.

    Args:
        channels: W.
        states: complex states n of each channel.
    """

    def __init__(self, channels: int, states: int) -> None:
        super().__init__()
        self.D = nn.Parameter(torch.randn(channels))
        self.C = nn.Parameter(torch.view_as_real(torch.randn(channels, states, dtype=torch.complex64)))
        self.log_dt = nn.Parameter(torch.empty(channels).uniform_(math.log(1e-3), math.log(0.1)))
        self.log_A_real = nn.Parameter(torch.full((channels, states), math.log(0.5)))
        self.A_imag = nn.Parameter(math.pi * torch.arange(states, dtype=torch.float32).repeat(channels, 1))
        self.output = Linear(channels, 2 * channels)

    def forward(self, u: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """``[L, W]``, sequences of ``lengths`` end to end, to ``[L, W]``."""
        y = torch.cat([self.convolve(part) for part in u.split(lengths)])
        return F.glu(self.output(F.gelu(y)), dim=1)

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """``dt A`` and ``C (exp(dt A) - 1) / A``, both complex ``[W, n]``."""
        A = torch.complex(-self.log_A_real.exp(), self.A_imag)
        rates = self.log_dt.exp()[:, None] * A
        return rates, torch.view_as_complex(self.C) * (rates.exp() - 1) / A

    def kernel(self, length: int) -> Tensor:
        """The first ``length`` entries of K, ``[W, length]``."""
        rates, C = self.coefficients()
        powers = (rates[..., None] * torch.arange(length, device=rates.device)).exp()  # [W, n, length]
        return 2 * torch.einsum("ws,wsj->wj", C, powers).real

    def convolve(self, u: Tensor) -> Tensor:
        """y of one sequence, ``[L, W]`` to ``[L, W]``, in the precision of the parameters."""
        with torch.autocast(u.device.type, enabled=False):
            u = u.to(self.D.dtype)
            size = min(BLOCK, len(u))
            blocks = (
                F.pad(u, (0, 0, 0, -len(u) % size)).view(-1, size, u.shape[1]).permute(2, 1, 0)
            )  # [W, size, blocks]
            number = torch.arange(size, device=u.device)
            lag = number[:, None] - number  # [size, size]
            toeplitz = self.kernel(size)[:, lag.clamp(min=0)] * (lag >= 0)
            y = toeplitz @ blocks
            if blocks.shape[2] > 1:
                y = y + self._from_before(blocks, number)
            return y.permute(2, 1, 0).reshape(-1, u.shape[1])[: len(u)] + self.D * u

    def _from_before(self, blocks: Tensor, number: Tensor) -> Tensor:
        """What the instances before its block add to every instance, ``[W, size, blocks]``."""
        rates, C = self.coefficients()
        size = len(number)
        left = (
            rates[..., None] * (size - 1 - number)
        ).exp()  # [W, n, size]: what is left of an input at its block's end
        added = torch.complex(left.real @ blocks, left.imag @ blocks)  # [W, n, blocks]
        across, state = (rates * size).exp(), torch.zeros_like(added[..., 0])
        entering = []
        for block in added.unbind(2):
            entering.append(state)
            state = across * state + block
        weight = 2 * C[..., None] * (rates[..., None] * (number + 1)).exp()  # [W, n, size]
        states = torch.stack(entering, dim=2)  # [W, n, blocks]
        return weight.real.transpose(1, 2) @ states.real - weight.imag.transpose(1, 2) @ states.imag


@register_aggregator("s4mil")
class S4MIL(Aggregator):
    """Runs one state-space layer along the instances and takes the maximum of every channel.

    ::

        h = S4D(LN(act(W x)));  z_w = max_n h_nw;  logits = W' z

    The order of instances matters; ``order`` can choose another than that of the bag by the coordinates. There is no
    attention in this method: ``attention`` is the share of the W channels whose maximum an instance wins.

    Source: Fillioux et al., MICCAI 2023; github MICS-Lab/s4_digital_pathology. Their S4D is that of Gu et al., 2022.

    Deviations: none in the numbers of the model (there is no residual connection around the layer, as in their code).
    The authors' training applies softmax to what cross-entropy takes for logits, and so twice; here it is applied once.
    Weights under the names of isyangshu/MambaMIL's copy load too, which differs from the authors' by ``act="gelu"``.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        embed_dim: width W of h.
        state_dim: real states of each channel; half as many complex ones are stored, the others are their conjugates.
        act: "relu", or "gelu" as in MambaMIL's comparison.
        dropout: dropout rate of act(W x).
        order: "stored", "raster" or "hilbert", see ``blocks.order.sequence_order``.

    Raises:
        InputError: an option outside its range, or bags without coordinates where ``order`` needs them.
    """

    family = "state space"
    replayable = True
    not_in_onnx = (
        "the parts that its convolution takes follow from the size of the bag, which torch's exporter would fix"
    )
    paper = Paper(
        "Structured State Space Models for Multiple Instance Learning in Digital Pathology",
        2023,
        "https://arxiv.org/abs/2306.15789",
        "https://github.com/MICS-Lab/s4_digital_pathology",
    )
    permutation_invariant = False
    published_renames = (
        (r"^_?fc1\.0\.", "embed."),
        (r"^fc2\.", "classifier."),
        (r"^s4_block\.0\.", "norm."),
        (r"^s4_block\.1\.kernel\.", "s4d."),
        (r"^s4_block\.1\.output_linear\.0\.", "s4d.output."),
        (r"^s4_block\.1\.", "s4d."),
    )

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        embed_dim: int = 512,
        state_dim: int = 32,
        act: Literal["relu", "gelu"] = "relu",
        dropout: float = 0.0,
        order: Order = "stored",
    ) -> None:
        super().__init__(in_dim, num_classes)
        if act not in ACTIVATIONS or order not in ORDERS:
            raise InputError(
                f"s4mil: act must be one of {', '.join(ACTIVATIONS)}, not {act!r}, and order one of "
                f"{', '.join(ORDERS)}, not {order!r}"
            )
        if embed_dim < 1 or state_dim < 2 or state_dim % 2 or not 0 <= dropout < 1:
            raise InputError(
                f"s4mil: embed_dim ({embed_dim}) must be at least 1, state_dim ({state_dim}) even and at least 2, and "
                f"dropout ({dropout}) at least 0 and below 1"
            )
        self.act, self.dropout, self.order = act, dropout, order
        self.embed = Linear(in_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        self.s4d = S4D(embed_dim, state_dim // 2)
        self.classifier = Linear(embed_dim, num_classes)

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``; attention ``[ΣN]`` is the share of channels that an instance wins."""
        rows = sequence_order(batch, self.order)
        h = ACTIVATIONS[self.act](self.embed(batch.features))  # [ΣN, W]
        if self.training and self.dropout:
            h = seeded_dropout(h, self.dropout)
        h = h if rows is None else h.index_select(0, rows)
        h = self.s4d(self.norm(h), batch.lengths)
        embedding, winners = segment_reduce(h, batch.offsets, "max", return_argmax=True)  # [B, W]
        winners = winners.flatten() if rows is None else rows[winners.flatten()]
        share = torch.full_like(winners, 1 / embedding.shape[1], dtype=embedding.dtype)
        attention = embedding.new_zeros(len(h)).index_add(0, winners, share)
        return AggregatorOutput(self.classifier(embedding), embedding, attention)

    def load_published_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """See ``Aggregator.load_published_state_dict``; the authors' convolution of width 1 is a linear layer here."""
        flat, convolution = dict(flat_state_dict(state_dict)), "s4_block.1.output_linear.0.weight"
        if convolution in flat and flat[convolution].ndim == 3:
            flat[convolution] = flat[convolution][..., 0]
        super().load_published_state_dict(flat)
