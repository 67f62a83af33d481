"""The two ways in which SRMIL reads a slide off its encoder: the global node, or attention pooling of the patches.

Each adds its own parameters to the aggregator under the authors' names, runs the encoder's first layer, and makes of
its output the logits and the attention of every bag.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mil_zoo.aggregators.blocks.gat import GAT, GATLayer, Packing
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.kernels import CSR, segment_attention_pool

if TYPE_CHECKING:
    from mil_zoo.aggregators.srmil.fast import SRMIL


class Paths(NamedTuple):
    """Says through which graphs, packed end to end, the encoder runs.

    Attributes:
        graph: M rows.
        offsets: int64 ``[B + 1]``, the rows of each bag.
        skip: how many of the first bags are read by nobody, and so have no global node.
        first: how many rows these bags have.
        packing: the patches that the M rows are; None for those given, in order.
    """

    graph: CSR
    offsets: Tensor
    skip: int = 0
    first: int = 0
    packing: Packing | None = None


class Readout(Protocol):
    """States what SRMIL asks of a readout."""

    unused: str
    """Regular expression of the parameters that the authors carry for the other readout."""

    def add_parameters(self, model: SRMIL, head_hidden: int, feat_drop: float, attn_drop: float) -> None:
        """Gives ``model`` the parameters that this readout needs."""
        ...

    def tokens(self, model: SRMIL, bags: int) -> Tensor | None:
        """Returns the features of the global nodes ``[bags, D]``; None without one."""
        ...

    def first_layer(
        self, model: SRMIL, h: Tensor, tokens: Tensor | None, paths: Paths, before: nn.Linear | None
    ) -> tuple[Tensor, Tensor | None]:
        """Runs the encoder's first layer: patches ``[M, hidden]`` and global nodes ``[B - skip, hidden]``."""
        ...

    def read(
        self, model: SRMIL, h: Tensor, h_global: Tensor | None, graphs: Sequence[CSR], offsets: Tensor
    ) -> AggregatorOutput:
        """Runs second layer, pooling and classifier on the first layer's output, over ``graphs`` laid end to end."""
        ...


class GlobalNodeReadout:
    """Joins a learned node to every patch: the classifier reads what it has gathered after two layers.

    Attention is the last layer's weight from each patch to the node, ``head_attention`` that of each head.
    """

    unused = r"attender\..*"

    def add_parameters(self, model: SRMIL, head_hidden: int, feat_drop: float, attn_drop: float) -> None:
        """Adds the node's features, which the authors call super tokens."""
        model.super_tokens = nn.Parameter(0.01 * torch.randn(1, model.in_dim))

    def tokens(self, model: SRMIL, bags: int) -> Tensor | None:
        """Gives one node to each bag, ``[bags, D]``."""
        return model.super_tokens.expand(bags, -1)

    def first_layer(
        self, model: SRMIL, h: Tensor, tokens: Tensor | None, paths: Paths, before: nn.Linear | None
    ) -> tuple[Tensor, Tensor | None]:
        """See ``Readout.first_layer``."""
        assert tokens is not None
        return model.encoder.gat_layers[0].with_global(
            h,
            tokens,
            paths.graph,
            paths.offsets,
            skip=paths.skip,
            first=paths.first,
            before=before,
            packing=paths.packing,
        )

    def read(
        self, model: SRMIL, h: Tensor, h_global: Tensor | None, graphs: Sequence[CSR], offsets: Tensor
    ) -> AggregatorOutput:
        """Computes the second layer at the global nodes alone: nobody reads its patches."""
        assert h_global is not None
        h_global, head_attention = model.encoder.gat_layers[1].global_only(h, h_global, offsets)
        embedding = model.head_mean(h_global)
        return AggregatorOutput(
            model.classifier(embedding), embedding, head_attention.mean(1), head_attention=head_attention
        )


class AttentionReadout:
    """Scores patches by two graph attention layers, the authors' ``attender``, and classifies their weighted sum."""

    unused = "super_tokens"

    def add_parameters(self, model: SRMIL, head_hidden: int, feat_drop: float, attn_drop: float) -> None:
        """Adds the scoring layers: head width to ``head_hidden`` with ReLU, then to one score."""
        head_dim, drops = model.encoder.gat_layers[-1].head_dim, (feat_drop, attn_drop)
        model.attender = GAT(
            GATLayer(head_dim, 1, head_hidden, *drops, norm=False, activation="relu"),
            GATLayer(head_hidden, 1, 1, *drops, residual=False, norm=False, activation=None),
        )

    def tokens(self, model: SRMIL, bags: int) -> Tensor | None:
        """Returns None: there is no global node."""
        return None

    def first_layer(
        self, model: SRMIL, h: Tensor, tokens: Tensor | None, paths: Paths, before: nn.Linear | None
    ) -> tuple[Tensor, Tensor | None]:
        """See ``Readout.first_layer``."""
        return model.encoder.gat_layers[0](h, paths.graph, before=before, packing=paths.packing), None

    def read(
        self, model: SRMIL, h: Tensor, h_global: Tensor | None, graphs: Sequence[CSR], offsets: Tensor
    ) -> AggregatorOutput:
        """Computes patch embeddings and their scores, and pools by these."""
        graph = CSR.concat(graphs)
        h = model.head_mean(model.encoder.gat_layers[1](h, graph))  # [N, hidden / heads]
        scores = model.attender(h, graph)  # [N, 1]
        pooled, attention = segment_attention_pool(scores, h, offsets)
        embedding = pooled[:, 0]
        return AggregatorOutput(model.classifier(embedding), embedding, attention[:, 0], scores[:, 0])


READOUTS: dict[str, Readout] = {"global_node": GlobalNodeReadout(), "attention": AttentionReadout()}
