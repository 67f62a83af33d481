"""Survival over the cohorts of several runs: pooled concordance of every model, with its interval, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mil_zoo.files import write_text, writing
from mil_zoo.report.across_runs.ranking import dataset_names
from mil_zoo.report.figures.look import WIDTH, drawing, legend, palette, plain
from mil_zoo.report.figures.registry import save
from mil_zoo.report.load import Results
from mil_zoo.report.table_file import numbers_in
from mil_zoo.report.tables.survival_table import CLINICAL, survival_numbers
from mil_zoo.report.tables.table import Cell, Table
from mil_zoo.report.tables.text import interval, one_line

_NOTES = [
    "Concordant over comparable pairs within test folds, each summed, with the 95 % interval over the choice of test "
    "patients; the spread over trainings is left out. Differences between models are in comparisons.md of each run.",
]


_POOLED = ("c_pooled", "c_pooled_low", "c_pooled_high")


def write_forest(runs: Sequence[Results], out: Path) -> list[Path]:
    """Writes ``cohorts.csv|md|tex`` and ``cohorts.png``, the forest plot; nothing where the runs are not of survival.

    Args:
        runs: one a cohort; several of one cohort add their models up. A folder of a run's ``config.yaml``,
            ``table.csv`` and ``survival.csv`` only will do.
        out: folder to write into.
    """
    table = concordance_of_cohorts(runs)
    if table.empty:
        return []
    cohorts, labels = (list(dict.fromkeys(table[name])) for name in ("cohort", "aggregator"))
    cells = {
        (row["cohort"], row["aggregator"]): Cell(
            f"{row['c_pooled']:.3f}", below=(interval(row["c_pooled_low"], row["c_pooled_high"]),)
        )
        for row in table.dropna(subset="c_pooled").to_dict("records")
    }
    rows = [[cohort, *(cells.get((cohort, label), Cell("-")) for label in labels)] for cohort in cohorts]
    warnings = dict.fromkeys(one_line(text) for run in runs for text in run.config.dataset.warnings)
    shown = Table(["Cohort", *labels], rows, [*_NOTES, *warnings])
    written = {
        "cohorts.csv": Table.of(table).csv(),
        "cohorts.md": shown.markdown(),
        "cohorts.tex": shown.latex("Pooled concordance of every cohort"),
    }
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, text in written.items():
            write_text(out / name, text)
        with drawing():
            simulated = any(run.simulated for run in runs)
            save(forest(table, "Simulated slides: concordance" if simulated else "Concordance"), out / "cohorts.png")
    return [out / name for name in (*written, "cohorts.png")]


def concordance_of_cohorts(runs: Sequence[Results]) -> pd.DataFrame:
    """Columns ``cohort``, ``aggregator``, ``c_pooled``, ``c_pooled_low``, ``c_pooled_high``; the clinical model too."""
    parts = []
    for run, name in zip(runs, dataset_names(runs), strict=True):
        file = run.path / "survival.csv"
        if run.task.family == "survival" and (run.trials or file.exists()):
            own = survival_numbers(run) if run.trials else numbers_in(file, _POOLED).reset_index()
            parts.append(own.assign(cohort=name))
    columns = ["cohort", "aggregator", *_POOLED]
    if not parts:
        return pd.DataFrame(columns=columns)
    found: pd.DataFrame = pd.concat(parts)[columns].drop_duplicates(["cohort", "aggregator"])
    return found.reset_index(drop=True)


def forest(table: pd.DataFrame, title: str) -> Figure:
    """A line for each model in each cohort, from the low to the high end of its interval, with a square at its value.

    Args:
        table: of :func:`concordance_of_cohorts`.
        title: of the figure.
    """
    cohorts, labels = (list(dict.fromkeys(table[name])) for name in ("cohort", "aggregator"))
    colours = {CLINICAL: "0.35"} if CLINICAL in labels else {}
    colours |= palette([label for label in labels if label != CLINICAL])
    figure = Figure(figsize=(WIDTH, 1.5 + (0.16 * len(labels) + 0.14) * len(cohorts)), layout="constrained")
    axes = figure.subplots()
    offsets = dict(zip(labels, np.linspace(-0.3, 0.3, len(labels)) if len(labels) > 1 else [0.0], strict=True))
    for row in table.dropna(subset="c_pooled").to_dict("records"):
        label = row["aggregator"]
        place, marker = cohorts.index(row["cohort"]) + offsets[label], "D" if label == CLINICAL else "s"
        axes.hlines(place, row["c_pooled_low"], row["c_pooled_high"], color=colours[label], linewidth=1.2)
        axes.plot(row["c_pooled"], place, marker=marker, markersize=3.5, color=colours[label])
    axes.axvline(0.5, color="0.35", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(cohorts)), [plain(cohort) for cohort in cohorts])
    axes.set_ylim(len(cohorts) - 0.4, -0.6)
    axes.set_xlabel("concordance, pooled over folds")
    axes.grid(axis="x", color="0.92")
    figure.suptitle(plain(f"{title} over {len(cohorts)} cohorts"))
    legend(figure, colours, "Lines: 95 % intervals over test patients; dashed: chance.")
    return figure
