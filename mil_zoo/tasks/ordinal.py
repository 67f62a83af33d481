"""One of several grades a bag, which have an order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil_zoo.errors import InputError
from mil_zoo.metrics import combine_slides
from mil_zoo.tasks.base import Floats, Task
from mil_zoo.tasks.classification import Classification
from mil_zoo.tasks.registry import register_task
from mil_zoo.tasks.settings import loss_by_name
from mil_zoo.tasks.strata import one_hot, within

if TYPE_CHECKING:
    from torch import Tensor


@register_task("ordinal")
@loss_by_name
@dataclass(frozen=True)
class Ordinal(Task):
    """Each bag is of one of C classes in an order: grade 0 below grade 1 below grade 2.

    Attributes:
        num_classes: C, 2 or more.
        criterion: the loss (``loss=`` of the constructor): "corn", where logit k tells ``y > k`` among the bags with
            ``y >= k``; "coral", one output plus C - 1 biases, where all bags tell each ``y > k``; "ce", cross-entropy
            over C classes, which knows no order.
        classes: their names, lowest first; ``class 0``, ... where none are given.

    Raises:
        InputError: fewer than 2 classes, or names of another number.

    Source: Shi, Cao & Raschka, arXiv 2111.08851 (CORN); Cao, Mirjalili & Raschka, arXiv 1901.07884 (CORAL).
    """

    num_classes: int
    criterion: Literal["corn", "coral", "ce"] = "corn"
    classes: tuple[str, ...] = ()

    family: ClassVar[str] = "ordinal"
    explains: ClassVar[str] = "expected class"
    target_columns: ClassVar[tuple[str, ...]] = ("label",)
    select: ClassVar[str] = "qwk"
    tie: ClassVar[str] = "loss"
    figures: ClassVar[tuple[str, ...]] = ("confusion",)
    strata_are_classes: ClassVar[bool] = True
    ordered: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise InputError(f"ordinal needs 2 classes or more, not {self.num_classes}")
        if self.classes and len(self.classes) != self.num_classes:
            raise InputError(f"{self.num_classes} classes have {self.num_classes} names, not {len(self.classes)}")

    @classmethod
    def create(cls, settings: Mapping[str, Any], classes: Sequence[str] = ()) -> Task:
        """Of a dataset's classes, in their order; without any, of the settings."""
        given = {"num_classes": len(classes), "classes": list(classes)} if classes else {}
        asked = settings.get("num_classes")
        if classes and asked not in (None, len(classes)):
            raise InputError(
                f"ordinal:num_classes={asked}, but the labels are of {len(classes)} classes ({', '.join(classes)}); "
                "leave num_classes out, or correct the labels"
            )
        return super().create({**settings, **given})

    @property
    def width(self) -> int:
        """C - 1, with cross-entropy C."""
        return self.num_classes if self.criterion == "ce" else self.num_classes - 1

    @property
    def outputs(self) -> int:
        """The width; with "coral" 1, to which the biases are added."""
        return 1 if self.criterion == "coral" else self.width

    @property
    def biases(self) -> tuple[float, ...]:
        """With "coral" C - 1, evenly from 1 down to 1 / (C - 1), as the authors' code starts."""
        steps = self.num_classes - 1
        return tuple((steps - k) / steps for k in range(steps)) if self.criterion == "coral" else ()

    @property
    def prediction_columns(self) -> tuple[str, ...]:
        """``prob_0``, ...; ``predicted``, how many of ``P(y > k)`` exceed 1/2; ``expected``, ``sum k prob_k``."""
        return (*(f"prob_{k}" for k in range(self.num_classes)), "predicted", "expected")

    def _classification(self) -> Classification:
        return Classification(self.num_classes, self.classes)

    def targets(self, table: pd.DataFrame, where: str = "the label table") -> Floats:
        """The class index ``[n, 1]`` that the column ``label`` names, by its number or its name."""
        return self._classification().targets(table, where)

    def check(self, targets: Floats, slide_ids: Sequence[str], where: str) -> None:
        """Raises an ``InputError`` that names a slide whose label is no class."""
        self._classification().check(targets, slide_ids, where)

    def strata(self, targets: Floats) -> NDArray[np.int64]:
        """The classes."""
        return np.asarray(targets)[:, 0].astype(np.int64)

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """The loss ``[B]`` whose mean is that of the batch; times the weight of each bag."""
        from mil_zoo.tasks.losses import classification, ordinal

        if self.criterion == "ce":
            return classification.cross_entropy(logits, targets[:, 0], weights)
        criterion = ordinal.corn if self.criterion == "corn" else ordinal.coral
        return criterion(logits, targets[:, 0], weights)

    def predict(self, logits: Tensor) -> Tensor:
        """Float64 ``[B, C + 2]``, see :attr:`prediction_columns`."""
        from mil_zoo.tasks.losses.predictions import of_grades

        return of_grades(logits, self.criterion)

    def arguments(self, targets: Floats, predictions: Floats) -> tuple[NDArray[Any], ...]:
        """Labels and predicted classes, int ``[n]``."""
        return self.strata(targets), np.asarray(predictions)[:, self.num_classes].astype(np.int64)

    def patients(self, table: pd.DataFrame, rule: str) -> pd.DataFrame:
        """Patients by the mean of their slides' probabilities, or by the slide with the highest expected class."""
        probabilities = [name for name in self.prediction_columns if name.startswith("prob_")]
        if rule == "max":
            table = table.sort_values("expected", ascending=False, kind="stable").drop_duplicates(
                "patient_id" if table["patient_id"].fillna("").ne("").all() else "slide_id"
            )
        combined = combine_slides(table, "mean", self.target_columns, self.prediction_columns)
        combined[["predicted", "expected"]] = self._grades(combined[probabilities].to_numpy(dtype=float))
        return combined

    def ensemble(self, predictions: Floats) -> Floats:
        """The mean probabilities, and the class that these predict: a mean of classes is none."""
        known = predictions[:, : self.num_classes].mean(0)
        return np.concatenate([known, self._grades(known[None])[0]])

    def explained_column(self, prediction: Floats) -> int:
        """That of the expected class."""
        return self.num_classes + 1

    def explained_logit(self, logits: Tensor) -> Tensor:
        """The mean of the logits of ``y > k``; with "ce" that of the classes' logits weighted from low to high."""
        if self.criterion != "ce":
            return logits.mean(1)
        middle = (self.num_classes - 1) / 2
        return logits @ logits.new_tensor([grade - middle for grade in range(self.num_classes)])

    def given_target(self, targets: Floats, predictions: Floats) -> tuple[Floats, Floats]:
        """The class; the probabilities of all but the lowest within each class."""
        members = one_hot(self.strata(targets))
        return members, within(predictions[:, 1 : self.num_classes], members)

    def _grades(self, probabilities: Floats) -> Floats:
        """Predicted and expected class ``[n, 2]`` by probabilities ``[n, C]``."""
        above = 1 - probabilities.cumsum(1)[:, :-1]
        return np.stack([(above > 0.5).sum(1).astype(float), probabilities @ np.arange(self.num_classes)], axis=1)

    def describe(self, prediction: Floats) -> str:
        """The name of the predicted class."""
        label = int(prediction[self.num_classes])
        return self.classes[label] if self.classes else f"class {label}"

    def caption(self, prediction: Floats) -> str:
        """The name of the predicted class, and the expected one."""
        return f"{self.describe(prediction)}, expected {prediction[-1]:.2f}"
