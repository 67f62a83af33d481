"""Every test slide of a run with what each model says of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil_zoo.report.load import Results
from mil_zoo.report.test_parts import probability_columns


@dataclass(frozen=True)
class Slide:
    """A row of the page's table of slides.

    Attributes:
        slide_id: its name.
        patient_id: "" where unknown.
        truth: its class, or the target's value.
        wrong: number of trials that predicted another class.
        trials: number of trials that tested it.
        place: what the column of errors sorts by: larger is worse.
        said: of each model a value and whether most of its trials are wrong; None where it did not test the slide.
    """

    slide_id: str
    patient_id: str
    truth: str
    wrong: int
    trials: int
    place: int
    said: list[tuple[float, bool] | None]


def worst_first(results: Results) -> list[Slide]:
    """The test slides, the worst predicted first (mean log-loss over all trials); of other tasks by their ids."""
    parts = [_rows(results, label) for label, trials in results.finished.items() if trials]
    if not parts:
        return []
    table = pd.concat(parts)
    losses = table.groupby("slide_id")["loss"].mean().to_dict()
    order = sorted(losses, key=lambda slide: (-losses[slide], slide))
    place = {slide: len(order) - i for i, slide in enumerate(order)}
    value, wrong = table["value"].to_numpy(dtype=float), table["wrong"].to_numpy(dtype=bool)
    rows_of: dict[tuple[str, str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    by = ["slide_id", "patient_id", "truth", "model"]
    for row, (slide, patient, truth, model) in enumerate(table[by].itertuples(index=False, name=None)):
        rows_of[str(slide), str(patient), str(truth)][model].append(row)
    slides = []
    for (slide, patient, truth), of_model in sorted(rows_of.items()):
        every = [row for rows in of_model.values() for row in rows]
        said = [
            (_mean(value[of_model[model]]), bool(wrong[of_model[model]].mean() > 0.5)) if model in of_model else None
            for model in results.groups
        ]
        slides.append(Slide(slide, patient, truth, int(wrong[every].sum()), len(every), place[slide], said))
    return sorted(slides, key=lambda slide: -slide.place)


def _mean(values: NDArray[np.float64]) -> float:
    """The mean of those that are known; NaN where none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def slides_note(results: Results, slides: Sequence[Slide], maps: Mapping[str, int]) -> str:
    """The sentence above the slides: what the columns are, and which slides have maps."""
    note = (
        "Test slides, the worst predicted first (mean log-loss over all trials); each model's column is the mean "
        "probability it gives the true class, red where most of its trials are wrong."
    )
    if not _has_classes(results):
        note = f"Test slides; each model's column is its mean {results.task.prediction_columns[0]}."
    if not maps:
        return note + " There are no attention maps: no model has attention, or no slide coordinates."
    if len(maps) < len(slides):
        return f"{note} Attention maps are here for {len(maps)} of the {len(slides)} slides (--maps-mib for more)."
    return f"{note} A row opens the slide's attention maps."


def _has_classes(results: Results) -> bool:
    return "roc" in results.task.figures


def _rows(results: Results, label: str) -> pd.DataFrame:
    """A row a test slide of a trial: what was said of it, whether that is wrong, and its loss."""
    rows = pd.concat([results.test_predictions(trial) for trial in results.finished[label]])
    known = pd.DataFrame(
        {
            "slide_id": rows["slide_id"].to_numpy(),
            "patient_id": rows["patient_id"].fillna("").to_numpy(),
            "model": label,
        }
    )
    return known.assign(**(_of_classes if _has_classes(results) else _of_values)(results, rows))


def _of_classes(results: Results, rows: pd.DataFrame) -> dict[str, object]:
    scores = rows[probability_columns(rows)].astype(float).to_numpy()
    labels, names = rows["label"].to_numpy(dtype=int), results.config.dataset.classes
    value = scores[np.arange(len(rows)), labels]
    return {
        "truth": [names[label] if label < len(names) else str(label) for label in labels],
        "value": value,
        "wrong": scores.argmax(1) != labels,
        "loss": -np.log(value.clip(min=1e-12)),
    }


def _of_values(results: Results, rows: pd.DataFrame) -> dict[str, object]:
    targets = rows[list(results.task.target_columns)].astype(object).fillna("?").astype(str)
    value = rows[results.task.prediction_columns[0]].astype(float).to_numpy()
    return {"truth": targets.agg(", ".join, axis=1).to_numpy(), "value": value, "wrong": False, "loss": 0.0}
