"""Which differences between aggregators there are, as it is read: one decision a question."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mil_zoo.metrics import Metric, inside
from mil_zoo.report.load import Results
from mil_zoo.report.tables.encoders import PATIENTS
from mil_zoo.report.tables.pairs import (
    ENOUGH,
    FEW,
    LEVEL,
    best,
    chances,
    comparisons,
    decides,
    turned,
    undecided,
)
from mil_zoo.report.tables.table import Cell, Document, Table
from mil_zoo.report.tables.text import count, difference_interval, fixed, p_value
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


def why_none_is_bold(results: Results, metrics: Sequence[Metric] | None = None) -> str:
    """Why no aggregator is left out of those that can be the best by some headline metrics; None for all of them."""
    metrics = results.headline if metrics is None else metrics
    pairs = comparisons(results)
    pairs = pairs[pairs["metric"].isin([metric.name for metric in metrics]) & (pairs["splits"] > 0)]
    if pairs.empty:
        return "no two aggregators have a metric that is defined on the same test slides (comparisons.md)."
    if not any(map(decides, pairs.to_dict("records"))):
        return f"{FEW} (comparisons.md)."
    return f"no aggregator differs from the best; each can be it (comparisons.md). {_least(results, metrics)}"


def shown_comparisons(results: Results, control: str | None = None) -> Document:
    """What differs, as it is read: which can be the best, what differs from a control, and all pairs.

    Args:
        results: of a run.
        control: ``aggregator[@grid]`` that the others are compared with; None for none.
    """
    tables = [_best_table(results)]
    if control is not None:
        tables.append(_control_table(results, control))
    headline = {metric.name: metric for metric in results.headline}
    pairs = [row for row in comparisons(results).to_dict("records") if row["metric"] in headline]
    rows = []
    for row in pairs:
        metric = headline[row["metric"]]
        rows.append([metric.title, row["a"], row["b"], _difference(row, metric), *_decision(row, row["p_holm"])])
    header = ["Metric", "A", "B", "A - B [95 %]", "p (test)", "Adjusted p"]
    cut = [_CUT] * any(_is_cut(row, headline[row["metric"]]) for row in pairs)
    notes = [*_NOTES, *cut, *undecided(pairs), *_reasons(results), _least(results, results.headline)]
    tables.append(Table(header, rows, notes, "All pairs"))
    return Document("comparisons", "Paired comparisons", [table for table in tables if table.rows])


def _best_table(results: Results) -> Table:
    header = ["Aggregator", *(metric.title for metric in results.headline)]
    judged = {
        (row["metric"], row[side]) for row in comparisons(results).to_dict("records") if decides(row) for side in "ab"
    }
    cells: dict[str, dict[str, str]] = {}
    for metric in results.headline:
        for patients in (False, True):
            for label, p in zip(*chances(results, metric, patients), strict=True):
                if (metric.name, label) in judged:  # else p is 1 and no finding
                    cells.setdefault(label, {})[metric.name] = p_value(p)
    rows = [[label, *(known.get(metric.name, "-") for metric in results.headline)] for label, known in cells.items()]
    note = (
        "p of being the best one: the smallest p of all pairs (below) in which another one is better, times the k - 1 "
        "comparisons. Those of 0.05 or more hold the best one with a probability of 95 % or more, without a choice of "
        "the winner by the same numbers (Hsu 1981), and are bold in the comparison table where others are out."
    )
    unknown = ["-: no comparison of the model decides."] * any("-" in row[1:] for row in rows)
    return Table(header, rows, [note, *unknown], "Which can be the best")


def _control_table(results: Results, control: str) -> Table:
    rows, words, compared = [], [], []
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
        compared += found
    note = f"Two-sided p of the difference from {control}, adjusted by Holm over these comparisons of a metric alone."
    header = ["Metric", "Aggregator", "Difference [95 %]", "p (test)", "Adjusted p"]
    return Table(header, rows, [*words, note, *undecided(compared)], f"Against {control}")


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


_CUT = (
    "Intervals are cut where no two values of a metric can differ by more; comparisons.csv holds them uncut: they come "
    "from few test sets, or from sets that differ much."
)
_NOTES = [
    "Two-sided p on the same test slides, by the test that the design supports: over "
    f"{ENOUGH} different test sets or more the corrected resampled t-test (Nadeau & Bengio 2003), which tells of the "
    "training procedures; of fewer it is shown and decides nothing. On a single test set, by patient and of these "
    "trained models: DeLong's test of the AUC, the permutation test of what is counted, else the jackknife; "
    "of predictions that are no class probabilities the bootstrap, with one draw of the patients for both.",
    "Adjusted p: by Holm over all pairs of the metric, - where nothing is decided; a question about the best, or about "
    "a control, needs k - 1 of them only.",
]


def _least(results: Results, metrics: Sequence[Metric]) -> str:
    """The detectable differences of some metrics, as a sentence."""
    pairs, parts, none = comparisons(results), [], []
    for metric in metrics:
        found = pairs[pairs["metric"] == metric.name]["detectable"].dropna()
        if len(found) and np.isfinite(found.median()):
            parts.append(f"{metric.title} {fixed(found.median())}")
        elif len(found):
            none.append(inside(metric.title))
    said = (
        f"A difference from the best that this design finds four times in five (median of pairs): {', '.join(parts)}."
    )
    missed = f"No difference in {' or '.join(none)}, however large, is found four times in five by this design."
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


def _is_cut(row: Mapping[Any, Any], metric: Metric) -> bool:
    """Whether an interval is shown with other ends than it has."""
    span = metric.bounds[1] - metric.bounds[0]
    return bool(row["low"] < -span or row["high"] > span)


def _decision(row: Mapping[Any, Any], adjusted: float) -> list[Any]:
    tested = Cell(p_value(row["p"]), below=(f"({row['test']})",)) if row["test"] else "-"
    return [tested, p_value(adjusted) if decides(row) else "-"]
