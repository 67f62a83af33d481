"""Paired tests of aggregators on the same test slides: of every pair its difference and the test that decides."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mil_zoo.metrics import Metric
from mil_zoo.noted import note_of
from mil_zoo.report.load import Results
from mil_zoo.report.scored import draws_of
from mil_zoo.report.tables.encoders import PATIENTS, levels
from mil_zoo.report.tables.scores import all_levels
from mil_zoo.report.tables.text import count
from mil_zoo.report.test_parts import SplitKey, mean_sizes, tested_patients, values_by_split, why_undefined
from mil_zoo.stats import (
    EXCHANGED,
    PairedT,
    Scored,
    TestSet,
    corrected_t_test,
    could_be_best,
    delong_test,
    detectable_difference,
    distinct_test_sets,
    holm,
    patient_test,
    permutation_test,
)

LEVEL = 0.05
ENOUGH = 5  # test sets: of fewer, differences agree by chance (accuracies have few values) and look certain
FEW = f"fewer than {ENOUGH} splits cannot tell aggregators apart"
_COLUMNS = ["metric", "a", "b", "splits", "mean_a", "mean_b", "difference", "low", "high"]
_TESTS = ["p_corrected_t", "p_permutation", "p_delong"]
_DECIDED = ["test", "p", "p_worse", "p_holm", "detectable", "reason"]


def comparisons(results: Results) -> pd.DataFrame:
    """One row a metric and pair of ``aggregator[@grid]``, on the splits that both finished; patients' rows last.

    Columns: ``metric``, ``a``, ``b`` (with " (patients)" where patients are scored), ``splits`` (different test sets),
    their means, ``difference`` (a - b) and its 95 % interval (``low``, ``high``); two-sided p of the corrected
    resampled t-test over test sets, of the permutation test over patients (of a single test set, where it can decide)
    and of DeLong's test by patient (AUC);
    ``test``, the one that decides here (corrected t over several test sets; on a single one DeLong, permutation, the
    jackknife over patients, or without class probabilities the bootstrap of the difference), its ``p``, ``p_worse``
    (one-sided, small where a is worse), ``p_holm`` (adjusted over all pairs of the metric), ``detectable`` (the
    difference that the deciding test finds with a power of 80 % where the level is shared by k - 1 comparisons;
    infinite where it finds none) and ``reason`` (why p or the interval is missing).
    """
    return results.once(_without_errors)


def tested(results: Results) -> pd.DataFrame:
    """As :func:`comparisons`, with ``se`` and ``df`` of the deciding test: standard error and degrees of freedom."""
    return results.once(_comparisons)


def best(results: Results) -> dict[str, set[str]]:
    """For each headline metric, as ``comparisons.md`` compares them, the aggregators that can be the best one.

    A metric by which all can is left out.

    See :func:`mil_zoo.stats.could_be_best`. Pairs with several test sets in common but fewer than ``ENOUGH`` decide
    nothing.
    """
    marked: dict[str, set[str]] = {}
    for metric in results.headline:
        for patients in (False, True):
            labels, p = chances(results, metric, patients)
            members = {label for label, value in zip(labels, p, strict=True) if value >= LEVEL}
            if len(members) < len(labels):
                marked.setdefault(metric.name, set()).update(members)
    return marked


def chances(results: Results, metric: Metric, patients: bool = False) -> tuple[list[str], list[float]]:
    """The aggregators that have the metric, and p of each being the best one."""
    table = all_levels(results).set_index("aggregator")[f"{metric.name}_mean"].dropna()
    labels = [str(label) for label in table.index if str(label).endswith(PATIENTS) == patients]
    place = {label: i for i, label in enumerate(labels)}
    worse = np.full((len(labels), len(labels)), np.nan)
    for row in comparisons(results).to_dict("records"):
        if row["metric"] == metric.name and row["a"] in place and row["b"] in place and decides(row):
            i, j = place[row["a"]], place[row["b"]]
            p = row["p_worse"] if metric.higher_is_better else 1 - row["p_worse"]
            worse[i, j], worse[j, i] = p, 1 - p
    return labels, could_be_best(worse).p.tolist()


def corrected_t(results: Results, metric: str, a: str, b: str, patient_rule: str | None = None) -> PairedT:
    """The corrected resampled t-test of a - b over the test sets that both finished."""
    differences = pd.Series(
        {test_set: pair[0] - pair[1] for test_set, pair in _by_test_set(results, metric, a, b, patient_rule).items()},
        dtype=float,
    )
    return corrected_t_test(differences.tolist(), *mean_sizes(results.finished[a]))


def decides(row: Mapping[Any, Any]) -> bool:
    """Whether a comparison has a test on the single test set of its design, or enough test sets."""
    return bool(row["splits"] >= ENOUGH or (row["splits"] == 1 and row["test"]))


def undecided(rows: Sequence[Mapping[Any, Any]]) -> list[str]:
    """A sentence where some comparisons have too few test sets to decide."""
    few = sum(0 < row["splits"] < ENOUGH and not decides(row) for row in rows)
    where = f" in {count(few, 'row')}" if few < len(rows) else ""
    return [f"Nothing is decided{where}, however small p is: {FEW}."] if few else []


def turned(row: Mapping[Any, Any]) -> dict[Any, Any]:
    """A comparison of b with a."""
    return dict(row) | {
        "a": row["b"],
        "b": row["a"],
        "mean_a": row["mean_b"],
        "mean_b": row["mean_a"],
        "difference": -row["difference"],
        "low": -row["high"],
        "high": -row["low"],
        "p_worse": 1 - row["p_worse"],
    }


def _compared(results: Results) -> list[Metric]:
    """The metrics of which a higher value or a lower one is better."""
    return [metric for metric in results.metrics if metric.higher_is_better is not None]


def _without_errors(results: Results) -> pd.DataFrame:
    return tested(results)[[*_COLUMNS, *_TESTS, *_DECIDED]]


def _comparisons(results: Results) -> pd.DataFrame:
    labels = [label for label, trials in results.finished.items() if trials]
    rows = []
    for patient_rule in levels(results).values():
        for metric in _compared(results):
            of_metric = [
                _compare(results, metric, a, b, patient_rule, len(labels)) for a, b in itertools.combinations(labels, 2)
            ]
            for row, adjusted in zip(of_metric, holm([row["p"] for row in of_metric]), strict=True):
                row["p_holm"] = float(adjusted)
            rows += of_metric
    return pd.DataFrame(rows, columns=[*_COLUMNS, *_TESTS, *_DECIDED, "se", "df"])


def _compare(results: Results, metric: Metric, a: str, b: str, rule: str | None, k: int) -> dict[str, Any]:
    pairs = _by_test_set(results, metric.name, a, b, rule)
    over_sets = corrected_t(results, metric.name, a, b, rule)
    suffix = PATIENTS if rule is not None else ""
    row: dict[str, Any] = {
        "metric": metric.name,
        "a": a + suffix,
        "b": b + suffix,
        "splits": len(pairs),
        "mean_a": np.mean([pair[0] for pair in pairs.values()]) if pairs else np.nan,
        "mean_b": np.mean([pair[1] for pair in pairs.values()]) if pairs else np.nan,
        "p_corrected_t": over_sets.p,
    }
    alone = len(_tested_by_both(results, a, b, rule)) <= 1  # a metric that one of several has is not of this design
    if not results.test_sets(a, rule) and not results.test_sets(b, rule):
        row |= _of_any_task(results, metric, (a, b), rule, over_sets, len(pairs), alone)
        row["detectable"] = _detectable(row, metric, k)
        return row if pairs else row | {"reason": _why_no_pair(results, metric, a, b) or row["reason"]}
    left, right = _in_common(results.test_sets(a, rule), results.test_sets(b, rule))
    same = bool(left) and all(_alike(left[key], right[key]) for key in left)
    sets = [*left.values()], [*right.values()]
    single = same and alone  # over several test sets the corrected t decides, and all draws were for nothing
    exchanged = single and "permutation" in results.task.tests and metric.name in EXCHANGED
    row["p_permutation"] = permutation_test(*sets, metric.name) if exchanged else np.nan
    complete = same and all(len(np.unique(part.labels)) == part.probabilities.shape[2] for part in sets[0])
    areas = delong_test(*sets) if complete and metric.name == "auc" and "delong" in results.task.tests else None
    row["p_delong"] = np.nan if areas is None else areas.p
    if not single:
        found, df, row["test"] = over_sets, float(len(pairs) - 1), "corrected t" if len(pairs) > 1 else ""
    else:
        found, df, row["test"] = patient_test(*sets, metric), np.inf, "jackknife"
    row |= {"difference": found.difference.mean, "low": found.difference.low, "high": found.difference.high}
    unlike = alone and len(pairs) == 1 and bool(left) and not same
    row |= {"p": found.p, "p_worse": found.p_worse, "reason": _UNLIKE if unlike else found.reason}
    se = found.se
    if row["test"] == "jackknife" and areas is not None:
        se = areas.se if areas.se > 1e-12 else np.nan  # no patient changes the difference: found.reason says so
        low, high = (areas.difference + sign * 1.959964 * se for sign in (-1, 1))
        row |= {"test": "DeLong", "p": areas.p, "p_worse": areas.p_worse, "low": low, "high": high}
    elif row["test"] == "jackknife" and exchanged:
        p, lower = row["p_permutation"], row["difference"] < 0
        row |= {"test": "permutation", "p": p, "p_worse": p / 2 if lower else 1 - p / 2}
    row |= {"se": se, "df": df}
    row["detectable"] = _detectable(row, metric, k)
    return row if pairs else row | {"reason": _why_no_pair(results, metric, a, b) or row["reason"]}


def _why_no_pair(results: Results, metric: Metric, a: str, b: str) -> str:
    """Why two models have a metric on no test set in common, as a sentence; "" where it is not that it is undefined."""
    trials = [trial for label in (a, b) for trial in results.finished[label]]
    if _differ(results, a, b):
        return _OTHER_PATIENTS
    if all(trial.metrics.get(metric.name) is not None for trial in trials):
        return ""
    why = why_undefined(results, metric.name)
    return f"{metric.title} is undefined on all test slides that both predicted{why}."


_UNLIKE = "Of the one test set the two did not predict the same patients with the same seeds: nothing can be paired."
_OTHER_PATIENTS = "The two predicted different patients, so that nothing can be paired."


def _differ(results: Results, a: str, b: str, rule: str | None = None) -> list[SplitKey]:
    """The splits on which the patients that two models predicted are not one test set; files of others can be so."""
    if results.config.dataset.kind != "predictions":  # a bench tests all on the same
        return []
    one, other = (tested_patients(results, label, rule) for label in (a, b))
    return [split for split in one if split in other and distinct_test_sets([one[split], other[split]]) != [0, 0]]


def _of_any_task(
    results: Results,
    metric: Metric,
    pair: tuple[str, str],
    rule: str | None,
    over_sets: PairedT,
    splits: int,
    alone: bool,
) -> dict[str, Any]:
    """The decision without class probabilities: on a single test set by draws of its patients, one for both models."""
    row: dict[str, Any] = {"p_permutation": np.nan, "p_delong": np.nan}
    if alone and splits == 1 and _drawn_alike(*(results.scored_sets(label, rule) for label in pair)):
        a, b = (draws_of(results, label, metric, rule) for label in pair)
        drawn = (a - b).interval()
        row |= {"test": "bootstrap", "difference": drawn.value, "low": drawn.low, "high": drawn.high, "p": drawn.p}
        row |= {
            "p_worse": drawn.p_worse,
            "reason": note_of(drawn.p) or note_of(drawn.low),
            "se": drawn.se,
            "df": np.inf,
        }
    else:
        found = over_sets.difference
        row |= {"test": "corrected t" if splits > 1 else "", "difference": found.mean, "low": found.low}
        unlike = alone and splits == 1 and all(results.scored_sets(label, rule) for label in pair)
        row |= {"high": found.high, "p": over_sets.p, "p_worse": over_sets.p_worse}
        row |= {"reason": _UNLIKE if unlike else over_sets.reason}
        row |= {"se": over_sets.se, "df": float(splits - 1)}
    return row


def _detectable(row: Mapping[Any, Any], metric: Metric, k: int) -> float:
    """The difference that a comparison of k models finds four times in five; infinite where none is as large."""
    if 1 < row["splits"] < ENOUGH:
        return np.inf
    least = detectable_difference(row["se"], row["df"], comparisons=max(k - 1, 1))
    return np.inf if least > metric.bounds[1] - metric.bounds[0] else least


def _drawn_alike(a: dict[Any, list[Scored]], b: dict[Any, list[Scored]]) -> bool:
    """Whether two models predicted the same patients, as often."""
    patients = [[one.patients.tolist() for key in sorted(sets) for one in sets[key]] for sets in (a, b)]
    return bool(patients[0]) and patients[0] == patients[1]


def _alike(a: TestSet, b: TestSet) -> bool:
    """Whether two models predicted the same slides, with the same labels."""
    return bool(
        a.probabilities.shape == b.probabilities.shape
        and (a.labels == b.labels).all()
        and (a.patients == b.patients).all()
    )


def _by_test_set(results: Results, metric: str, a: str, b: str, rule: str | None) -> dict[Any, tuple[float, float]]:
    """The two values on each test set, what was trained for one of them averaged first."""
    one, other = (values_by_split(results.finished[label], metric, rule is not None) for label in (a, b))
    groups: dict[Any, list[tuple[float, float]]] = {}
    differ = _differ(results, a, b, rule)
    for split in one:
        if split in other and split not in differ:
            groups.setdefault(results.test_set_of(split, rule), []).append((one[split], other[split]))
    return {
        key: (float(np.mean([x for x, _ in pairs])), float(np.mean([y for _, y in pairs])))
        for key, pairs in groups.items()
    }


def _tested_by_both(results: Results, a: str, b: str, rule: str | None) -> set[Any]:
    """The test sets that two models both finished, whatever is defined there."""
    one, other = ({trial.split for trial in results.finished[label]} for label in (a, b))
    return {results.test_set_of(split, rule) for split in one & other}


def _in_common(a: dict[Any, TestSet], b: dict[Any, TestSet]) -> tuple[dict[Any, TestSet], dict[Any, TestSet]]:
    keys = [key for key in a if key in b]
    return {key: a[key] for key in keys}, {key: b[key] for key in keys}
