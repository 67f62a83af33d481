"""One number a bag."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mil_zoo.errors import InputError
from mil_zoo.tasks.base import Floats, Task
from mil_zoo.tasks.registry import register_task
from mil_zoo.tasks.settings import loss_by_name
from mil_zoo.tasks.strata import one_hot, quantile_strata, within

if TYPE_CHECKING:
    from torch import Tensor


@register_task("regression")
@loss_by_name
@dataclass(frozen=True)
class Regression(Task):
    """Each bag has a number with a unit, which the aggregator learns standardised and predicts in its unit.

    With the mean m and the standard deviation s of the targets of the training bags, the loss is that of the logit z
    against ``(y - m) / s``, and the prediction is ``m + s z``.

    Attributes:
        unit: of the target, for people ("years").
        criterion: the loss (``loss=`` of the constructor): "huber", quadratic up to one standard deviation and linear
            beyond; "mse", or "mae".
        column: of the label table.
        mean: m, which a trial takes from its training bags.
        sd: s, likewise.
    """

    unit: str = ""
    criterion: Literal["huber", "mse", "mae"] = "huber"
    column: str = "target"
    mean: float = 0.0
    sd: float = 1.0

    family: ClassVar[str] = "regression"
    target_columns: ClassVar[tuple[str, ...]] = ("target",)
    naming: ClassVar[str] = "--task regression:column=COLUMN"
    select: ClassVar[str] = "rmse"
    tie: ClassVar[str] = "loss"
    explains: ClassVar[str] = "predicted number"
    figures: ClassVar[tuple[str, ...]] = ("agreement",)

    @classmethod
    def columns(cls, settings: Mapping[str, Any], header: Sequence[str]) -> tuple[str, ...]:
        """The one that the settings name, or ``target``."""
        return (str(settings.get("column", "target")),)

    @property
    def width(self) -> int:
        """1."""
        return 1

    @property
    def prediction_columns(self) -> tuple[str, ...]:
        """``predicted``, in the unit of the target."""
        return ("predicted",)

    def refuses(self, other: Task) -> str:
        """Another kind of task, or numbers in another unit."""
        if isinstance(other, Regression) and other.unit != self.unit:
            units = " and in ".join(unit or "no unit" for unit in (self.unit, other.unit))
            return f"targets are in {units}; convert one of the tables"
        return super().refuses(other)

    def facts(self, targets: Floats) -> list[str]:
        """What is predicted, and between which numbers it lies."""
        unit = f" {self.unit}" if self.unit else ""
        low, high = targets.min(), targets.max()
        return [
            f"Target: {self.column}, {low:.4g} to {high:.4g}{unit}, mean {targets.mean():.4g}, standard deviation "
            f"{targets.std():.4g}."
        ]

    def fit(self, targets: Floats) -> Task:
        """The task that standardises by these targets; constant ones are only centred."""
        sd = float(targets.std())
        if not len(targets):
            raise InputError("regression needs a training bag")
        return dataclasses.replace(self, mean=float(targets.mean()), sd=sd if sd > 0 else 1.0)

    def strata(self, targets: Floats) -> NDArray[np.int64]:
        """Fifths of the targets."""
        return quantile_strata(targets[:, 0], 5)

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """The loss ``[B]`` of standardised targets, times the weight of each bag."""
        from mil_zoo.tasks.losses.regression import regression

        return regression(logits, (targets - self.mean) / self.sd, self.criterion, weights=weights)

    def predict(self, logits: Tensor) -> Tensor:
        """Float64 ``[B, 1]`` in the unit of the target."""
        return self.mean + self.sd * logits.double()

    def given_target(self, targets: Floats, predictions: Floats) -> tuple[Floats, Floats]:
        """The target and its fifth; the prediction within each fifth."""
        members = one_hot(self.strata(targets))
        return np.concatenate([targets, members], axis=1), within(predictions, members)

    def describe(self, prediction: Floats) -> str:
        """The number and its unit."""
        return f"{prediction[0]:.4g} {self.unit}".rstrip()
