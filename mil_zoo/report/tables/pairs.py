"""Which differences between aggregators there are: paired tests on the same test slides, adjusted for their number."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mil_zoo.metrics import Metric
from mil_zoo.report.load import Results, mean_sizes, values_by_split
from mil_zoo.report.tables.scores import score_table
from mil_zoo.report.tables.table import Cell, Document, Table
from mil_zoo.report.tables.text import p_value
from mil_zoo.stats import TestSet, corrected_t_test, delong_test, holm, permutation_test, wilcoxon_test

LEVEL = 0.05
ENOUGH = 5  # splits: of fewer, differences agree by chance (accuracies have few values) and look certain
_COLUMNS = ["metric", "a", "b", "splits", "mean_a", "mean_b", "difference", "low", "high"]
_TESTS = ["p_corrected_t", "p_wilcoxon", "p_permutation", "p_delong"]


def comparisons(results: Results) -> pd.DataFrame:
    """One row a metric and pair of ``aggregator[@grid]``, on the splits that both finished.

    Columns: ``metric``, ``a``, ``b``, ``splits``, their means, ``difference`` (a - b) and its 95 % interval (corrected
    resampled t, ``low`` and ``high``); two-sided p of the corrected resampled t-test and of Wilcoxon's test over
    splits, of the paired permutation test over patients (accuracy, AUC) and of DeLong's test (AUC of two classes);
    ``test``, the one that decides here (corrected t over several splits; over a single one DeLong, or permutation),
    its ``p``, and ``p_holm``, adjusted over all pairs of the metric.
    """
    return results.once(_comparisons)


def best(results: Results) -> dict[str, set[str]]:
    """For each metric the aggregator of the best mean and those that do not differ from it; none where none differs.

    Pairs with several splits in common but fewer than ``ENOUGH`` decide nothing.
    """
    table, pairs = score_table(results), comparisons(results)
    marked: dict[str, set[str]] = {}
    for metric in results.metrics:
        means = table.set_index("aggregator")[f"{metric.name}_mean"].dropna()
        of_metric = pairs[(pairs["metric"] == metric.name) & ((pairs["splits"] == 1) | (pairs["splits"] >= ENOUGH))]
        if len(means) < 2:
            continue
        top = means.idxmax() if metric.higher_is_better else means.idxmin()
        worse = of_metric[(of_metric["p_holm"] < LEVEL) & ((of_metric["a"] == top) | (of_metric["b"] == top))]
        losers = (set(worse["a"]) | set(worse["b"])) - {top}
        if losers:
            marked[metric.name] = set(means.index) - losers
    return marked


def bold_note(results: Results) -> list[str]:
    """The sentence that says what is bold, where there are pairs."""
    pairs = comparisons(results)
    if not len(pairs):
        return []
    if best(results):
        return [
            f"Bold: the best mean, and those that do not differ from it (p >= {LEVEL} adjusted over all pairs, "
            "comparisons.md)."
        ]
    if pairs["splits"].between(2, ENOUGH - 1).all():
        return [f"Nothing is bold: fewer than {ENOUGH} splits cannot tell aggregators apart (comparisons.md)."]
    return [
        f"Nothing is bold: no aggregator differs from the best (p < {LEVEL} adjusted over all pairs, comparisons.md)."
    ]


def shown_comparisons(results: Results) -> Document:
    """The pairs of the headline metrics as they are read."""
    titles = {metric.name: metric.title for metric in results.headline}
    rows = []
    for row in comparisons(results).to_dict("records"):
        if row["metric"] not in titles:
            continue
        interval = () if np.isnan(row["low"]) else (f"[{row['low']:.3f}, {row['high']:.3f}]",)
        difference = Cell(f"{row['difference']:.3f}", below=interval)
        decided = Cell(p_value(row["p_holm"]), below=(f"({row['test']})",)) if row["test"] else "-"
        tests = [p_value(row[name]) for name in _TESTS]
        rows.append([titles[row["metric"]], row["a"], row["b"], difference, *tests, decided])
    return Document("comparisons", "Paired comparisons", [Table(_HEADER, rows, _NOTES)])


_HEADER = [
    "Metric",
    "A",
    "B",
    "A - B [95 %]",
    "Corrected t",
    "Wilcoxon",
    "Permutation",
    "DeLong",
    "Adjusted p (test)",
]
_NOTES = [
    "Two-sided p on the same test slides. The adjusted p (Holm, over all pairs of the metric) is of the test that "
    f"decides what is bold: over {ENOUGH} splits or more the corrected resampled t-test (Nadeau & Bengio 2003; of "
    "fewer splits it is shown and decides nothing); on a single split DeLong's test of the AUC and the permutation "
    "test of the accuracy.",
    "Wilcoxon over splits takes them to be independent, which folds are not: its p is too small. Permutation "
    "(predictions exchanged patient by patient) and DeLong speak of these trained models, not of their training.",
]


def _comparisons(results: Results) -> pd.DataFrame:
    labels = [label for label, trials in results.finished.items() if trials]
    rows = []
    for metric in results.metrics:
        values = {label: values_by_split(results.finished[label], metric.name) for label in labels}
        of_metric = [_compare(results, metric, a, b, values) for a, b in itertools.combinations(labels, 2)]
        for row, adjusted in zip(of_metric, holm([row["p"] for row in of_metric]), strict=True):
            row["p_holm"] = float(adjusted)
        rows += of_metric
    return pd.DataFrame(rows, columns=[*_COLUMNS, *_TESTS, "test", "p", "p_holm"])


def _compare(
    results: Results, metric: Metric, a: str, b: str, values: Mapping[str, Mapping[Any, float]]
) -> dict[str, Any]:
    splits = [key for key in values[a] if key in values[b]]
    differences = [values[a][key] - values[b][key] for key in splits]
    summary, p_t = corrected_t_test(differences, *mean_sizes(results.finished[a]))
    row = {
        "metric": metric.name,
        "a": a,
        "b": b,
        "splits": len(splits),
        "mean_a": np.mean([values[a][key] for key in splits]) if splits else np.nan,
        "mean_b": np.mean([values[b][key] for key in splits]) if splits else np.nan,
        "difference": summary.mean,
        "low": summary.low,
        "high": summary.high,
        "p_corrected_t": p_t,
        "p_wilcoxon": wilcoxon_test(differences) if len(splits) > 1 else np.nan,
    }
    row |= _tests_of_slides(results, metric, a, b)
    row["test"] = "corrected t" if len(splits) > 1 else _SINGLE_SPLIT.get(metric.name, "")
    name = {"corrected t": "p_corrected_t", "DeLong": "p_delong", "permutation": "p_permutation"}.get(row["test"])
    return row | {"p": row[name] if name else np.nan}


_SINGLE_SPLIT = {"auc": "DeLong", "accuracy": "permutation"}  # the test of the slides that decides
_PERMUTED = ("accuracy", "auc")


def _tests_of_slides(results: Results, metric: Metric, a: str, b: str) -> dict[str, float]:
    """The paired tests over test slides, NaN where one does not apply to the task, the metric or the slides."""
    left, right = _in_common(results.test_sets(a), results.test_sets(b))
    repeats = len({repeat for repeat, _ in left})
    pairs = list(zip(left.values(), right.values(), strict=True))
    testable = bool(pairs) and all(x.probabilities.shape == y.probabilities.shape for x, y in pairs)
    both = testable and all(x.probabilities.shape[2] == 2 and len(set(x.labels)) == 2 for x, _ in pairs)
    exchanged = testable and "permutation" in results.task.tests and metric.name in _PERMUTED
    areas = both and "delong" in results.task.tests and metric.name == "auc"
    sets = [*left.values()], [*right.values()]
    return {
        "p_permutation": permutation_test(*sets, metric.name) if exchanged else np.nan,  # type: ignore[arg-type]
        "p_delong": delong_test(*sets, repeats).p if areas else np.nan,
    }


def _in_common(a: dict[Any, TestSet], b: dict[Any, TestSet]) -> tuple[dict[Any, TestSet], dict[Any, TestSet]]:
    keys = [key for key in a if key in b]
    return {key: a[key] for key in keys}, {key: b[key] for key in keys}
