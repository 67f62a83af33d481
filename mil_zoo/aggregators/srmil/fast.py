"""SRMIL as it runs: the numbers of ``literal.py``, which reads like the paper, with a fraction of its work."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mil_zoo.aggregators.base import Aggregator, Paper
from mil_zoo.aggregators.blocks.dropout import Dropout
from mil_zoo.aggregators.blocks.gat import GAT, GATLayer, Packing
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.blocks.masking import draw_rows
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.registry import register_aggregator
from mil_zoo.aggregators.srmil.readouts import READOUTS, Paths
from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.kernels import CSR, linear
from mil_zoo.kernels.devices import positions, to_device


@register_aggregator("srmil")
class SRMIL(Aggregator):
    """Shares a graph-attention encoder between slide classification and masked patch-feature reconstruction.

    With X the patch features and X_M the same with a share ``mask_rate`` of the rows replaced by a learned token::

        L_rec       = mean over masked patches of (1 - cos(decoder(encoder(X_M)), X)) ** alpha
        CE_masked   = cross-entropy of the classifier on the global node of encoder(X_M)
        CE_full     = cross-entropy of the classifier on the global node of encoder(X)
        loss        = (2 - w_gen) * ((2 - w_ce) * CE_masked + w_ce * CE_full) + w_gen * L_rec

    The reconstruction runs on the patch graph without the global node, prediction on the unmasked bag with it.
    Attention is the weight of every patch in the last encoder layer's global node, averaged over heads.

    Source: Wu et al., WACV 2026, arXiv 2602.19487; github wwyi1828/SRMIL. Read ``literal.py`` beside the paper.

    Deviations: none in the numbers, only in the order of work. The three paths are one batch of three graphs whose
    first layer reads copies of the reformed rows that are never made; values, scores and residual of a layer are one
    product; the global node is kept out of the graph, and what only it needs is pooled before it is projected; the
    decoder ends at the masked rows and without the reconstructed features; in eval mode the reformer is folded into
    the encoder's first product.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        hidden: encoder width, all heads together.
        heads: attention heads.
        head_hidden: width of the classifier's hidden layer (and of the attention readout).
        feat_drop: dropout rate of every layer's input.
        attn_drop: dropout rate of attention weights.
        cls_drop: dropout rate in the classifier.
        mask_rate: share of patches masked; int(mask_rate * N) of a bag of N.
        w_gen: weight of the reconstruction, in [0, 2].
        w_ce: weight of the complete classification, in [0, 2].
        alpha: exponent of the scaled cosine error.
        readout: "global_node", or "attention": the authors' attention pooling of patch embeddings, without the global
            node.

    Raises:
        InputError: an option outside its range.
    """

    graph = "window:2"
    family = "spatial"
    replayable = True
    paper = Paper(
        "Exploiting Label-Independent Regularization from Spatial Dependencies for Whole Slide Image Analysis",
        2026,
        "https://arxiv.org/abs/2602.19487",
        "https://github.com/wwyi1828/SRMIL",
    )

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        hidden: int = 256,
        heads: int = 4,
        head_hidden: int = 128,
        feat_drop: float = 0.11,
        attn_drop: float = 0.15,
        cls_drop: float = 0.059,
        mask_rate: float = 0.7,
        w_gen: float = 1.8,
        w_ce: float = 1.0,
        alpha: float = 1.0,
        readout: Literal["global_node", "attention"] = "global_node",
    ) -> None:
        super().__init__(in_dim, num_classes)
        _check_options(hidden, heads, mask_rate, w_gen, w_ce, readout)
        head_dim, drops = hidden // heads, (feat_drop, attn_drop)
        self.mask_rate, self.w_gen, self.w_ce, self.alpha = mask_rate, w_gen, w_ce, alpha
        self.readout = READOUTS[readout]
        self.enc_mask_token = nn.Parameter(0.01 * torch.randn(1, in_dim))
        self.dec_mask_token = nn.Parameter(0.01 * torch.randn(1, hidden))
        self.reformer = nn.Sequential(Linear(in_dim, in_dim))
        self.encoder = GAT(GATLayer(in_dim, heads, head_dim, *drops), GATLayer(hidden, heads, head_dim, *drops))
        self.encoder_to_decoder = Linear(hidden, hidden, bias=False)
        self.decoder = GAT(
            GATLayer(hidden, heads, head_dim, *drops),
            GATLayer(hidden, 1, in_dim, *drops, residual=False, norm=False, activation=None),
        )
        self.classifier = nn.Sequential(
            Linear(head_dim, head_hidden), nn.ReLU(), Dropout(cls_drop), Linear(head_hidden, num_classes)
        )
        self.readout.add_parameters(self, head_hidden, feat_drop, attn_drop)
        # The authors' layers carry mask tokens that nothing reads, and both readouts whichever is on.
        self.published_unused = (r"(encoder|decoder|attender)\.mask_tokens\..*", self.readout.unused)
        nn.init.xavier_uniform_(self.reformer[0].weight, gain=1.414)
        nn.init.zeros_(self.reformer[0].bias)
        nn.init.xavier_normal_(self.encoder_to_decoder.weight, gain=1.414)

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``: complete classification; attention ``[ΣN]``, head_attention ``[ΣN, H]``."""
        graph, offsets = self._needs_graph(batch).graph.csr, batch.offsets
        h, h_global = self._first_layer(batch.features, Paths(graph, offsets))
        return self.readout.read(self, h, h_global, [graph], offsets)

    def losses(self, batch: BagBatch, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Computes the three paths of a training step.

        Args:
            batch: labelled bags with their graph.
            mask: int64, rows of ``batch.features`` to mask; None draws int(mask_rate * N) rows of each bag.

        Returns:
            "loss", "reconstruction", "ce_masked" and "ce_full", each the mean over the bags of the batch.
        """
        features, graph, n = self._needs_graph(batch).features, batch.graph.csr, batch.num_instances
        if mask is None:
            mask = draw_rows(batch.graph.num_nodes, self.mask_rate, features.device)
        rows = to_device(mask, features.device).sort().values
        # The three paths are three graphs of one batch: masked without the global node, masked, and complete.
        index = torch.arange(n, device=features.device).repeat(3)
        index.index_fill_(0, torch.cat([rows, n + rows]), -1)
        ends = batch.offsets[1:]
        paths = Paths(
            CSR.concat([graph] * 3),
            torch.cat([batch.offsets, n + ends, 2 * n + ends]),
            skip=len(batch),
            first=n,
            packing=Packing(index, self.enc_mask_token[0]),
        )
        h, h_global = self._first_layer(features, paths)
        alone, both = h.split([n, 2 * n])
        reconstruction = self._reconstruction_loss(alone, rows, batch)
        offsets = torch.cat([batch.offsets, n + ends])
        logits = self.readout.read(self, both, h_global, [graph] * 2, offsets).logits
        ce_masked, ce_full = (self.bag_loss(part, batch.targets, batch.weights) for part in logits.split(len(batch)))
        classification = (2 - self.w_ce) * ce_masked + self.w_ce * ce_full
        loss = (2 - self.w_gen) * classification + self.w_gen * reconstruction
        return {"loss": loss, "reconstruction": reconstruction, "ce_masked": ce_masked, "ce_full": ce_full}

    def encode(self, batch: BagBatch) -> tuple[Tensor, Tensor]:
        """Encodes the graph with the global node: patches ``[ΣN, hidden]`` and global nodes ``[B, hidden]``."""
        graph = self._needs_graph(batch).graph.csr
        h, h_global = self._first_layer(batch.features, Paths(graph, batch.offsets))
        return self.encoder.gat_layers[1].with_global(h, h_global, graph, batch.offsets)

    def reconstruct(self, h: Tensor, rows: Tensor, graph: CSR) -> Tensor:
        """Reconstructs ``[len(rows), D]``, the features at masked ``rows``, from the first layer ``[N, hidden]``."""
        last = self.decoder.gat_layers[1]
        return last.fc(self._decode(h, rows, graph)) + last.bias

    def _decode(self, h: Tensor, rows: Tensor, graph: CSR) -> Tensor:
        """Does ``reconstruct`` up to its last product, ``[len(rows), hidden]``."""
        masked = torch.zeros(len(h), dtype=torch.bool, device=h.device).index_fill(0, rows, True)
        seen = positions(~masked, len(h) - len(rows))
        code = self.encoder_to_decoder(self.encoder.gat_layers[1](h, graph, seen))
        # Fixed re-mask: of the encoder's output the decoder sees the rows that were not masked.
        packing = Packing(torch.where(masked, -1, (~masked).cumsum(0) - 1), self.dec_mask_token[0])
        first, last = self.decoder.gat_layers
        return last.mix(first(code, graph, packing=packing), graph, rows)[0]

    def _first_layer(self, features: Tensor, paths: Paths) -> tuple[Tensor, Tensor | None]:
        """Runs the reformer and the encoder's first layer: patches ``[M, hidden]`` and global nodes, if any."""
        layer, reformer = self.encoder.gat_layers[0], self.reformer[0]
        tokens = self.readout.tokens(self, len(paths.offsets) - 1 - paths.skip)
        if paths.packing is None and not layer.drops and len(features) > layer.fc.out_features:
            return self.readout.first_layer(self, features, tokens, paths, before=reformer)
        # The reformer works row by row: masked rows are its image of the token, the others serve every path.
        reformed = reformer(features)
        tokens = None if tokens is None else reformer(tokens)
        if paths.packing is not None:
            paths = paths._replace(packing=paths.packing._replace(token=reformer(self.enc_mask_token)[0]))
        return self.readout.first_layer(self, reformed, tokens, paths, before=None)

    def _reconstruction_loss(self, h: Tensor, rows: Tensor, batch: BagBatch) -> Tensor:
        features = batch.features
        if len(rows) == 0:
            return features.new_zeros(())
        last = self.decoder.gat_layers[1]
        decoded = self._decode(h, rows, batch.graph.csr)
        error = 1 - _cosine_to_map(decoded, last.fc.weight, last.bias, features[rows])
        bag = batch.bag_index[rows]
        count = torch.zeros_like(batch.sizes).index_add(0, bag, torch.ones_like(bag)).clamp(min=1)
        return (error.pow(self.alpha) / count[bag]).sum() / len(batch)

    def head_mean(self, h: Tensor) -> Tensor:
        """Averages ``[M, hidden]`` over heads to ``[M, hidden / heads]``."""
        return h.view(len(h), self.encoder.gat_layers[-1].heads, -1).mean(1)


def _cosine_to_map(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """Computes ``cos(W h + b, x)`` of every row, of many rows without ``W h + b`` where that is wide.

    ``<W h + b, x> = <h, W^T x> + <b, x>`` and ``|W h + b|^2 = <h, W^T W h + 2 W^T b> + |b|^2``. The product of W with
    itself is made up for by more than D rows.

    Args:
        h: ``[M, hidden]``.
        weight: ``[D, hidden]``.
        bias: ``[D]``.
        x: ``[M, D]``.

    Returns:
        ``[M]``.
    """
    if len(h) > x.shape[1] > 2 * h.shape[1]:
        dtype = torch.promote_types(h.dtype, torch.float32)
        with torch.autocast(h.device.type, enabled=False):
            dot, square = _folded_products(*(part.to(dtype) for part in (h, weight, bias, x)))
    else:
        mapped = linear(h, weight, bias).to(x.dtype)  # [M, D]
        dot, square = (mapped * x).sum(1), mapped.square().sum(1)
    cosine = dot / (square.clamp(min=1e-16).sqrt() * x.norm(dim=1).clamp(min=1e-8))
    return cosine.clamp(-1, 1)  # rounding must not make 1 - cos negative, which has no powers


def _folded_products(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """``<W h + b, x>`` and ``|W h + b|^2``, ``[M]`` each; sums whose terms cancel, so not for bfloat16."""
    projected = linear(x, torch.cat([weight, bias[:, None]], dim=1).t())  # [M, hidden + 1]
    dot = (h * projected[:, :-1]).sum(1) + projected[:, -1]
    square = (h * (linear(h, linear(weight.t(), weight.t())) + 2 * (bias @ weight))).sum(1) + bias @ bias
    return dot, square


def _check_options(hidden: int, heads: int, mask_rate: float, w_gen: float, w_ce: float, readout: str) -> None:
    if hidden % heads:
        raise InputError(f"srmil: hidden ({hidden}) must be a multiple of heads ({heads})")
    if not 0 <= mask_rate < 1:
        raise InputError(f"srmil: mask_rate must be at least 0 and below 1, not {mask_rate}")
    if not (0 <= w_gen <= 2 and 0 <= w_ce <= 2):
        raise InputError(f"srmil: w_gen and w_ce must lie between 0 and 2, not {w_gen} and {w_ce}")
    if readout not in READOUTS:
        raise InputError(f"srmil: readout must be 'global_node' or 'attention', not {readout!r}")
