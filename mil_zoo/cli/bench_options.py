"""What ``mil-zoo bench`` was asked for, and the suite, the data, the groups and the executor that it stands for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mil_zoo.cli.options import told_task
from mil_zoo.errors import InputError

if TYPE_CHECKING:
    from mil_zoo.bench.executors import Executor
    from mil_zoo.bench.plan import Plan
    from mil_zoo.bench.suite import Suite
    from mil_zoo.data.source import DatasetSource


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What ``mil-zoo bench`` was asked for: its options, as click read them; None where one was not given."""

    suite: str | None
    models: list[str] | None
    datasets: list[str] | None
    labels: Path | None
    task: str | None
    time: str | None
    event: str | None
    censorship: str | None
    event_values: list[str] | None
    event_as_named: bool | None
    time_unit: str | None
    root: Path | None
    features: list[str] | None
    layout: str | None
    allow_pickle: bool
    allow_missing: bool
    split: str | None
    allow_leaky_splits: bool | None
    test_on: str | None
    test_root: Path | None
    test_labels: Path | None
    patients: str | None
    folds: str | None
    repeats: int | None
    seeds: list[int] | None
    epochs: int | None
    settings: tuple[str, ...]
    grid: tuple[str, ...]
    tune: int | None
    inner_folds: int | None
    sampler: str | None
    embeddings: bool | None
    project: int | None
    class_weights: str | None
    select: str | None
    max_instances: int | None
    faithfulness: list[int] | None
    explain: list[str] | None
    permute_labels: bool | None
    threads: int | None
    jobs: int | None
    time_limit: float | None
    checkpoint_minutes: float
    executor: str | None
    address: str | None
    trial_cpus: float | None
    trial_gpus: float
    dry_run: bool
    verify: bool
    control: str | None
    by: list[str] | None
    groups: Path | None
    title: str | None
    out: Path | None
    plugin: tuple[Path, ...]


def groups_of(options: BenchOptions, plan: Plan) -> str | None:
    """``groups.csv``: the groups of the plan's slides; None without ``--by``."""
    from mil_zoo.data.labels.groups import read_groups

    if not options.by:
        if options.groups is not None:
            raise InputError("--groups is the table of --by; name its columns there")
        return None
    bag_of = {name: slide for slide in plan.dataset.bags.slides for name in slide.names()}
    slides = [(name, slide.patient_id or "") for name, slide in bag_of.items()]
    known: dict[str, dict[str, str]] = {"site": dict(plan.dataset.site_of)} if plan.dataset.site_of else {}
    if (covariates := plan.dataset.covariates) is not None:
        of = covariates.set_index("patient_id")
        known |= {str(name): {str(who): str(value) for who, value in of[name].dropna().items()} for name in of}
    table = read_groups(options.by, slides, options.groups or options.labels, known)
    table["slide_id"] = [slide.slide_id for slide in bag_of.values()]
    table = table.drop_duplicates("slide_id")  # a patient's slides are in one group
    tested = table[table["slide_id"].isin({slide for split in plan.splits for slide in split.test})]
    for column in options.by:
        if (tested[column] == "").all():
            raise InputError(
                f"--by {column}: nothing says the {column} of any slide that is tested; add these to the table, or "
                "leave the column out"
            )
    return str(table.to_csv(index=False, lineterminator="\n"))


def suite_of(options: BenchOptions) -> Suite:
    """The suite that the options name, with those that are settings of it on top."""
    from mil_zoo.bench.grid import parse_grids
    from mil_zoo.bench.suite import Suite, parse_overrides, read_suite

    shortcuts = {name: getattr(options, name) for name in ("class_weights", "max_instances", "select")}
    told = {field.name: getattr(options, field.name, None) for field in dataclasses.fields(Suite)}
    told |= {
        "task": told_task(vars(options)),
        "folds": _folds(options.folds),
        "overrides": {key: value for key, value in shortcuts.items() if value is not None}
        | parse_overrides(options.settings),
        "grid": parse_grids(options.grid),
    }
    suite = read_suite(options.suite, **told)
    _tell_unused(options, suite)
    return suite


def _tell_unused(options: BenchOptions, suite: Suite) -> None:
    """Says which options change nothing; raises an ``InputError`` where one is of another option that is not there."""
    from mil_zoo.data.splits.files import is_split_file

    split, elsewhere = f"--split {suite.split}", suite.test_on is not None
    in_file = not elsewhere and is_split_file(suite.split)
    drawn = not in_file and (suite.split != "official" or options.folds == "published")
    for given, used, why in (
        (options.folds, not elsewhere, "--folds changes nothing: --test-on tests on all slides of the other dataset"),
        (options.folds, elsewhere or drawn, f"--folds changes nothing: {split} says itself which folds there are"),
        (options.repeats, not in_file, f"--repeats changes nothing: {split} says itself which repetitions there are"),
    ):
        if given is not None and not used:
            click.echo(f"mil-zoo: {why}", err=True)
    if options.test_root is not None and not elsewhere:
        raise InputError("--test-root is the folder of --test-on; name that dataset, or leave it out")
    if options.sampler is not None and suite.tune is None:
        raise InputError("--sampler proposes configurations; add --tune N, or leave it out")


def source_of(options: BenchOptions, suite: Suite, name: str) -> DatasetSource:
    """How to open one of the suite's datasets, and the one that is tested on."""
    from mil_zoo.data.source import DatasetSource

    source = DatasetSource(
        name,
        options.root,
        options.labels,
        layout=options.layout,
        allow_pickle=options.allow_pickle,
        allow_missing=options.allow_missing,
    )
    if suite.test_on is None:
        if options.test_labels is not None:
            raise InputError(
                "--test-labels are those of --test-on; name the dataset that is tested on, or leave them out"
            )
        return source
    other = dataclasses.replace(
        source, name=suite.test_on, labels=options.test_labels, root=options.test_root or options.root
    )
    return dataclasses.replace(source, test_on=other)


def executor_of(options: BenchOptions, plan: Plan) -> Executor | None:
    """The executor asked for; None for this process."""
    from mil_zoo.bench.executors import Processes, jobs_that_fit

    name, jobs = options.executor, options.jobs
    limit = None if options.time_limit is None else 60 * options.time_limit
    if name == "ray":
        if limit is not None:
            raise InputError("--time-limit does not work with --executor ray; leave one of them out")
        from mil_zoo.bench.ray_executor import OnRay

        return OnRay(options.address, jobs, options.trial_cpus, options.trial_gpus)
    if options.address is not None or options.trial_cpus is not None or options.trial_gpus:
        raise InputError("--address, --trial-cpus and --trial-gpus are Ray's; add --executor ray")
    if name == "local" and jobs not in (None, 1):
        raise InputError("--executor local runs one trial at a time; leave it out, or --jobs")
    if name == "local" and limit is not None:
        raise InputError("--time-limit needs trials in processes of their own; leave --executor local out")
    if name == "local":
        return None
    several = jobs_that_fit(plan) if jobs is None else jobs
    return Processes(several, limit) if name == "processes" or limit is not None or several != 1 else None


def _folds(text: str | None) -> int | str | None:
    if text is None or text == "published":
        return text
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--folds must be a number or 'published', not {text!r}") from None
