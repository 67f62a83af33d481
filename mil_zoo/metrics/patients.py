"""Predictions of patients from those of their slides."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd


def combine_slides(table: pd.DataFrame, rule: str, targets: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """One row a patient: the mean or the largest value of each prediction column over the patient's slides.

    Args:
        table: a row a slide: slide_id, patient_id (empty: a patient of its own), split, and the columns named below.
        rule: "mean" or "max".
        targets: the target's columns; a patient's slides agree in them, and the first one's are taken.
        columns: the prediction's columns.

    Returns:
        The same columns, slide_id being the patient.
    """
    table = table.astype(dict.fromkeys(columns, float))
    patient = table["patient_id"].fillna("").astype(str).where(lambda known: known != "", table["slide_id"])
    groups = table.groupby(patient.rename("patient"), sort=True)
    values = groups[list(columns)].mean() if rule == "mean" else groups[list(columns)].max()
    combined = pd.concat([groups[["patient_id", "split", *targets]].first(), values], axis=1)
    return combined.reset_index(names="slide_id")


def patient_predictions(predictions: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Class probabilities of patients from those of their slides.

    Args:
        predictions: a row a slide: slide_id, patient_id (empty: a patient of its own), split, label, prob_0 ....
        rule: "mean" of the slides' probabilities, or "max": with two classes the largest probability of class 1, with
            more the largest of each class, scaled to sum 1.

    Returns:
        The same columns, a row a patient, slide_id being the patient.
    """
    columns = [name for name in map(str, predictions) if re.fullmatch(r"prob_\d+", name)]
    combined = combine_slides(predictions, rule, ["label"], columns)
    if rule == "max" and len(columns) == 2:
        combined["prob_0"] = 1 - combined["prob_1"]
    combined[columns] = combined[columns].div(combined[columns].sum(axis=1), axis=0)
    return combined
