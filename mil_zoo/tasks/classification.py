"""One class a bag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil_zoo.errors import InputError
from mil_zoo.metrics import patient_predictions
from mil_zoo.tasks.base import Floats, Task
from mil_zoo.tasks.registry import register_task
from mil_zoo.tasks.strata import one_hot, within

if TYPE_CHECKING:
    from torch import Tensor


@register_task("classification")
@dataclass(frozen=True)
class Classification(Task):
    """Each bag is of one of C classes; cross-entropy, or with one logit binary cross-entropy.

    Attributes:
        num_classes: logits C: 2 or more, or 1 for one logit that tells class 1 from class 0.
        classes: their names, for people; ``class 0``, ... where none are given.

    Raises:
        InputError: ``num_classes`` is not positive, or the names are of another number.
    """

    num_classes: int
    classes: tuple[str, ...] = ()

    family: ClassVar[str] = "classification"
    target_columns: ClassVar[tuple[str, ...]] = ("label",)
    select: ClassVar[str] = "auc"
    tie: ClassVar[str] = "loss"
    figures: ClassVar[tuple[str, ...]] = ("roc", "pr", "calibration")
    tests: ClassVar[tuple[str, ...]] = ("delong", "permutation")
    strata_are_classes: ClassVar[bool] = True
    explains: ClassVar[str] = "probability of the predicted class"
    score_at_chance: ClassVar[str] = "AUC"

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise InputError(f"num_classes must be positive, not {self.num_classes}")
        if len(self.classes) == 1 and self.count > 1:
            raise InputError(f"every bag is of one class, {self.classes[0]!r}; add bags of another")
        if self.classes and len(self.classes) != self.count:
            raise InputError(f"{self.count} classes have {self.count} names, not {len(self.classes)}")

    @classmethod
    def create(cls, settings: Mapping[str, Any], classes: Sequence[str] = ()) -> Task:
        """Of a dataset's classes; without any, of the settings."""
        if not classes:
            return super().create(settings)
        if settings:
            raise InputError(
                f"task {cls.name} takes its classes from the dataset and has no setting {next(iter(settings))!r}"
            )
        return cls(len(classes), tuple(classes))

    @property
    def count(self) -> int:
        """Number of classes: two with one logit."""
        return max(2, self.num_classes)

    @property
    def width(self) -> int:
        """Number of logits C."""
        return self.num_classes

    @property
    def prediction_columns(self) -> tuple[str, ...]:
        """``prob_0``, ``prob_1``, ..."""
        return tuple(f"prob_{label}" for label in range(self.count))

    def targets(self, table: pd.DataFrame, where: str = "the label table") -> Floats:
        """The class index ``[n, 1]`` that the column ``label`` names, by its number or its name."""
        known = {str(i): i for i in range(self.count)} | {name: i for i, name in enumerate(self.classes)}
        unknown = ~table["label"].isin(list(known))
        if unknown.any():
            row = table[unknown].iloc[0]
            raise InputError(f"{where}: slide {row['slide_id']!r} has label {row['label']!r}, not {', '.join(known)}")
        return table["label"].map(known).to_numpy(dtype=np.float64)[:, None]

    def check(self, targets: Floats, slide_ids: Sequence[str], where: str) -> None:
        """Raises an ``InputError`` that names a slide whose label is no class."""
        for slide_id, (label,) in zip(slide_ids, targets, strict=True):
            if label not in range(self.count):
                raise InputError(
                    f"{where}: slide {slide_id!r} has label {label:g}, the classes are 0 to {self.count - 1}"
                    + (f" ({', '.join(self.classes)})" if self.classes else "")
                )

    def strata(self, targets: Floats) -> NDArray[np.int64]:
        """The classes."""
        return np.asarray(targets)[:, 0].astype(np.int64)

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Cross-entropy ``[B]`` of each bag, with one logit binary cross-entropy; times its weight."""
        from mil_zoo.tasks.losses.classification import cross_entropy

        return cross_entropy(logits, targets[:, 0], weights)

    def predict(self, logits: Tensor) -> Tensor:
        """Class probabilities, float64 ``[B, max(C, 2)]``: softmax, or (1 - p, p) with one logit."""
        from mil_zoo.tasks.losses.classification import probabilities

        return probabilities(logits)

    def arguments(self, targets: Floats, predictions: Floats) -> tuple[NDArray[Any], ...]:
        """Labels, int ``[n]``, and probabilities ``[n, C]``."""
        return self.strata(targets), np.asarray(predictions)

    def patients(self, table: pd.DataFrame, rule: str) -> pd.DataFrame:
        """Probabilities of patients, see :func:`mil_zoo.metrics.patient_predictions`."""
        return patient_predictions(table, rule)

    def shown_output(self, prediction: Floats) -> int | None:
        """The predicted class."""
        return int(np.asarray(prediction).argmax())

    def describe(self, prediction: Floats) -> str:
        """The name of the predicted class."""
        label = int(np.asarray(prediction).argmax())
        return self.classes[label] if self.classes else f"class {label}"

    def caption(self, prediction: Floats) -> str:
        """The name of the predicted class, and its probability."""
        return f"{self.describe(prediction)}, probability {np.max(prediction):.3f}"

    def given_target(self, targets: Floats, predictions: Floats) -> tuple[Floats, Floats]:
        """The class; the probabilities of all but the first within each class."""
        members = one_hot(self.strata(targets))
        return members, within(predictions[:, 1:], members)

    def variance_at_chance(self, targets: Floats) -> float:
        """See ``Task``: that of Mann and Whitney's statistic of two classes; of more none is stated."""
        positive, n = int((targets[:, 0] == 1).sum()), len(targets)
        if self.count != 2 or positive in (0, n):
            return 0.0
        return (n + 1) / (12 * positive * (n - positive))
