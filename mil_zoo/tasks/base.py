"""The contract of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil_zoo.errors import InputError, did_you_mean
from mil_zoo.metrics import Metric, combine_slides, metrics_of
from mil_zoo.tasks.outcome_columns import read_numbers
from mil_zoo.tasks.settings import settings_of, task_from
from mil_zoo.tasks.strata import inverse_frequencies, one_hot

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float64]


class Task:
    """What is predicted of a bag. The loop, the store, the report and the tests ask it and never its name.

    A subclass is a frozen dataclass whose fields are the settings that a card or a command may give. It states the
    class attributes, ``width``, ``prediction_columns``, ``loss`` and ``predict``; the rest has defaults.

    Arrays: targets are float ``[n, T]``, a column for each of ``target_columns``; logits ``[n, width]``; predictions
    float ``[n, P]``, a column for each of ``prediction_columns``.

    Class attributes:
        name: registry key.
        family: whose metrics score it; its own name where it is alone.
        target_columns: what ``predictions.csv`` calls the target, and a label table too where nothing else is said.
        naming: how other columns of a label table are named on the command line; "" where they cannot be.
        select: the default criterion of the checkpoint: a metric, or "loss".
        tie: the criterion that decides between equal ones.
        figures: which of the figures that need a certain kind of prediction can be drawn: "roc", "pr", "calibration".
        tests: which of the paired tests that need a certain kind of prediction apply: "delong", "permutation".
        shown: the metrics of the comparison table; empty for all. The others stand in a table of their own.
        strata_are_classes: whether every part of a split must hold each of the strata.
        ordered: whether the classes have an order, which must be known.
        of_patients: whether patients are scored and never slides, all of whose slides then state one target.
        finishes: whether the task takes something from the trained model, see :meth:`finished`.
        explains: the number of a prediction that explainers speak for, in words.
        score_at_chance: the score that is 0.5 of a model that knows nothing, "AUC" or "concordance"; "" for none.
    """

    name: ClassVar[str] = ""
    family: ClassVar[str] = ""
    target_columns: ClassVar[tuple[str, ...]] = ("target",)
    naming: ClassVar[str] = ""
    select: ClassVar[str] = "loss"
    tie: ClassVar[str] = "loss"
    figures: ClassVar[tuple[str, ...]] = ()
    tests: ClassVar[tuple[str, ...]] = ()
    shown: ClassVar[tuple[str, ...]] = ()
    strata_are_classes: ClassVar[bool] = False
    ordered: ClassVar[bool] = False
    of_patients: ClassVar[bool] = False
    finishes: ClassVar[bool] = False
    explains: ClassVar[str] = "prediction"
    score_at_chance: ClassVar[str] = ""

    # What it is made of ---------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, settings: Mapping[str, Any], classes: Sequence[str] = ()) -> Task:
        """The task by its settings (a card's ``task:`` mapping without the name) and the dataset's class names.

        Raises:
            InputError: an unknown setting, or a value of another type.
        """
        return task_from(cls, settings)

    def settings(self) -> dict[str, Any]:
        """The settings that :meth:`create` makes it from again, as plain values."""
        return settings_of(self)

    @property
    def width(self) -> int:
        """Number of logits."""
        raise _missing(self, "width")

    @property
    def outputs(self) -> int:
        """Number of outputs of the aggregator, of which logits are made: as many, unless ``biases`` are added."""
        return self.width

    @property
    def biases(self) -> tuple[float, ...]:
        """What is added to an only output, one a logit, before training changes it; empty for nothing."""
        return ()

    @property
    def prediction_columns(self) -> tuple[str, ...]:
        """Names of the columns of a prediction."""
        raise _missing(self, "prediction_columns")

    # Targets --------------------------------------------------------------------------------------------------------

    @classmethod
    def columns(cls, settings: Mapping[str, Any], header: Sequence[str]) -> tuple[str, ...]:
        """The columns of a label table that :meth:`targets` reads.

        Args:
            settings: as :meth:`create` takes them.
            header: the columns that the table has.
        """
        return cls.target_columns

    @classmethod
    def excludes(cls, given: Mapping[str, Any]) -> Sequence[str]:
        """Names of settings that hold no longer where others are given."""
        return ()

    def targets(self, table: pd.DataFrame, where: str = "the label table") -> Floats:
        """The targets ``[n, T]`` that a label table states; a row of NaN has none and is left out by who reads it.

        Args:
            table: a row a slide, all columns as text; "slide_id" names the slide.
            where: what the table is, for messages.

        Raises:
            InputError: a column is missing, or a value is no number (the message names the slide).
        """
        names = self.columns(self.settings(), list(table.columns))
        targets = np.stack([read_numbers(table, name, where, self.name) for name in names], axis=1)
        self.check(targets, list(table["slide_id"]), where)
        return targets

    def check(self, targets: Floats, slide_ids: Sequence[str], where: str) -> None:
        """Raises an ``InputError`` that names the slide whose target cannot be; the base class takes any number."""

    def stated(self, targets: Floats) -> NDArray[np.bool_]:
        """Which rows of ``targets`` state one, ``[n]``; the others are left out. Here no number may be missing."""
        return np.asarray(~np.isnan(targets).any(1))

    def settled(self, header: Sequence[str]) -> Task:
        """The task with what it can tell from the columns of a label table (a unit in the name of one)."""
        return self

    def of_cohort(self, targets: Floats) -> Task:
        """The task with what it takes from all patients' targets ``[n, T]``, which no training may depend on.

        Raises:
            InputError: nothing can be learnt or scored with these targets.
        """
        return self

    def refuses(self, other: Task) -> str:
        """Why a model of this task cannot be tested on a dataset of another one, as a sentence; "" where it can."""
        if self.target_columns == other.target_columns:
            return ""
        return f"it states {', '.join(other.target_columns)}, not {', '.join(self.target_columns)}"

    def facts(self, targets: Floats) -> list[str]:
        """Sentences on the targets of all patients ``[n, T]`` that every table carries."""
        return []

    def fold_facts(self, targets: Sequence[Floats]) -> list[str]:
        """Sentences on the test patients of the folds of a repetition, an array each, that every table carries.

        Raises:
            InputError: a fold cannot be scored.
        """
        return []

    def fit(self, targets: Floats) -> Task:
        """The task with what it takes from the training bags of a split (scales, bins); most take nothing.

        Trials call it before the aggregator is made; where the result has other ``settings``, ``task.json`` beside the
        weights keeps them.
        """
        return self

    def strata(self, targets: Floats) -> NDArray[np.int64]:
        """A stratum ``[n]``, from 0, of each bag, for folds, bootstraps and balanced sampling; here all are one."""
        return np.zeros(len(targets), dtype=np.int64)

    def shares(self, targets: Floats) -> NDArray[np.int64]:
        """What every part of a split gets its share of, 0 or 1 ``[n, S]``: here each bag is of its stratum."""
        return one_hot(self.strata(targets)).astype(np.int64)

    # Training -------------------------------------------------------------------------------------------------------

    @property
    def risk_sets(self) -> bool:
        """Whether the loss of a bag is about others of its step too: one bag a step then teaches nothing."""
        return False

    def informative(self, targets: Floats) -> bool:
        """Whether a step over bags with ``targets`` ``[n, T]`` teaches anything; one that does not is left out."""
        return True

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """The loss of each bag ``[B]``, whose mean a step minimises.

        Args:
            logits: ``[B, width]``.
            targets: ``[B, T]``.
            weights: ``[B]``, or None for one each.
        """
        raise _missing(self, "loss(logits, targets, weights)")

    def predict(self, logits: Tensor) -> Tensor:
        """The predictions ``[B, P]`` by ``logits`` ``[B, width]``, columns as ``prediction_columns`` names them.

        They are what metrics are computed of, so they must tell apart what the logits do: float64 where they saturate.
        """
        raise _missing(self, "predict(logits)")

    def finished(self, targets: Floats, logits: Floats) -> Task:
        """The task with what it takes from the trained model's ``logits`` of the training bags (a baseline hazard).

        Only a task with ``finishes`` is asked. Where patients are scored, these are of patients.
        """
        return self

    def patient_logits(self, logits: Floats, rule: str) -> Floats:
        """The logits ``[width]`` of a patient by those of the slides ``[n, width]``, by the rule "mean" or "max".

        Only a task ``of_patients`` is asked.
        """
        raise _missing(self, "patient_logits(logits, rule)")

    def balanced_weights(self, targets: Floats) -> NDArray[np.float32]:
        """A weight ``[n]`` of each training bag, the inverse frequency of its stratum, with mean 1."""
        return inverse_frequencies(self.strata(targets))

    # Scores ---------------------------------------------------------------------------------------------------------

    @property
    def metrics(self) -> list[Metric]:
        """Its metrics, in the order of tables."""
        return metrics_of(self.family or self.name, self.context())

    def arguments(self, targets: Floats, predictions: Floats) -> tuple[NDArray[Any], ...]:
        """What its metrics are called with: here the targets ``[n]`` (``[n, T]``) and the predictions likewise."""
        return tuple(array[:, 0] if array.shape[1] == 1 else array for array in (targets, predictions))

    def context(self) -> dict[str, Any]:
        """What its metrics may need besides, by name."""
        return {}

    def score(self, targets: Floats, predictions: Floats, weights: Floats | None = None) -> dict[str, float]:
        """Every metric of the task; NaN where one is undefined."""
        arguments, context = self.arguments(targets, predictions), self.context()
        return {metric.name: metric(*arguments, weights=weights, **context) for metric in self.metrics}

    def evaluation_loss(self, logits: Tensor, targets: Floats) -> float:
        """The loss over all bags of a part at once, of logits ``[n, width]``; "loss" of a selection rule is this."""
        logits = logits.detach().double()
        return float(self.loss(logits, logits.new_tensor(np.asarray(targets))).mean())

    def variance_at_chance(self, targets: Floats) -> float:
        """The variance of ``score_at_chance`` over models that know nothing, on bags with ``targets``; 0: not known."""
        return 0.0

    @property
    def lead(self) -> str:
        """The metric that ranks aggregators where only one is shown: the checkpoint's criterion, if not another."""
        return self.select

    @property
    def criteria(self) -> list[str]:
        """What a checkpoint may be chosen by: its metrics that have a direction, and "loss"."""
        return [*(metric.name for metric in self.metrics if metric.higher_is_better is not None), "loss"]

    def higher_is_better(self, criterion: str) -> bool:
        """The direction of a criterion; an ``InputError`` offers the near names of one that it has not."""
        if criterion == "loss":
            return False
        for metric in self.metrics:
            if metric.name == criterion and metric.higher_is_better is not None:
                return metric.higher_is_better
        raise InputError(f"task {self.name} has no criterion {criterion!r}{did_you_mean(criterion, self.criteria)}")

    # Sites ----------------------------------------------------------------------------------------------------------

    def given_target(self, targets: Floats, predictions: Floats) -> tuple[Floats, Floats] | None:
        """What targets tell of where bags come from, and what predictions tell beyond them, for a linear probe.

        A fair model's predictions may differ between sites whose targets do. Given the target they may not: the second
        holds predictions as far as the target is known, and in each of its strata.

        Returns:
            Features ``[n, L]`` of the targets and ``[n, M]`` of the predictions; None where the task does not say.
        """
        return None

    # Tables ---------------------------------------------------------------------------------------------------------

    def target_cells(self, targets: Floats) -> dict[str, Sequence[Any]]:
        """The target's columns of ``predictions.csv``: whole numbers as such, others in as many digits as they need."""
        return {
            name: [int(value) if value.is_integer() else value for value in column.tolist()]
            for name, column in zip(self.target_columns, np.asarray(targets, dtype=np.float64).T, strict=True)
        }

    def prediction_cells(self, predictions: Floats) -> dict[str, Sequence[Any]]:
        """The prediction's columns of ``predictions.csv``, in the digits it takes to read the same numbers again."""
        return dict(zip(self.prediction_columns, np.asarray(predictions, dtype=np.float64).T.tolist(), strict=True))

    def read(self, table: pd.DataFrame) -> tuple[Floats, Floats]:
        """Targets ``[n, T]`` and predictions ``[n, P]`` of a ``predictions.csv``."""
        targets, predictions = table[list(self.target_columns)], table[list(self.prediction_columns)]
        return targets.astype(float).to_numpy(), predictions.astype(float).to_numpy()

    def patients(self, table: pd.DataFrame, rule: str) -> pd.DataFrame:
        """A ``predictions.csv`` of patients from that of their slides, by the rule "mean" or "max" of each column."""
        return combine_slides(table, rule, self.target_columns, self.prediction_columns)

    def unpredicted(self, column: str) -> str:
        """Why a trained model may predict no number (NaN) in a column; "" for one that always has a number."""
        return ""

    def ensemble(self, predictions: Floats) -> Floats:
        """The prediction ``[P]`` of several models together, of ``[M, P]``: the mean of each number."""
        return np.asarray(predictions.mean(0))

    # People ---------------------------------------------------------------------------------------------------------

    def shown_output(self, prediction: Floats) -> int | None:
        """Which output's attention a map of the slide shows, where there is one an output; None for their mean."""
        return None

    def explained_column(self, prediction: Floats) -> int:
        """The place in a prediction ``[P]`` of the number that explainers speak for, see ``explains``."""
        return self.shown_output(prediction) or 0

    def explained_logit(self, logits: Tensor) -> Tensor:
        """A number ``[B]`` of ``logits`` ``[B, width]`` that rises with the explained one, where no output is shown."""
        return logits.mean(1)

    def describe(self, prediction: Floats) -> str:
        """A prediction ``[P]`` in words, for a column of ``mil-zoo predict``."""
        named = zip(self.prediction_columns, prediction, strict=True)
        return ", ".join(f"{name} {value:.4g}" for name, value in named)

    def caption(self, prediction: Floats) -> str:
        """A prediction ``[P]`` in words, for the title of a map."""
        return self.describe(prediction)


def _missing(task: Task, what: str) -> TypeError:
    return TypeError(f"{type(task).__name__} does not implement {what}")
