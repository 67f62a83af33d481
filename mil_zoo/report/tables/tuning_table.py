"""What tuning changed: every configuration, the recipe beside the chosen one, and scores against the budget."""

from __future__ import annotations

import itertools
from math import comb
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil_zoo.bench.results import Trial
from mil_zoo.report.load import Results
from mil_zoo.report.tables.table import Document, Table
from mil_zoo.report.tables.text import fixed

_MOST = 12  # pairs whose order changes that are said one by one
_DIGITS = 9  # to which expected scores are compared: what differs less is rounding


def configuration_table(results: Results) -> pd.DataFrame:
    """Every configuration of every tuned trial; empty for a run of recipes.

    Columns: ``trial``, ``aggregator``, ``repeat``, ``fold``, ``seed``, then those of the trial's ``tuning.csv``:
    ``configuration`` (0 is the recipe), ``settings`` (JSON), ``metric``, its ``validation`` and ``test`` value,
    ``validation_loss``, ``chosen``, what it cost (``epochs``, ``seconds``) and the ``reason`` of one that failed.
    """
    return results.once(_configurations)


def budget_table(results: Results) -> pd.DataFrame:
    """What n of the configurations would have given: one row an aggregator and n.

    Of n configurations, drawn from those that were tried without replacement, the best by validation would have been
    chosen. That is not quite a search of n, which begins with the recipe and proposes the others from what it has seen.
    Columns: ``aggregator``, ``configurations``, its expected ``validation`` score and expected ``test`` score,
    each exact and the mean over trials (NaN where a draw may hold failed configurations alone), and ``trials``.

    Source:
        Dodge et al., Show Your Work, EMNLP 2019; there with replacement.
    """
    return results.once(_budgets)


