"""Which differences between aggregators there are: paired tests on the same test slides, adjusted for their number."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mil_zoo.report.results import METRICS, finished, test_sets, trials_by_aggregator, values_by_split
from mil_zoo.report.text import bullets, csv, markdown, p_value
from mil_zoo.stats import TestSet, corrected_t_test, delong_test, holm, permutation_test, wilcoxon_test

if TYPE_CHECKING:
    from mil_zoo.bench.run_directory import RunDirectory

LEVEL = 0.05
ENOUGH = 5  # splits: of fewer, differences agree by chance (accuracies have few values) and look certain
_COLUMNS = ["metric", "a", "b", "splits", "mean_a", "mean_b", "difference", "low", "high"]
_TESTS = ["p_corrected_t", "p_wilcoxon", "p_permutation", "p_delong"]


def comparisons(run: RunDirectory) -> pd.DataFrame:
    """One row a metric and pair of ``aggregator[@grid]``, on the splits that both finished.

    Columns: ``metric``, ``a``, ``b``, ``splits``, their means, ``difference`` (a - b) and its 95 % interval (corrected
    resampled t, ``low`` and ``high``); two-sided p of the corrected resampled t-test and of Wilcoxon's test over
    splits, of the paired permutation test over patients (accuracy, AUC) and of DeLong's test (AUC of two classes);
    ``test``, the one that decides here (corrected t over several splits; over a single one DeLong, or permutation),
    its ``p``, and ``p_holm``, adjusted over all pairs of the metric.
    """
    groups = {label: finished(trials) for label, trials in trials_by_aggregator(run).items()}
    groups = {label: trials for label, trials in groups.items() if trials}
    sets = {label: test_sets(run, trials) for label, trials in groups.items()}
    rows = []
    for metric in METRICS:
        values = {label: values_by_split(trials, metric) for label, trials in groups.items()}
        pairs = list(itertools.combinations(groups, 2))
        of_metric = [_compare(metric, a, b, values, groups[a], _in_common(sets[a], sets[b])) for a, b in pairs]
        for row, adjusted in zip(of_metric, holm([row["p"] for row in of_metric]), strict=True):
            row["p_holm"] = float(adjusted)
        rows += of_metric
    return pd.DataFrame(rows, columns=[*_COLUMNS, *_TESTS, "test", "p", "p_holm"])


def best(table: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, set[str]]:
    """For each metric the aggregator of the best mean and those that do not differ from it; none where none differs.

    Pairs with several splits in common but fewer than ``ENOUGH`` decide nothing.

    Args:
        table: of :func:`mil_zoo.report.tables.comparison_table`.
        pairs: of :func:`comparisons`.
    """
    marked: dict[str, set[str]] = {}
    for metric in METRICS:
        means = table.set_index("aggregator")[f"{metric}_mean"].dropna()
        of_metric = pairs[(pairs["metric"] == metric) & ((pairs["splits"] == 1) | (pairs["splits"] >= ENOUGH))]
        if len(means) < 2:
            continue
        top = means.idxmax()
        worse = of_metric[(of_metric["p_holm"] < LEVEL) & ((of_metric["a"] == top) | (of_metric["b"] == top))]
        losers = (set(worse["a"]) | set(worse["b"])) - {top}
        if losers:
            marked[metric] = set(means.index) - losers
    return marked


def write_comparisons(run: RunDirectory, pairs: pd.DataFrame) -> dict[str, str]:
    """``comparisons.csv`` (all pairs and metrics) and ``comparisons.md`` (AUC and accuracy), as name to text."""
    shown = pairs[pairs["metric"].isin(["auc", "accuracy"])]
    header = [
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
    rows = []
    for _, row in shown.iterrows():
        interval = "" if np.isnan(row["low"]) else f" [{row['low']:.3f}, {row['high']:.3f}]"
        cells = [METRICS[row["metric"]], row["a"], row["b"], f"{row['difference']:.3f}{interval}"]
        cells += [p_value(row[name]) for name in _TESTS]
        rows.append([*cells, f"{p_value(row['p_holm'])} ({row['test']})" if row["test"] else "-"])
    lines = [
        "Two-sided p on the same test slides. The adjusted p (Holm, over all pairs of the metric) is of the test that "
        f"decides what is bold: over {ENOUGH} splits or more the corrected resampled t-test (Nadeau & Bengio 2003; of "
        "fewer splits it is shown and decides nothing); on a single split DeLong's test of the AUC and the permutation "
        "test of the accuracy.",
        "Wilcoxon over splits takes them to be independent, which folds are not: its p is too small. Permutation "
        "(predictions exchanged patient by patient) and DeLong speak of these trained models, not of their training.",
    ]
    return {"comparisons.csv": csv(pairs), "comparisons.md": markdown(header, rows) + "\n" + bullets(lines)}


def _in_common(a: dict[Any, TestSet], b: dict[Any, TestSet]) -> tuple[dict[Any, TestSet], dict[Any, TestSet]]:
    keys = [key for key in a if key in b]
    return {key: a[key] for key in keys}, {key: b[key] for key in keys}


def _compare(
    metric: str,
    a: str,
    b: str,
    values: dict[str, dict[Any, float]],
    trials: list[dict[str, Any]],
    sets: tuple[dict[Any, TestSet], dict[Any, TestSet]],
) -> dict[str, Any]:
    splits = [key for key in values[a] if key in values[b]]
    differences = [values[a][key] - values[b][key] for key in splits]
    n_train, n_test = (float(np.mean([trial[name] for trial in trials])) for name in ("n_train", "n_test"))
    summary, p_t = corrected_t_test(differences, n_train, n_test)
    row = {
        "metric": metric,
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
    left, right = (list(part.values()) for part in sets)
    same = [x.probabilities.shape == y.probabilities.shape for x, y in zip(left, right, strict=True)]
    testable = bool(same) and all(same)
    row["p_permutation"] = (
        permutation_test(left, right, metric) if testable and metric in ("accuracy", "auc") else np.nan
    )
    both = testable and all(part.probabilities.shape[2] == 2 and len(set(part.labels)) == 2 for part in left)
    repeats = len({repeat for repeat, _ in sets[0]})
    row["p_delong"] = delong_test(left, right, repeats).p if both and metric == "auc" else np.nan
    row["test"] = "corrected t" if len(splits) > 1 else {"auc": "DeLong", "accuracy": "permutation"}.get(metric, "")
    name = {"corrected t": "p_corrected_t", "DeLong": "p_delong", "permutation": "p_permutation"}.get(row["test"])
    return row | {"p": row[name] if name else np.nan}
