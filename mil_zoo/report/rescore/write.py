"""``mil-zoo rescore``: reads, scores, judges, and writes tables, runs and a page."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mil_zoo.errors import InputError, as_path, unknown
from mil_zoo.files import write_text
from mil_zoo.metrics import Metric
from mil_zoo.report.page import write_documents
from mil_zoo.report.rescore.judge import judge
from mil_zoo.report.rescore.parts import Part, parts_of, read_cohort
from mil_zoo.report.rescore.published import check_numbers, compare, holds_numbers, of_means, read_published
from mil_zoo.report.rescore.read import Columns, Predictions, canonical, read_predictions, read_table
from mil_zoo.report.rescore.run import safe, write_run
from mil_zoo.report.tables.table import Cell, Document, Table
from mil_zoo.report.tables.text import sentence
from mil_zoo.tasks import Survival


@dataclass(frozen=True, eq=False)
class Rescored:
    """What :func:`rescore` made.

    Attributes:
        document: the tables that people read.
        runs: run directories of the groups, whose tables, figures and pages are still to be made.
        files: that were written.
    """

    document: Document
    runs: list[Path]
    files: list[Path]


def rescore(
    files: Sequence[Path],
    out: Path,
    columns: Columns,
    cohort: Path | None = None,
    published: Path | None = None,
    metric: str | None = None,
) -> Rescored:
    """Scores prediction files, sets published numbers beside, and names what cannot be right.

    Writes ``rescore.csv`` (a row a model, group and fold), ``rescore.md``, ``rescore.html``, and a run directory: of
    one group ``out`` itself, of several ``out/<group>``.

    Args:
        files: csv or npz; tables of published numbers alone are checked too, and not together with predictions.
        out: folder to write into.
        columns: what they are called, and the grouping columns.
        cohort: table of who should be there.
        published: table of published values.
        metric: which one ``rescore.csv`` shows and ``published`` is of; None for the task's first.

    Raises:
        InputError: a file cannot be read, or says too little.
    """
    if isinstance(files, str | Path) or not isinstance(files, Sequence) or not files:
        raise InputError(f"files is a list of prediction files, not {files!r:.60}")
    files, out = (
        [as_path(file, "files", "a csv or npz of predictions") for file in files],
        as_path(out, "out", "a folder"),
    )
    if not isinstance(columns, Columns):
        raise InputError(f"columns is a mil_zoo.report.rescore.Columns, not {columns!r:.60}")
    cohort = None if cohort is None else as_path(cohort, "cohort", "a table of who should be there")
    published = None if published is None else as_path(published, "published", "a table of published numbers")
    for path in (*files, *filter(None, (cohort, published))):
        if os.path.dirname(os.path.realpath(path)) == os.path.realpath(out):
            raise InputError(f"{path} lies in --out {out}, where it could be written over; choose another --out")
    tables = [canonical(read_table(path), columns, path) for path in files]
    alone = [holds_numbers(table) for table in tables]
    if any(alone):
        if not all(alone):
            odd = files[alone.index(False)]
            raise InputError(f"{odd} holds predictions and {files[alone.index(True)]} numbers only; rescore them apart")
        checked = [check_numbers(table, columns, path) for table, path in zip(tables, files, strict=True)]
        document = Document("rescore", "Published numbers", checked, heading="Published numbers, checked")
        texts = {"numbers.csv": _joined(checked), "rescore.md": document.markdown()}
        return _written(out, document, texts, [])
    predictions = read_predictions(files, columns)
    known = None if cohort is None else read_cohort(cohort, columns, predictions)
    parts = parts_of(predictions, known, columns.by)
    shown = _metric(parts, metric)
    judge(parts, predictions, known, shown, columns.by)
    values: dict[int, float] = {}
    means: dict[tuple[str, ...], tuple[float, float]] = {}
    notes: list[str] = []
    if published is not None:
        said = read_published(published, columns, shown)
        values, notes = compare(parts, said, shown, columns.by)
        means = of_means(parts, said, columns.by)
    table = _table(parts, predictions, columns.by, shown, values)
    document = Document(
        "rescore",
        "Scored again",
        [_means(parts, columns.by, shown, values, means, notes), _remarks(parts, columns.by)],
        heading="Published predictions, scored again",
    )
    texts = {"rescore.csv": Table.of(table).csv(), "rescore.md": document.markdown()}
    return _written(out, document, texts, _runs(out, parts, predictions, columns.by))


def _metric(parts: Sequence[Part], name: str | None) -> Metric:
    known = {metric.name: metric for metric in parts[0].task.metrics} if parts else {}
    if not known:
        raise InputError("the files hold no row of a test set; is every split train?")
    if name is None:
        name = next((first for first in ("c_index", "auc") if first in known), next(iter(known)))
    if name not in known:
        raise unknown(f"{parts[0].task.family} metric", name, known)
    return known[name]


def _table(
    parts: Sequence[Part],
    predictions: Predictions,
    by: Sequence[str],
    metric: Metric,
    published: dict[int, float],
) -> pd.DataFrame:
    """A row a model, group and fold."""
    several = {name: predictions.rows[name].nunique() > 1 for name in ("repeat", "seed")}
    rows = []
    for place, part in enumerate(parts):
        value, said = part.value(metric), published.get(place, np.nan)
        row: dict[str, Any] = {"model": part.model, **dict(zip(by, part.group, strict=True))}
        row |= {"repeat": part.split[0]} if several["repeat"] else {}
        row |= {"fold": part.split[1]} | ({"seed": part.split[2]} if several["seed"] else {})
        row |= {"patients": part.patients, "missing": len(part.missing), metric.name: value}
        rows.append(row | {"published": said, "difference": value - said, "remark": "; ".join(part.remarks)})
    return pd.DataFrame(rows)


def _means(
    parts: Sequence[Part],
    by: Sequence[str],
    metric: Metric,
    published: dict[int, float],
    means: dict[tuple[str, ...], tuple[float, float]],
    notes: Sequence[str],
) -> Table:
    """A row a model and group: means over its folds."""
    of: dict[tuple[str, ...], list[int]] = {}
    for place, part in enumerate(parts):
        of.setdefault((part.model, *part.group), []).append(place)
    rows = []
    for key, places in of.items():
        values = np.array([parts[place].value(metric) for place in places])
        known = values[~np.isnan(values)]
        said = [published[place] for place in places if place in published]
        apart = [abs(parts[place].value(metric) - published[place]) for place in places if place in published]
        spread = f"{known.std(ddof=1):.4f}" if len(known) > 1 else ""
        mean = Cell(f"{known.mean():.4f}", spread) if len(known) else Cell("-")
        of_paper = means[key][0] if key in means else float(np.mean(said)) if len(said) == len(places) else np.nan
        apart += [abs(known.mean() - of_paper)] if key in means and len(known) else []
        rows.append(
            [
                *key,
                len(places),
                sum(parts[place].patients for place in places),
                sum(len(parts[place].missing) for place in places),
                mean,
                "-" if np.isnan(of_paper) else f"{of_paper:.4f}",
                f"{np.nanmax(apart):.2g}" if apart and not np.isnan(apart).all() else "-",
                sum(len(parts[place].remarks) for place in places) or "-",
            ]
        )
    header = ["Model", *by, "Folds", "Patients", "Missing", metric.title, "Published", "Largest difference", "Remarks"]
    below = [
        f"{metric.title}: mean ± standard deviation over the folds in the files; rescore.csv has every fold. Patients "
        "are summed over folds.",
        "Missing: patients or slides that should be there (by the cohort, else by the other models) and have no "
        "prediction. Nothing is filled in for them.",
        *notes,
    ]
    return Table(header, rows, below, metric.title)


def _remarks(parts: Sequence[Part], by: Sequence[str]) -> Table:
    """What cannot be right, one row for equal remarks on several folds of a model."""
    of: dict[tuple[str, ...], list[str]] = {}
    for part in parts:
        for remark in part.remarks:
            of.setdefault((part.model, *part.group, remark), []).append(part.split[1])
    rows = [[*key[:-1], ", ".join(dict.fromkeys(folds)), sentence(key[-1])] for key, folds in of.items()]
    note = "Nothing that cannot be right was found." if not rows else "Scores are of what is left; nothing was mended."
    return Table(["Model", *by, "Fold", "What cannot be right"], rows, [note], "What cannot be right")


def _runs(out: Path, parts: Sequence[Part], predictions: Predictions, by: Sequence[str]) -> list[Path]:
    groups: dict[tuple[str, ...], list[Part]] = {}
    for part in parts:
        groups.setdefault(part.group, []).append(part)
    runs = []
    for group, own in groups.items():
        title = ", ".join(group) if group else "prediction files"
        path = out / safe("-".join(group)) if len(groups) > 1 else out
        if not any(len(part.rows) for part in own):
            continue
        said: dict[str, list[str]] = {}
        for part in own:
            for remark in part.remarks:
                said.setdefault(f"{part.model}: {remark}", []).append(part.split[1])
        warnings = [f"{text} (fold {', '.join(dict.fromkeys(folds))})" for text, folds in said.items()]
        task = own[0].task
        if isinstance(task, Survival) and isinstance(predictions.task, Survival):  # without a fold's training patients
            task = dataclasses.replace(predictions.task, horizons=task.horizons)
        runs.append(write_run(path, own, title, task, warnings).path)
    return runs


def _joined(tables: Sequence[Table]) -> str:
    frames = [pd.DataFrame(list(table.rows), columns=list(table.header)).assign(table=table.title) for table in tables]
    return Table.of(pd.concat(frames, ignore_index=True)).csv()


def _written(out: Path, document: Document, texts: dict[str, str], runs: list[Path]) -> Rescored:
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(out / name, text)
    links = [("all tables", "report.html") if run == out else (run.name, f"{run.name}/report.html") for run in runs]
    page = write_documents(out / "rescore.html", document.heading, [document], links)
    return Rescored(document, runs, [*(out / name for name in texts), page])
