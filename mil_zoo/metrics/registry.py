"""What a metric is, and the registry of all of them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mil_zoo.errors import InputError, unknown
from mil_zoo.noted import Noted, note_of, undefined, with_unit_of_time
from mil_zoo.registry import PLUGINS

Function = Callable[..., Any]
RESERVED = ("loss", "last")  # what a selection rule may name besides metrics


@dataclass(frozen=True)
class Metric:
    """A score of predictions against the truth.

    Attributes:
        name: its key in ``trials.jsonl``, ``table.csv`` and ``--set select=``.
        title: what tables and figures call it.
        task: the family of tasks that it scores ("classification").
        higher_is_better: whether the larger of two values is the better one; None where neither is, so that the values
            are shown and not compared (the ratio of observed to expected events, of which 1 is best).
        function: called as ``function(*arguments, weights=None, **needs)``; the arguments are those of its task, of
            classification the labels ``[n]`` and the probabilities ``[n, C]``, or the first ones of them, where it
            takes fewer. It gives a float, NaN where undefined: best as ``mil_zoo.noted.undefined(reason)``.
        needs: what the function takes besides, by keyword, from the task's context (the training patients' times of a
            survival metric).
        each: (keyword, name): one metric stands for each entry of this mapping of the context, ``auc_12`` and
            ``auc_24`` of a metric "auc" and horizons "12" and "24"; the function gets the entry's value by the keyword.
        batched: whether it takes weights ``[R, n]`` too and then gives ``[R]``; else it is called R times.
        bounds: the smallest and the largest value that it can have; tables and figures cut intervals to them.
    """

    name: str
    title: str
    task: str
    higher_is_better: bool | None
    function: Function
    needs: tuple[str, ...] = ()
    batched: bool = False
    bounds: tuple[float, float] = (-np.inf, np.inf)
    each: tuple[str, str] | None = None

    @property
    def of_plugin(self) -> bool:
        """Whether its function is a user's own."""
        function = getattr(self.function, "func", self.function)  # of one that stands for an entry of the context
        return not str(function.__module__).startswith("mil_zoo.")

    def of(self, context: Mapping[str, Any]) -> list[Metric]:
        """The metric, or those that stand for each entry of the context that it is for."""
        if self.each is None:
            return [self]
        keyword, name = self.each
        return [
            dataclasses.replace(
                self,
                name=f"{self.name}_{key}",
                title=self.title.format(key),
                function=functools.partial(self.function, **{keyword: value}),
                each=None,
            )
            for key, value in context.get(name, {}).items()
        ]

    def __call__(self, *arguments: ArrayLike, weights: ArrayLike | None = None, **context: Any) -> float:
        """The metric's value.

        A function that takes no weights is given the rows as often as their weights say.

        Args:
            arguments: those of its task, each with n rows.
            weights: ``[n]``, not negative; None for one each.
            context: must hold what the metric needs; other entries are ignored, but for ``time_unit``, which notes on
                times then state.

        Returns:
            The value; NaN where the metric is undefined, or the context lacks what it needs. It may carry a note, see
            :func:`mil_zoo.noted.note_of`.

        Raises:
            InputError: the function failed or returned an infinite number, or is to use weights that are no whole
                numbers and takes none.
        """
        if lacking := [name for name in self.needs if name not in context]:
            return undefined(f"{', '.join(lacking)} not known")
        given: dict[str, Any] = {name: context[name] for name in self.needs}
        arrays = [np.asarray(argument) for argument in arguments[: self._takes]]
        if weights is not None and "weights" in inspect.signature(self.function).parameters:
            given["weights"] = np.asarray(weights, dtype=np.float64)
        elif weights is not None:
            times = np.asarray(weights)
            if (times != np.round(times)).any():
                raise InputError(f"metric {self.name!r} takes no weights and cannot use {times[times % 1 != 0][0]:g}")
            arrays = [np.repeat(array, times.astype(np.int64), axis=0) for array in arrays]
        try:
            value = self.function(*arrays, **given)
            value = value if isinstance(value, Noted) else float(value)
        except ZeroDivisionError:  # np.average of no weight: left-out or drawn rows hold none that count
            return undefined("nothing to divide by")
        except Exception as error:
            raise InputError(f"metric {self.name!r} failed: {type(error).__name__}: {error}") from error
        if np.isinf(value):
            raise InputError(
                f"metric {self.name!r} is {value}, which no table can hold; return NaN where it is undefined"
            )
        if value != value and not note_of(value):
            return undefined("the metric does not say why")
        return with_unit_of_time(value, context.get("time_unit", ""))

    def weighted(self, *arguments: ArrayLike, weights: ArrayLike, **context: Any) -> NDArray[np.float64]:
        """The values ``[R]`` under many weightings ``[R, n]``, for instance the draws of a bootstrap.

        With weights that count how often a row was drawn, a value is that of the drawn rows.
        """
        rows = np.asarray(weights, dtype=np.float64)
        if not self.batched or any(name not in context for name in self.needs):
            return np.array([self(*arguments, weights=row, **context) for row in rows])
        given = {name: context[name] for name in self.needs}
        arrays = map(np.asarray, arguments[: self._takes])
        return np.asarray(self.function(*arrays, weights=rows, **given), dtype=np.float64)

    @functools.cached_property
    def _takes(self) -> int | None:
        """How many arguments the function takes by position; None for any number."""
        parameters = inspect.signature(self.function).parameters.values()
        if any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters):
            return None
        by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return sum(one.kind in by_place and one.name not in ("weights", *self.needs) for one in parameters)


