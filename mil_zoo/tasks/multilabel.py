"""Several labels a bag, each there or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil_zoo.errors import InputError
from mil_zoo.tasks.base import Floats, Task
from mil_zoo.tasks.registry import register_task

if TYPE_CHECKING:
    from torch import Tensor


@register_task("multilabel")
@dataclass(frozen=True)
class MultiLabel(Task):
    """Each bag has each of L labels or not, and of some it may be unknown; binary cross-entropy over the known ones.

    Attributes:
        names: of the labels: columns of the label table that hold 1, 0 or nothing (unknown).

    Raises:
        InputError: no name, one twice, or one called "macro".
    """

    names: tuple[str, ...] = ()

    family: ClassVar[str] = "multilabel"
    select: ClassVar[str] = "auc_macro"
    tie: ClassVar[str] = "loss"
    explains: ClassVar[str] = "probability of the most probable label"
    shown: ClassVar[tuple[str, ...]] = ("auc_macro", "ap_macro", "hamming", "labels_defined")

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) < len(self.names):
            raise InputError(
                "multilabel needs the columns of its labels, each once, as in --task 'multilabel:names=[er,her2]', not "
                f"{list(self.names)}"
            )
        if "macro" in self.names:
            raise InputError("multilabel: no label can be called 'macro', as means over labels are; rename the column")

    @classmethod
    def columns(cls, settings: Mapping[str, Any], header: Sequence[str]) -> tuple[str, ...]:
        """Those that the settings name."""
        return tuple(settings.get("names", ()))

    @property
    def target_columns(self) -> tuple[str, ...]:  # type: ignore[override]
        """``label_<name>`` of each label."""
        return tuple(f"label_{name}" for name in self.names)

    @property
    def width(self) -> int:
        """L."""
        return len(self.names)

    @property
    def prediction_columns(self) -> tuple[str, ...]:
        """``prob_<name>`` of each label."""
        return tuple(f"prob_{name}" for name in self.names)

    def check(self, targets: Floats, slide_ids: Sequence[str], where: str) -> None:
        """Raises an ``InputError`` that names a slide and a label that is neither 0, 1 nor unknown."""
        odd = ~(np.isnan(targets) | np.isin(targets, (0, 1)))
        if odd.any():
            row, column = (int(i) for i in np.argwhere(odd)[0])
            raise InputError(
                f"{where}: slide {slide_ids[row]!r} has {self.names[column]} {targets[row, column]:g}, not 0, 1 or "
                f"nothing ({int(odd.any(1).sum())} such slides)"
            )

    def stated(self, targets: Floats) -> NDArray[np.bool_]:
        """The bags of which one label is known."""
        return np.asarray(~np.isnan(targets).all(1))

    def facts(self, targets: Floats) -> list[str]:
        """How many bags have each label."""
        counts = ", ".join(
            f"{name} {np.nansum(column):.0f} of {np.isfinite(column).sum()}"
            for name, column in zip(self.names, targets.T, strict=True)
        )
        return [f"Labels (bags that have it, of those where it is known): {counts}."]

    def strata(self, targets: Floats) -> NDArray[np.int64]:
        """The rarest label that a bag has, L for a bag without any."""
        rarest_first = np.argsort(np.nansum(targets, axis=0), kind="stable")
        has = targets[:, rarest_first] == 1
        return np.where(has.any(1), rarest_first[has.argmax(1)], self.width).astype(np.int64)

    def shares(self, targets: Floats) -> NDArray[np.int64]:
        """Having and lacking each label, ``[n, 2 L]``, as iterative stratification balances (Sechidis et al. 2011)."""
        return np.concatenate([targets == 1, targets == 0], axis=1).astype(np.int64)

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Binary cross-entropies ``[B]``, whose mean is the sum over known entries divided by their number."""
        from mil_zoo.tasks.losses.multilabel import masked_binary_cross_entropy

        return masked_binary_cross_entropy(logits, targets, weights)

    def predict(self, logits: Tensor) -> Tensor:
        """Probabilities, float64 ``[B, L]``."""
        return logits.double().sigmoid()

    def arguments(self, targets: Floats, predictions: Floats) -> tuple[NDArray[Any], ...]:
        """Targets and predictions ``[n, L]``."""
        return np.asarray(targets), np.asarray(predictions)

    def context(self) -> dict[str, Any]:
        """The column of each label."""
        return {"labels": {name: column for column, name in enumerate(self.names)}}

    def target_cells(self, targets: Floats) -> dict[str, Sequence[Any]]:
        """1, 0, or nothing where a label is unknown."""
        return {
            name: ["" if np.isnan(value) else int(value) for value in column]
            for name, column in zip(self.target_columns, np.asarray(targets).T, strict=True)
        }

    def read(self, table: pd.DataFrame) -> tuple[Floats, Floats]:
        """Targets and predictions ``[n, L]`` of a ``predictions.csv``."""
        return super().read(table.replace("", np.nan))

    def given_target(self, targets: Floats, predictions: Floats) -> tuple[Floats, Floats]:
        """Of each label whether it is there, not there or unknown; its probability within the first two."""
        there, absent, unknown = targets == 1, targets == 0, np.isnan(targets)
        members = np.concatenate([there, absent, unknown], axis=1).astype(np.float64)
        return members, np.concatenate([predictions * there, predictions * absent], axis=1)

    def shown_output(self, prediction: Floats) -> int | None:
        """The most probable label."""
        return int(np.asarray(prediction).argmax())

    def describe(self, prediction: Floats) -> str:
        """The labels that are more probable than not."""
        return ", ".join(name for name, p in zip(self.names, prediction, strict=True) if p > 0.5) or "none"
