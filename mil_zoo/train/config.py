"""How one aggregator is trained, as ``configs/aggregators/<name>.yaml`` states it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mil_zoo.errors import InputError

Criterion = Literal["accuracy", "balanced_accuracy", "auc", "f1", "loss"]


@dataclass(frozen=True)
class TrainingConfig:
    """Optimiser, schedule, budget and selection rule.

    Attributes:
        epochs: passes over the training slides.
        optimizer: "adam" (L2 penalty), "adamw" (decoupled decay) or "sgd" (momentum 0.9).
        learning_rate: at the start.
        weight_decay: in the optimiser's own sense.
        schedule: "constant", or "cosine" from the learning rate to 0 over the epochs.
        bags_per_step: bags packed into one optimiser step.
        select: validation score by which the checkpoint is chosen ("loss" is minimised).
        tie: validation score that decides between equal ones; then the earlier epoch wins.
        select_after: share of the epochs that must have passed before a checkpoint may be chosen, in [0, 1).
        class_weights: "balanced" weighs the loss of a slide by the inverse frequency of its class among the training
            slides (mean weight 1).
        max_instances: random instances of each bag seen in a training step; None for all. Evaluation always sees all.
    """

    epochs: int = 100
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    learning_rate: float = 2e-4
    weight_decay: float = 1e-5
    schedule: Literal["constant", "cosine"] = "cosine"
    bags_per_step: int = 1
    select: Criterion = "auc"
    tie: Criterion = "loss"
    select_after: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    max_instances: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "bags_per_step", "learning_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"training.{name} must be positive, not {getattr(self, name)}")
        if not 0 <= self.select_after < 1:
            raise InputError(f"training.select_after must be at least 0 and below 1, not {self.select_after}")
        if self.max_instances is not None and self.max_instances < 1:
            raise InputError(f"training.max_instances must be positive, not {self.max_instances}")

    @property
    def selection_rule(self) -> str:
        """The rule in words, for tables."""
        after = f" after {self.select_after:.0%} of the epochs" if self.select_after else ""
        direction = "lowest" if self.select == "loss" else "highest"
        return f"{direction} validation {self.select}{after} (ties: {self.tie}, then the earlier epoch)"
