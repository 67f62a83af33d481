"""IBMIL: interventional training of bag embeddings against confounders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil_zoo.aggregators.base import Aggregator, Paper, Preparation
from mil_zoo.aggregators.blocks.attention import Attention
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.blocks.one_vs_rest import one_vs_rest_logits, one_vs_rest_loss
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.registry import register_aggregator
from mil_zoo.aggregators.transmil import TransMIL
from mil_zoo.data.bag import Bag, BagBatch
from mil_zoo.errors import InputError
from mil_zoo.kernels import linear, segment_attention_pool, segment_reduce

BASELINES = ("abmil", "dsmil", "transmil")


class Embedded(NamedTuple):
    """What a baseline makes of a batch: embeddings ``[B, R, W]``, and the fields of ``AggregatorOutput``."""

    bags: Tensor
    attention: Tensor | None = None
    attention_logits: Tensor | None = None
    head_attention: Tensor | None = None
    instance_logits: Tensor | None = None


class AttentionBaseline(nn.Module):
    """ABMIL without an embedding layer: one embedding a bag, of the features' width."""

    def __init__(self, in_dim: int) -> None:
        super().__init__()
        self.attention = Attention(in_dim, in_dim)

    def forward(self, batch: BagBatch) -> Embedded:
        """One row a bag."""
        scores = self.attention(batch.features)
        pooled, attention = segment_attention_pool(scores, batch.features, batch.offsets)
        return Embedded(pooled, attention[:, 0], scores[:, 0])


class DualStreamBaseline(nn.Module):
    """DSMIL with the features as values: one embedding a class, pooled by similarity to its critical instance."""

    def __init__(self, in_dim: int, num_classes: int, joint_dim: int, nonlinear: bool) -> None:
        super().__init__()
        self.instance_classifier = Linear(in_dim, num_classes)
        self.query: nn.Module = Linear(in_dim, joint_dim)
        if nonlinear:
            self.query = nn.Sequential(self.query, nn.ReLU(), Linear(joint_dim, joint_dim), nn.Tanh())

    def forward(self, batch: BagBatch) -> Embedded:
        """C rows a bag."""
        instance_logits = self.instance_classifier(batch.features)  # [ΣN, C]
        _, critical = segment_reduce(instance_logits.detach(), batch.offsets, "max", return_argmax=True)  # [B, C]
        query = self.query(batch.features)  # [ΣN, Q]
        of_critical = query.index_select(0, critical.flatten()).view(*critical.shape, -1)  # [B, C, Q]
        products = [q @ keys.T for q, keys in zip(query.split(batch.lengths), of_critical, strict=True)]
        scores = torch.cat(products) * query.shape[1] ** -0.5  # [ΣN, C]
        pooled, attention = segment_attention_pool(scores, batch.features, batch.offsets)
        return Embedded(pooled, attention, scores, instance_logits=instance_logits)


class TransformerBaseline(nn.Module):
    """TransMIL up to its normed class token."""

    def __init__(self, in_dim: int, embed_dim: int, dropout: float) -> None:
        super().__init__()
        self.transmil = TransMIL(in_dim, embed_dim, embed_dim, dropout=dropout)
        self.transmil.classifier = nn.Identity()  # type: ignore[assignment]

    def forward(self, batch: BagBatch) -> Embedded:
        """One row a bag."""
        output = self.transmil(batch)
        return Embedded(output.embedding[:, None], output.attention, head_attention=output.head_attention)


