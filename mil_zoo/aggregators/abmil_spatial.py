"""ABMIL with SRMIL's label-independent regulariser, to set that beside label-driven ones on the same aggregator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil_zoo.aggregators.abmil import ABMIL
from mil_zoo.aggregators.base import Paper
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.blocks.masking import draw_rows
from mil_zoo.aggregators.registry import register_aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.kernels import graph_attention


@register_aggregator("abmil_spatial")
class SpatialABMIL(ABMIL):
    """Trains ABMIL so that its instance embedding must also tell the features of masked neighbours.

    With h = ReLU(W x) the embedding that ABMIL attends over, a share ``mask_rate`` of each bag's rows of h is replaced
    by a learned token, one graph-attention layer over the patch graph gathers what the neighbours hold, and a linear
    map reconstructs x at the masked rows::

        L_rec = mean over masked patches of 1 - cos(decoder(h_masked), x)
        loss  = 2 (2 - w_gen) CE + w_gen L_rec

    which is SRMIL's loss without its classification of the corrupted slide (w_ce = 2). Prediction is ABMIL's: no graph,
    no mask, nothing added. So plain ABMIL, its label-driven regularisers (``topk_mask``, ``instance_weight``), its
    attention entropy and this one differ in nothing but the loss.

    Source: the regulariser of Wu et al., WACV 2026, arXiv 2602.19487, here on Ilse et al., ICML 2018.

    Deviations: not a model of either paper. SRMIL's encoder passes messages, so masking its input and masking its code
    are two steps; ABMIL's embeds each instance alone, so they are one. The decoder has one graph layer, not two.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        embed_dim: width of h.
        attention_dim: as in ABMIL.
        gated: as in ABMIL.
        hidden: width of the decoder, all heads together.
        heads: its attention heads.
        attn_drop: dropout rate of its attention weights.
        mask_rate: share of patches masked; int(mask_rate * N) of a bag of N.
        w_gen: weight of the reconstruction, in [0, 2].

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
    )
    published_renames = ()

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        embed_dim: int = 512,
        attention_dim: int = 128,
        gated: bool = False,
        hidden: int = 256,
        heads: int = 4,
        attn_drop: float = 0.15,
        mask_rate: float = 0.7,
        w_gen: float = 1.8,
    ) -> None:
        super().__init__(in_dim, num_classes, embed_dim, attention_dim, gated)
        if not 0 <= mask_rate < 1 or not 0 <= w_gen <= 2 or hidden % heads:
            raise InputError(
                f"abmil_spatial: mask_rate ({mask_rate}) must lie in [0, 1), w_gen ({w_gen}) in [0, 2], and heads "
                f"({heads}) divide hidden ({hidden})"
            )
        self.heads, self.attn_drop, self.mask_rate, self.w_gen = heads, attn_drop, mask_rate, w_gen
        self.mask_token = nn.Parameter(0.01 * torch.randn(1, embed_dim))
        self.gather = Linear(embed_dim, hidden, bias=False)
        self.gather_source = nn.Parameter(torch.empty(1, heads, hidden // heads))
        self.gather_target = nn.Parameter(torch.empty(1, heads, hidden // heads))
        self.norm, self.activation = nn.LayerNorm(hidden), nn.PReLU()
        self.reconstruct = Linear(hidden, in_dim)
        for weight in (self.gather.weight, self.gather_source, self.gather_target):
            nn.init.xavier_normal_(weight, gain=2**0.5)

    def losses(self, batch: BagBatch, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Computes the cross-entropy and the reconstruction.

        Args:
            batch: labelled bags with their graph.
            mask: int64, rows of ``batch.features`` to mask; None draws int(mask_rate * N) rows of each bag.

        Returns:
            "loss", "cross_entropy" and "reconstruction", each the mean over the bags of the batch.
        """
        sizes, device = self._needs_graph(batch).graph.num_nodes, batch.features.device
        rows = draw_rows(sizes, self.mask_rate, device) if mask is None else mask.to(device)
        cross_entropy = self.bag_loss(self(batch).logits, batch.targets, batch.weights)
        reconstruction = self._reconstruction(batch, rows)
        loss = 2 * (2 - self.w_gen) * cross_entropy + self.w_gen * reconstruction
        return {"loss": loss, "cross_entropy": cross_entropy, "reconstruction": reconstruction}

    def _reconstruction(self, batch: BagBatch, rows: Tensor) -> Tensor:
        code = self.embed(batch.features).index_copy(0, rows, self.mask_token.expand(len(rows), -1))  # [ΣN, E]
        z = self.gather(code).view(len(code), self.heads, -1)  # [ΣN, H, F]
        left, right = (z * self.gather_source).sum(-1), (z * self.gather_target).sum(-1)  # [ΣN, H]
        dropout = self.attn_drop if self.training else 0.0
        gathered = graph_attention(z, left, right, batch.graph.csr, dropout_p=dropout).flatten(1)
        reconstructed = self.reconstruct(self.activation(self.norm(gathered.index_select(0, rows))))
        error = 1 - F.cosine_similarity(reconstructed, batch.features.index_select(0, rows), dim=1)  # [masked]
        bag = batch.bag_index.index_select(0, rows)
        masked = (
            torch.zeros_like(batch.sizes).index_add(0, bag, torch.ones_like(bag)).clamp(min=1)
        )  # a bag too small to be masked counts as 0
        return (error.new_zeros(len(batch)).index_add(0, bag, error) / masked).mean()
