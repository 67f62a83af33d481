"""Which differences between aggregators there are, as it is read: one decision a question."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from mil_zoo.metrics import Metric, inside
from mil_zoo.report.load import Results
from mil_zoo.report.tables.encoders import PATIENTS
from mil_zoo.report.tables.pairs import ENOUGH, LEVEL, best, chances, comparisons, decides, turned
from mil_zoo.report.tables.table import Cell, Document, Table
from mil_zoo.report.tables.text import can_be_found, count, difference_interval, fixed, p_value
from mil_zoo.stats import holm


def bold_note(results: Results) -> list[str]:
    """The sentence that says what is bold, where there are pairs."""
    pairs = comparisons(results)
    if not len(pairs):
        return []
    if best(results):
        return [
            f"Bold: can be the best by {_listed(results)}, while another aggregator cannot (its p in comparisons.md "
            f"is below {LEVEL})." + _NOT_BOLD * (len(results.shown) > len(results.headline))
        ]
    return [f"Nothing is bold: {why_none_is_bold(results)}"]


_NOT_BOLD = " Of the other metrics nothing is bold, since they are not compared there."


def _listed(results: Results) -> str:
    """The metrics of which means can be bold."""
    return " or ".join(inside(metric.title) for metric in results.headline)


def why_none_is_bold(results: Results) -> str:
    """Why no aggregator is left out of those that can be the best by a metric."""
    splits = comparisons(results)["splits"]
    if (splits == 0).all():
        return "no two aggregators have a metric that is defined on the same test slides (comparisons.md)."
    if splits[splits > 0].between(2, ENOUGH - 1).all():
        return f"fewer than {ENOUGH} splits cannot tell aggregators apart (comparisons.md)."
    return f"no aggregator differs from the best; each can be it (comparisons.md). {_least(results)}"


def shown_comparisons(results: Results, control: str | None = None) -> Document:
    """What differs, as it is read: which can be the best, what differs from a control, and all pairs.

    Args:
        results: of a run.
        control: ``aggregator[@grid]`` that the others are compared with; None for none.
    """
    tables = [_best_table(results)]
    if control is not None:
        tables.append(_control_table(results, control))
    rows = []
    headline = {metric.name: metric for metric in results.headline}
    for row in comparisons(results).to_dict("records"):
        if row["metric"] in headline:
            metric = headline[row["metric"]]
            rows.append([metric.title, row["a"], row["b"], _difference(row, metric), *_decision(row, row["p_holm"])])
    header = ["Metric", "A", "B", "A - B [95 %]", "p (test)", "Adjusted p"]
    tables.append(Table(header, rows, [*_NOTES, *_reasons(results), _least(results)], "All pairs"))
    return Document("comparisons", "Paired comparisons", [table for table in tables if table.rows])


def _best_table(results: Results) -> Table:
    header = ["Aggregator", *(metric.title for metric in results.headline)]
    cells: dict[str, dict[str, str]] = {}
    for metric in results.headline:
        for patients in (False, True):
            for label, p in zip(*chances(results, metric, patients), strict=True):
                cells.setdefault(label, {})[metric.name] = p_value(p)
    rows = [[label, *(known.get(metric.name, "-") for metric in results.headline)] for label, known in cells.items()]
    note = (
        "p of being the best one: the smallest p of all pairs (below) in which another one is better, times the k - 1 "
        "comparisons. Those of 0.05 or more hold the best one with a probability of 95 % or more, without a choice of "
        "the winner by the same numbers (Hsu 1981), and are bold in the comparison table where others are out."
    )
    return Table(header, rows, [note], "Which can be the best")


def _control_table(results: Results, control: str) -> Table:
    rows, words = [], []
    for metric, of in itertools.product(results.headline, (control, control + PATIENTS)):
        found = []
        for row in comparisons(results).to_dict("records"):
            if row["metric"] == metric.name and of in (row["a"], row["b"]):
                found.append(row if row["b"] == of else turned(row))
        adjusted = holm([row["p"] for row in found]).tolist()
        for row, p in zip(found, adjusted, strict=True):
            rows.append([metric.title, row["a"], _difference(row, metric), *_decision(row, p)])
        if found:
            words.append(_in_words(metric, of, found, adjusted))
    note = f"Two-sided p of the difference from {control}, adjusted by Holm over these comparisons of a metric alone."
    header = ["Metric", "Aggregator", "Difference [95 %]", "p (test)", "Adjusted p"]
    return Table(header, rows, [*words, note], f"Against {control}")


def _in_words(metric: Metric, control: str, rows: list[dict[Any, Any]], adjusted: list[float]) -> str:
    """What the comparisons with the control say of a metric."""
    better: list[str] = []
    worse: list[str] = []
    for row, p in zip(rows, adjusted, strict=True):
        if decides(row) and p < LEVEL:
            (better if (row["difference"] > 0) == metric.higher_is_better else worse).append(row["a"])
    undecided = len(rows) - len(better) - len(worse)
    parts = [f"{', '.join(which)} {word}" for which, word in ((better, "better"), (worse, "worse")) if which]
    if undecided:
        parts.append(f"{undecided} of {count(len(rows), 'aggregator')} cannot be told from it")
    return f"{metric.title}, against {control}: {'; '.join(parts)}."


_NOTES = [
    "Two-sided p on the same test slides, by the test that the design supports: over "
    f"{ENOUGH} different test sets or more the corrected resampled t-test (Nadeau & Bengio 2003), which tells of the "
    "training procedures; of fewer it is shown and decides nothing. On a single test set, by patient and of these "
    "trained models: DeLong's test of the AUC, the permutation test of what is counted, else the jackknife; "
    "of predictions that are no class probabilities the bootstrap, with one draw of the patients for both.",
    "Adjusted by Holm over all pairs of the metric; a question about the best, or about a control, needs k - 1 of them "
    "only.",
]


def _least(results: Results) -> str:
    """The detectable differences of the headline metrics, as a sentence."""
    pairs, parts, none = comparisons(results), [], []
    for metric in results.headline:
        found = pairs[pairs["metric"] == metric.name]["detectable"].dropna()
        if len(found) and can_be_found(found.median(), metric.bounds):
            parts.append(f"{metric.title} {fixed(found.median())}")
        elif len(found):
            none.append(inside(metric.title))
    said = (
        f"A difference from the best that this design finds four times in five (median of pairs): {', '.join(parts)}."
    )
    missed = f"No difference in {' or '.join(none)}, however large, is found four times in five with so few patients."
    return " ".join([said] * bool(parts) + [missed] * bool(none)) or "What difference could have been seen is unknown."


def _reasons(results: Results) -> list[str]:
    """Why headline differences of how many pairs have no p or no interval."""
    names = {metric.name for metric in results.headline}
    found = Counter(
        row["reason"] for row in comparisons(results).to_dict("records") if row["metric"] in names and row["reason"]
    )
    return [f"No p, or no interval, in {count(number, 'row')}: {reason}" for reason, number in found.items()]


def _difference(row: Mapping[Any, Any], metric: Metric) -> Cell:
    if np.isnan(row["difference"]):
        return Cell("-")
    return Cell(fixed(row["difference"]), below=(difference_interval(row["low"], row["high"], metric.bounds),))


def _decision(row: Mapping[Any, Any], adjusted: float) -> list[Any]:
    tested = Cell(p_value(row["p"]), below=(f"({row['test']})",)) if row["test"] else "-"
    return [tested, p_value(adjusted) if decides(row) else "-"]
