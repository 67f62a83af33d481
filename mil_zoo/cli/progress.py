"""What a running benchmark shows of itself."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from rich.markup import escape

from mil_zoo.errors import not_written

if TYPE_CHECKING:
    from rich.console import Console

    from mil_zoo.bench.executors import Executor
    from mil_zoo.bench.plan import Plan, TrialPlan
    from mil_zoo.bench.results import Row, Trial


class _Log:
    """Writes a line for every trial that finishes, where no terminal shows a bar.

    Args:
        console: to write to.
        plan: whose trials run; those that lie there already are counted in one line.
    """

    def __init__(self, console: Console, plan: Plan) -> None:
        self._console, self._total = console, len(plan.trials)
        self._criterion = plan.dataset.task.lead
        self._found = self._finished = 0
        self._left = Counter(trial.model.label for trial in plan.trials)
        self._seconds: dict[str, list[float]] = {}  # of the trials of each model that ran
        self._started: float | None = None

    def start(self) -> None:
        """Says that the first trial starts."""
        if self._started is None:
            self._started = time.monotonic()
            if self._found:
                self._print(f"{self._found} of {self._total} trials lie there already")

    def add(self, trial: Trial) -> None:
        """Counts a trial that is there already, or says what came of one that ran and how long the others will take."""
        self._left[trial.label] -= 1
        if self._started is None:
            self._found += 1
            return
        self._finished += 1
        self._seconds.setdefault(trial.label, []).append(trial.training_seconds or 0.0)
        score = trial.metrics.get(self._criterion)
        what = f"{self._criterion} {score:.3f}" if score is not None else trial.reason or "no score"
        done, spent = self._found + self._finished, time.monotonic() - self._started
        left = f", about {duration(spent * self._share_left())} left" if done < self._total else ""
        self._print(f"{trial.trial}: {what}; {done} of {self._total} trials{left}")

    def _share_left(self) -> float:
        """How much is left to do, in shares of what is done: models take different times, those that ran tell them."""
        means = {label: fmean(seconds) for label, seconds in self._seconds.items()}
        of_others, done = fmean(means.values()), sum(map(sum, self._seconds.values()))
        left = sum(count * means.get(label, of_others) for label, count in self._left.items())
        return left / done if done else self._left.total() / self._finished

    def _print(self, text: str) -> None:
        if not self._console.is_terminal:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def telling(console: Console) -> Iterator[None]:
    """Shows what the package says of its work meanwhile, kernels being compiled for instance; each sentence once."""
    log, told = logging.getLogger("mil_zoo"), _Told(console)
    before = log.level
    log.addHandler(told)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(told)
        log.setLevel(before)


class _Told(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().removeprefix("mil-zoo: ")
        if text not in self._said:
            self._said.add(text)
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def working(console: Console, text: str) -> Iterator[None]:
    """Says what is being done meanwhile: a spinner on a terminal, a line in a log."""
    if console.is_terminal:
        with console.status(text):
            yield
    else:
        console.print(f"{text} ...", markup=False, highlight=False, soft_wrap=True)
        yield


def duration(seconds: float) -> str:
    """``"40 s"``, ``"12 min"``, ``"2.5 h"``; "unknown" for NaN."""
    if seconds != seconds:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def _saved(folder: Path, trials: list[Trial]) -> Iterator[None]:
    """Turns a failing disk into one sentence that says what is kept."""
    try:
        yield
    except OSError as error:  # only now is it known how many trials finished
        then = f"{len(trials)} finished trials are kept there: start the same command with --out {folder} again"
        raise not_written(folder, error, then) from error


def run_with_progress(
    plan: Plan, out: Path, console: Console, executor: Executor | None, checkpoint_seconds: float
) -> list[Trial]:
    """Runs a plan into ``out`` and gives what came of each of its trials.

    A terminal shows a bar a model; a log gets a line a trial.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from mil_zoo.bench.runner import run_plan

    card = plan.dataset.card
    sets = list(dict.fromkeys(model.features for model in plan.models if model.features))
    compared = f" (set {sets[0]}, compared with {', '.join(sets[1:])})" if len(sets) > 1 else ""
    console.print(
        f"[bold]{escape(card.title)}[/]: {len(plan.dataset.bags)} bags, {plan.dataset.bags.num_instances:,} instances "
        f"of {plan.dataset.in_dim} features{escape(compared)}; {len(plan.trials)} trials into {escape(str(out))}",
        highlight=False,
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    trials: list[Trial] = []
    log = _Log(console, plan)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        # SRMIL's epochs take many times ABMIL's, so what is left is told for each model and not for the sum of epochs.
        bars, epochs = {}, {}
        trainings = plan.suite.trainings
        for model in plan.models:
            epochs[model.label] = {trial.id: 0 for trial in plan.trials if trial.model is model}
            total = len(epochs[model.label]) * model.training.epochs * trainings
            bars[model.label] = progress.add_task(escape(model.label), total=total)

        def reached(label: str, trial: str, epoch: int) -> None:
            epochs[label][trial] = epoch
            progress.update(bars[label], completed=sum(epochs[label].values()))

        def on_epoch(trial: TrialPlan, row: Row) -> None:
            before = row.get("training", 0) * trial.model.training.epochs
            reached(trial.model.label, trial.id, before + row["epoch"])

        budgets = {model.label: model.training.epochs * trainings for model in plan.models}

        def on_result(trial: Trial) -> None:
            trials.append(trial)
            log.add(trial)
            reached(trial.label, trial.trial, budgets[trial.label])

        def on_trial(trial: TrialPlan) -> None:
            log.start()

        def on_damage(sentence: str) -> None:
            console.print(f"[yellow]repeated[/]: {escape(sentence)}", highlight=False, soft_wrap=True)

        try:
            with _saved(out, trials), telling(console):
                run_plan(
                    plan,
                    out,
                    executor=executor,
                    checkpoint_seconds=checkpoint_seconds,
                    on_trial=on_trial,
                    on_epoch=on_epoch,
                    on_result=on_result,
                    on_damage=on_damage,
                )
        except KeyboardInterrupt:
            progress.stop()
            console.print(
                f"Interrupted after {len(trials)} of {len(plan.trials)} trials; they are kept. The same command with "
                f"--out {out} continues.",
                markup=False,
                highlight=False,
            )
            raise
    return trials
