"""CAMIL: Nystrom attention over a slide, then attention among neighbours that are alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil_zoo.aggregators.base import Aggregator, Paper
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.blocks.neighbours import nearest
from mil_zoo.aggregators.blocks.nystrom import Zeros, pseudo_inverse, softmax
from mil_zoo.aggregators.checkpoints import flat_state_dict
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.registry import register_aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.kernels import bmm, dense_attention, gated_scores, graph_sum, linear, segment_attention_pool

NEAREST, KEPT = 15, 7  # neighbours whose distances are normalised together, and how many of them count
TAPS = 33  # of the residual convolution
AT_ONCE = 2**22  # numbers held at a time (16 MiB in float32) while features are compared


class NystromAttention(nn.Module):
    """Attends among the N patches of a bag through m landmarks; adds a convolution of the values over the heads.

    As in ``transmil``, but that the residual convolution runs along the axis of the heads where it was meant to run
    along the patches: head i of a patch adds up what all heads j hold, ``sum_j K[16 + j - i] v_j``, K mixing channels
    within groups. Each bag is padded in front with zeros until m divides its length.

    Source: the authors' code, whose convolution is kept.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, landmarks: int) -> None:
        super().__init__()
        self.heads, self.landmarks = heads, landmarks
        self.to_qkv = Linear(dim, 3 * heads * head_dim, bias=False)
        self.to_out = Linear(heads * head_dim, dim)
        self.res_conv = nn.Parameter(torch.empty(TAPS, 1, head_dim // heads, head_dim))
        bound = math.sqrt(6 / (TAPS * (head_dim // heads + head_dim)))
        nn.init.uniform_(self.res_conv, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, dim]`` to the same."""
        zeros, qkv = Zeros.before(len(x), self.landmarks), self.to_qkv(x).view(len(x), 3, self.heads, -1)
        means = zeros.means(qkv[:, :2], self.landmarks)
        q_mean, k_mean = means.permute(1, 2, 0, 3)  # [H, m, d]
        padded = zeros.prepend(qkv)
        _, k, v = padded.permute(1, 2, 0, 3)  # [H, pad + N, d]
        to_landmarks = zeros.landmark_bias(means)
        inverse = pseudo_inverse(softmax(q_mean, k_mean, to_landmarks), zeros.landmarks)
        summary = bmm(inverse, dense_attention(q_mean, k, v, zeros.token_bias(padded)))
        q = qkv[:, 0].transpose(0, 1)
        out = dense_attention(q, k_mean, summary, to_landmarks).transpose(0, 1)  # [N, H, d]
        return self.to_out((out + self._convolve(qkv[:, 2])).flatten(1))

    def _convolve(self, v: Tensor) -> Tensor:
        """``[N, H, d]`` to the same."""
        head = torch.arange(self.heads, device=v.device)
        taps = self.res_conv[:, 0].index_select(0, (TAPS // 2 + head - head[:, None]).flatten())
        taps = taps.view(self.heads, self.heads, -1, self.heads, v.shape[2] // self.heads)  # i, j, c, group, o
        values = v.view(len(v), self.heads, self.heads, -1)  # [N, j, group, c]
        return torch.einsum("njgc,ijcgo->nigo", values, taps).flatten(2)


@register_aggregator("camil")
class CAMIL(Aggregator):
    """Weighs patches by how much they and their neighbours, the more alike the more, agree; then pools by attention.

    With x the features, e = x + Nystrom(x) and Q = W_q e, K = W_k e of width d::

        d_ij = 1 - cos(x_i, x_j)    w_ij = exp(-d_ij / |d_i|)    w_ii = max_j w_ij
        r_i  = sum over i and its neighbours j of w_ij <Q_i, K_j> / sqrt(d)
        l_i  = b_i (V x_i),  b = softmax of r over the bag
        g    = sigmoid(-l)^2,  f = 2 l g + 2 e (1 - g)
        z    = sum_i a_i f_i  (a: gated attention without biases);  logits linear in z

    The authors' neighbours are the 15 nearest of a patch: their distances make the norm |d_i| and the maximum, and the
    patch and its 7 nearest are summed over. ``neighbours="graph"`` takes all neighbours in the batch's graph
    (``--set camil.neighbours=graph --set camil.graph=window:1``). A patch without neighbours has w_ii = 1. Weights
    carry no gradient. ``attention`` is a.

    Source: Fourkioti, De Vries, Bakal, ICLR 2024; github olgarithmics/ICLR_CAMIL. Where the two differ the code is
    followed: g (the paper has sigmoid(l) l + (1 - sigmoid(l)) e), and a convolution that runs along the heads.

    Deviations: of equally far patches those of lower index are nearest. The order of instances matters, as landmarks
    are means of runs. The L2 penalties that their layers declare have no effect in their training and are left out.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        embed_dim: width of a linear layer in front; None for none, as the authors have it: all is D wide.
        neighbours: "authors", from coordinates, or "graph".
        heads: H, of the Nystrom attention.
        head_dim: width of a head, a multiple of H.
        landmarks: of the Nystrom attention.
        neighbour_dim: d.
        pool_dim: width of the gated attention.

    Raises:
        InputError: an option outside its range; "authors" and a bag without coordinates; "graph" and a batch without a
            graph.
    """

    family = "spatial"
    replayable = True
    not_in_onnx = "it searches the nearest patches of each patch, for which ONNX has no op"
    needs_coords = True
    without_coords = "take neighbours in feature space (--set camil.neighbours=graph --set camil.graph=feature_knn:8)"
    paper = Paper(
        "CAMIL: Context-Aware Multiple Instance Learning for Cancer Detection and Subtyping in Whole Slide Images",
        2024,
        "https://arxiv.org/abs/2305.05314",
        "https://github.com/olgarithmics/ICLR_CAMIL",
    )
    permutation_invariant = False
    published_renames = (
        (r"/", "."),
        (r"^encoder\.nyst_att\.", "nystrom."),
        (r"^nystrom\.res_conv\.kernel$", "nystrom.res_conv"),
        (r"^encoder\.custom_att\.w([qk])$", r"\1.weight"),
        (r"^encoder\.wv\.", "value."),
        (r"^attcls\.([vuw])$", r"\1.weight"),
        (r"^class_fc\.", "classifier."),
        (r"\.kernel$", ".weight"),
    )

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        embed_dim: int | None = None,
        neighbours: Literal["authors", "graph"] = "authors",
        heads: int = 8,
        head_dim: int = 64,
        landmarks: int = 256,
        neighbour_dim: int = 256,
        pool_dim: int = 128,
    ) -> None:
        super().__init__(in_dim, num_classes)
        if neighbours not in ("authors", "graph"):
            raise InputError(f"camil: neighbours must be 'authors' or 'graph', not {neighbours!r}")
        if not 1 <= heads <= TAPS // 2 + 1 or head_dim < 1 or head_dim % heads or landmarks < 1:
            raise InputError(
                f"camil: heads ({heads}) must lie between 1 and {TAPS // 2 + 1} and divide head_dim ({head_dim}), and "
                f"landmarks ({landmarks}) be positive"
            )
        width, self.neighbours = embed_dim or in_dim, neighbours
        self.needs_coords, self.needs_graph = neighbours == "authors", neighbours == "graph"
        self.embed = nn.Identity() if embed_dim is None else Linear(in_dim, embed_dim)
        self.nystrom = NystromAttention(width, heads, head_dim, landmarks)
        self.q, self.k = (Linear(width, neighbour_dim, bias=False) for _ in range(2))
        self.value = Linear(width, width)
        self.v, self.u = (Linear(width, pool_dim, bias=False) for _ in range(2))
        self.w = Linear(pool_dim, 1, bias=False)
        self.classifier = Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def load_published_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """See ``Aggregator.load_published_state_dict``; Keras has matrices the other way round."""
        tensors = {name: torch.as_tensor(value) for name, value in flat_state_dict(state_dict).items()}
        super().load_published_state_dict({name: x.T if x.ndim == 2 else x for name, x in tensors.items()})

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``; attention ``[ΣN]``."""
        x = self.embed(batch.features)  # [ΣN, E]
        e = x + torch.cat([self.nystrom(bag) for bag in x.split(batch.lengths)])
        query, key = self.q(e), self.k(e)
        scores = (query * self._neighbour_sum(key, batch)).sum(1, keepdim=True) * query.shape[1] ** -0.5
        _, b = segment_attention_pool(scores, torch.ones_like(scores), batch.offsets)  # [ΣN, 1]
        local = b * self.value(x)
        gate = torch.sigmoid(-local).square()
        f = 2 * local * gate + 2 * e * (1 - gate)
        scores = gated_scores(linear(f, torch.cat([self.v.weight, self.u.weight])), self.w.weight)
        pooled, attention = segment_attention_pool(scores, f, batch.offsets)
        embedding = pooled[:, 0]
        return AggregatorOutput(self.classifier(embedding), embedding, attention[:, 0], scores[:, 0])

    def _neighbour_sum(self, key: Tensor, batch: BagBatch) -> Tensor:
        """Computes ``sum_j w_ij K_j``, ``[ΣN, d]``."""
        if self.neighbours == "graph":
            graph = self._needs_graph(batch).graph.csr.without_self_loops
            weight, own = graph_weights(batch.features, graph.indices.long(), graph.destinations)
            return own * key + graph_sum(key, graph, weight=weight)
        table, there = self._nearest(batch)
        weight, own = table_weights(batch.features, table, there)
        total = own * key
        for column in range(min(KEPT, table.shape[1])):
            total = total + weight[:, column, None] * key.index_select(0, table[:, column])
        return total

    @torch.no_grad()
    def _nearest(self, batch: BagBatch) -> tuple[Tensor, Tensor]:
        """Finds the rows of the nearest others, int64 ``[ΣN, 15]``, and which of them are there, bool."""
        if batch.coords is None:
            raise InputError(
                f"camil: slides {', '.join(batch.slide_ids)} lack coordinates (one or all), by which their neighbours "
                "are found; use slides with coordinates, or neighbours='graph' with a graph over features"
            )
        tables = []
        for start, end in pairwise(accumulate(batch.lengths, initial=0)):
            found = nearest(batch.coords[start:end], NEAREST) + start
            tables.append(F.pad(found, (0, NEAREST - found.shape[1]), value=start))
        place = torch.arange(NEAREST, device=batch.coords.device)
        return torch.cat(tables), place < (batch.sizes - 1).index_select(0, batch.bag_index)[:, None]


@torch.no_grad()
def distances(x: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """``1 - cos(x_i, x_j)`` of pairs of rows, ``[P]``; 1 where a row is zero, 0 where nothing but rounding differs."""
    x = F.normalize(x)
    count = max(1, AT_ONCE // x.shape[1])
    pairs = zip(i.split(count), j.split(count), strict=True)
    away = torch.cat([1 - (x.index_select(0, a) * x.index_select(0, b)).sum(1) for a, b in pairs])
    return torch.where(away > 8 * torch.finfo(x.dtype).eps, away, 0)


@torch.no_grad()
def table_weights(x: Tensor, table: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """The weights of the neighbours of a table ``[N, k]``, 0 where there is none, and of the patches ``[N, 1]``."""
    rows = torch.arange(len(table), device=x.device)[:, None].expand_as(table)
    away = torch.where(there, distances(x, rows.flatten(), table.flatten()).view(table.shape), 0)
    norm = away.norm(dim=1, keepdim=True)
    weight = torch.where(there, torch.exp(-away / torch.where(norm > 0, norm, 1)), 0)
    own = weight.amax(1, keepdim=True)
    return weight, torch.where(there[:, :1], own, 1)


@torch.no_grad()
def graph_weights(x: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The weights of edges ``[E]`` without self-loops, and of the patches themselves ``[N, 1]``."""
    away = distances(x, target, source)
    norm = x.new_zeros(len(x)).index_add(0, target, away.square()).sqrt().index_select(0, target)
    weight = torch.exp(-away / torch.where(norm > 0, norm, 1))
    own = x.new_zeros(len(x)).scatter_reduce(0, target, weight, "amax")
    return weight, torch.where(own > 0, own, 1)[:, None]
