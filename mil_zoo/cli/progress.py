"""What a running benchmark shows of itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mil_zoo.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from mil_zoo.bench.executors import Executor
    from mil_zoo.bench.plan import Plan, TrialPlan
    from mil_zoo.bench.results import Row, Trial


@contextmanager
def saved(folder: Path, trials: list[Trial]) -> Iterator[None]:
    """Turns a failing disk into one sentence that says what is kept."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"writing to {folder} failed ({error}); {len(trials)} finished trials are kept there; free some space and "
            f"start the same command with --out {folder} again"
        ) from error


def run_with_progress(plan: Plan, out: Path, console: Console, executor: Executor | None) -> list[Trial]:
    """Runs a plan into ``out`` with a bar a model, and gives what came of each of its trials."""
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
    console.print(
        f"[bold]{card.title}[/]: {len(plan.dataset.bags)} bags, {plan.dataset.bags.num_instances:,} instances of "
        f"{plan.dataset.in_dim} features; {len(plan.trials)} trials into {out}",
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
    with Progress(*columns, console=console) as progress:
        # SRMIL's epochs take many times ABMIL's, so what is left is told for each model and not for the sum of epochs.
        bars, epochs = {}, {}
        for model in plan.models:
            epochs[model.label] = {trial.id: 0 for trial in plan.trials if trial.model is model}
            total = len(epochs[model.label]) * model.training.epochs
            bars[model.label] = progress.add_task(model.label, total=total)

        def reached(label: str, trial: str, epoch: int) -> None:
            epochs[label][trial] = epoch
            progress.update(bars[label], completed=sum(epochs[label].values()))

        def on_epoch(trial: TrialPlan, row: Row) -> None:
            reached(trial.model.label, trial.id, row["epoch"])

        budgets = {model.label: model.training.epochs for model in plan.models}

        def on_result(trial: Trial) -> None:
            trials.append(trial)
            reached(trial.label, trial.trial, budgets[trial.label])

        try:
            with saved(out, trials):
                run_plan(plan, out, executor=executor, on_epoch=on_epoch, on_result=on_result)
        except KeyboardInterrupt:
            progress.stop()
            console.print(
                f"Interrupted after {len(trials)} of {len(plan.trials)} trials; they are kept. The same command with "
                f"--out {out} continues.",
                highlight=False,
            )
            raise
    return trials
