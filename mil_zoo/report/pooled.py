"""Every diagnostic of a run in one tidy table, with those that need several slides or seeds at once."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd

from mil_zoo.diagnostics.froc import Detections, froc, match_patches
from mil_zoo.diagnostics.stability import stability
from mil_zoo.report.results import finished, label_of, trials_by_aggregator

if TYPE_CHECKING:
    from mil_zoo.bench.run_directory import RunDirectory

COLUMNS = ["aggregator", "repeat", "fold", "seed", "epoch", "slide_id", "name", "value"]


def diagnostics_table(run: RunDirectory) -> pd.DataFrame:
    """One row a number about the attention of test slides.

    Columns: ``aggregator`` (with its grid), ``repeat``, ``fold``, ``seed``, ``epoch``, ``slide_id``, ``name``,
    ``value``. To each trial's numbers (``skew.csv``) are added

    - ``attention_froc``, ``instance_froc`` and their sensitivities ``..._froc_0.25`` to ``..._froc_8``: one a trial,
      without a slide, where patches lie on a grid and have labels. A patch's score is the slide's probability of not
      being class 0 times its attention over the largest of the slide, or its instance score as it is.
    - those of :func:`mil_zoo.diagnostics.stability.stability`: one a slide and fold, without a seed or epoch, where
      there are several seeds.
    """
    parts = []
    um_per_px = run.config["dataset"].get("mpp")
    for trials in trials_by_aggregator(run).values():
        of_fold = defaultdict(list)
        for trial in finished(trials):
            skew = run.skew(trial["trial"])
            parts.append(_rows(trial, skew[skew["split"] == "test"]))
            if run.attention(trial["trial"]).exists():
                numbers = _froc(run, trial, um_per_px)
                parts.append(_rows(trial, pd.DataFrame(numbers.items(), columns=["name", "value"])))
                of_fold[trial["repeat"], trial["fold"]].append(trial)
        for of_seeds in of_fold.values():
            if len(of_seeds) > 1:
                agreement = _stability([run.attention(trial["trial"]) for trial in of_seeds])
                parts.append(_rows(of_seeds[0], agreement).assign(seed=None, epoch=None))
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True)[COLUMNS] if parts else pd.DataFrame(columns=COLUMNS)


def _rows(trial: dict[str, Any], numbers: pd.DataFrame) -> pd.DataFrame:
    known = {name: trial[name] for name in ("repeat", "fold", "seed")}
    known |= {"aggregator": label_of(trial), "epoch": trial["selected_epoch"], "slide_id": ""}
    return numbers.assign(**{name: value for name, value in known.items() if name not in numbers})


def _froc(run: RunDirectory, trial: dict[str, Any], um_per_px: float | None) -> dict[str, float]:
    predictions = run.predictions(trial["trial"])
    positive = 1 - predictions[predictions["split"] == "test"].set_index("slide_id")["prob_0"]
    slides: dict[str, list[Detections]] = defaultdict(list)
    with h5py.File(run.attention(trial["trial"])) as file:
        for group in file.values():
            if not {"coords", "instance_labels"} <= set(group) or np.isnan(group.attrs["patch_size"]):
                return {}
            attention = group["attention"][:]
            scores = {"attention": attention / attention.max() * positive[str(group.attrs["slide_id"])]}
            if "instance_scores" in group:
                scores["instance"] = group["instance_scores"][:]
            place = group["coords"][:], float(group.attrs["patch_size"])
            for name, values in scores.items():
                slides[name].append(match_patches(*place, values, group["instance_labels"][:], um_per_px))
    return {
        f"{name}_froc" + (f"_{at}" if at != "score" else ""): value
        for name, detections in slides.items()
        for at, value in froc(detections).items()
    }


def _stability(paths: list[Path]) -> pd.DataFrame:
    rows: list[tuple[str, str, float]] = []
    files = [h5py.File(path) for path in paths]
    try:
        for key in files[0]:
            if all(key in file for file in files):
                numbers = stability([file[key]["attention"][:] for file in files])
                slide = str(files[0][key].attrs["slide_id"])
                rows += [(slide, name, value) for name, value in numbers.items()]
    finally:
        for file in files:
            file.close()
    return pd.DataFrame(rows, columns=["slide_id", "name", "value"])
