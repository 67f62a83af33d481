"""``mil-zoo bench``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape

from mil_zoo.cli.bench_options import BenchOptions, executor_of, groups_of, source_of, suite_of
from mil_zoo.cli.dry_run import show_dry_run
from mil_zoo.cli.options import as_one_value, comma_list, comma_paths, outcome_options, plugin_option, with_underscores
from mil_zoo.cli.progress import run_with_progress
from mil_zoo.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mil_zoo.bench.plan import Plan

EXECUTORS = ("local", "processes", "ray")


def _jobs(_: click.Context, __: click.Parameter, value: str) -> int | None:
    """The number; None for auto."""
    if value == "auto":
        return None
    try:
        return int(value)
    except ValueError:
        raise InputError(f"--jobs is a number of trials or auto, not {value!r}") from None


@click.command(
    epilog="""\b
Examples:
  mil-zoo bench --models srmil,abmil
  mil-zoo bench --models srmil,abmil --dataset crchisto --root DATA
  mil-zoo bench --models abmil,mean --dataset bags.npz --folds 5 --epochs 30
  mil-zoo bench --dataset tcga_nsclc --root DATA --split site --folds 5
  mil-zoo bench --dataset slides_of_a --test-on slides_of_b --repeats 3
  mil-zoo bench --dataset a --labels a.csv --test-on b --test-labels b.csv
  mil-zoo bench --models abmil,mean --dataset features_dir --labels labels.csv --features uni_v1
  mil-zoo bench --dataset features_dir --labels labels.csv --time os_days --event os_event
  mil-zoo bench --dataset features_dir --labels labels.csv --task ordinal:loss=coral
  mil-zoo bench --models srmil --grid srmil.mask_rate=0,0.1,...,0.9
  mil-zoo bench --models srmil,abmil --tune 20
  mil-zoo bench --models abmil,mymil --plugin my_mil.py --set mymil.width=64
  mil-zoo bench --models srmil,abmil --jobs 8 --dry-run
  mil-zoo bench --models srmil,abmil,mean --control mean --select last
  mil-zoo bench --models srmil,abmil --executor ray --address head:6379 --trial-gpus 0.25