class Adjustment(nn.Module):
    """Looks confounders up for a bag: ``c = sum_j s_j C_j``, ``s = softmax_j(<W_q M, W_k C_j> / sqrt(Q))``."""

    def __init__(self, width: int, joint_dim: int) -> None:
        super().__init__()
        self.W_q, self.W_k = Linear(width, joint_dim), Linear(width, joint_dim)

    def forward(self, bags: Tensor, confounders: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
        """``[B, R, W]`` and ``[k, W]`` to c ``[B, R, W]`` and s ``[B, R, k]``."""
        keys = self.W_k(F.dropout(confounders, dropout) if dropout else confounders)
        weights = (self.W_q(bags) @ keys.T * keys.shape[1] ** -0.5).softmax(-1)
        return weights @ confounders, weights


@register_aggregator("ibmil")
class IBMIL(Aggregator):
    """Classifies a baseline's bag embedding beside the confounders that it resembles.

    Three stages: a baseline is trained; k-means over its normalised embeddings of the training bags gives k clusters,
    whose mean embeddings are the dictionary C ``[k, W]``; a new model is trained from scratch with C fixed. With the
    bag embedding M of the baseline's kind::

        s = softmax_j(<W_q M, W_k C_j> / sqrt(joint_dim));  c = sum_j s_j C_j
        logits = W' [M; c]                                     (merge "add", "sub": W' (M + c), W' (M - c))
        loss   = binary cross-entropies with the one-hot label, for dsmil averaged with those of max_n instance logits

    In this zoo ``fit`` runs the first two stages (``prepare``), on the training bags and no others: the baseline is
    trained with the same settings and its last epoch kept, so that no validation slide reaches the dictionary. What the
    stages saw is in the trial's ``stages.json``. Before them, and where the class is used without a trainer, C is zero
    and changes nothing; ``confounder`` gives one made elsewhere, ``num_confounders=0`` is the baseline itself.

    Attention is the baseline's over instances, never that over confounders (``confounder_attention``).

    Source: Lin et al., CVPR 2023; github HHHedo/IBMIL. Its baselines are those of Ilse et al. 2018 and Li et al. 2021
    without embedding layers (widths are the features'), and TransMIL.

    Deviations: none in the numbers of the third stage. k-means starts ten times by k-means++ (theirs once at random,
    and often far from the best partition), so a dictionary differs from theirs for the same bags. Probabilities are the
    sigmoids over their sum; for dsmil theirs average bag and instance. Theirs chooses the epoch on test slides.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        baseline: "abmil", "dsmil" or "transmil".
        confounder: dictionary ``[k, W]``, W the width of bag embeddings (D; for transmil ``embed_dim``); None lets
            ``fit`` learn it.
        merge: "cat", "add" or "sub".
        learn_confounder: train the dictionary further.
        joint_dim: width Q of W_q and W_k, and of dsmil's queries.
        nonlinear: of dsmil: the query is Linear, ReLU, Linear, Tanh; else one Linear.
        embed_dim: of transmil: width of the tokens.
        confounder_drop: of dsmil: dropout rate of the dictionary before W_k.
        dropout: of transmil: dropout rate of the output of each attention layer.
        num_confounders: k of a dictionary that ``fit`` learns; 0 for none.

    Raises:
        InputError: an option outside its range, or fewer training bags than confounders.
    """

    family = "attention"
    replayable = True
    paper = Paper(
        "Interventional Bag Multi-Instance Learning On Whole-Slide Pathological Images",
        2023,
        "https://arxiv.org/abs/2303.06873",
        "https://github.com/HHHedo/IBMIL",
    )
    permutation_invariant = False  # with transmil
    published_renames = (
        (r"^(b_classifier\.)?confounder_feat$", "confounder"),
        (r"^(b_classifier\.)?(confounder_)?(W_[qk])\.", r"adjustment.\3."),
        (r"^attention\.0\.", "body.attention.V."),
        (r"^attention\.2\.", "body.attention.w."),
        (r"^i_classifier\.fc\.0\.", "body.instance_classifier."),
        (r"^b_classifier\.q\.", "body.query."),
        (r"^b_classifier\.fcc\.", "classifier."),
        (r"^_fc1\.0\.", "body.transmil.embed.0."),
        (r"^_fc2\.", "classifier."),
        (r"^pos_layer\.proj\.", "body.transmil.ppeg.convolutions.0."),
        (r"^pos_layer\.proj([12])\.", r"body.transmil.ppeg.convolutions.\1."),
        (r"^(cls_token$|layer[12]\.|norm\.)", r"body.transmil.\1"),
        (r"\.to_out\.0\.", ".to_out."),
    )
    published_unused = (r"norm2\..*",)

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        baseline: Literal["abmil", "dsmil", "transmil"] = "abmil",
        confounder: Tensor | None = None,
        merge: Literal["cat", "add", "sub"] = "cat",
        learn_confounder: bool = False,
        joint_dim: int = 128,
        nonlinear: bool = False,
        embed_dim: int = 512,
        confounder_drop: float = 0.1,
        dropout: float = 0.1,
        num_confounders: int = 8,
    ) -> None:
        super().__init__(in_dim, num_classes)
        if baseline not in BASELINES or merge not in ("cat", "add", "sub"):
            raise InputError(
                f"ibmil: baseline must be one of {', '.join(BASELINES)}, not {baseline!r}, and merge cat, add or sub, "
                f"not {merge!r}"
            )
        if joint_dim < 1 or num_confounders < 0 or not 0 <= confounder_drop < 1 or not 0 <= dropout < 1:
            raise InputError(
                f"ibmil: joint_dim ({joint_dim}) must be at least 1, num_confounders ({num_confounders}) at least 0, "
                f"and confounder_drop ({confounder_drop}) and dropout ({dropout}) at least 0 and below 1"
            )
        width = embed_dim if baseline == "transmil" else in_dim
        self.to_learn = confounder is None and num_confounders > 0
        dictionary = torch.zeros(num_confounders, width) if confounder is None else torch.as_tensor(confounder).float()
        if dictionary.ndim != 2 or dictionary.shape[1] != width:
            raise InputError(f"ibmil: confounder must have shape [k, {width}], not {list(dictionary.shape)}")
        self.baseline, self.merge, self.confounder_drop = baseline, merge, confounder_drop
        self.options = {"joint_dim": joint_dim, "nonlinear": nonlinear, "embed_dim": embed_dim, "dropout": dropout}
        bodies = {
            "abmil": lambda: AttentionBaseline(in_dim),
            "dsmil": lambda: DualStreamBaseline(in_dim, num_classes, joint_dim, nonlinear),
            "transmil": lambda: TransformerBaseline(in_dim, embed_dim, dropout),
        }
        self.body = bodies[baseline]()
        self.adjustment = None
        if len(dictionary):
            self.adjustment = Adjustment(width, joint_dim)
            if learn_confounder:
                self.confounder = nn.Parameter(dictionary)
            else:
                self.register_buffer("confounder", dictionary)
        read = 2 * width if len(dictionary) and merge == "cat" else width
        dual = baseline == "dsmil"
        self.classifier = nn.Conv1d(num_classes, num_classes, read) if dual else Linear(read, num_classes)

    def prepare(self, preparation: Preparation) -> None:
        """Trains a baseline on the training bags and makes the dictionary from its embeddings of them."""
        if not self.to_learn:
            return
        baseline = IBMIL(self.in_dim, self.num_classes, self.baseline, num_confounders=0, **self.options)
        preparation.train(baseline)
        embeddings = torch.cat([self._rows(output.embedding) for output in preparation.outputs(baseline)])
        found = cluster_means(embeddings, len(self.confounder), preparation.seed)
        with torch.no_grad():
            self.confounder.copy_(found)

    @torch.no_grad()
    def fit_confounders(self, bags: Sequence[Bag], k: int, seed: int = 0) -> Tensor:
        """Makes a dictionary ``[k, W]`` from ``bags``, by this model as the trained baseline (``num_confounders=0``).

        Give it training bags alone; ``fit`` does all of this by itself.
        """
        was_training = self.training
        self.eval()
        device = self.classifier.weight.device
        embeddings = [self.body(BagBatch.from_bags([bag]).to(device)).bags[0] for bag in bags]
        self.train(was_training)
        return cluster_means(torch.cat(embeddings), k, seed)

    def _rows(self, embedding: Tensor) -> Tensor:
        return embedding.unflatten(1, (-1, self.confounder.shape[1])).flatten(0, 1)  # [B, R * W] to [B * R, W]

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``; attention ``[ΣN]``, for dsmil ``[ΣN, C]``."""
        found = self.body(batch)
        read = self._merged(found.bags)
        return AggregatorOutput(
            logits=self._classify(read),
            embedding=read.flatten(1),
            attention=found.attention,
            attention_logits=found.attention_logits,
            head_attention=found.head_attention,
            instance_logits=found.instance_logits,
        )

    def losses(self, batch: BagBatch) -> dict[str, Tensor]:
        """Computes "loss"; for dsmil the mean of "bag" and "instance"."""
        output = self(batch)
        bag = one_vs_rest_loss(self, output.logits, batch)
        if self.baseline != "dsmil":
            return {"loss": bag}
        highest = segment_reduce(output.instance_logits, batch.offsets, "max")
        instance = one_vs_rest_loss(self, highest, batch)
        return {"loss": (bag + instance) / 2, "bag": bag, "instance": instance}

    def task_logits(self, logits: Tensor) -> Tensor:
        """Returns log-sigmoids ``[B, C]``, whose softmax are the sigmoids over their sum."""
        return one_vs_rest_logits(self, logits)

    def confounder_attention(self, batch: BagBatch) -> Tensor:
        """The weights s of the confounders, ``[B, k]``, for dsmil ``[B, C, k]``."""
        if self.adjustment is None:
            raise InputError("ibmil with num_confounders=0 has no confounders")
        weights = self.adjustment(self.body(batch).bags, self.confounder, 0.0)[1]
        return weights if self.baseline == "dsmil" else weights[:, 0]

    def _merged(self, bags: Tensor) -> Tensor:
        if self.adjustment is None:
            return bags
        dropout = self.confounder_drop if self.training and self.baseline == "dsmil" else 0.0
        c, _ = self.adjustment(bags, self.confounder, dropout)
        if self.merge == "cat":
            return torch.cat([bags, c], dim=-1)
        return bags + c if self.merge == "add" else bags - c

    def _classify(self, read: Tensor) -> Tensor:
        # dsmil's convolution, whose kernel is as long as its input, is a linear map too, in a tenth of the time.
        return linear(read.flatten(1), self.classifier.weight.flatten(1), self.classifier.bias)


def cluster_means(embeddings: Tensor, k: int, seed: int) -> Tensor:
    """The mean of the embeddings ``[n, W]`` of each of k clusters, which k-means finds among their directions.

    Raises:
        InputError: there are fewer embeddings than clusters, or a cluster is empty.
    """
    from sklearn.cluster import KMeans

    if len(embeddings) < k:
        raise InputError(f"ibmil: {len(embeddings)} training bags cannot make {k} confounders; lower num_confounders")
    embeddings = embeddings.detach().cpu()
    directions = embeddings.double() / (embeddings.double().norm(dim=1, keepdim=True) + 1e-10)
    cluster = torch.from_numpy(KMeans(k, n_init=10, random_state=seed).fit_predict(directions.numpy())).long()
    sizes = torch.bincount(cluster, minlength=k)
    if not sizes.all():
        raise InputError(
            f"ibmil: the training bags have fewer than {k} different embeddings; lower num_confounders to "
            f"{int((sizes > 0).sum())}"
        )
    return (
        torch.zeros(k, embeddings.shape[1], dtype=embeddings.dtype).index_add(0, cluster, embeddings) / sizes[:, None]
    )
