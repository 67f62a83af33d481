"""Comparing aggregators from Python: what ``mil-zoo bench`` does, on bags in memory too."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mil_zoo.api.progress import bar
from mil_zoo.api.tasks import TaskLike, check_task, task_for
from mil_zoo.bench.executors import Processes, jobs_that_fit
from mil_zoo.bench.opening import judged_digest
from mil_zoo.bench.plan import Plan, make_plan, plan_of
from mil_zoo.bench.results import Row, Trial
from mil_zoo.bench.runner import run_plan
from mil_zoo.bench.suite import Suite, read_suite
from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import Bags, as_bags, targets_for
from mil_zoo.data.card import DataCard
from mil_zoo.data.dataset import by_patient
from mil_zoo.data.digests import of_labels
from mil_zoo.data.labelled import Dataset
from mil_zoo.data.source import DatasetSource
from mil_zoo.data.splits.split import patient_key
from mil_zoo.errors import InputError, as_path
from mil_zoo.report.load import Results
from mil_zoo.tasks import task_settings


def cross_validate(
    names: Sequence[str] | str,
    bags: Sequence[Bag] | str | Path | DatasetSource,
    folds: int | Literal["published"] = 5,
    *,
    task: TaskLike = None,
    classes: Sequence[str] = (),
    title: str | None = None,
    standardise: bool = False,
    simulated: bool = False,
    out: Path | str | None = None,
    jobs: int | Literal["auto"] = 1,
    progress: bool = True,
    **options: Any,
) -> Results:
    """Compares aggregators by cross-validation, with the splits, recipes and numbers of ``mil-zoo bench``.

    Args:
        names: aggregators, see ``mil_zoo.list_aggregators()``.
        bags: bags with labels, or targets and a ``task``, each with a ``slide_id`` of its own (slides of one
            ``patient_id`` are never separated); or what ``--dataset`` takes: a card, a bag table, a folder.
        folds: parts of the cross-validation.
        task: what is predicted: a task, its name, or a dict of its name and settings; None for classes by the labels,
            of a card for what it says.
        classes: names of the classes, of bags in memory.
        title: of the data, in tables and figures.
        standardise: scale features by those of the training slides, of bags in memory.
        simulated: whether a program made them, of bags in memory: every table and figure then says so.
        out: run directory, which ``mil-zoo report`` and ``predict`` read and the same call continues; None for one that
            is deleted with the results.
        jobs: trials at a time, in processes of their own; "auto" for what cores and memory allow. Bags in memory are
            trained in this process.
        progress: whether terminals and notebooks show a bar.
        **options: what a suite states: ``epochs``, ``repeats``, ``seeds``, ``split``, ``validation_fraction``,
            ``overrides={"abmil.embed_dim": 64}``, ``grid={"srmil.mask_rate": [0, 0.5]}`` and so on; see
            ``mil_zoo.bench.suite.Suite``.

    Returns:
        The results: ``table()`` is a data frame; ``mil_zoo.report`` draws the rest from them.

    Raises:
        InputError: an unknown name or option, bags that cannot be divided so, or a trial failed (the others are kept
            where ``out`` is given).

    Example:
        >>> results = mil_zoo.cross_validate(["abmil", "mean"], bags, folds=5, epochs=20)
        >>> results.table()["auc_mean"]
        >>> results.path  # tables, figures and page: mil-zoo report PATH
    """
    if not isinstance(names, Iterable):
        raise InputError(f"names is the name of an aggregator or a list of names, not {names!r:.60}")
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        raise InputError(f"classes is a list of the names of the classes, not {classes!r:.60}")
    if jobs != "auto" and (isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1):
        raise InputError(f'jobs is a whole number from 1, or "auto", not {jobs!r:.60}')
    check_task(task)
    given = {"models": [names] if isinstance(names, str) else list(names), "folds": folds, "title": title, **options}
    in_memory = not isinstance(bags, str | Path | DatasetSource)
    if in_memory and jobs != 1:
        raise InputError(
            f"bags in memory are trained in this process, not in {jobs} others; leave jobs out, or pass the name or "
            "the folder of a dataset"
        )
    if in_memory:
        plan = _of_memory(bags, given, task, classes, standardise, simulated)  # type: ignore[arg-type]
    else:
        if simulated:
            raise InputError("simulated= is of bags in memory; write kind: simulated into a card.yaml beside the files")
        plan = _of_source(bags, given, task)  # type: ignore[arg-type]
    folder, made = (as_path(out, "out", "the run directory"), None) if out is not None else _temporary()
    number = jobs_that_fit(plan) if jobs == "auto" else jobs
    failed = _run(plan, folder, number, progress)
    if failed:
        kept = f"the others are in {folder}" if out is not None else "give out= to keep the others"
        what = f"{failed[0].trial}: {failed[0].reason}"
        raise InputError(f"{len(failed)} of {len(plan.trials)} trials failed, {what}; {kept}")
    results = Results.load(folder)
    if made is not None:
        weakref.finalize(results, made.cleanup)
    return results


def _temporary() -> tuple[Path, tempfile.TemporaryDirectory[str]]:
    made = tempfile.TemporaryDirectory(prefix="mil-zoo-")
    return Path(made.name), made


def _of_source(bags: str | Path | DatasetSource, given: dict[str, Any], task: TaskLike) -> Plan:
    """The plan of a dataset by its name, as the command line makes it."""
    source = bags if isinstance(bags, DatasetSource) else DatasetSource(str(bags))
    if task is not None:
        given["task"] = _settings(task)
    return make_plan(read_suite(None, datasets=[source.name], **given), source)


def _settings(task: TaskLike) -> dict[str, Any]:
    if isinstance(task, str):
        return {"name": task}
    return dict(task) if isinstance(task, dict) else {"name": task.name, **task.settings()}  # type: ignore[union-attr]


def _of_memory(
    bags: Sequence[Bag],
    given: dict[str, Any],
    task: TaskLike,
    classes: Sequence[str],
    standardise: bool,
    simulated: bool,
) -> Plan:
    """The plan of bags in memory."""
    bags = as_bags(bags)
    _check_names(bags)
    suite = Suite(**{"datasets": ["bags in memory"], **_known(given)})
    wanted = task_for(task, bags)
    targets = targets_for(bags, wanted)
    if classes and wanted.target_columns == ("label",) and len(classes) != (count := getattr(wanted, "num_classes", 0)):
        raise InputError(f"classes= names {len(classes)} and the bags' labels tell of {count}; name each class")
    patients = [patient_key(slide) for slide in bags.slides]
    first = np.unique(patients, return_index=True)[1] if wanted.of_patients else np.arange(len(bags))
    wanted = wanted.of_cohort(targets[np.sort(first)])
    labels = list(classes) or [str(i) for i in range(max(2, getattr(wanted, "num_classes", 2)))]
    of_classes = wanted.target_columns == ("label",)
    card = DataCard(
        name="bags",
        title="Bags in memory",
        kind="simulated" if simulated else "own",
        form="table",
        classes=labels if of_classes else [],
        task=dict(task_settings(wanted).get("task", {})),
        standardise=standardise,
        instance_labels=None if bags[0].instance_labels is None else "instance labels of the bags",
    )
    dataset = by_patient(Dataset(card, bags), suite.patients)
    digests = {"labels": of_labels(bags), "features": judged_digest(bags)}
    return plan_of(suite, DatasetSource("bags in memory"), dataset, digests)


def _known(given: dict[str, Any]) -> dict[str, Any]:
    """What is given of a suite, checked."""
    return vars(read_suite(None, datasets=["bags in memory"], **given))


def _check_names(bags: Bags) -> None:
    names = bags.slide_ids
    if not names:
        raise InputError("there are no bags; give some")
    if "" in names or len(set(names)) < len(names):
        raise InputError("every bag needs a slide_id of its own: splits and predictions name slides by it")


def _run(plan: Plan, folder: Path, jobs: int, progress: bool) -> list[Trial]:
    """Runs what is missing and gives the trials that failed."""
    failed: list[Trial] = []
    epochs = sum(trial.model.training.epochs for trial in plan.trials)
    executor = None if jobs == 1 else Processes(jobs)
    with bar(f"{len(plan.trials)} trials", epochs, progress) as advance:

        def on_epoch(trial: Any, row: Row) -> None:
            advance(trial.id)

        def on_result(trial: Trial) -> None:
            if not trial.ok:
                failed.append(trial)

        run_plan(plan, folder, executor=executor, on_epoch=on_epoch, on_result=on_result)
    return failed
