"""Right-censored outcomes: the columns that state them, and what is to know of a cohort before anything is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil_zoo.errors import InputError
from mil_zoo.survival import concordance_pairs, follow_up, logrank
from mil_zoo.tasks import outcome_columns
from mil_zoo.tasks.base import Floats, Task
from mil_zoo.tasks.outcome_columns import MONTHS
from mil_zoo.tasks.strata import one_hot, quantile_strata, within

HORIZONS = (12.0, 24.0, 36.0, 60.0)  # months
FOLLOWED = 10  # patients must be followed beyond a horizon
_LONG = 40 * 12  # months
FEW_EVENTS = 10  # in a test fold


class RightCensored(Task):
    """A task whose target is a time and whether the event happened then; how it is predicted is for the subclass.

    The subclass is a dataclass with the settings below, see :class:`mil_zoo.tasks.Survival`. This class is none, so
    that their order is the subclass's own.
    """

    explains: ClassVar[str] = "risk"
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    time: str
    event: str
    censorship: str
    unit: str
    event_values: tuple[str, ...]
    horizons: tuple[float, ...] | None

    # Columns --------------------------------------------------------------------------------------------------------

    @classmethod
    def recognises(cls, header: Sequence[str]) -> bool:
        """Whether the columns of a label table are times and events without being told."""
        told = outcome_columns.find_event(header) or outcome_columns.find_censorship(header)
        return bool(len(outcome_columns.find_times(header)) == 1 and told)

    @classmethod
    def columns(cls, settings: Mapping[str, Any], header: Sequence[str]) -> tuple[str, ...]:
        """The column of the times, and that of the event or the censorship.

        Raises:
            InputError: nothing names the event, and the table holds a censorship, whose direction is asked for.
        """
        times = outcome_columns.find_times(header)
        if not settings.get("time") and len(times) > 1:
            raise InputError(f"{' and '.join(map(repr, times))} may both be the time; name one with --time COLUMN")
        time = settings.get("time") or (times or ["time"])[0]
        event = settings.get("event") or settings.get("censorship") or outcome_columns.find_event(header)
        if not event and (censored := outcome_columns.find_censorship(header)):
            raise InputError(
                f"the table has no column 'event', and {censored!r}, which by its name is 1 where a patient is "
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

    @property
    def target_columns(self) -> tuple[str, ...]:  # type: ignore[override]
        """``time_<unit>`` and ``event``, which is 1 where the event happened, whatever the table held."""
        return (f"time_{self.unit}" if self.unit else "time", "event")

    def targets(self, table: pd.DataFrame, where: str = "the label table") -> Floats:
        """Time and event ``[n, 2]``; NaN where either is empty."""
        time, event = self.columns(self.settings(), list(table.columns))
        for name in (time, event):
            if name not in table:
                outcome_columns.read_numbers(table, name, where, self.name)  # says what is missing
        flags = outcome_columns.read_flags(table, event, outcome_columns.parse_meaning(self.event_values), where)
        times = outcome_columns.read_numbers(table, time, where, self.name)
        targets = np.stack([times, 1 - flags if self.censorship else flags], axis=1)
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
        if not isinstance(other, RightCensored):
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
        if (longest := time.max() / MONTHS[self.unit or "months"]) > _LONG:
            lines.append(
                f"The longest time is {longest / 12:.0f} years: few cohorts are followed so long, so see whether some "
                "times are in another unit."
            )
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
            events = "1 event" if fewest == 1 else f"{fewest} events"
            lines.append(
                f"A test fold holds {events}: its scores are chance to a large part, and the mean over folds weighs "
                "them like the others; read the pooled concordance too."
            )
        return lines

    def unpredicted(self, column: str) -> str:
        """See ``Task``: a horizon that lies late, or bins that collapsed."""
        if column.startswith("surv_"):
            return f"fewer than {FOLLOWED} training patients are followed for longer"
        return "equal times of events leave fewer bins" if column.startswith("hazard_") else ""

    def _followed(self, time: Floats, event: Floats) -> str:
        """The median follow-up with its unit; in words where the reverse Kaplan-Meier curve does not reach one half."""
        median = follow_up(time, event)
        return "unknown: few are censored" if np.isnan(median) else f"{median:.4g} {self.unit}"

    def given_target(self, targets: Floats, predictions: Floats) -> tuple[Floats, Floats]:
        """Event, time and its third; of patients with the event the risk within each third.

        Of a censored patient it is known only how long the event did not happen: where sites differ in survival, a fair
        risk differs between their censored patients, and so it tells nothing here.
        """
        event, strata = targets[:, 1:], self.strata(targets)
        members = one_hot(strata)
        risk = predictions[:, [self.prediction_columns.index("risk")]]
        times = np.concatenate([targets[:, :1] * event, targets[:, :1] * (1 - event)], axis=1)
        return np.concatenate([members, times], axis=1), within(risk * event, members[:, np.unique(strata) >= 3])

    def strata(self, targets: Floats) -> NDArray[np.int64]:
        """Thirds of the times within those with the event and within the others, ``event * 3 + third``."""
        time, event = targets[:, 0], targets[:, 1].astype(np.int64)
        strata = 3 * event
        for happened in (0, 1):
            members = event == happened
            strata[members] += quantile_strata(time[members], 3)
        return strata


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
