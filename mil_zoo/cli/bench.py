"""``mil-zoo bench``."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from mil_zoo.cli.options import comma_list, plugin_option
from mil_zoo.errors import InputError

EXECUTORS = ("local", "processes", "ray")


@click.command(
    epilog="""\b
Examples:
  mil-zoo bench --models srmil,abmil
  mil-zoo bench --models srmil,abmil --dataset crchisto --root DATA
  mil-zoo bench --models abmil,mean --dataset bags.npz --folds 5 --epochs 30
  mil-zoo bench --dataset tcga_nsclc --root DATA --split site --folds 5
  mil-zoo bench --dataset slides_of_a --test-on slides_of_b --repeats 3
  mil-zoo bench --models abmil,mean --dataset features_dir --labels labels.csv --features uni_v1
  mil-zoo bench --models srmil --grid srmil.mask_rate=0,0.1,...,0.9
  mil-zoo bench --models abmil,mymil --plugin my_mil.py --set mymil.width=64
  mil-zoo bench --models srmil,abmil --jobs 8 --dry-run
  mil-zoo bench --models srmil,abmil --executor ray --address head:6379 --trial-gpus 0.25
Start the same command with the same --out again to continue an interrupted run.
"""
)
@click.option("--suite", help="Settings to start from, see configs/suites.  [default: the dataset's own, else demo]")
@click.option("--models", callback=comma_list(), help="Aggregators to compare, comma-separated (see mil-zoo models).")
@click.option(
    "--dataset",
    "datasets",
    callback=comma_list(),
    metavar="CARD|TABLE.npz|DIR",
    help="Data cards (see mil-zoo datasets), bag tables or folders of feature files, comma-separated.",
)
@click.option("--labels", type=click.Path(path_type=Path), help="csv (slide_id, label[, patient_id]) of other labels.")
@click.option(
    "--root", type=click.Path(path_type=Path), help="Folder of the dataset's files.  [default: $MIL_ZOO_REAL_DATA]"
)
@click.option(
    "--features",
    callback=comma_list(),
    metavar="NAME",
    help="Which features, where the folder holds those of several encoders; several are compared, comma-separated.",
)
@click.option("--layout", metavar="NAME", help="How the files are laid out.  [default: told from what lies there]")
@click.option("--allow-pickle", is_flag=True, help="Run the code in pickled features; for files of your own only.")
@click.option(
    "--split",
    metavar="SCHEME|FILE",
    help="kfold, official, monte-carlo, site (no site on two sides), low-label:50 or low-label:25% (training slides), "
    "or a split file of CLAM, torchmil or Giga-SSL (FILE:NAME of several).  [default: the suite's, else kfold]",
)
@click.option(
    "--allow-leaky-splits",
    is_flag=True,
    default=None,
    help="Run a published split that shares patients between train and test; every table says so.",
)
@click.option("--test-on", metavar="CARD|PATH", help="Train and validate on --dataset, test on all slides of this one.")
@click.option("--test-root", type=click.Path(path_type=Path), help="Folder of its files.  [default: --root]")
@click.option(
    "--patients",
    type=click.Choice(["mean", "max", "packed"]),
    help="Score patients by the mean or max of their slides, or pack their slides in one bag.  [default: the card's]",
)
@click.option("--folds", metavar="K|published", help="Parts of the cross-validation, or those that come with the data.")
@click.option("--repeats", type=int, help="Repetitions of it.")
@click.option("--seeds", callback=comma_list(int), help="Seeds of each fold, comma-separated.")
@click.option("--epochs", type=int, help="Budget for all aggregators.  [default: the suite's or each one's own]")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="srmil.mask_rate=0.5, or learning_rate=1e-4 for all."
)
@click.option(
    "--grid",
    multiple=True,
    metavar="KEY=A,B,...,Z",
    help="Try each value: srmil.mask_rate=0,0.1,...,0.9. Several grids multiply.",
)
@click.option("--class-weights", type=click.Choice(["none", "balanced"]), help="Weigh the loss by class frequency.")
@click.option("--max-instances", type=int, help="Random instances of a bag in a training step.  [default: all]")
@click.option(
    "--faithfulness",
    callback=comma_list(int),
    metavar="K,...",
    help="Predict test slides again without, and with only, their K most attended instances.",
)
@click.option("--permute-labels", is_flag=True, default=None, help="Train on shuffled labels: AUC must be near 0.5.")
@click.option("--threads", type=int, help="CPU threads of a trial; part of the plan.  [default: 1]")
@click.option("--jobs", type=int, help="Trials at a time, each in a process of its own.  [default: 1, in this process]")
@click.option(
    "--executor",
    type=click.Choice(EXECUTORS),
    help="Where trials run; the tables do not depend on it.  [default: processes with --jobs, else local]",
)
@click.option("--address", metavar="HOST:PORT", help="Of a Ray cluster.  [default: start one on this machine]")
@click.option("--trial-cpus", type=float, help="CPUs that Ray reserves for a trial.  [default: --threads]")
@click.option("--trial-gpus", type=float, default=0.0, help="GPUs that Ray reserves for a trial, 0.25 for a quarter.")
@click.option("--dry-run", is_flag=True, help="List the trials and estimate their time from a few steps; run none.")
@click.option("--out", type=click.Path(path_type=Path), help="Run directory.  [default: runs/<suite>-<time>]")
@plugin_option
def bench(
    suite: str | None,
    models: list[str] | None,
    datasets: list[str] | None,
    labels: Path | None,
    root: Path | None,
    features: list[str] | None,
    layout: str | None,
    allow_pickle: bool,
    split: str | None,
    allow_leaky_splits: bool | None,
    test_on: str | None,
    test_root: Path | None,
    patients: str | None,
    folds: str | None,
    repeats: int | None,
    seeds: list[int] | None,
    epochs: int | None,
    settings: tuple[str, ...],
    grid: tuple[str, ...],
    class_weights: str | None,
    max_instances: int | None,
    faithfulness: list[int] | None,
    permute_labels: bool | None,
    threads: int | None,
    jobs: int | None,
    executor: str | None,
    address: str | None,
    trial_cpus: float | None,
    trial_gpus: float,
    dry_run: bool,
    out: Path | None,
    plugin: tuple[Path, ...],
) -> int:
    """Compare aggregators on a dataset.

    Every aggregator trains on the same folds; its checkpoint is chosen on validation patients that are in neither train
    nor test. Writes tables (csv, md, tex), figure 3 and the attention maps into the run directory.
    """
    from rich.console import Console

    console = Console()
    with console.status("Loading torch"):
        from mil_zoo.bench.grid import parse_grids
        from mil_zoo.bench.plan import make_plan
        from mil_zoo.bench.suite import parse_overrides, read_suite
        from mil_zoo.cli.report import show

    shortcuts = {"class_weights": class_weights, "max_instances": max_instances}
    overrides = {key: value for key, value in shortcuts.items() if value is not None} | parse_overrides(settings)
    chosen = read_suite(
        suite,
        datasets=datasets,
        models=models,
        split=split,
        allow_leaky_splits=allow_leaky_splits,
        test_on=test_on,
        patients=patients,
        folds=_folds(folds),
        repeats=repeats,
        seeds=seeds,
        epochs=epochs,
        faithfulness=faithfulness,
        permute_labels=permute_labels,
        threads=threads,
        overrides=overrides,
        grid=parse_grids(grid),
    )
    with console.status("Opening the data"):  # all of it first: a mistake in the last dataset costs no training
        where = {"features": features, "layout": layout, "allow_pickle": allow_pickle, "test_root": test_root}
        plans = [make_plan(chosen, name, root, labels, **where) for name in chosen.datasets]
    if out is None:
        name = Path(suite or "-".join(plan.dataset.card.name for plan in plans)).stem
        out = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if dry_run:
        for plan in plans:
            _dry_run(plan, out if len(plans) == 1 else out / plan.dataset.card.name, jobs or 1, console)
        return 0
    failures = 0
    for plan in plans:
        folder = out if len(plans) == 1 else out / plan.dataset.card.name
        rows = _run(plan, folder, console, _executor(executor, jobs, address, trial_cpus, trial_gpus))
        failed = [row for row in rows if row["status"] != "ok"]
        for row in failed:
            console.print(f"[red]failed[/] {row['trial']}: {escape(row['reason'])}", highlight=False)
        failures += len(failed)
        with _saved(folder, rows):
            show(folder, console)
    return 1 if failures else 0


def _executor(name: str | None, jobs: int | None, address: str | None, cpus: float | None, gpus: float) -> Any:
    """The executor asked for; None for this process."""
    from mil_zoo.bench.executors import Processes

    if name != "ray" and (address is not None or cpus is not None or gpus):
        raise InputError("--address, --trial-cpus and --trial-gpus are Ray's; add --executor ray")
    if name == "ray":
        from mil_zoo.bench.ray_executor import OnRay

        return OnRay(address, jobs, cpus, gpus)
    if name == "local" and jobs not in (None, 1):
        raise InputError("--executor local runs one trial at a time; leave it out, or --jobs")
    if name == "processes" or (name is None and jobs not in (None, 1)):
        return Processes((os.cpu_count() or 1) if jobs is None else jobs)
    return None


def _folds(text: str | None) -> int | str | None:
    if text is None or text == "published":
        return text
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--folds must be a number or 'published', not {text!r}") from None


def _dry_run(plan: Any, out: Path, jobs: int, console: Any) -> None:
    """Lists the trials that ``out`` does not hold, and what they would take."""
    from rich.table import Table

    from mil_zoo.bench.estimate import SAMPLE, estimate
    from mil_zoo.bench.run_directory import RunDirectory

    done = {row["trial"] for row in RunDirectory(out).trials() if row["status"] == "ok"}
    left = [trial.id for trial in plan.trials if trial.id not in done]
    with console.status("Measuring a few steps"):
        estimates = estimate(plan, done)
    for trial in left:
        click.echo(trial)
    table = Table("model", "trials to run", "epochs", "a trial", "together", title=plan.dataset.card.title)
    for found in estimates:
        a_trial, together = (_duration(found.seconds * number) for number in (1, found.trials))
        table.add_row(found.label, str(found.trials), str(found.epochs), escape(found.reason) or a_trial, together)
    console.print(table)
    known = [found for found in estimates if found.trials and found.seconds == found.seconds]
    whole = sum(found.seconds * found.trials for found in known) / jobs
    least = max((found.seconds for found in known), default=0.0)
    console.print(
        f"{len(left)} trials to run, {len(done)} done. About {_duration(max(whole, least))} with --jobs {jobs}, from "
        f"one step and one evaluation of {SAMPLE} slides a model on {plan.suite.threads} threads: expect it within a "
        "factor of two, more where the trials get in each other's way.",
        highlight=False,
    )


def _duration(seconds: float) -> str:
    if seconds != seconds:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def _saved(folder: Path, rows: list[dict[str, Any]]) -> Iterator[None]:
    """Turns a failing disk into one sentence that says what is kept."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"writing to {folder} failed ({error}); {len(rows)} finished trials are kept there; free some space and "
            f"start the same command with --out {folder} again"
        ) from error


def _run(plan: Any, out: Path, console: Any, executor: Any) -> list[dict[str, Any]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from mil_zoo.bench.runner import run_plan
    from mil_zoo.report.results import label_of

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
    rows: list[dict[str, Any]] = []
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

        def on_epoch(trial: Any, row: dict[str, Any]) -> None:
            reached(trial.model.label, trial.id, row["epoch"])

        budgets = {model.label: model.training.epochs for model in plan.models}

        def on_result(row: dict[str, Any]) -> None:
            rows.append(row)
            reached(label_of(row), row["trial"], budgets[label_of(row)])

        try:
            with _saved(out, rows):
                run_plan(plan, out, executor=executor, on_epoch=on_epoch, on_result=on_result)
        except KeyboardInterrupt:
            progress.stop()
            console.print(
                f"Interrupted after {len(rows)} of {len(plan.trials)} trials; they are kept. The same command with "
                f"--out {out} continues.",
                highlight=False,
            )
            raise
    return rows
