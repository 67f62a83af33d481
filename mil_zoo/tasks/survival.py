"""When something happens to a patient, of whom many are followed only for a while."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mil_zoo.errors import InputError
from mil_zoo.metrics import Metric
from mil_zoo.metrics.survival import survival_times
from mil_zoo.survival import Baseline, bin_edges, breslow_baseline, concordance, discrete_survival
from mil_zoo.tasks import outcome_columns
from mil_zoo.tasks.base import Floats, Task
from mil_zoo.tasks.outcome_columns import MONTHS
from mil_zoo.tasks.registry import register_task
from mil_zoo.tasks.right_censored import FOLLOWED, RightCensored
from mil_zoo.tasks.settings import loss_by_name

if TYPE_CHECKING:
    from torch import Tensor

_ORDERS = 200
_OF_CURVES = ("brier", "ibs", "oe", "d_calibration")  # how metrics of S(t) are called
_FITTED = ("edges", "last", "train_time", "train_event", "baseline_time", "baseline_log_hazard", "median_risk")


@register_task("survival")
@loss_by_name
@dataclass(frozen=True)
class Survival(RightCensored):
    """Each patient has a time and whether the event happened then (1) or the patient was followed until then (0).

    With "nll" time is cut into K bins and logit k is that of the hazard ``h_k``, the chance of the event in bin k of
    those who reach it; ``S_k = prod_(j<=k) (1 - h_j)``, and the risk is ``-sum_k S_k``. With "cox" the only logit is
    the log hazard, and with "rank" a score; either is the risk. A higher risk means an earlier event.

    Attributes:
        criterion: the loss (``loss=`` of the constructor): "nll", "cox" (partial likelihood) or "rank" (logistic, over
            comparable pairs).
        time: column of the times; "" for ``time``, or ``time_`` with a unit.
        event: column that is 1 where the event happened; "" for ``event``, unless ``censorship`` is given.
        censorship: column that is 1 where the patient is censored.
        unit: of the times: "days", "months" (30.4375 days) or "years"; "" for what the column's name ends with.
        event_values: what texts in that column mean, ``["died=1", "alive=0"]``; empty for 0 and 1.
        event_as_named: take the column as it was given, whatever its name says.
        bins: K, of "nll".
        alpha: how much less a censored patient counts with "nll", in [0, 1).
        ties: of "cox": how events of one time are treated.
        horizons: months at which S(t) is predicted; None for 12, 24, 36 and 60 where at least 10 patients are followed
            beyond. What fewer than 10 training patients are followed beyond is not predicted.
        edges: the inner edges of the bins: quantiles of the event times of a trial's training patients. This and what
            follows comes from training patients alone.
        last: their largest time, beyond which S is unknown.
        train_time: their times, and
        train_event: whether they had the event: for the censoring curve G.
        baseline_time: of "cox": where the baseline hazard steps, and
        baseline_log_hazard: the logs of its cumulative values, from the risks of the trained model.
        median_risk: the median of these risks, above which a patient is of high risk.

    Raises:
        InputError: a setting outside its range, or ``event`` and ``censorship`` both.

    Source: Zadeh & Schmid 2020 (discrete time); Katzman et al., arXiv 1606.00931 (Cox); Luck et al., arXiv 1806.01984.
    """

    criterion: Literal["nll", "cox", "rank"] = "nll"
    time: str = ""
    event: str = ""
    censorship: str = ""
    unit: Literal["", "days", "months", "years"] = ""
    event_values: tuple[str, ...] = ()
    event_as_named: bool = False
    bins: int = 4
    alpha: float = 0.0
    ties: Literal["efron", "breslow"] = "efron"
    horizons: tuple[float, ...] | None = None
    edges: tuple[float, ...] = ()
    last: float | None = None
    train_time: tuple[float, ...] = ()
    train_event: tuple[float, ...] = ()
    baseline_time: tuple[float, ...] = ()
    baseline_log_hazard: tuple[float, ...] = ()
    median_risk: float | None = None

    family: ClassVar[str] = "survival"
    tie: ClassVar[str] = "c_index"
    shown: ClassVar[tuple[str, ...]] = ("c_index", "c_uno", "auc_mean", "ibs", "ibs_km", "nll", "partial_likelihood")
    figures: ClassVar[tuple[str, ...]] = ("kaplan_meier", "survival_calibration")
    naming: ClassVar[str] = "--time COLUMN, with --event COLUMN or --censorship COLUMN"
    of_patients: ClassVar[bool] = True
    finishes: ClassVar[bool] = True
    score_at_chance: ClassVar[str] = "concordance"

    def __post_init__(self) -> None:
        if self.event and self.censorship:
            raise InputError(f"survival takes one of --event {self.event} and --censorship {self.censorship}, not both")
        if self.bins < 2 or not 0 <= self.alpha < 1:
            raise InputError(f"survival needs bins >= 2 and 0 <= alpha < 1, not {self.bins} and {self.alpha}")
        if any(not horizon > 0 for horizon in self.horizons or ()):
            raise InputError(f"survival: horizons must be positive, not {list(self.horizons or ())}")
        outcome_columns.parse_meaning(self.event_values)
        if not self.event_as_named and (self.event or self.censorship):
            outcome_columns.check_direction(self.event or self.censorship, as_event=bool(self.event))
        stated = outcome_columns.unit_in(self.time)
        if self.unit and stated and self.unit != stated:
            raise InputError(
                f"survival: the column {self.time!r} is named for {stated} and --time-unit says {self.unit}; times are "
                "never rescaled, so rename the column or leave the unit out"
            )

    def settings(self) -> dict[str, Any]:
        """See ``Task.settings``; what a trial fits is left out where nothing is fitted."""
        return {name: v for name, v in super().settings().items() if name not in _FITTED or v not in (None, (), [])}

    # Training -------------------------------------------------------------------------------------------------------

    @property
    def risk_sets(self) -> bool:
        """Whether a patient's loss is about others: a step of one patient then teaches nothing."""
        return self.criterion != "nll"

    def informative(self, targets: Floats) -> bool:
        """Whether a step over these patients has a loss: with risk sets, an event before another patient's time."""
        if not self.risk_sets or not len(targets):
            return bool(len(targets))
        time, event = targets.T
        if self.criterion == "cox":
            return bool(event.any())
        return bool((time[event == 1].min(initial=np.inf) < time).any())

    @property
    def width(self) -> int:
        """K (fewer where bins collapse) with "nll", else 1."""
        if self.criterion != "nll":
            return 1
        return len(self.edges) + 1 if self.edges else self.bins

    def fit(self, targets: Floats) -> Task:
        """The task with the bins and the censoring curve of these training patients.

        Raises:
            InputError: their times and events teach nothing.
        """
        time, event = targets.T
        if not self.informative(targets):
            what = "the event" if self.criterion == "cox" else "the event before another one's time"
            raise InputError(f"none of the {len(targets)} training patients has {what}: their outcomes teach nothing")
        edges = bin_edges(time, event, self.bins) if self.criterion == "nll" else ()
        return dataclasses.replace(
            self,
            edges=tuple(float(edge) for edge in edges),
            last=float(time.max()),
            train_time=tuple(time.tolist()),
            train_event=tuple(event.tolist()),
        )

    def finished(self, targets: Floats, logits: Floats) -> Task:
        """The task with the median risk of the training patients, and with "cox" their baseline hazard (Breslow)."""
        risk = self._risk(logits)
        fitted = dataclasses.replace(self, median_risk=float(np.median(risk)))
        if self.criterion != "cox":
            return fitted
        baseline = breslow_baseline(targets[:, 0], targets[:, 1], risk)
        return dataclasses.replace(
            fitted,
            baseline_time=tuple(baseline.time.tolist()),
            baseline_log_hazard=tuple(baseline.log_hazard.tolist()),
        )

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """The loss ``[B]`` whose mean is that of the batch, which with "cox" and "rank" is about pairs of patients."""
        from mil_zoo.tasks.losses import survival as losses

        time, event = targets[:, 0], targets[:, 1]
        if self.criterion == "cox":
            return losses.cox(logits, time, event, self.ties, weights)
        if self.criterion == "rank":
            return losses.ranking(logits, time, event, weights)
        inside = (time[:, None] >= time.new_tensor(self.edges)).sum(1)
        return losses.discrete_nll(logits, inside, event, self.alpha, weights)

    def evaluation_loss(self, logits: Tensor, targets: Floats) -> float:
        """The loss of all patients of a part at once, censored ones in full (alpha 0); NaN where nobody tells."""
        if not self.informative(targets):
            return float("nan")
        whole: Task = dataclasses.replace(self, alpha=0.0)
        return Task.evaluation_loss(whole, logits, targets)

    # Predictions ----------------------------------------------------------------------------------------------------

    @property
    def prediction_columns(self) -> tuple[str, ...]:
        """``risk``; with "nll" ``hazard_0`` ... of K bins (the last ones empty where bins collapsed); ``surv_12`` ...

        S(t) at the horizons, which are months whatever the unit of the times; "rank" predicts none.
        """
        hazards = [f"hazard_{k}" for k in range(self.bins)] if self.criterion == "nll" else []
        return ("risk", *hazards, *self._survival_columns)

    @property
    def _survival_columns(self) -> list[str]:
        return [] if self.criterion == "rank" else [f"surv_{horizon:g}" for horizon in self.horizons or ()]

    @property
    def horizon_times(self) -> dict[str, float]:
        """The horizons in the unit of the times, by name ("12")."""
        return {f"{horizon:g}": horizon * MONTHS[self.unit or "months"] for horizon in self.horizons or ()}

    def predict(self, logits: Tensor) -> Tensor:
        """Float64 ``[B, P]``, see :attr:`prediction_columns`. S(t) is NaN before the task has a baseline.

        It is NaN too where fewer than 10 training patients are followed beyond the horizon.
        """
        from mil_zoo.tasks.losses.predictions import numbers, tensor

        values = numbers(logits)
        columns = [self._risk(values)[:, None]]
        if self.criterion == "nll":
            missing = np.full((len(values), self.bins - values.shape[1]), np.nan)
            columns += [1 / (1 + np.exp(-values)), missing]
        first = np.concatenate(columns, axis=1)
        times = list(self.horizon_times.values()) if self._survival_columns else []
        known = self.survival_at(first, times)
        beyond = (np.array(self.train_time)[:, None] > np.array(times)).sum(0)
        known[:, beyond < FOLLOWED] = np.nan
        return tensor(np.concatenate([first, known], axis=1))

    def survival_at(self, predictions: Floats, times: ArrayLike) -> Floats:
        """S(t) of patients by their predictions ``[n, P]``.

        Args:
            predictions: a column for each of :attr:`prediction_columns`; those of S(t) are not needed.
            times: ``[T]`` the same for all, or ``[n, 1]`` one of each patient, in the unit of the times.

        Returns:
            ``[n, T]`` or ``[n, 1]``; NaN beyond the largest training time, and where there is no curve ("rank").
        """
        at = np.asarray(times, dtype=np.float64)
        if self.last is not None and self.criterion == "nll":
            return discrete_survival(predictions[:, 1 : 2 + len(self.edges)], self.edges, self.last, at)
        if self.last is not None and self.baseline_time:
            baseline = Baseline(np.array(self.baseline_time), np.array(self.baseline_log_hazard), self.last)
            return baseline.survival(predictions[:, 0], at)
        return np.full((len(predictions), at.shape[-1]), np.nan)

    def _risk(self, logits: Floats) -> Floats:
        """The risk ``[n]`` by logits ``[n, width]``."""
        if self.criterion != "nll":
            return np.asarray(logits[:, 0])
        return -np.exp(-np.logaddexp(0, logits).cumsum(1)).sum(1)  # log (1 - h) is -softplus of the logit

    def patient_logits(self, logits: Floats, rule: str) -> Floats:
        """The logits of a patient by those of the slides: of the mean hazard ("cox": mean log hazard), or the riskiest.

        The logit of a mean of sigmoids is ``log sum sigmoid(z) - log sum sigmoid(-z)``.
        """
        if rule == "max":
            return np.asarray(logits[self._risk(logits).argmax()])
        if self.criterion != "nll":
            return np.asarray(logits.mean(0))
        died, lived = (np.logaddexp.reduce(-np.logaddexp(0, sign * logits), axis=0) for sign in (-1, 1))
        return np.asarray(died - lived)

    # Scores ---------------------------------------------------------------------------------------------------------

    @property
    def metrics(self) -> list[Metric]:
        """Those that the kind of prediction allows: "rank" has no survival curves to score."""
        known = super().metrics
        context = self.context()
        known = [metric for metric in known if all(name in context for name in metric.needs)]
        if self.criterion != "rank":
            return known
        return [metric for metric in known if not metric.name.startswith(_OF_CURVES)]

    def arguments(self, targets: Floats, predictions: Floats) -> tuple[NDArray[Any], ...]:
        """Time, event, risk, S(t) where metrics take it, S at the patient's own time, and hazards.

        See :mod:`mil_zoo.metrics.survival`.
        """
        time, event = np.asarray(targets).T
        values = np.asarray(predictions)
        ends = np.minimum(time, np.inf if self.last is None else self.last)
        curves = self.survival_at(values, survival_times(self.horizon_times))
        for place, name in enumerate(self._survival_columns):  # what is not predicted is not scored either
            curves[:, place] = values[:, self.prediction_columns.index(name)]
        hazards = values[:, 1 : 1 + self.bins] if self.criterion == "nll" else np.empty((len(values), 0))
        return time, event, values[:, 0], curves, self.survival_at(values, ends[:, None])[:, 0], hazards

    def context(self) -> dict[str, Any]:
        """Times and events of the training patients, the horizons, and the bins or the treatment of ties."""
        context: dict[str, Any] = {"horizons": self.horizon_times, "time_unit": self.unit}
        context |= {"train_time": np.array(self.train_time), "train_event": np.array(self.train_event)}
        own: dict[str, dict[str, Any]] = {"nll": {"edges": self.edges}, "cox": {"ties": self.ties}, "rank": {}}
        return context | own[self.criterion]

    def variance_at_chance(self, targets: Floats) -> float:
        """See ``Task``; from 200 random orders of the patients."""
        rng, (time, event) = np.random.default_rng(0), targets.T
        drawn = [concordance(time, event, rng.random(len(time))) for _ in range(_ORDERS)]
        return float(np.nan_to_num(np.var(drawn)))

    @property
    def lead(self) -> str:
        """Concordance: it is what readers look for, and the same number whatever the loss."""
        return "c_index"

    @property
    def select(self) -> str:  # type: ignore[override]
        """The likelihood of the validation patients: concordance of a dozen events is noise. With "rank" the loss."""
        return {"nll": "nll", "cox": "partial_likelihood", "rank": "loss"}[self.criterion]

    def describe(self, prediction: Floats) -> str:
        """The risk, and S(t) at the horizons."""
        risk, *known = prediction
        names = self.prediction_columns[1:]
        shown = [
            f"S({name[5:]} months) {value:.0%}"
            for name, value in zip(names, known, strict=True)
            if name.startswith("surv_") and not np.isnan(value)
        ]
        return ", ".join([f"risk {risk:.4g}", *shown])


@register_task("survival_cox")
@loss_by_name
@dataclass(frozen=True)
class _Cox(Survival):
    """Survival with the Cox partial likelihood, see :class:`Survival`."""

    criterion: Literal["nll", "cox", "rank"] = "cox"


@register_task("survival_rank")
@loss_by_name
@dataclass(frozen=True)
class _Rank(Survival):
    """Survival with a ranking loss, see :class:`Survival`."""

    criterion: Literal["nll", "cox", "rank"] = "rank"
