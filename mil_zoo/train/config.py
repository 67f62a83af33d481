"""How one aggregator is trained, as ``configs/aggregators/<name>.yaml`` states it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mil_zoo.errors import InputError
from mil_zoo.metrics import inside
from mil_zoo.tasks import Task
from mil_zoo.train.device import fast_precision


@dataclass(frozen=True)
class TrainingConfig:
    """Optimiser, schedule, budget and selection rule.

    Attributes:
        epochs: passes over the training slides.
        optimizer: "adam" (L2 penalty), "adamw" (decoupled decay), "lookahead_radam" (TransMIL's: every 6 steps of RAdam
            the weights go half the way back to where they were) or "sgd" (momentum 0.9).
        learning_rate: at the start.
        weight_decay: in the optimiser's own sense.
        betas: of the optimisers but "sgd": decay of the running means of gradients and of their squares.
        schedule: "constant", "cosine" from the learning rate to 0 over the epochs, or "step": a fifth of it after half
            of the epochs.
        clip_norm: largest norm of the gradients of a step, which larger ones are scaled to; None for no limit.
        bags_per_step: bags packed into one optimiser step.
        risk_set: with a loss that compares patients, where a step's come from: "batch" packs its bags in one pass,
            "two_pass" gives the same at the memory of one bag, "memory:64" adds the last 64 patients as constants; see
            ``mil_zoo.train.risk_sets``.
        sampling: "shuffled" shows every training slide once an epoch; "balanced" draws as many with replacement, every
            class as often as any other.
        select: validation score by which the checkpoint is chosen: a metric of the task in its direction, or "loss";
            "last" chooses nothing and keeps the last epoch.
        tie: validation score that decides between equal ones; then the earlier epoch wins.
        patience: epochs in a row without a better value of ``select`` after which the training ends, so that ``epochs``
            is an upper bound; None trains them all. With ``select`` "last" nothing ends it.
        patience_after: epochs before which it does not end so.
        select_after: share of the epochs that must have passed before a checkpoint may be chosen, in [0, 1).
        class_weights: "balanced" weighs the loss of a slide by the inverse frequency of its class among the training
            slides (mean weight 1).
        precision: "bfloat16" takes matrix products in bfloat16, in training and prediction; sums, softmax, norms,
            losses and weights stay float32. "auto" takes it where the GPU or the CPU multiplies it faster than float32,
            and becomes "float32" or "bfloat16" at once: a run keeps which.
        labelled: share (at most 1) or number (above 1) of the training slides whose labels are used, see
            ``mil_zoo.data.splits.few_labels``; of the validation slides the same share.
        max_instances: random instances of each bag seen in a training step; None for all. Evaluation always sees all.
        record: after which epochs the training slides are scored and their attention recorded, the points of figure 3:
            every so many, the first and the last; "end" for the last alone, "off" for none. It changes no weight.
    """

    epochs: int = 100
    optimizer: Literal["adam", "adamw", "lookahead_radam", "sgd"] = "adamw"
    learning_rate: float = 2e-4
    weight_decay: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    clip_norm: float | None = None
    bags_per_step: int = 1
    risk_set: str = "batch"
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    select: str = "auc"
    tie: str = "loss"
    patience: int | None = None
    patience_after: int = 0
    select_after: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    max_instances: int | None = None
    labelled: float = 1.0
    record: int | Literal["end", "off"] = 5

    def __post_init__(self) -> None:
        if self.precision == "auto":
            object.__setattr__(self, "precision", fast_precision())
        for name in ("epochs", "bags_per_step", "learning_rate", "clip_norm", "max_instances", "labelled", "patience"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"training.{name} must be positive and finite, not {value}")
        if self.labelled > 1 and self.labelled != int(self.labelled):
            raise InputError(
                f"training.labelled must be a share in (0, 1] or a whole number of slides, not {self.labelled:g}"
            )
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"training.weight_decay must be 0 or more and finite, not {self.weight_decay}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"training.betas must be two numbers of at least 0 and below 1, not {list(self.betas)}")
        if isinstance(self.record, int) and self.record < 1:
            raise InputError(f"training.record must be 1 or more epochs, 'end' or 'off', not {self.record}")
        if self.patience_after < 0:
            raise InputError(f"training.patience_after must be 0 or more epochs, not {self.patience_after}")
        if not 0 <= self.select_after < 1:
            raise InputError(f"training.select_after must be at least 0 and below 1, not {self.select_after}")

    def records(self, epoch: int, last: bool = False) -> bool:
        """Whether the training slides are looked at after ``epoch`` (from 1), which may be the last before its time."""
        last = last or epoch == self.epochs
        if isinstance(self.record, str):
            return self.record == "end" and last
        return last or epoch == 1 or epoch % self.record == 0

    @property
    def times_recorded(self) -> int:
        """After how many of all epochs the training slides are looked at."""
        if isinstance(self.record, str):
            return int(self.record == "end")
        return self.epochs // self.record + (self.record > 1) + (self.epochs > 1 and self.epochs % self.record > 0)

    def out_of_patience(self, values: Sequence[float], epoch: int) -> bool:
        """Whether the training ends after ``epoch``.

        Args:
            values: of ``select`` after each epoch, the higher the better, ``-inf`` where it is undefined.
            epoch: from 1.
        """
        if self.patience is None or epoch <= self.patience_after or math.isinf(max(values)):
            return False
        return epoch - 1 - values.index(max(values)) >= self.patience

    def check_criteria(self, task: Task) -> None:
        """Raises an ``InputError`` where the task has no criterion of the name that is selected by."""
        for key, value in (("select", self.select), ("tie", self.tie)):
            known = [*task.criteria, *(["last"] if key == "select" else [])]
            if value not in known:
                raise InputError(f"training.{key} must be one of {', '.join(known)}, not {value!r}")

    def settings(self) -> dict[str, Any]:
        """The fields as plain values; the way to a risk set and an early end only where they are not the usual ones."""
        fields = dataclasses.asdict(self) | {"betas": list(self.betas)}
        usual = {"risk_set": "batch", "patience": None, "patience_after": 0}
        return {name: value for name, value in fields.items() if name not in usual or value != usual[name]}

    def selection_rule(self, task: Task) -> str:
        """The rule in words, for tables."""
        if self.select == "last":
            return "the last epoch; nothing is chosen on validation slides"
        after = f" after {self.select_after:.0%} of the epochs" if self.select_after else ""
        titles = {metric.name: inside(metric.title) for metric in task.metrics}
        select, tie = (titles.get(name, name) for name in (self.select, self.tie))
        direction = "highest" if task.higher_is_better(self.select) else "lowest"
        end = ""
        if self.patience is not None:
            earliest = f", not before epoch {self.patience_after + 1}" if self.patience_after else ""
            end = f"; training ends after {self.patience} epochs without a better one{earliest}"
        first = "" if tie == select else f"{tie}, then "
        return f"{direction} validation {select}{after} (ties: {first}the earlier epoch){end}"
