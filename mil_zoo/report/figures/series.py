"""What the trials of an aggregator recorded while they trained and of the test slides, as the figures need it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mil_zoo.bench.results import Trial
from mil_zoo.report.figures.look import FEW
from mil_zoo.report.load import Results
from mil_zoo.report.skew_rows import TINY


@dataclass(frozen=True, eq=False)
class Series:
    """What the figures show of one aggregator.

    Attributes:
        epochs: the ``epochs.csv`` of every trial, with a column ``trial``.
        attention: sum and count over training slides, one row a trial, epoch and name (of ``high_count``: of slides
            that hold a highly attended instance).
        test: one row a test slide of a trial, one column a number; empty without attention.
    """

    epochs: pd.DataFrame
    attention: pd.DataFrame
    test: pd.DataFrame

    @property
    def large(self) -> pd.DataFrame:
        """The test slides of more than two instances; all where their number is unknown."""
        if "n_instances" not in self.test:
            return self.test
        return self.test[~(self.test["n_instances"] <= TINY)]


def trained(results: Results) -> dict[str, Series]:
    """Of every aggregator with a finished trial."""
    return {label: part for label, part in results.once(_all).items() if len(part.epochs)}


def attended(results: Results) -> dict[str, Series]:
    """Of every aggregator with attention, on some slides of more than two instances."""
    return {label: part for label, part in results.once(_all).items() if len(part.large)}


def without_attention(results: Results) -> str:
    """The sentences that name the aggregators that the attention figures leave out, and why."""
    missing = {label: part for label, part in trained(results).items() if label not in attended(results)}
    none = [label for label, part in missing.items() if not len(part.test)]
    tiny = [label for label in missing if label not in none]
    said = [f"Without attention, so not shown: {', '.join(none)}."] * bool(none)
    said += [f"Slides of one or two instances only, so not shown: {', '.join(tiny)}."] * bool(tiny)
    return " ".join(said)


def band_note(shown: Iterable[Series], panels: str) -> str:
    """What a band is, where there are several trials, and what becomes of one that ended early."""
    shown = list(shown)
    trials = [part.epochs["trial"].nunique() for part in shown]
    fewest, most = min(trials), max(trials)
    if most < 2:
        return ""
    spread = "each a thin line" if most < FEW else "band from smallest to largest"
    number = f"{most}" if fewest == most else f"{fewest} to {most}"
    ends = [part.epochs.groupby("trial")["epoch"].max().nunique() for part in shown]
    early = "A trial that stopped early counts with its last epoch from there on. " * (max(ends) > 1)
    return f"{panels}mean of {number} trials, {spread}. ".capitalize() + early


def majority(results: Results) -> float | None:
    """The share of the most frequent class among the test slides of all splits; None for a task without classes."""
    return results.once(_majority)


def _majority(results: Results) -> float | None:
    labels = [
        part.labels
        for label, trials in results.finished.items()
        if trials
        for part in results.test_sets(label).values()
    ]
    return float(np.bincount(np.concatenate(labels)).max() / sum(map(len, labels))) if labels else None


def wide_skew(test: pd.DataFrame) -> pd.DataFrame:
    """The test rows of the ``skew.csv`` of an aggregator, one row a slide of a trial and one column a number.

    Two columns are added: ``heads``, how many there are, and ``head_max``, the mean of their maxima. A model that
    records no heads has one, whose maximum is the attention's.
    """
    wide = test.pivot(index=["trial", "slide_id"], columns="name", values="value")
    heads = [name for name in wide if name.startswith("head_max_")]
    if len(wide):
        wide["heads"] = max(len(heads), 1)
        wide["head_max"] = wide[heads or ["max_attention"]].mean(axis=1)
    return wide


def _all(results: Results) -> dict[str, Series]:
    return {label: _read(results, trials) for label, trials in results.finished.items()}


def _read(results: Results, trials: Sequence[Trial]) -> Series:
    if not trials:
        return Series(pd.DataFrame(), pd.DataFrame(), pd.DataFrame())
    names = [trial.trial for trial in trials]
    tables = [results.epochs(trial) for trial in trials]
    epochs = pd.concat(tables).assign(trial=np.repeat(names, [len(table) for table in tables]))
    attention = results.training_skew(*trials)
    place = {i: trial.trial for i, trial in enumerate(results.trials)}
    return Series(epochs, attention.assign(trial=attention["trial"].map(place)), wide_skew(results.test_skew(*trials)))
