"""DGR-MIL: diverse global representations of a bag."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil_zoo.aggregators.base import Aggregator, Paper
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.blocks.one_vs_rest import one_vs_rest_logits, one_vs_rest_loss
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.registry import register_aggregator
from mil_zoo.aggregators.transmil import TransLayer
from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.kernels import seeded_dropout, segment_attention_pool, segment_reduce
from mil_zoo.kernels.devices import require
from mil_zoo.tasks import Classification, Task

HEADS = 8
KEPT = 0.4  # of a centre, at each bag
RIDGE = 1e-10


@register_aggregator("dgrmil")
class DGRMIL(Aggregator):
    """Summarises a bag by the cross-attention of a token that has seen K learned global vectors.

    With ``e(x) = ReLU(W_2 ReLU(W_1 x))`` for instances (``x = e(features)``) and for global vectors alike (``g``), and
    Nystrom self-attention::

        H = LN(x + Nystrom(LN(x)));  L = LN(t + Nystrom'(LN(t))), t = [token; g]
        z = LN(W cross_attention(L_0, H));  logits = W' z
        loss = bag + diversity_weight * diversity + triplet_weight * triplet, the bag's alone for warmup_epochs

        bag       = mean over classes of the binary cross-entropies with the one-hot label
        diversity = -logdet(G G^T + 1e-10), G the rows of g over their norms
        triplet   = mean_k max(0, d(g_k, c_positive) - d(g_k, c_negative) + 1), d = 1 - cosine

    where the centre of class 0 (negative) or of all others (positive) moves to ``.4 c + .6 mean_n x_n`` at each bag.

    The order of instances matters: landmarks are runs of it. Bags are taken one by one there. Attention is the token's
    on the instances, each head's and their mean.

    Source: Zhu et al., ECCV 2024; github ChongQingNoSubway/DGR-MIL.

    Deviations: none in the numbers for one bag a step. Probabilities are the sigmoids over their sum, where the authors
    take each with a threshold of its own (chosen on their test set). Their dropouts of instances and of the outputs of
    Nystrom attention drop whole instances, and so do these. The cross-attention of the global vectors themselves,
    which the logits do not read, is not computed, and of several bags in a step all see one draw of dropout in L.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        embed_dim: width W; a multiple of 8, the number of heads.
        num_globals: global vectors K.
        warmup_epochs: first epochs that train on the bag's loss alone.
        diversity_weight: of the loss that pushes global vectors apart.
        triplet_weight: of the loss that pulls them to the centre of positive bags.
        instance_drop: dropout rate of instances in e.
        attn_out_drop: dropout rate of instances after Nystrom attention, and of the cross-attention's weights.

    Raises:
        InputError: an option outside its range; or, in training, global vectors that no longer differ.
    """

    family = "transformer"
    not_in_onnx = "its landmarks follow from the size of the bag, which torch's exporter would fix"
    paper = Paper(
        "DGR-MIL: Exploring Diverse Global Representation in Multiple Instance Learning for Whole Slide Image "
        "Classification",
        2024,
        "https://arxiv.org/abs/2407.03575",
        "https://github.com/ChongQingNoSubway/DGR-MIL",
        licence="MIT",
    )
    permutation_invariant = False
    published_renames = (
        (r"^lesionRrepresentation$", "global_vectors"),
        (r"^normalcenter$", "negative_centre"),
        (r"^postivecenter$", "positive_centre"),
        (r"^triple_optimizer\.fc([12])\.", r"embed.\1."),
        (r"^encoder_instances\.0\.", "instance_layer."),
        (r"^encoder_instances\.1\.", "instance_norm."),
        (r"^encoder_globalLesion\.0\.", "global_layer."),
        (r"^encoder_globalLesion\.1\.", "global_norm."),
        (r"\.to_out\.0\.", ".to_out."),
        (r"^crossattention\.attn\.", ""),
        (r"^crossffn\.0\.", "mix."),
        (r"^crossffn\.1\.", "mix_norm."),
        (r"^classifier\.0\.", "classifier."),
    )
    published_unused = (r"crossattention\.attn\.compress_[kv]\.weight",)

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        embed_dim: int = 512,
        num_globals: int = 5,
        warmup_epochs: int = 9,
        diversity_weight: float = 0.1,
        triplet_weight: float = 0.1,
        instance_drop: float = 0.1,
        attn_out_drop: float = 0.4,
    ) -> None:
        super().__init__(in_dim, num_classes)
        if embed_dim < 1 or embed_dim % HEADS or not 1 <= num_globals <= embed_dim:
            raise InputError(
                f"dgrmil: embed_dim ({embed_dim}) must be a multiple of {HEADS}, and num_globals ({num_globals}) at "
                "least 1 and at most embed_dim, or global vectors cannot all differ in direction"
            )
        if min(warmup_epochs, diversity_weight, triplet_weight) < 0:
            raise InputError(
                f"dgrmil: warmup_epochs ({warmup_epochs}), diversity_weight ({diversity_weight}) and triplet_weight "
                f"({triplet_weight}) must not be negative"
            )
        if not 0 <= instance_drop < 1 or not 0 <= attn_out_drop < 1:
            raise InputError(
                f"dgrmil: instance_drop ({instance_drop}) and attn_out_drop ({attn_out_drop}) must be at least 0 and "
                "below 1"
            )
        self.warmup_epochs, self.diversity_weight, self.triplet_weight = warmup_epochs, diversity_weight, triplet_weight
        self.instance_drop, self.attn_out_drop = instance_drop, attn_out_drop
        self.global_vectors = nn.Parameter(torch.randn(1, num_globals, in_dim))
        self.token = nn.Parameter(torch.randn(1, 1, embed_dim))
        self.register_buffer("negative_centre", torch.randn(1, embed_dim))
        self.register_buffer("positive_centre", torch.randn(1, embed_dim))
        self.embed = nn.ModuleDict({"1": Linear(in_dim, embed_dim), "2": Linear(embed_dim, embed_dim)})
        self.instance_layer = TransLayer(embed_dim, HEADS, embed_dim // 2, dropout=0.0)
        self.instance_norm = nn.LayerNorm(embed_dim)
        self.global_layer = TransLayer(embed_dim, HEADS, embed_dim // 2, dropout=0.0)
        self.global_norm = nn.LayerNorm(embed_dim)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (Linear(embed_dim, embed_dim) for _ in range(4))
        self.mix, self.mix_norm = Linear(embed_dim, embed_dim), nn.LayerNorm(embed_dim)
        self.classifier = Linear(embed_dim, num_classes)
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.xavier_uniform_(projection.weight, gain=2**-0.5)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def set_task(self, task: Task) -> None:
        """See ``Aggregator.set_task``; the triplet loss is of negative and positive bags, and off elsewhere."""
        if self.triplet_weight and not isinstance(task, Classification):
            self.left_out, self.triplet_weight = "triplet loss", 0.0
        super().set_task(task)

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``; attention ``[ΣN]``, head_attention ``[ΣN, 8]``."""
        return self._score(batch)[0]

    def losses(self, batch: BagBatch) -> dict[str, Tensor]:
        """Computes "bag", "diversity" and (of classes) "triplet", and their weighted sum, "loss"; moves the centres."""
        output, x, g = self._score(batch)
        terms = {"bag": one_vs_rest_loss(self, output.logits, batch), "diversity": self._diversity(g)}
        if isinstance(self.task, Classification):
            terms["triplet"] = self._triplet(g, segment_reduce(x.detach(), batch.offsets, "mean"), batch)
        loss = terms["bag"]
        if self.progress.epoch > self.warmup_epochs:
            loss = loss + self.diversity_weight * terms["diversity"]
            loss = loss + self.triplet_weight * terms.get("triplet", 0.0)
        return {"loss": loss, **terms}

    def task_logits(self, logits: Tensor) -> Tensor:
        """Returns log-sigmoids ``[B, C]``, whose softmax are the sigmoids over their sum."""
        return one_vs_rest_logits(self, logits)

    def _score(self, batch: BagBatch) -> tuple[AggregatorOutput, Tensor, Tensor]:
        """The output, the embedded instances ``[ΣN, W]`` and the embedded global vectors ``[K, W]``."""
        x = self._embed(batch.features, self.instance_drop if self.training else 0.0)
        g = self._embed(self.global_vectors[0], 0.0)
        token = self.global_norm(self._attend(self.global_layer, torch.cat([self.token[0], g]), rows=1))  # [1, W]
        h = [self._attend(self.instance_layer, bag, rows=len(bag)) for bag in x.split(batch.lengths)]
        h = self.instance_norm(torch.cat(h))
        q = self.q_proj(token).view(HEADS, -1) * (h.shape[1] // HEADS) ** -0.5  # [8, W / 8]
        k, v = (layer(h).view(len(h), HEADS, -1) for layer in (self.k_proj, self.v_proj))
        scores = (k * q).sum(2)  # [ΣN, 8]
        dropped = self.attn_out_drop if self.training else 0.0
        pooled, heads = segment_attention_pool(scores, v, batch.offsets, dropout_p=dropped)
        embedding = self.mix_norm(self.mix(self.out_proj(pooled.flatten(1))))
        logits = self.classifier(embedding)
        return AggregatorOutput(logits, embedding, heads.mean(1), head_attention=heads), x, g

    def _embed(self, x: Tensor, dropped: float) -> Tensor:
        for layer in self.embed.values():
            x = _drop_rows(F.relu(layer(x)), dropped)
        return x

    def _attend(self, layer: TransLayer, x: Tensor, rows: int) -> Tensor:
        out, _ = layer.attn(layer.norm(x), rows)
        return x[:rows] + _drop_rows(out, self.attn_out_drop if self.training else 0.0)

    def _diversity(self, g: Tensor) -> Tensor:
        with torch.autocast(g.device.type, enabled=False):
            rows = F.normalize(g.double(), dim=1, eps=1e-12)
            gram, identity = rows @ rows.T, torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
            loss = -torch.logdet(gram + RIDGE * identity)
        nearest = (gram - 2 * identity).detach().max()  # the largest cosine of two
        require(
            loss.detach().isfinite() & (nearest < 1 - RIDGE),
            lambda: "dgrmil: two global vectors have become the same; lower num_globals or training.learning_rate",
        )
        return loss.to(self.token.dtype)

    def _triplet(self, g: Tensor, means: Tensor, batch: BagBatch) -> Tensor:
        """The mean over bags; in training each bag first moves the centre of its own kind."""
        negative, positive = [], []
        for mean, label in zip(means.split(1), batch.labels.split(1), strict=True):
            if self.training:
                is_negative = label == 0
                for centre, moves in ((self.negative_centre, is_negative), (self.positive_centre, ~is_negative)):
                    centre.copy_(torch.where(moves, KEPT * centre + (1 - KEPT) * mean, centre))
            negative.append(self.negative_centre.clone())
            positive.append(self.positive_centre.clone())
        from_negative, from_positive = (
            1 - F.cosine_similarity(g[None], torch.stack(centres), dim=2, eps=1e-8) for centres in (negative, positive)
        )  # [B, K]
        return F.relu(from_positive - from_negative + 1).mean()


def _drop_rows(x: Tensor, p: float) -> Tensor:
    """Sets whole rows to 0 with probability ``p``."""
    return x * seeded_dropout(torch.ones_like(x[:, :1]), p) if p else x
