"""What a metric is, and the registry of all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mil_zoo.errors import InputError, did_you_mean
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
        higher_is_better: whether the larger of two values is the better one.
        function: called as ``function(*arguments, weights=None, **needs)``; the arguments are those of its task, of
            classification the labels ``[n]`` and the probabilities ``[n, C]``. It gives a float, NaN where undefined.
        needs: what the function takes besides, by keyword, from the task's context (the training patients' times of a
            survival metric).
        batched: whether it takes weights ``[R, n]`` too and then gives ``[R]``; else it is called R times.
        bounds: the smallest and the largest value that it can have; tables and figures cut intervals to them.
    """

    name: str
    title: str
    task: str
    higher_is_better: bool
    function: Function
    needs: tuple[str, ...] = ()
    batched: bool = False
    bounds: tuple[float, float] = (-np.inf, np.inf)

    def __call__(self, *arguments: ArrayLike, weights: ArrayLike | None = None, **context: Any) -> float:
        """The metric's value.

        A function that takes no weights is given the rows as often as their weights say.

        Args:
            arguments: those of its task, each with n rows.
            weights: ``[n]``, not negative; None for one each.
            context: must hold what the metric needs; other entries are ignored.

        Returns:
            The value; NaN where the metric is undefined, or the context lacks what it needs.

        Raises:
            InputError: the function failed, or is to use weights that are no whole numbers and takes none.
        """
        if any(name not in context for name in self.needs):
            return float("nan")
        given: dict[str, Any] = {name: context[name] for name in self.needs}
        arrays = [np.asarray(argument) for argument in arguments]
        if weights is not None and "weights" in inspect.signature(self.function).parameters:
            given["weights"] = np.asarray(weights, dtype=np.float64)
        elif weights is not None:
            times = np.asarray(weights)
            if (times != np.round(times)).any():
                raise InputError(f"metric {self.name!r} takes no weights and cannot use {times[times % 1 != 0][0]:g}")
            arrays = [np.repeat(array, times.astype(np.int64), axis=0) for array in arrays]
        try:
            return float(self.function(*arrays, **given))
        except ZeroDivisionError:  # np.average of no weight: left-out or drawn rows hold none that count
            return float("nan")
        except Exception as error:
            raise InputError(f"metric {self.name!r} failed: {type(error).__name__}: {error}") from error

    def weighted(self, *arguments: ArrayLike, weights: ArrayLike, **context: Any) -> NDArray[np.float64]:
        """The values ``[R]`` under many weightings ``[R, n]``, for instance the draws of a bootstrap.

        With weights that count how often a row was drawn, a value is that of the drawn rows.
        """
        rows = np.asarray(weights, dtype=np.float64)
        if not self.batched or any(name not in context for name in self.needs):
            return np.array([self(*arguments, weights=row, **context) for row in rows])
        given = {name: context[name] for name in self.needs}
        return np.asarray(self.function(*map(np.asarray, arguments), weights=rows, **given), dtype=np.float64)


_METRICS: dict[str, dict[str, Metric]] = {}  # of each task, in the order of registration


def register_metric(
    name: str,
    *,
    title: str,
    higher_is_better: bool,
    task: str = "classification",
    needs: tuple[str, ...] = (),
    batched: bool = False,
    bounds: tuple[float, float] = (-np.inf, np.inf),
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
        title: what tables call it.
        higher_is_better: the direction.
        task: the family of tasks whose predictions it scores.
        needs: see :class:`Metric`.
        batched: see :class:`Metric`.
        bounds: see :class:`Metric`.

    Raises:
        InputError: the name is taken (the message says by whom), reserved, or no name.
    """
    if not (name.isidentifier() and name == name.lower()):
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
        known[name] = Metric(name, title, task, higher_is_better, function, tuple(needs), batched, bounds)
        return function

    return decorate


def metrics_of(task: str) -> list[Metric]:
    """The metrics of a family of tasks, those of this package first, then in the order of registration."""
    PLUGINS.load_installed()
    return list(_METRICS.get(task, {}).values())


def find_metric(name: str, task: str = "classification") -> Metric:
    """A registered metric; an ``InputError`` offers the near names on a miss."""
    PLUGINS.load_installed()
    known = _METRICS.get(task, {})
    if name not in known:
        raise InputError(f"unknown metric {name!r} of {task}{did_you_mean(name, known)}")
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
    return {metric.name: metric(*arguments, weights=weights, **context) for metric in metrics_of(task)}
