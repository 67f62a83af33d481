"""What folds that share hospitals flatter: patient-level folds against site-preserving folds of the same slides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mil_zoo.errors import InputError
from mil_zoo.files import write_text, writing
from mil_zoo.metrics import Metric
from mil_zoo.report.across_runs.ranking import dataset_names
from mil_zoo.report.load import Results
from mil_zoo.report.scored import scored
from mil_zoo.report.tables.sentences import data_note
from mil_zoo.report.tables.table import Cell, Table
from mil_zoo.report.tables.text import fixed, interval, one_line, p_value
from mil_zoo.stats import Scored, design_difference, holm

_NOTES = [
    "Gap: the mean over folds that put patients of one site on both sides, less the mean over folds that keep each "
    "site on one side. Above 0, by a metric that is better when high, the first is too good for a hospital that was "
    "never seen (Howard et al. 2021).",
    "Interval: 95 %, over the choice of test patients, drawn once for both; the spread over trainings is left out. p: "
    "of no gap, adjusted by Holm over the models of a metric.",
]


def site_pair(runs: Sequence[Results]) -> tuple[Results, Results] | None:
    """Of two runs of one dataset that with patient-level and that with site-preserving folds; None for other runs."""
    by_site = [run.config.split.kind.startswith("site") for run in runs]
    if len(runs) != 2 or sum(by_site) != 1 or len(set(dataset_names(runs))) != 1:
        return None
    return (runs[1], runs[0]) if by_site[0] else (runs[0], runs[1])


def site_gap(patients: Results, sites: Results) -> pd.DataFrame:
    """One row a headline metric and aggregator that both runs have.

    Columns: ``metric``, ``aggregator``, ``patient_level``, ``site_preserving``, ``gap``, ``low``, ``high`` (95 %),
    ``p``, ``p_holm``.

    Raises:
        InputError: the runs have other folds or test slides, or no aggregator in common.
    """
    sizes = [(run.config.split.folds, run.config.split.repeats) for run in (patients, sites)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"{patients.path} has {sizes[0][0]} folds x {sizes[0][1]} and {sites.path} {sizes[1][0]} x {sizes[1][1]}; "
            "run both with the same --folds and --repeats, so that they train on as many slides"
        )
    both = [label for label in patients.finished if patients.finished[label] and sites.finished.get(label)]
    if not both:
        raise InputError(f"{patients.path} and {sites.path} have no finished aggregator in common")
    parts = {label: (_test_sets(patients, label), _test_sets(sites, label)) for label in both}
    for label, (a, b) in parts.items():
        missing = {*np.concatenate([part.patients for part in a])} ^ {*np.concatenate([part.patients for part in b])}
        if missing:
            raise InputError(
                f"{label}: {len(missing)} patients are tested in one of {patients.path} and {sites.path} alone, for "
                f"instance {sorted(map(str, missing))[0]}; finish both runs on the same slides"
            )
    tables = [_of_metric(metric, parts) for metric in patients.headline]
    found: pd.DataFrame = pd.concat(tables, ignore_index=True)
    return found


def write_site_gap(patients: Results, sites: Results, out: Path) -> list[Path]:
    """Writes ``site_gap.csv|md|tex`` of :func:`site_gap` into the folder ``out``."""
    table = site_gap(patients, sites)
    rows = []
    for row in table.to_dict("records"):
        scores = (f"{row['patient_level']:.3f}", f"{row['site_preserving']:.3f}")
        gap = Cell(fixed(row["gap"], "+.3f"), below=(interval(row["low"], row["high"], "+.3f"),))
        rows.append([patients.metric(row["metric"]).title, row["aggregator"], *scores, gap, p_value(row["p_holm"])])
    header = ["Metric", "Aggregator", "Patient-level", "Site-preserving", "Gap [95 %]", "p (Holm)"]
    warnings = dict.fromkeys(one_line(text) for run in (patients, sites) for text in run.config.dataset.warnings)
    splits = f"Patient-level: {patients.config.split.kind}. Site-preserving: {sites.config.split.kind}."
    shown = Table(header, rows, [data_note(patients), splits, *_NOTES, *warnings])
    written = {
        "site_gap.csv": Table.of(table).csv(),
        "site_gap.md": shown.markdown(),
        "site_gap.tex": shown.latex(f"Patient-level and site-preserving folds of {patients.dataset_title}"),
    }
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, text in written.items():
            write_text(out / name, text)
    return [out / name for name in written]


def _test_sets(results: Results, label: str) -> list[Scored]:
    """The test set of every trial, of patients where the task scores patients."""
    found = []
    for trial in results.finished[label]:
        task = results.task_of(trial)
        rows = results.scored_rows(trial) if task.of_patients else results.test_predictions(trial)
        found.append(scored(task, rows, of_slides=not task.of_patients))
    return found


def _of_metric(metric: Metric, parts: dict[str, tuple[list[Scored], list[Scored]]]) -> pd.DataFrame:
    rows = []
    for label, (a, b) in parts.items():
        drawn = design_difference(a, b, metric)
        means = [np.nanmean([metric(*part.arguments, **part.context) for part in one]) for one in (a, b)]
        rows.append(
            {"metric": metric.name, "aggregator": label, "patient_level": means[0], "site_preserving": means[1]}
            | {"gap": drawn.value, "low": drawn.low, "high": drawn.high, "p": drawn.p}
        )
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p"]))