def expected_choice(order: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The expected value of the chosen one of n things drawn without replacement, for n from 1 to all N.

    The thing at place r of ``order`` is chosen where none of the r before it is drawn: with probability
    C(N - 1 - r, n - 1) / C(N, n).

    Args:
        order: ``[N]``, the things from the first that is chosen to the last.
        values: ``[N]``; NaN makes NaN of every n for which the thing may be chosen.

    Returns:
        float64 ``[N]``.
    """
    number = len(order)
    ranked, expected = values[order], np.empty(number)
    for n in range(1, number + 1):
        chances = np.array([comb(number - 1 - r, n - 1) / comb(number, n) for r in range(number)])
        expected[n - 1] = (chances * ranked)[chances > 0].sum()
    return expected


def shown_tuning(results: Results) -> Document:
    """The recipe beside the chosen configuration, and which orders change with the budget."""
    table, title = configuration_table(results), results.selecting.title
    facts = results.config.tuning
    header = [
        "Aggregator",
        "Settings",
        f"Validation {title}, recipe",
        "tuned",
        f"Test {title}, recipe",
        "tuned",
        "gain",
    ]
    header += ["Recipe chosen", "Epochs trained"]
    rows = []
    for label, part in table.groupby("aggregator", sort=False):
        recipe, chosen = part[part["configuration"] == 0], part[part["chosen"] == 1]
        means = [one[name].mean(skipna=False) for name in ("validation", "test") for one in (recipe, chosen)]
        kept = int((chosen["configuration"] == 0).sum())
        rows.append(
            [
                label,
                f"tuned, N = {part['configuration'].nunique()}",
                *map(fixed, means),
                fixed(means[3] - means[2], "+.3f"),
                f"{kept} of {part['trial'].nunique()}",
                f"{part['epochs'].sum():,.0f}",
            ]
        )
    assert facts is not None
    folds = f"{facts.inner_folds} inner folds of training and validation slides"
    judged = folds if facts.inner_folds else "the validation slides"
    notes = [
        f"In every trial {facts.configurations} configurations of each aggregator were tried, its recipe first, the "
        f"others proposed by {_SAMPLERS[facts.sampler]}, and judged on {judged}; test slides were looked at when the "
        "choice was made. Means over trials. tuning.csv has every configuration.",
        _BUDGET.format("" if facts.sampler == "random" else " and have proposed the others from fewer scores"),
        *_failures(table),
        *order_changes(results),
    ]
    return Document("tuning", "Tuning", [Table(header, rows, notes)])


_BUDGET = (
    "A budget of n is n of these configurations drawn without replacement, of which the best by validation is chosen "
    "(exact expectation, budget.csv). A search of n would have begun with the recipe{}: for small n the two differ."
)
_SAMPLERS = {"tpe": "Optuna (tree-structured Parzen estimator)", "random": "Optuna, at random"}


def _failures(table: pd.DataFrame) -> list[str]:
    """Whose configurations failed, so that fewer than N were judged, as a sentence."""
    failed = table[table["reason"] != ""].groupby("aggregator", sort=False).size()
    tried = table.groupby("aggregator").size()
    of_each = [f"{label} {number} of {tried[label]}" for label, number in failed.items()]
    return [f"Failed, and so not judged: {', '.join(of_each)} (tuning.csv says why)."] if of_each else []


def order_changes(results: Results) -> list[str]:
    """Which pairs of aggregators change their order in the expected test score with the budget, in words."""
    table, title = budget_table(results), results.selecting.title
    if table.empty:
        return []
    higher = bool(results.selecting.higher_is_better)
    curves = {str(name): part["test"].to_numpy() for name, part in table.groupby("aggregator", sort=False)}
    found = []
    for a, b in itertools.combinations(curves, 2):
        number = min(len(curves[a]), len(curves[b]))
        ahead = np.sign((curves[a][:number] - curves[b][:number]).round(_DIGITS) * (1 if higher else -1))
        known = np.flatnonzero(~np.isnan(ahead) & (ahead != 0))
        turns = [(i, j) for i, j in itertools.pairwise(known) if ahead[i] != ahead[j]]
        if not turns:
            continue
        first, then = (a, b) if ahead[known[0]] > 0 else (b, a)
        times = "" if len(turns) == 1 else f", the first of {len(turns)} changes"
        found.append(
            f"{first} is ahead of {then} up to a budget of {turns[0][0] + 1}, {then} from {turns[0][1] + 1} on{times} "
            f"({title} {curves[first][known[0]]:.3f} and {curves[then][known[0]]:.3f} at {known[0] + 1}, "
            f"{curves[first][known[-1]]:.3f} and {curves[then][known[-1]]:.3f} at {known[-1] + 1})."
        )
    if not found:
        return [f"No two aggregators change their order in expected test {title} with the number of configurations."]
    more = f" (the first {_MOST})" if len(found) > _MOST else ""
    return [
        f"Order that depends on the budget, by expected test {title}: {len(found)} of "
        f"{comb(len(curves), 2)} pairs{more}. A claim about them holds for its budget alone.",
        *found[:_MOST],
    ]


def _configurations(results: Results) -> pd.DataFrame:
    tables = [_of_trial(results, trial) for trials in results.finished.values() for trial in trials]
    tables = [table for table in tables if len(table)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _of_trial(results: Results, trial: Trial) -> pd.DataFrame:
    if "tuning.csv" not in trial.files:
        return pd.DataFrame()
    rows = results.run.tuning(trial.trial)
    reasons = rows["reason"].astype(object).where(rows["reason"].notna(), "")
    place: dict[str, Any] = {"trial": trial.trial, "aggregator": trial.label}
    place |= {"repeat": trial.repeat, "fold": trial.fold, "seed": trial.seed}
    return pd.concat([pd.DataFrame([place] * len(rows)), rows.assign(reason=reasons)], axis=1)


def _budgets(results: Results) -> pd.DataFrame:
    table, rows = configuration_table(results), []
    if table.empty:
        return table
    higher = bool(results.selecting.higher_is_better)
    for label, part in table.groupby("aggregator", sort=False):
        curves: list[Any] = []
        for _, one in part.groupby("trial", sort=False):
            worth = one["validation"] if higher else -one["validation"]
            ranked = pd.DataFrame({"worth": -worth.to_numpy(), "loss": one["validation_loss"].to_numpy()})
            order = ranked.sort_values(["worth", "loss"], kind="stable", na_position="last").index.to_numpy()
            curves.append([expected_choice(order, one[name].to_numpy(float)) for name in ("validation", "test")])
        means = np.mean(curves, axis=0)
        rows += [
            {"aggregator": label, "configurations": n, "validation": value, "test": test, "trials": len(curves)}
            for n, (value, test) in enumerate(means.T, start=1)
        ]
    return pd.DataFrame(rows)
