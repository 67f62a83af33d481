"""Scores of groups of patients, the worst of them, and how well a site can be told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mil_zoo.noted import note_of
from mil_zoo.report.load import Results
from mil_zoo.report.site_leaks import site_leaks
from mil_zoo.report.subgroups import FEWEST, GroupScore, columns_of, group_scores, reason_of
from mil_zoo.report.tables.table import Cell, Document, Table
from mil_zoo.report.tables.text import fixed, interval

MOST = 40  # groups that a table lists
_TOLD = (
    "Balanced accuracy of a logistic regression that tells the site of test patients it was not fitted to, against "
    "chance (1 over the number of sites), the mean over test sets; all rows of the same patients, sites and folds. "
    "Above chance from the embedding, the model carries the site, or only the target where sites differ in targets. "
    "Beyond the target is the accuracy less that of the target alone: above 0 from target and prediction, predictions "
    "differ between sites among patients of one target."
)
_OF_TASK = {
    "regression": "The target is known to the probe as a number and its fifth.",
    "multilabel": "The target is each label, there, absent or unknown; its probability counts where it is known.",
    "survival": (
        "The target is the event and the time. The risk counts of patients with the event: how long a censored one "
        "will live is unknown, and fair risks of such patients differ where sites differ in survival."
    ),
}


def subgroup_table(results: Results) -> pd.DataFrame:
    """One row a grouping column, group, aggregator and headline metric; empty without ``--by``.

    Columns: ``column``, ``group``, ``aggregator``, ``metric``, ``patients``, ``positives`` (of two classes, or
    with the event; else empty), ``value`` with its 95 % bootstrap interval over patients (``low``, ``high``), and
    ``reason`` where there is none.
    """
    rows = [
        {
            "column": one.column,
            "group": one.group,
            "aggregator": one.label,
            "metric": one.metric,
            "patients": one.patients,
            "positives": one.positives,
            "value": float(one.drawn.value),
            "low": float(one.drawn.low),
            "high": float(one.drawn.high),
            "reason": reason_of(one),
        }
        for one in group_scores(results)
    ]
    return pd.DataFrame(rows)


def shown_subgroups(results: Results) -> Document:
    """The same as it is read: a table a column, one of the worst groups, one of sites told apart."""
    tables = [_of_column(results, column) for column in columns_of(results)]
    worst = _worst(results)
    tables += [worst] if worst.rows else []
    if site_leaks(results):
        tables.append(_leaks(results))
    return Document("subgroups", "Groups of patients", tables)


_NOTES = [
    "Value with its 95 % bootstrap interval over the patients of the group (1000 draws; the models as they are). Ranks "
    "(AUC of two classes, C) are compared within a fold only; other metrics are of the patients of all folds together, "
    "those of survival means over folds. A patient of several slides counts once.",
    f"Groups below {FEWEST} patients or of one class are named and not scored. Intervals of small groups overlap for "
    "want of patients: that they do is no proof of equal performance.",
]


def _of_column(results: Results, column: str) -> Table:
    own = [one for one in group_scores(results) if one.column == column]
    titles = {metric.name: metric.title for metric in results.headline}
    labels = list(dict.fromkeys(one.label for one in own))
    groups = list(dict.fromkeys(one.group for one in own))
    of = {(one.group, one.label, one.metric): one for one in own}
    scored = [group for group in groups if any(not reason_of(one) for one in own if one.group == group)]
    others = [group for group in groups if group not in scored]
    shown = [*scored, *others] if len(groups) <= MOST else scored[:MOST]
    rows = []
    for group in shown:
        first = next(one for one in own if one.group == group)
        cells = [_cell(of.get((group, label, metric))) for label in labels for metric in titles]
        rows.append([group, first.patients, *([] if first.positives is None else [first.positives]), *cells])
    kinds = [] if own[0].positives is None else ["Events" if results.task.family == "survival" else "Positives"]
    header = ["Group", "Patients", *kinds, *(f"{label}: {titles[name]}" for label in labels for name in titles)]
    notes = [*_NOTES]
    if len(groups) > MOST:
        notes.insert(
            0,
            f"{column} has {len(groups)} values, of which {len(scored)} can be scored and {len(shown)} are listed; "
            "subgroups.csv has all. Join values into fewer groups to learn more.",
        )
    return Table(header, rows, notes, f"By {column}")


def _cell(score: GroupScore | None) -> Cell:
    if score is None:
        return Cell("-")
    if reason := reason_of(score):
        return Cell("-", below=(f"({reason})",))
    below = () if np.isnan(score.drawn.low) else (f"[{score.drawn.low:.2f}, {score.drawn.high:.2f}]",)
    return Cell(f"{score.drawn.value:.3f}", below=below)


def _worst(results: Results) -> Table:
    rows: list[list[Any]] = []
    for column in columns_of(results):
        for metric in results.headline:
            for label in results.finished:
                own = [
                    one
                    for one in group_scores(results)
                    if (one.column, one.metric, one.label) == (column, metric.name, label) and not reason_of(one)
                ]
                if len(own) < 2:
                    continue
                low, high = (pick(own, key=lambda one: float(one.drawn.value)) for pick in (min, max))
                worst = high if metric.higher_is_better is False else low
                spread = float(high.drawn.value) - float(low.drawn.value)
                value = Cell(f"{worst.drawn.value:.3f}", below=(interval(worst.drawn.low, worst.drawn.high),))
                rows.append([column, metric.title, label, worst.group, worst.patients, value, f"{spread:.3f}"])
    note = (
        "Spread: the best group's value less the worst's. It grows with the number of groups and as they get smaller, "
        "without any true difference; the interval of the worst group says how much of it may be chance."
    )
    return Table(
        ["Column", "Metric", "Aggregator", "Worst group", "Patients", "Value", "Spread"], rows, [note], "Worst"
    )


def _leaks(results: Results) -> Table:
    rows: list[list[Any]] = []
    for told in site_leaks(results):
        known = told.leak.accuracy.interval()
        if np.isnan(known.value):
            value = Cell("-", below=(f"({note_of(known.value)})",))
            rows.append([told.column, told.label, told.source, "-", "-", "-", value, "-"])
            continue
        value = Cell(f"{known.value:.3f}", below=(interval(known.low, known.high),))
        sizes = [told.leak.patients, told.leak.sites, f"{told.leak.chance:.3f}"]
        beyond = Cell("")
        if told.beyond is not None:
            ends = (interval(told.beyond.low, told.beyond.high, "+.3f"),)
            beyond = Cell("-") if np.isnan(told.beyond.value) else Cell(fixed(told.beyond.value, "+.3f"), below=ends)
        rows.append([told.column, told.label, told.source, *sizes, value, beyond])
    header = ["Column", "Aggregator", "Told from", "Patients", "Sites", "Chance", "Balanced accuracy"]
    notes = [_TOLD, *([_OF_TASK[family]] if (family := results.task.family) in _OF_TASK else [])]
    return Table([*header, "Beyond the target"], rows, notes, "Sites told")
