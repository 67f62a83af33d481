"""What differences amount to: practically equal or not, and by how much the best simple baseline is beaten."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mil_zoo.metrics import Metric, inside
from mil_zoo.report.load import Results
from mil_zoo.report.tables.encoders import PATIENTS
from mil_zoo.report.tables.pairs import decides, tested, turned, undecided
from mil_zoo.report.tables.table import Cell, Table
from mil_zoo.report.tables.text import detectable, difference_interval, fixed
from mil_zoo.stats import ROPE, posterior_of_difference

SIMPLE = ("mean", "max", "mlp", "linear_probe", "knn_probe")  # pool, then classify: nothing learns where to look


def equivalence_table(results: Results) -> pd.DataFrame:
    """One row a pair and metric that lies in bounds: how probable each is to be better by more than ``rope``.

    Columns: ``metric``, ``a``, ``b``, ``splits``, ``difference``, ``rope``, ``p_a_better``, ``p_equal``,
    ``p_b_better`` (they sum to 1), ``detectable``. Over several test sets it is the Bayesian correlated t-test; of a
    single one the posterior by the standard error over its patients.
    """
    return results.once(_equivalences)


def baseline_table(results: Results) -> pd.DataFrame:
    """One row an aggregator and metric: its difference from the better of the simple baselines of the run.

    Columns: ``metric``, ``aggregator``, ``baseline``, ``splits``, ``difference``, ``low``, ``high`` (95 %), ``test``,
    ``p``. Empty where the run has none of ``SIMPLE``, or nothing else.
    """
    return results.once(_baselines)


def shown_equivalences(results: Results) -> Table | None:
    """The headline metrics as they are read; None without any."""
    metrics = {metric.name: metric for metric in results.headline}
    rows = []
    for row in equivalence_table(results).to_dict("records"):
        if row["metric"] in metrics and not np.isnan(row["difference"]):
            metric = metrics[row["metric"]]
            chances = [fixed(row[name]) for name in ("p_a_better", "p_equal", "p_b_better")]
            rows.append([metric.title, row["a"], row["b"], *chances, detectable(row["detectable"])])
    header = ["Metric", "A", "B", "P(A better)", "P(equal)", "P(B better)", "Detectable"]
    notes = [*_EQUIVALENCE, *[_NO_SPREAD] * any(row[4] == "-" for row in rows)]
    return Table(header, rows, notes, "Practically equal") if any(row[4] != "-" for row in rows) else None


_EQUIVALENCE = [
    f"How probable it is, given these results and no prior opinion, that A is better than B by more than {ROPE}, that "
    f"they are within {ROPE} of each other, or that B is better by more: a large P(equal) says that choosing between "
    "them does not matter, three middling ones that the study is too small to tell. Bayesian correlated t-test over "
    "test sets (Benavoli et al. 2017); of a single test set by the standard error over its patients.",
    "Detectable: the true difference that the paired test finds four times in five, its level shared by k - 1 "
    "comparisons; smaller ones it finds less often, so that no difference found is not none.",
]
_NO_SPREAD = "-: there is no spread to tell by; the reason stands under all pairs."


def shown_baselines(results: Results) -> Table | None:
    """The headline metrics as they are read; None where there is no simple baseline."""
    metrics = {metric.name: metric for metric in results.headline}
    rows, words = [], []
    for row in baseline_table(results).to_dict("records"):
        if row["metric"] not in metrics:
            continue
        metric = metrics[row["metric"]]
        by, ends = row["difference"], (row["low"], row["high"])
        if not metric.higher_is_better:
            by, ends = 0 - by, (0 - row["high"], 0 - row["low"])
        below = (difference_interval(*ends, metric.bounds, "+.3f"),)
        rows.append([metric.title, row["aggregator"], Cell(fixed(by, "+.3f"), below=below), row["baseline"]])
        words.append((metric, row))
    if not rows:
        return None
    header = ["Metric", "Aggregator", "Beats it by [95 %]", "Best simple baseline"]
    notes = [*_in_words(words), *undecided([row for _, row in words]), _BASELINE]
    return Table(header, rows, notes, "Against the best simple baseline")


_BASELINE = (
    "The baseline is the one of the best mean among those of the run that only pool and classify "
    f"({', '.join(SIMPLE)}); it is picked by the same test scores, which favours it a little. Below 0 the baseline is "
    "better, also in a metric of which less is better. Intervals are those of each pair, not adjusted."
)


def _in_words(rows: list[tuple[Metric, dict[Any, Any]]]) -> list[str]:
    sentences = []
    for metric in dict.fromkeys(metric for metric, _ in rows):
        own = [row for other, row in rows if other == metric]
        sign = 1 if metric.higher_is_better else -1
        sure = [row for row in own if decides(row)]
        better = [row["aggregator"] for row in sure if sign * row["low" if sign > 0 else "high"] > 0]
        worse = [row["aggregator"] for row in sure if sign * row["high" if sign > 0 else "low"] < 0]
        said = f"In {inside(metric.title)} {len(better)} of {len(own)} are better than the best simple baseline"
        said += f" ({', '.join(better)})" if better else ""
        said += f", {len(worse)} worse ({', '.join(worse)})" if worse else ""
        rest = len(own) - len(better) - len(worse)
        sentences.append(said + (f"; {rest} cannot be told from it." if rest else "."))
    return sentences


def _equivalences(results: Results) -> pd.DataFrame:
    rows = []
    for row in tested(results).to_dict("records"):
        metric = results.metric(row["metric"])
        if not np.isfinite(metric.bounds).all():  # .01 means nothing in another unit
            continue
        found = posterior_of_difference(row["difference"], row["se"], row["df"])
        sides = [found.above, found.below] if metric.higher_is_better else [found.below, found.above]
        rows.append(
            {name: row[name] for name in ("metric", "a", "b", "splits", "difference")}
            | {"rope": ROPE, "p_a_better": sides[0], "p_equal": found.equal, "p_b_better": sides[1]}
            | {"detectable": row["detectable"]}
        )
    return pd.DataFrame(rows)


def _baselines(results: Results) -> pd.DataFrame:
    rows = []
    pairs = tested(results).to_dict("records")
    for metric in results.metrics:
        for patients in (False, True):
            own = [row for row in pairs if row["metric"] == metric.name and row["a"].endswith(PATIENTS) == patients]
            means = {row[side]: row[f"mean_{side}"] for row in own for side in ("a", "b")}
            simple = {label: mean for label, mean in means.items() if _simple(label) and not np.isnan(mean)}
            if not simple or metric.higher_is_better is None:
                continue
            best = (max if metric.higher_is_better else min)(simple, key=lambda label: simple[label])
            for row in own:
                if best not in (row["a"], row["b"]) or _simple(row["b"] if row["a"] == best else row["a"]):
                    continue
                found = row if row["b"] == best else turned(row)
                rows.append(
                    {"metric": metric.name, "aggregator": found["a"], "baseline": best, "splits": found["splits"]}
                    | {"difference": found["difference"] + 0.0}  # no -0
                    | {name: found[name] for name in ("low", "high", "test", "p")}
                )
    return pd.DataFrame(rows)


def _simple(label: str) -> bool:
    return label.removesuffix(PATIENTS).partition("@")[0] in SIMPLE
