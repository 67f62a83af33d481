"""Runs the trials of a plan into a run directory."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from mil_zoo.aggregators.registry import AGGREGATORS
from mil_zoo.bench.executors import Executor, InProcess
from mil_zoo.bench.plan import Plan, TrialPlan
from mil_zoo.bench.results import Row, Trial
from mil_zoo.bench.run_directory import RunDirectory
from mil_zoo.bench.trial import Job
from mil_zoo.data.splits.split import patient_key
from mil_zoo.registry import PLUGINS, plugin_of
from mil_zoo.train.checkpoint import CheckpointPlace
from mil_zoo.train.protocols import PROTOCOLS


def run_plan(
    plan: Plan,
    out: Path,
    *,
    executor: Executor | None = None,
    checkpoint_seconds: float = CheckpointPlace.seconds,
    on_trial: Callable[[TrialPlan], None] = lambda trial: None,
    on_epoch: Callable[[TrialPlan, Row], None] = lambda trial, row: None,
    on_result: Callable[[Trial], None] = lambda trial: None,
    on_damage: Callable[[str], None] = lambda sentence: None,
) -> RunDirectory:
    """Runs every trial that ``out`` does not hold yet. A trial that fails is a row with its reason; the others go on.

    A trial that was killed, or that ``--time-limit`` ended, continues from its last checkpoint and leaves the same
    files.

    The tables that come of it do not depend on the executor.

    Args:
        plan: what to run.
        out: the run directory; one of the same settings is continued.
        executor: where the trials run; None for one after the other in this process.
        checkpoint_seconds: between two checkpoints of a training, see ``mil_zoo.train.checkpoint.CheckpointPlace``.
        on_trial: called as each trial that has to run starts.
        on_epoch: called after each of its epochs with the row of ``epochs.csv``.
        on_result: called with what came of each trial, first those that were there already.
        on_damage: called with a sentence on each finished trial whose files were changed since; it is run again.

    Raises:
        InputError: see ``RunDirectory.writing``.
        OSError: results could not be written; what was written before is kept.
    """
    run = RunDirectory(out)
    executor = executor or InProcess(plan)
    with run.writing(plan.settings()):
        run.write_text("splits.csv", plan.splits_csv)
        if plan.dataset.excluded:
            run.write_text("excluded.csv", _csv(["slide_id", "patient_id", "reason"], plan.dataset.excluded))
        if plan.dataset.covariates is not None:
            table = plan.dataset.covariates
            run.write_text("covariates.csv", table.to_csv(index=False, lineterminator="\n"))
            run.write_text("outcomes.csv", _outcomes(plan))
        rows = [Trial.from_row(row, str(run.path / "trials.jsonl")) for row in run.trials()]
        done = {trial.trial: trial for trial in rows if trial.ok and not _damaged(run, trial, on_damage)}
        jobs: list[Job] = []
        hopeless: list[Job] = []
        for trial in plan.trials:
            unfinished = run.unfinished(trial.id).resolve()
            if trial.id in done:
                shutil.rmtree(unfinished, ignore_errors=True)
                on_result(done[trial.id])
            else:
                folder, place = run.staging(trial.id).resolve(), CheckpointPlace(unfinished, checkpoint_seconds)
                job = Job(trial, plan.source_of(trial), folder, plan.suite, tuple(PLUGINS.files), place)
                alone = isinstance(executor, InProcess)
                whole = replace(job, alone=alone, spared=_spared(plan, trial))
                (hopeless if trial.model.lacks else jobs).append(whole)
        for job in hopeless:
            run.add_trial((outcome := job.failed(job.trial.model.lacks)).to_row())
            on_result(outcome)
        with closing(executor.run(jobs, on_trial, on_epoch)) as outcomes:
            for outcome in outcomes:
                run.add_trial(outcome.to_row())
                if outcome.ok:
                    shutil.rmtree(run.unfinished(outcome.trial), ignore_errors=True)
                on_result(outcome)
    return run


def _spared(plan: Plan, trial: TrialPlan) -> tuple[Path, ...]:
    """The plugin files whose trials are others, which tell of what is wrong with them, and that define no metric."""

    def of_model(name: str) -> Path | None:
        return plugin_of(PROTOCOLS.get(name) if name in PROTOCOLS else AGGREGATORS.get(name))

    needed = {plugin_of(getattr(metric.function, "func", metric.function)) for metric in plan.dataset.task.metrics}
    needed |= {None, of_model(trial.model.name)}
    return tuple({file for name in plan.suite.models if (file := of_model(name)) not in needed and file is not None})


def _outcomes(plan: Plan) -> str:
    """The targets of all patients: the clinical model of a fold is fitted to those of its training patients."""
    task, slides = plan.dataset.task, plan.dataset.bags.slides
    of_patient = {patient_key(slide): slide.target for slide in slides if slide.target is not None}
    return _csv(
        ["patient_id", *task.target_columns], [(name, *map(str, target)) for name, target in of_patient.items()]
    )


def _csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def _damaged(run: RunDirectory, trial: Trial, on_damage: Callable[[str], None]) -> bool:
    damage = run.damage(trial.trial)
    if damage:
        on_damage(damage)
    return bool(damage)
