"""MHIM-MIL: masked hard instance mining with a momentum teacher."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mil_zoo.aggregators.base import Aggregator, Paper, Preparation
from mil_zoo.aggregators.checkpoints import flat_state_dict
from mil_zoo.aggregators.mhim.network import ACTIVATIONS, Network
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.registry import register_aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.kernels.devices import to_device


class Ratios(NamedTuple):
    """Shares of a bag that are masked: at random, the least and the most attended, and of the latter's candidates."""

    random: float
    low: float
    high: float
    high_share: float


@register_aggregator("mhim")
class MHIM(Aggregator):
    """Trains a student on each bag without its easiest instances, and asks it to embed the bag as its teacher does.

    The teacher scores the instances of the whole bag; masked are a random share (``mask_ratio``), the lowest
    (``mask_ratio_low``) and, of ``high_share`` times as many drawn among them, the highest (``mask_ratio_high``, which
    falls to 0 over the training along a cosine). On what is kept, with bag embeddings e::

        loss = CE(W e_student) - consistency_weight * sum_w softmax(e_teacher / temperature)_w log_softmax(e_student)_w

    and after every step ``teacher <- m teacher + (1 - m) student``. Prediction is the student's on the whole bag.
    Version 2 masks the highest alone, and keeps of the others ``merge_ratio`` as they are: the rest becomes ``merge_k``
    tokens by cross-attention from queries that follow the tokens of earlier steps.

    In this zoo ``fit`` first trains the plain network on the training bags (``prepare``, same settings, last epoch): it
    is what the teacher, and the student's embedding layer, start from. What it saw is in the trial's ``stages.json``.

    With abmil the order of instances has no effect, with transmil it has. Attention is the student's in eval mode; for
    transmil the class token's row of the first layer, the heads' mean without negative entries.

    Source: Tang et al., ICCV 2023 (version 1) and IJCV 2025 (version 2); github DearCaat/MHIM-MIL, branches v1, master.

    Deviations: none in the numbers for one bag a step. What is kept stays in the order of the bag (theirs is that of a
    Python set, ascending unless most is masked). Ties of votes among transmil's heads go to the first instance. A bag
    of which nothing would be left is not masked. Their version 1 chooses the epoch on test slides of CAMELYON16. With
    transmil a step waits for the device once a bag, to count what its heads vote to keep.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        baseline: "abmil" or "transmil".
        version: 1 or 2.
        embed_dim: width W; a multiple of 8 for transmil and version 2.
        attention_dim: hidden width of abmil's attention.
        act: "relu" or "gelu", of the embedding layer.
        attention_act: "relu", "gelu" or "tanh", in abmil's attention.
        attention_layer: of transmil: whose attention masks, 0 (first) or -1 (second); version 2 takes the first.
        mask_ratio: share of instances masked at random.
        mask_ratio_low: share of the least attended that are masked.
        mask_ratio_high: share of the most attended that are masked, at the start.
        high_share: of the candidates, ``mask_ratio_high / high_share`` of the bag, the share that is drawn.
        high_decay: whether ``mask_ratio_high`` falls to 0.
        temperature: of the teacher's embedding.
        momentum: m.
        momentum_schedule: "constant", or "cosine" from ``momentum`` to 1.
        consistency_weight: of the second term.
        class_scores: version 2: score instances by the highest class probability of what each adds to the embedding.
        merge_k: tokens that the rest is merged into.
        merge_ratio: share of the kept instances that are not merged.
        merge_momentum: of the queries that follow the tokens.
        dropout: dropout rate after the embedding layer.
        attn_out_drop: dropout rate of the outputs of transmil's attention layers and of the merging.

    Raises:
        InputError: an option outside its range.
    """

    family = "attention"
    paper = Paper(
        "Multiple Instance Learning Framework with Masked Hard Instance Mining for Whole Slide Image Classification",
        2023,
        "https://arxiv.org/abs/2307.15254",
        "https://github.com/DearCaat/MHIM-MIL",
    )
    permutation_invariant = False  # with transmil
    published_renames = (
        (r"^(student|teacher)\.(patch_to_emb|feature)\.0\.", r"\1.embed."),
        (r"^(student|teacher)\.online_encoder\.attention\.attention\.0\.", r"\1.encoder.V."),
        (r"^(student|teacher)\.online_encoder\.attention\.attention\.2\.", r"\1.encoder.w."),
        (r"^(student|teacher)\.online_encoder\.pos_embedding\.proj\.", r"\1.encoder.ppeg.convolutions.0."),
        (r"^(student|teacher)\.online_encoder\.pos_embedding\.proj([12])\.", r"\1.encoder.ppeg.convolutions.\2."),
        (r"^(student|teacher)\.online_encoder\.", r"\1.encoder."),
        (r"^(student|teacher)\.merge\.attn\.", r"\1.merge."),
        (r"^(student|teacher)\.merge\.global_q_mm$", r"\1.merge.queries"),
        (r"\.to_out\.0\.", ".to_out."),
    )
    published_unused = (r"(student|teacher)\.merge\.global_q",)  # what global_q_mm replaces

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        baseline: Literal["abmil", "transmil"] = "abmil",
        version: Literal[1, 2] = 1,
        embed_dim: int = 512,
        attention_dim: int = 128,
        act: Literal["relu", "gelu"] = "relu",
        attention_act: Literal["relu", "gelu", "tanh"] = "relu",
        attention_layer: Literal[0, -1] = 0,
        mask_ratio: float = 0.5,
        mask_ratio_low: float = 0.0,
        mask_ratio_high: float = 0.01,
        high_share: float = 0.5,
        high_decay: bool = True,
        temperature: float = 0.1,
        momentum: float = 0.9999,
        momentum_schedule: Literal["constant", "cosine"] = "constant",
        consistency_weight: float = 0.1,
        class_scores: bool = False,
        merge_k: int = 5,
        merge_ratio: float = 0.9,
        merge_momentum: float = 0.9999,
        dropout: float = 0.25,
        attn_out_drop: float = 0.1,
    ) -> None:
        super().__init__(in_dim, num_classes)
        choices = {"baseline": (baseline, ("abmil", "transmil")), "version": (version, (1, 2))}
        choices |= {"attention_layer": (attention_layer, (0, -1)), "act": (act, ("relu", "gelu"))}
        choices |= {"attention_act": (attention_act, tuple(ACTIVATIONS))}
        choices |= {"momentum_schedule": (momentum_schedule, ("constant", "cosine"))}
        for name, (value, known) in choices.items():
            if value not in known:
                raise InputError(f"mhim: {name} must be one of {', '.join(map(str, known))}, not {value!r}")
        shares = {"mask_ratio": mask_ratio, "mask_ratio_low": mask_ratio_low, "mask_ratio_high": mask_ratio_high}
        shares |= {"momentum": momentum, "merge_ratio": merge_ratio, "merge_momentum": merge_momentum}
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise InputError(f"mhim: {name} must lie between 0 and 1, not {value}")
        if not 0 < high_share <= 1 or temperature <= 0 or consistency_weight < 0 or merge_k < 1:
            raise InputError(
                f"mhim: high_share ({high_share}) must be above 0 and at most 1, temperature ({temperature}) above 0, "
                f"consistency_weight ({consistency_weight}) not negative, and merge_k ({merge_k}) at least 1"
            )
        if not 0 <= dropout < 1 or not 0 <= attn_out_drop < 1:
            raise InputError(
                f"mhim: dropout ({dropout}) and attn_out_drop ({attn_out_drop}) must be at least 0 and below 1"
            )
        self.version, self.attention_layer, self.class_scores = version, attention_layer, class_scores
        self.ratios = Ratios(mask_ratio, mask_ratio_low, mask_ratio_high, high_share)
        self.high_decay, self.temperature, self.consistency_weight = high_decay, temperature, consistency_weight
        self.momentum, self.momentum_schedule = momentum, momentum_schedule
        self.merge_ratio, self.merge_momentum = merge_ratio, merge_momentum
        self.network = {
            "baseline": baseline,
            "embed_dim": embed_dim,
            "attention_dim": attention_dim,
            "act": act,
            "attention_act": attention_act,
            "dropout": dropout,
            "attn_out_drop": attn_out_drop,
        }
        self.student = Network(in_dim, num_classes, merge_k=merge_k if version == 2 else 0, **self.network)
        self.teacher = Network(in_dim, num_classes, merge_k=merge_k if version == 2 else 0, **self.network)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.make_constant()
        self.new_queries: Tensor | None = None  # of the step that is being taken

    def prepare(self, preparation: Preparation) -> None:
        """Trains the plain network, from which the teacher and the student's embedding layer start."""
        plain = Network(self.in_dim, self.num_classes, **self.network)
        preparation.train(plain)
        self.teacher.load_state_dict(plain.state_dict(), strict=False)  # it merges nothing
        self.student.embed.load_state_dict(plain.embed.state_dict())

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``; attention ``[ΣN]``, with transmil also head_attention ``[ΣN, 8]``."""
        return self.student(batch)

    def losses(
        self, batch: BagBatch, keep: Tensor | None = None, merge_order: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Computes "classification", "consistency" and their weighted sum, "loss".

        Args:
            batch: with targets.
            keep: int64, rows of the only bag that are kept; None draws them.
            merge_order: int64, an order of the kept instances, whose last ones are merged; None draws it.
        """
        with torch.no_grad():
            h = self.teacher.embed_rows(batch.features)
            target, scores = self._score(h, batch)
            starts = [sum(batch.lengths[:i]) for i in range(len(batch))]
            rows = [keep] if keep is not None else [self._keep(part) for part in scores]
        kept = [part + start for part, start in zip(rows, starts, strict=True)]
        h = self.student.embed_rows(batch.features.index_select(0, torch.cat(kept)))
        bags, queries = list(h.split([len(part) for part in kept])), []
        if self.version == 2:
            for i, bag in enumerate(bags):
                bags[i], tokens = self._merge(bag, merge_order)
                queries += [] if tokens is None else [tokens.detach()]
        self.new_queries = torch.stack(queries).mean(0) if queries else None
        embedding, _ = self.student.encode(bags)
        classification = self.bag_loss(self.student.predictor(embedding), batch.targets, batch.weights)
        likely = (target / self.temperature).softmax(1)
        consistency = -(likely * embedding.log_softmax(1)).sum(1).mean()
        loss = classification + self.consistency_weight * consistency
        return {"loss": loss, "classification": classification, "consistency": consistency}

    @torch.no_grad()
    def after_step(self) -> None:
        """Moves the queries of merging towards the step's tokens, and the teacher towards the student."""
        if self.new_queries is not None:
            self.student.merge.queries.lerp_(self.new_queries, 1 - self.merge_momentum)
            self.new_queries = None
        student = self.student.state_dict()
        for name, value in self.teacher.state_dict().items():
            value.lerp_(student[name], 1 - self.current_momentum())

    def current_momentum(self) -> float:
        """m of the step that is being taken."""
        if self.momentum_schedule == "constant":
            return self.momentum
        return 1 - (1 - self.momentum) * _falling(self.progress.share)

    def current_ratios(self) -> Ratios:
        """The shares of the step that is being taken."""
        decay = _falling(self.progress.share) if self.high_decay else 1.0
        return self.ratios._replace(high=self.ratios.high * decay)

    def load_published_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """See ``Aggregator.load_published_state_dict``; a checkpoint without a teacher gives it the student's weights.

        A teacher lies beside the model, as in the authors' files, or under names that begin with "teacher.".
        """
        beside = state_dict.get("teacher")
        flat = flat_state_dict(state_dict)
        teacher = {name.removeprefix("teacher."): value for name, value in flat.items() if name.startswith("teacher.")}
        student = {name: value for name, value in flat.items() if not name.startswith("teacher.")}
        teacher = flat_state_dict(beside) if isinstance(beside, Mapping) else teacher or student
        both = {"student": student, "teacher": teacher}
        super().load_published_state_dict({f"{of}.{name}": v for of, own in both.items() for name, v in own.items()})

    def _score(self, h: Tensor, batch: BagBatch) -> tuple[Tensor, list[Tensor]]:
        """The teacher's embeddings ``[B, W]``, and what each bag is masked by: ``[N]``, or ``[8, N]`` of voters."""
        layer = 0 if self.version == 2 else self.attention_layer
        bags = list(h.split(batch.lengths))
        embedding, attention = self.teacher.encode(bags, layer)
        if self.version == 2 and self.class_scores:
            return embedding, [self.teacher.class_scores(bag, own) for bag, own in zip(bags, attention, strict=True)]
        return embedding, attention

    def _keep(self, scores: Tensor) -> Tensor:
        return draw_kept(scores, self.current_ratios())

    def _merge(self, bag: Tensor, order: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Merges the rest of what was kept into tokens, which come last; None where there is no rest."""
        staying = int(len(bag) * self.merge_ratio)
        if len(bag) == staying:
            return bag, None
        order = to_device(torch.rand(len(bag)).argsort(), bag.device) if order is None else order
        bag = bag.index_select(0, order)
        tokens = self.student.merge(bag[staying:])
        return torch.cat([bag[:staying], tokens]), tokens


def draw_kept(scores: Tensor, ratios: Ratios) -> Tensor:
    """Draws which instances of a bag are kept.

    Args:
        scores: ``[N]``; or ``[H, N]``, then each of H heads votes for its own lowest and highest, and those with most
            votes are lowest and highest (equal: the first).
        ratios: shares that are masked; the sets may overlap.

    Returns:
        int64, rows in their order; all of them where none would be left.
    """
    n = scores.shape[-1]
    random, low = math.ceil(n * ratios.random), math.ceil(n * ratios.low)
    whole = ratios.high / ratios.high_share > 1
    candidates = n if whole else math.ceil(n * ratios.high / ratios.high_share)
    high = math.ceil(candidates * (ratios.high if whole else ratios.high_share))
    # Sets are sets of ranks, which the host knows: no device is waited for.
    by_chance = torch.randperm(n)[:random] if random else torch.arange(0)
    highest = torch.arange(candidates) if high == candidates else torch.randperm(candidates)[:high]
    if scores.ndim == 1:
        masked = torch.zeros(n, dtype=torch.bool)
        masked[by_chance] = True
        masked[:low] = True
        masked[n - 1 - highest] = True
        kept = torch.arange(n) if masked.all() else (~masked).nonzero()[:, 0]
        order = scores.argsort(stable=True)  # ascending
        return order.index_select(0, to_device(kept, scores.device)).sort().values
    masked = torch.zeros(n, dtype=torch.bool, device=scores.device)
    masked.index_fill_(0, to_device(by_chance, scores.device), True)
    masked.index_fill_(0, _most_voted(-scores, low), True)
    masked.index_fill_(0, _most_voted(scores, candidates).index_select(0, to_device(highest, scores.device)), True)
    kept = (~masked).nonzero()[:, 0]
    return kept if len(kept) else torch.arange(n, device=scores.device)


def _most_voted(scores: Tensor, count: int) -> Tensor:
    """The ``count`` instances that most heads have among their own ``count`` highest: int64 ``[count]``."""
    own = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    votes = torch.zeros(scores.shape[1], device=scores.device).index_add(
        0, own.flatten(), torch.ones(own.numel(), device=scores.device)
    )
    return votes.argsort(descending=True, stable=True)[:count]


def _falling(share: float) -> float:
    """From 1 to 0 along half a cosine."""
    return (1 + math.cos(math.pi * share)) / 2