_METRICS: dict[str, dict[str, Metric]] = {}  # of each task, in the order of registration


def register_metric(
    name: str,
    *,
    title: str,
    higher_is_better: bool | None,
    task: str = "classification",
    needs: tuple[str, ...] = (),
    batched: bool = False,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    each: tuple[str, str] | None = None,
) -> Callable[[Function], Function]:
    """Decorator: registers a function as a metric. It then stands in every table, figure and test of its task.

    ::

        @mil_zoo.register_metric("npv", title="NPV", higher_is_better=True)
        def npv(labels, probabilities, weights=None):
            spared = probabilities[:, 1] < 0.5
            if not spared.any():
                return float("nan")
            return float(np.average(labels[spared] == 0, weights=None if weights is None else weights[spared]))

    Args:
        name: lowercase letters, digits and ``_``.
        title: what tables call it; with ``each`` a ``{}`` stands for the entry's name.
        higher_is_better: the direction; None for none.
        task: the family of tasks whose predictions it scores.
        needs: see :class:`Metric`.
        batched: see :class:`Metric`.
        bounds: see :class:`Metric`.
        each: see :class:`Metric`.

    Raises:
        InputError: the name is taken (the message says by whom), reserved, or no name.
    """
    if not (isinstance(name, str) and name.isidentifier() and name == name.lower()):
        raise InputError(f"metric name {name!r} must be lowercase letters, digits and underscores")
    if name in RESERVED:
        raise InputError(f"metric name {name!r} is taken by a selection rule; choose another name")

    def decorate(function: Function) -> Function:
        known = _METRICS.setdefault(task, {})
        if name in known and known[name].function is not function:
            where = known[name].function
            raise InputError(
                f"metric {name!r} of {task} is already registered by {where.__module__}.{where.__qualname__}; "
                "choose another name"
            )
        known[name] = Metric(name, title, task, higher_is_better, function, tuple(needs), batched, bounds, each)
        return function

    return decorate


def inside(title: str) -> str:
    """A title inside a phrase: "Accuracy" as "accuracy"; "AUC", "R2", "C" and "Uno's C" as they are."""
    first = title.partition(" ")[0]
    named = first.endswith("'s") or first == "Brier"
    return title if named or not title[1:2].islower() else title[:1].lower() + title[1:]


def metrics_of(task: str, context: Mapping[str, Any] | None = None) -> list[Metric]:
    """The metrics of a family of tasks, those of this package first, then in the order of registration.

    Args:
        task: the family.
        context: the task's; without it those that stand for each entry of something in it are absent.
    """
    PLUGINS.load_installed()
    return [one for metric in _METRICS.get(task, {}).values() for one in metric.of(context or {})]


def find_metric(name: str, task: str = "classification", context: Mapping[str, Any] | None = None) -> Metric:
    """A registered metric; an ``InputError`` offers the near names on a miss. Arguments as :func:`metrics_of`."""
    known = {metric.name: metric for metric in metrics_of(task, context)}
    if name not in known:
        raise unknown(f"{task} metric", name, known)
    return known[name]


def score(
    *arguments: ArrayLike, task: str = "classification", weights: ArrayLike | None = None, **context: Any
) -> dict[str, float]:
    """Every registered metric of a task.

    Args:
        arguments: those of the task's metrics; of classification the labels, int ``[n]``, and the probabilities,
            ``[n, C]`` with rows that sum to 1.
        task: the family of tasks.
        weights: ``[n]``, or None for one each.
        context: what some metrics need besides, see :class:`Metric`.
    """
    return {metric.name: metric(*arguments, weights=weights, **context) for metric in metrics_of(task, context)}