Start the same command with the same --out again to continue an interrupted run.
"""
)
@click.option("--suite", help="Settings to start from, see configs/suites.  [default: the dataset's own, else demo]")
@click.option("--models", callback=comma_list(), help="Aggregators to compare, comma-separated (see mil-zoo models).")
@click.option(
    "--dataset",
    "datasets",
    callback=comma_paths,
    metavar="CARD|TABLE.npz|DIR",
    help="Data cards (see mil-zoo datasets), bag tables or folders of feature files, comma-separated.",
)
@click.option("--labels", type=click.Path(path_type=Path), help="csv (slide_id, label[, patient_id]) of other labels.")
@outcome_options
@click.option(
    "--root", type=click.Path(path_type=Path), help="Folder of the dataset's files.  [default: $MIL_ZOO_REAL_DATA]"
)
@click.option(
    "--features",
    callback=comma_list(),
    metavar="NAME",
    help="Which features, where the folder holds those of several encoders; several are compared, comma-separated; "
    "uni+conch reads both side by side.",
)
@click.option(
    "--project",
    type=int,
    metavar="K",
    help="Project features on K principal axes of the training instances, so that all encoders are as wide.",
)
@click.option("--layout", metavar="NAME", help="How the files are laid out.  [default: told from what lies there]")
@click.option("--allow-pickle", is_flag=True, help="Run the code in pickled features; for files of your own only.")
@click.option("--allow-missing", is_flag=True, help="Use the slides there where labels or splits name more.")
@click.option(
    "--split",
    metavar="SCHEME|FILE",
    help="kfold, official, monte-carlo, site (no site on two sides), low-label:50 or low-label:25% (training slides), "
    "or a split file of CLAM, torchmil, PANTHER and others (FILE:NAME of several).  [default: the suite's, else kfold]",
)
@click.option(
    "--allow-leaky-splits",
    is_flag=True,
    default=None,
    help="Run a published split that shares patients between train and test; every table says so.",
)
@click.option("--test-on", metavar="CARD|PATH", help="Train and validate on --dataset, test on all slides of this one.")
@click.option("--test-root", type=click.Path(path_type=Path), help="Folder of its files.  [default: --root]")
@click.option("--test-labels", type=click.Path(path_type=Path), help="csv of its labels, as --labels.")
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
@click.option(
    "--tune",
    type=int,
    metavar="N",
    help="Try N configurations of every aggregator inside the training part of each trial, its recipe first.",
)
@click.option("--inner-folds", type=int, metavar="K", help="Judge them on K folds of it, not on the validation part.")
@click.option("--sampler", type=click.Choice(["tpe", "random"]), help="What proposes them.  [default: tpe]")
@click.option(
    "--embeddings/--no-embeddings", default=None, help="Keep the embeddings of the test slides.  [default: keep them]"
)
@click.option("--class-weights", type=click.Choice(["none", "balanced"]), help="Weigh the loss by class frequency.")
@click.option(
    "--select",
    metavar="SCORE",
    help="Validation score that chooses the checkpoint, or last for the last epoch.  [default: each recipe's]",
)
@click.option("--max-instances", type=int, help="Random instances of a bag in a training step.  [default: all]")
@click.option(
    "--faithfulness",
    callback=comma_list(int),
    metavar="K,...",
    help="Predict test slides again without, and with only, their K most attended instances.",
)
@click.option(
    "--explain",
    callback=comma_list(with_underscores),
    metavar="NAME,...",
    help="Score the instances of test slides by these explainers, and judge them: attention, gradient, "
    "integrated_gradients, integrated_gradients_mean, occlusion, random. Takes some hundred predictions a slide.",
)
@click.option(
    "--permute-labels", is_flag=True, default=None, help="Train on shuffled labels: AUC or concordance near 0.5."
)
@click.option("--threads", type=int, help="CPU threads of a trial; part of the plan.  [default: 1]")
@click.option(
    "--jobs",
    callback=_jobs,
    envvar="MIL_ZOO_JOBS",
    default="1",
    show_default=True,
    show_envvar=True,
    help="Trials at a time, each in a process of its own; auto: what cores and memory allow; 1: in this process.",
)
@click.option(
    "--time-limit",
    type=float,
    metavar="MINUTES",
    help="Of a trial, which fails when it takes longer; trials then run in processes of their own.",
)
@click.option(
    "--checkpoint-minutes",
    type=float,
    default=3.0,
    show_default=True,
    help="Between two checkpoints within an epoch of a trial; one that is killed continues from the last.",
)
@click.option(
    "--executor",
    type=click.Choice(EXECUTORS),
    help="Where trials run; the tables do not depend on it.  [default: processes for several --jobs, else local]",
)
@click.option("--address", metavar="HOST:PORT", help="Of a Ray cluster.  [default: start one on this machine]")
@click.option("--trial-cpus", type=float, help="CPUs that Ray reserves for a trial.  [default: --threads]")
@click.option("--trial-gpus", type=float, default=0.0, help="GPUs that Ray reserves for a trial, 0.25 for a quarter.")
@click.option("--dry-run", is_flag=True, help="List the trials and estimate their time from a few steps; run none.")
@click.option("--verify", is_flag=True, help="Digest all features, not sampled rows, to notice any later change.")
@click.option("--control", metavar="MODEL", help="Compare the others with this one: k - 1 tests instead of all pairs.")
@click.option(
    "--by", callback=comma_list(), metavar="COLUMN,...", help="Score groups of patients: site, sex, stage ..."
)
@click.option(
    "--groups",
    type=click.Path(path_type=Path),
    help="csv of these columns, by slide_id or patient_id.  [default: --labels]",
)
@click.option("--title", help="Of tables, figures and page.  [default: the dataset's own, else the file's name]")
@click.option("--out", type=click.Path(path_type=Path), help="Run directory.  [default: runs/<suite>-<time>]")
@plugin_option
@as_one_value(BenchOptions)
def bench(options: BenchOptions) -> int:
    """Compare aggregators on a dataset.

    Every aggregator trains on the same folds; its checkpoint is chosen on validation patients that are in neither train
    nor test. Writes tables (csv, md, tex), figure 3 and the attention maps into the run directory.
    """
    from rich.console import Console

    console = Console()
    with console.status("Loading torch"):
        if options.jobs != 1 and options.executor in (None, "processes") and not options.dry_run:
            from mil_zoo.bench.processes import start_importing

            start_importing()  # where trials will run, meanwhile
        from mil_zoo.bench.executors import jobs_that_fit
        from mil_zoo.bench.plan import make_plan
        from mil_zoo.cli.report import show
        from mil_zoo.report import figures, page, tables  # noqa: F401  what the end needs is tried before hours of training

    if not 0 <= options.checkpoint_minutes < float("inf"):
        raise InputError(f"--checkpoint-minutes must be 0 or more and finite, not {options.checkpoint_minutes:g}")
    suite = suite_of(options)
    with console.status("Opening the data"):  # all of it first: a mistake in the last dataset costs no training
        sources = [source_of(options, suite, name) for name in suite.datasets]
        plans = [make_plan(suite, source, options.features or (), options.plugin, options.verify) for source in sources]
    out = options.out
    if out is None:
        name = Path(options.suite or "-".join(plan.dataset.card.name for plan in plans)).stem
        out = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folders = [out if len(plans) == 1 else out / plan.dataset.card.name for plan in plans]
    _check_control(options.control, plans)
    groups = [groups_of(options, plan) for plan in plans]  # before hours of training
    if options.dry_run:
        failed = []
        for plan, folder in zip(plans, folders, strict=True):
            if options.executor != "ray":
                executor_of(options, plan)  # what it refuses is refused here too
            failed.append(show_dry_run(plan, folder, options.jobs or jobs_that_fit(plan), console))
        return 1 if any(failed) else 0
    failures = 0
    for plan, folder, of_plan in zip(plans, folders, groups, strict=True):
        executor = executor_of(options, plan)
        trials = run_with_progress(plan, folder, console, executor, 60 * options.checkpoint_minutes)
        if of_plan is not None:
            (folder / "groups.csv").write_text(of_plan, encoding="utf-8")
        place = {trial.id: i for i, trial in enumerate(plan.trials)}  # they finish in another order every time
        lost = sorted((trial for trial in trials if not trial.ok), key=lambda trial: place[trial.trial])
        for trial in lost:
            console.print(f"[red]failed[/] {escape(trial.trial)}: {escape(trial.reason or '')}", highlight=False)
            if (text := folder / "trials" / trial.trial / "traceback.txt").exists():
                console.print(f"  traceback: {escape(str(text))}", highlight=False, soft_wrap=True)
        failures += len(lost)
        show(folder, console, control=options.control)
    return 1 if failures else 0


def _check_control(control: str | None, plans: Sequence[Plan]) -> None:
    for plan in plans:
        labels = [model.label for model in plan.models]
        if control not in (None, *labels):
            raise InputError(f"--control {control} is not among the models{did_you_mean(str(control), labels)}")
