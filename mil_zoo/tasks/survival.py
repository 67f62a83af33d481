"""When something happens to a patient, of whom many are followed only for a while."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mil_zoo.errors import InputError
from mil_zoo.metrics import Metric
from mil_zoo.metrics.survival import survival_times
from mil_zoo.survival import (
    Baseline,
    bin_edges,
    breslow_baseline,
    concordance,
    concordance_pairs,
    discrete_survival,
    follow_up,
    logrank,
)
from mil_zoo.tasks import outcome_columns
from mil_zoo.tasks.base import Floats, Task, loss_by_name, quantile_strata
from mil_zoo.tasks.outcome_columns import MONTHS
from mil_zoo.tasks.registry import register_task

if TYPE_CHECKING:
    from torch import Tensor

HORIZONS = (12.0, 24.0, 36.0, 60.0)  # months
FOLLOWED = 10  # patients must be followed beyond a horizon
FEW_EVENTS = 10  # in a test fold
_ORDERS = 200
_OF_CURVES = ("brier", "ibs", "oe", "d_calibration")  # how metrics of S(t) are called
_FITTED = ("edges", "last", "train_time", "train_event", "baseline_time", "baseline_log_hazard", "median_risk")


@register_task("survival")
@loss_by_name
@dataclass(frozen=True)
class Survival(Task):
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

    # Columns --------------------------------------------------------------------------------------------------------

    @classmethod
    def recognises(cls, header: Sequence[str]) -> bool:
        """Whether the columns of a label table are times and events without being told."""
        told = outcome_columns.find_event(header) or outcome_columns.find_censorship(header)
        return bool(outcome_columns.find_time(header) and told)

    @classmethod
    def columns(cls, settings: Mapping[str, Any], header: Sequence[str]) -> tuple[str, ...]:
        """The column of the times, and that of the event or the censorship.

        Raises:
            InputError: nothing names the event, and the table holds a censorship, whose direction is asked for.
        """
        time = settings.get("time") or outcome_columns.find_time(header) or "time"
        event = settings.get("event") or settings.get("censorship") or outcome_columns.find_event(header)
        if not event and (censored := outcome_columns.find_censorship(header)):
            raise InputError(
                f"the label table has no column 'event', and {censored!r}, which by its name is 1 where a patient is "
                f"censored; pass --censorship {censored}, or --event {censored} --event-as-named where 1 means that "
                "the event happened"
            )
        event = event or "event"
        return str(time), str(event)

    @classmethod
    def excludes(cls, given: Mapping[str, Any]) -> Sequence[str]:
        """A censorship column takes the place of the event column, and a new column brings its own unit and values."""
        of_event = ("event", "censorship", "event_values", "event_as_named")
        return [
            *(of_event if given.get("event") or given.get("censorship") else ()),
            *(("unit",) if given.get("time") else ()),
        ]

    def settled(self, header: Sequence[str]) -> Task:
        """The task with its columns and its unit.

        Raises:
            InputError: nothing says the unit.
        """
        time, event = self.columns(self.settings(), header)
        unit = self.unit or outcome_columns.unit_in(time)
        if not unit:
            raise InputError(
                f"the unit of the times in {time!r} is unknown; pass --time-unit days, months or years, or end the "
                "column's name with it (os_days)"
            )
        changes: dict[str, Any] = {"time": time, "unit": unit} | ({} if self.censorship else {"event": event})
        return dataclasses.replace(self, **changes)

    def settings(self) -> dict[str, Any]:
        """See ``Task.settings``; what a trial fits is left out where nothing is fitted."""
        return {name: v for name, v in super().settings().items() if name not in _FITTED or v not in (None, (), [])}

    @property
    def target_columns(self) -> tuple[str, ...]:  # type: ignore[override]
        """``time_<unit>`` and ``event``, which is 1 where the event happened, whatever the table held."""
        return (f"time_{self.unit}" if self.unit else "time", "event")

    def targets(self, table: pd.DataFrame, where: str = "the label table") -> Floats:
        """Time and event ``[n, 2]``; NaN where either is empty."""
        time, event = self.columns(self.settings(), list(table.columns))
        for name in (time, event):
            if name not in table:
                self.numbers(table, name, where)  # says what is missing
        flags = outcome_columns.read_flags(table, event, outcome_columns.parse_meaning(self.event_values), where)
        targets = np.stack([self.numbers(table, time, where), 1 - flags if self.censorship else flags], axis=1)
        self.check(targets, list(table["slide_id"]), where)
        return targets

    def check(self, targets: Floats, slide_ids: Sequence[str], where: str) -> None:
        """Raises an ``InputError`` that names a slide with a time before 0, or longer than a life, or no 0/1 event."""
        outcome_columns.check_times(targets[:, 0], slide_ids, self.unit, where)
        odd = ~(np.isnan(targets[:, 1]) | np.isin(targets[:, 1], (0, 1)))
        if odd.any():
            raise InputError(f"{where}: slide {slide_ids[int(odd.argmax())]!r} has an event that is neither 0 nor 1")

    # The cohort -----------------------------------------------------------------------------------------------------

    def of_cohort(self, targets: Floats) -> Task:
        """The task with its horizons: those asked for, or of 12, 24, 36 and 60 months where 10 patients are beyond.

        Raises:
            InputError: all or none had the event, or a horizon lies beyond the largest time.
        """
        time, events = targets[:, 0] / MONTHS[self.unit or "months"], int(targets[:, 1].sum())
        if events in (0, len(targets)):
            raise InputError(
                f"{'every' if events else 'no'} patient had the event ({self.event or self.censorship}); survival "
                "needs both, so check what 1 means in that column"
            )
        for horizon in self.horizons or ():
            if horizon > time.max():
                raise InputError(
                    f"the horizon of {horizon:g} months lies beyond the largest time ({targets[:, 0].max():g} "
                    f"{self.unit}); are the times in {self.unit}?"
                )
        default = tuple(horizon for horizon in HORIZONS if (time > horizon).sum() >= FOLLOWED)
        return dataclasses.replace(self, horizons=default if self.horizons is None else self.horizons)

    def refuses(self, other: Task) -> str:
        """Another kind of task, or times in another unit."""
        if not isinstance(other, Survival):
            return "it holds no survival times"
        if other.unit != self.unit:
            return f"times are in {self.unit} and in {other.unit}; convert one of the tables"
        return ""

    def facts(self, targets: Floats) -> list[str]:
        """Events, follow-up and unit; and what to know of times of 0."""
        time, event = targets.T
        stated = outcome_columns.unit_in(self.time) == self.unit
        lines = [
            f"{int(event.sum())} of {len(event)} patients had the event ({_percent(event.mean())}); median follow-up "
            f"{self._followed(time, event)} (reverse Kaplan-Meier); unit from "
            f"{'the column name' if stated else '--time-unit'} ({self.time})."
        ]
        if zero := int((time == 0).sum()):
            who = "1 patient has the time 0: it counts" if zero == 1 else f"{zero} patients have the time 0: they count"
            lines.append(f"{who} as the first of all.")
        return lines

    def fold_facts(self, targets: Sequence[Floats]) -> list[str]:
        """Events, comparable pairs and follow-up of each fold's test patients, and whether the folds differ.

        Raises:
            InputError: a fold has no comparable pair.
        """
        parts = []
        for number, (time, event) in enumerate(part.T for part in targets):
            pairs = int(concordance_pairs(time, event, np.zeros(len(time))).comparable)
            if not pairs:
                raise InputError(
                    f"test fold {number} has {int(event.sum())} events and no comparable pair of patients: nothing can "
                    "be scored; ask for fewer folds"
                )
            parts.append(f"{int(event.sum())} of {len(event)} ({pairs:,} pairs, {self._followed(time, event)})")
        lines = [f"Events of the test patients by fold (comparable pairs, median follow-up): {'; '.join(parts)}."]
        if len(targets) > 1:
            fold = np.repeat(np.arange(len(targets)), [len(part) for part in targets])
            time, event = np.concatenate(list(targets)).T
            lines[0] = lines[0][:-1] + f"; log-rank p between folds {logrank(time, event, fold).p:.2g}."
        fewest = int(min(part[:, 1].sum() for part in targets))
        if fewest < FEW_EVENTS:
            lines.append(
                f"A test fold holds {fewest} events: its scores are chance to a large part, and the mean over folds "
                "weighs them like the others; read the pooled concordance too."
            )
        return lines

    def _followed(self, time: Floats, event: Floats) -> str:
        """The median follow-up with its unit; in words where the reverse Kaplan-Meier curve does not reach one half."""
        median = follow_up(time, event)
        return "unknown: few are censored" if np.isnan(median) else f"{median:.4g} {self.unit}"

    def strata(self, targets: Floats) -> NDArray[np.int64]:
        """Thirds of the times within those with the event and within the others, ``event * 3 + third``."""
        time, event = targets[:, 0], targets[:, 1].astype(np.int64)
        strata = 3 * event
        for happened in (0, 1):
            members = event == happened
            strata[members] += quantile_strata(time[members], 3)
        return strata

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
        context: dict[str, Any] = {"horizons": self.horizon_times}
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


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
