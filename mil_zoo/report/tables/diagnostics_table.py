"""Every diagnostic of a run in one tidy table, with those that need several slides or seeds at once."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd

from mil_zoo.bench.results import Trial
from mil_zoo.diagnostics.froc import Detections, froc, match_patches
from mil_zoo.diagnostics.stability import stability
from mil_zoo.report.load import Results

COLUMNS = ["aggregator", "repeat", "fold", "seed", "epoch", "slide_id", "name", "value"]


def diagnostics_table(results: Results) -> pd.DataFrame:
    """One row a number about the attention of test slides.

    Columns: ``aggregator`` (with its grid), ``repeat``, ``fold``, ``seed``, ``epoch``, ``slide_id``, ``name``,
    ``value``. To each trial's numbers (``skew.csv``) are added

    - ``attention_froc``, ``instance_froc`` and their sensitivities ``..._froc_0.25`` to ``..._froc_8``: one a trial,
      without a slide, where patches lie on a grid and have labels. A patch's score is the slide's probability of not
      being class 0 times its attention over the largest of the slide, or its instance score as it is.
    - those of :func:`mil_zoo.diagnostics.stability.stability`: one a slide and fold, without a seed or epoch, where
      there are several seeds.
    """
    return results.once(_diagnostics)


def _diagnostics(results: Results) -> pd.DataFrame:
    parts = []
    place = {trial.trial: i for i, trial in enumerate(results.trials)}
    for trials in results.finished.values():
        if not trials:
            continue
        of_trials, of_fold = [results.test_skew(*trials)], defaultdict(list)
        for trial in trials:
            if results.attention.slides(trial.trial):
                numbers = pd.DataFrame(_froc(results, trial).items(), columns=["name", "value"])
                known = {"trial": place[trial.trial], "slide_id": "", "epoch": trial.selected_epoch}
                of_trials.append(numbers.assign(**known))
                of_fold[trial.split].append(trial)
        rows = pd.concat([part for part in of_trials if len(part)] or of_trials)
        parts.append(_named(results, rows.sort_values("trial", kind="stable")))
        for of_seeds in of_fold.values():
            if len(of_seeds) > 1:
                numbers = _stability(results, of_seeds).assign(trial=place[of_seeds[0].trial], epoch=None)
                parts.append(_named(results, numbers).assign(seed=None))
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True)[COLUMNS] if parts else pd.DataFrame(columns=COLUMNS)


def _named(results: Results, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with aggregator, repeat, fold and seed of their trials."""
    names = {"aggregator": "label", "repeat": "repeat", "fold": "fold", "seed": "seed"}
    place = rows["trial"].to_numpy(dtype=int)
    known = {name: np.array([getattr(trial, key) for trial in results.trials]) for name, key in names.items()}
    return rows.assign(**{name: values[place] for name, values in known.items()})


def _froc(results: Results, trial: Trial) -> dict[str, float]:
    rows = results.test_predictions(trial)
    if "prob_0" not in rows:
        return {}
    positive = 1 - rows.set_index("slide_id")["prob_0"]
    slides: dict[str, list[Detections]] = defaultdict(list)
    for slide, facts in results.attention.slides(trial.trial).items():
        if not {"coords", "instance_labels"} <= facts["arrays"] or np.isnan(facts["patch_size"]):
            return {}
        attention, coords, labels = (_array(results, trial, slide, name) for name in _ON_A_GRID)
        scores = {"attention": attention / attention.max() * positive[slide]}
        if "instance_scores" in facts["arrays"]:
            scores["instance"] = _array(results, trial, slide, "instance_scores")
        for name, values in scores.items():
            found = match_patches(
                coords, float(facts["patch_size"]), values, labels, um_per_px=results.config.dataset.mpp
            )
            slides[name].append(found)
    return {
        f"{name}_froc" + (f"_{at}" if at != "score" else ""): value
        for name, detections in slides.items()
        for at, value in froc(detections).items()
    }


_ON_A_GRID = ("attention", "coords", "instance_labels")


def _array(results: Results, trial: Trial, slide: str, name: str) -> Any:
    return results.attention.read(trial.trial, slide, name)


def _stability(results: Results, trials: list[Trial]) -> pd.DataFrame:
    """Agreement over the seeds of a fold, of the slides that all of them stored."""
    rows: list[tuple[str, str, float]] = []
    for slide in results.attention.slides(trials[0].trial):
        if all(slide in results.attention.slides(trial.trial) for trial in trials):
            numbers = stability([_array(results, trial, slide, "attention") for trial in trials])
            rows += [(slide, name, value) for name, value in numbers.items()]
    return pd.DataFrame(rows, columns=["slide_id", "name", "value"])
