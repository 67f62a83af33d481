"""How well the site that a test slide comes from is told from its target, its prediction and its embedding."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mil_zoo.bench.results import Trial
from mil_zoo.noted import undefined
from mil_zoo.report.load import Results
from mil_zoo.report.subgroups import group_of, owners_of, site_columns
from mil_zoo.stats.drawn import Drawn
from mil_zoo.stats.site_leak import SiteLeak, mean_leak, site_probe, untold

TARGET, PREDICTION, EMBEDDING = "the target alone", "target and prediction", "the embedding"


@dataclass(frozen=True, eq=False)
class Told:
    """How well the site is told from one thing.

    Attributes:
        column: that names the sites.
        label: ``aggregator[@grid]``.
        source: what it is told from.
        leak: the mean over test sets. All sources are of the same patients, sites and folds of the probe.
        beyond: how much better than from the target alone; None of the target itself.
    """

    column: str
    label: str
    source: str
    leak: SiteLeak
    beyond: Drawn | None


def site_leaks(results: Results) -> list[Told]:
    """Of every column called site, centre or scanner and every aggregator, each source."""
    return results.once(_leaks)


def _leaks(results: Results) -> list[Told]:
    found = []
    for column in site_columns(results):
        of = group_of(results, column)
        for label, trials in results.finished.items():
            kept = [trial for trial in trials if trial.files]
            first = min(((trial.repeat, trial.seed) for trial in kept), default=None)
            probes: dict[str, list[SiteLeak]] = {}
            for trial in kept:
                if (trial.repeat, trial.seed) == first:
                    for source, leak in _of_trial(results, trial, of).items():
                        probes.setdefault(source, []).append(leak)
            leaks = {source: _mean(parts, probes[TARGET]) for source, parts in probes.items()}
            for source, leak in leaks.items():
                beyond = None if source == TARGET else (leak.accuracy - leaks[TARGET].accuracy).interval()
                found.append(Told(column, label, source, leak, beyond))
    return found


def _mean(parts: list[SiteLeak], targets: list[SiteLeak]) -> SiteLeak:
    """Over the test sets that the target is judged on: of fewer a mean would be of other patients."""
    for part, target in zip(parts, targets, strict=True):
        if np.isnan(part.accuracy.value) and not np.isnan(target.accuracy.value):
            return part
    return mean_leak(parts)


def _of_trial(results: Results, trial: Trial, of: dict[str, str]) -> dict[str, SiteLeak]:
    """Within one test set, since every training has a space and a scale of its own."""
    rows = results.predictions(trial)
    rows = rows[rows["split"] == "test"]
    owners, task = owners_of(rows), results.task_of(trial)
    sites = [of.get(name, "") for name in owners]
    known = task.given_target(*task.read(rows))
    if known is None:
        gone = undefined(f"the task {task.name} does not say what a prediction is given its target")
        probes = {TARGET: untold(gone), PREDICTION: untold(gone)}
    else:
        both = np.concatenate(known, axis=1)
        probes = {
            source: site_probe(features, sites, owners, seed=trial.fold)
            for source, features in ((TARGET, known[0]), (PREDICTION, both))
        }
    embeddings = _embeddings(results, trial, rows)
    if embeddings is None:
        probes[EMBEDDING] = untold(undefined("the run keeps no embeddings of its test slides"))
    else:
        probes[EMBEDDING] = site_probe(embeddings, sites, owners, seed=trial.fold)
    return probes


def _embeddings(results: Results, trial: Trial, rows: pd.DataFrame) -> np.ndarray | None:
    if "embeddings.npy" not in trial.files:
        return None
    values = np.load(io.BytesIO(results.run.read(trial.trial, "embeddings.npy")), allow_pickle=False)
    return values.astype(np.float64) if values.ndim == 2 and len(values) == len(rows) else None
