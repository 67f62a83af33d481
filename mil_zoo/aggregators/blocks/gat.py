"""Graph attention layers with a global node, as SRMIL's encoder and decoder are made of."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.kernels import (
    CSR,
    GlobalKey,
    dropout_linear,
    graph_attention,
    linear,
    residual_norm_prelu,
    seeded_dropout,
    segment_attention_pool,
)


class Packing(NamedTuple):
    """Says which row each input of a layer copies, so that masked copies need not be made.

    Attributes:
        index: integer ``[M]``, the row of the given features that row m is, -1 where it is the token.
        token: ``[D]``.
    """

    index: Tensor
    token: Tensor


class GATLayer(nn.Module):
    """Attends over a graph: dropout, projection, attention, bias, residual, norm, activation.

    The global node of each bag is not in the graph: it is one dense extra key for every patch, and for itself one
    softmax pooling over the patches of its bag. That gives the numbers of the graph with the node in it, without a
    row of degree N.

    Args:
        in_dim: width of the input.
        heads: H.
        head_dim: width F of a head.
        feat_drop: dropout rate of the input.
        attn_drop: dropout rate of the attention weights.
        residual: add a linear map of the input, where ``in_dim != H * F``. (Where they are equal the authors add
            nothing.)
        norm: LayerNorm over the concatenated heads.
        activation: "prelu" (one slope), "relu", or None.
    """

    def __init__(
        self,
        in_dim: int,
        heads: int,
        head_dim: int,
        feat_drop: float,
        attn_drop: float,
        residual: bool = True,
        norm: bool = True,
        activation: Literal["prelu", "relu"] | None = "prelu",
    ) -> None:
        super().__init__()
        out_dim = heads * head_dim
        self.heads, self.head_dim, self.attn_drop = heads, head_dim, attn_drop
        self.feat_drop = nn.Dropout(feat_drop)
        self.fc = Linear(in_dim, out_dim, bias=False)
        self.attn_l = nn.Parameter(torch.empty(1, heads, head_dim))
        self.attn_r = nn.Parameter(torch.empty(1, heads, head_dim))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        self.res_fc = Linear(in_dim, out_dim, bias=False) if residual and in_dim != out_dim else None
        self.norm = nn.LayerNorm(out_dim) if norm else nn.Identity()
        self.activation = {"prelu": nn.PReLU, "relu": nn.ReLU, None: nn.Identity}[activation]()
        for weight in [self.fc.weight, self.attn_l, self.attn_r] + ([self.res_fc.weight] if self.res_fc else []):
            nn.init.xavier_normal_(weight, gain=2**0.5)

    def forward(
        self,
        h: Tensor,
        graph: CSR,
        rows: Tensor | None = None,
        *,
        before: nn.Linear | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Lets patches attend to their neighbours.

        Args:
            h: ``[N, in_dim]``.
            graph: N rows.
            rows: int64, the patches whose output is wanted; None for all.
            before: a linear map that ``h`` has still to go through; without dropout one product does for both.
            packing: the N rows that the patches are, where they are not those of ``h`` in order.

        Returns:
            ``[N or len(rows), H * F]``.
        """
        narrower = self.heads == 1 and self.head_dim > h.shape[1]  # before the projection than after
        if narrower and before is None and packing is None:
            mixed, h = self.mix(h, graph, rows)
            return self._finish(self.fc(mixed), None if self.res_fc is None else self.res_fc(h))
        z, left, right, residual = self._project(h, before, packing)
        if rows is not None:
            graph, right = graph.select(rows), right.index_select(0, rows)
            residual = None if residual is None else residual.index_select(0, rows)
        out = graph_attention(z, left, right, graph, dropout_p=self._attn_drop)
        return self._finish(out.flatten(1), residual)

    def with_global(
        self,
        h: Tensor,
        h_global: Tensor,
        graph: CSR,
        offsets: Tensor,
        *,
        skip: int = 0,
        first: int = 0,
        before: nn.Linear | None = None,
        packing: Packing | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Lets patches attend to neighbours and the global node, and the global nodes to the patches of their bag.

        Args:
            h: ``[N, in_dim]`` patches.
            h_global: ``[B - skip, in_dim]`` global nodes.
            graph: N rows.
            offsets: int64 ``[B + 1]``.
            skip: how many of the first bags have no global node.
            first: how many rows these bags have.
            before: as in ``forward``, for patches and global nodes.
            packing: as in ``forward``, for the patches.

        Returns:
            patches ``[N, H * F]`` and global nodes ``[B - skip, H * F]``.
        """
        z, left, right, residual = self._project(h, before, packing)
        if before is not None:  # a few rows: not worth a product of weights
            h_global = before(h_global)
        z_global, left_global, right_global, residual_global = self._project(h_global)
        bag = torch.repeat_interleave(offsets.diff(), output_size=len(z))
        key = GlobalKey(
            F.pad(z_global, (0, 0, 0, 0, skip, 0)),
            F.pad(left_global, (0, 0, skip, 0), value=-torch.inf),
            bag,
            offsets,
        )
        out = graph_attention(z, left, right, graph, dropout_p=self._attn_drop, global_key=key)
        scores = F.leaky_relu(left[first:] + right_global.index_select(0, bag[first:] - skip), 0.2)
        pooled, _ = segment_attention_pool(scores, z[first:], offsets[skip:] - first, dropout_p=self._attn_drop)
        return self._finish(out.flatten(1), residual), self._finish(pooled.flatten(1), residual_global)

    def global_only(self, h: Tensor, h_global: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the global nodes of ``with_global`` alone: it pools inputs first and projects only pooled rows.

        Returns:
            global nodes ``[B, H * F]`` and their attention over the patches ``[N, H]`` (before dropout).
        """
        h, h_global = seeded_dropout(h, self._feat_drop), seeded_dropout(h_global, self._feat_drop)
        left, right = self._folded()
        right_global = h_global @ right.T  # [B, H]
        bag = torch.repeat_interleave(offsets.diff(), output_size=len(h))
        scores = F.leaky_relu(h @ left.T + right_global.index_select(0, bag), 0.2)
        pooled, attention = segment_attention_pool(scores, h, offsets, dropout_p=self._attn_drop)  # [B, H, in_dim]
        out = torch.einsum("bhi,hfi->bhf", pooled, self._by_head)
        residual = None if self.res_fc is None else self.res_fc(h_global)
        return self._finish(out.flatten(1), residual), attention

    def mix(self, h: Tensor, graph: CSR, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Sums the inputs by the attention of the one head there is; ``fc`` has still to project the sums.

        Returns:
            sums ``[N or len(rows), in_dim]``, and the inputs of these rows after dropout.
        """
        h = seeded_dropout(h, self._feat_drop)
        own, graph = (h, graph) if rows is None else (h.index_select(0, rows), graph.select(rows))
        left, right = self._folded()
        left, right = h @ left.T, own @ right.T  # [N, 1]
        return graph_attention(h[:, None], left, right, graph, dropout_p=self._attn_drop)[:, 0], own

    def _project(
        self, h: Tensor, before: nn.Linear | None = None, packing: Packing | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Computes everything that reads the input as one product.

        Args:
            h: ``[N, in_dim]``.
            before: a linear map that ``h`` has still to go through; without dropout one product does for both.
            packing: the M rows that the patches are, where they are not those of ``h`` in order.

        Returns:
            values ``[M, H, F]``, scores as source and as destination ``[M, H]``, residual ``[M, H * F]`` or None.
        """
        parts = [self.fc.weight, *self._folded()]
        parts += [] if self.res_fc is None else [self.res_fc.weight]
        width, weight, bias = self.heads * self.head_dim, torch.cat(parts), None
        sizes = [width, 2 * self.heads] + ([] if self.res_fc is None else [width])
        if before is not None:
            weight, bias = linear(weight, before.weight.t()), weight @ before.bias
        index, token = packing or (None, None)
        z, scores, *residual = dropout_linear(
            h, weight, bias, sizes=sizes, index=index, token=token, dropout_p=self._feat_drop
        )
        left, right = scores.split(self.heads, dim=1)
        return z.view(len(z), self.heads, self.head_dim), left, right, residual[0] if residual else None

    def _finish(self, out: Tensor, residual: Tensor | None) -> Tensor:
        if isinstance(self.norm, nn.LayerNorm) and isinstance(self.activation, nn.PReLU):
            norm = self.norm
            return residual_norm_prelu(
                out, residual, self.bias, norm.weight, norm.bias, self.activation.weight, eps=norm.eps
            )
        out = out + self.bias if residual is None else out + self.bias + residual
        return self.activation(self.norm(out))

    @property
    def drops(self) -> bool:
        """Says whether the input is dropped out now."""
        return self._feat_drop > 0

    @property
    def _feat_drop(self) -> float:
        return self.feat_drop.p if self.feat_drop.training else 0.0

    @property
    def _attn_drop(self) -> float:
        return self.attn_drop if self.training else 0.0

    @property
    def _by_head(self) -> Tensor:
        return self.fc.weight.view(self.heads, self.head_dim, -1)  # [H, F, in_dim]

    def _folded(self) -> tuple[Tensor, Tensor]:
        """``a^T W`` as source and as destination, each ``[H, in_dim]``: what maps inputs h to scores ``<a, W h>``."""
        vectors = torch.cat([self.attn_l, self.attn_r]).transpose(0, 1)  # [H, 2, F]
        return torch.bmm(vectors, self._by_head).unbind(1)


class GAT(nn.Module):
    """Runs graph attention layers one after another."""

    def __init__(self, *layers: GATLayer) -> None:
        super().__init__()
        self.gat_layers = nn.ModuleList(layers)

    def forward(self, h: Tensor, graph: CSR) -> Tensor:
        """Maps ``[N, in_dim]`` to ``[N, out_dim]``."""
        for layer in self.gat_layers:
            h = layer(h, graph)
        return h
