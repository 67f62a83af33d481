"""Scores of slide predictions. A metric is a function of labels and probabilities, registered by its decorator."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn import metrics as sk

Metric = Callable[[NDArray[np.int64], NDArray[np.float64]], float]
METRICS: dict[str, Metric] = {}


def metric(function: Metric) -> Metric:
    """Decorator: adds a function of labels ``[n]`` and probabilities ``[n, C]`` to the table of metrics."""
    METRICS[function.__name__] = function
    return function


@metric
def accuracy(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Share of slides whose most probable class is the true one (with two classes: threshold 0.5)."""
    return float(np.mean(probabilities.argmax(1) == labels))


@metric
def balanced_accuracy(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Mean over the classes present of their recall."""
    predicted = probabilities.argmax(1)
    return float(np.mean([np.mean(predicted[labels == label] == label) for label in np.unique(labels)]))


@metric
def auc(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Area under the ROC curve; with more than two classes the unweighted mean of one-against-rest areas.

    NaN where a class is absent.
    """
    num_classes = probabilities.shape[1]
    if len(np.unique(labels)) < num_classes:
        return float("nan")
    if num_classes == 2:
        return float(sk.roc_auc_score(labels, probabilities[:, 1]))
    areas = [sk.roc_auc_score(labels == label, probabilities[:, label]) for label in range(num_classes)]
    return float(np.mean(areas))


@metric
def f1(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """F1 of class 1 with two classes, else the unweighted mean over classes; 0 where nothing is predicted."""
    num_classes = probabilities.shape[1]
    average = "binary" if num_classes == 2 else "macro"
    return float(
        sk.f1_score(labels, probabilities.argmax(1), labels=range(num_classes), average=average, zero_division=0)
    )


def score(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> dict[str, float]:
    """Every registered metric.

    Args:
        labels: int ``[n]``.
        probabilities: ``[n, C]``, rows sum to 1.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    return {name: function(labels, probabilities) for name, function in METRICS.items()}


def patient_predictions(predictions: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Predictions of patients from those of their slides.

    Args:
        predictions: a row a slide: slide_id, patient_id (empty: a patient of its own), split, label, prob_0 ....
        rule: "mean" of the slides' probabilities, or "max": with two classes the largest probability of class 1, with
            more the largest of each class, scaled to sum 1.

    Returns:
        The same columns, a row a patient, slide_id being the patient.
    """
    columns = [name for name in predictions if re.fullmatch(r"prob_\d+", name)]
    table = predictions.astype(dict.fromkeys(columns, float))
    patient = table["patient_id"].fillna("").astype(str).where(lambda known: known != "", table["slide_id"])
    groups = table.groupby(patient.rename("patient"), sort=True)
    probabilities = groups[columns].mean() if rule == "mean" else groups[columns].max()
    if rule == "max" and len(columns) == 2:
        probabilities["prob_0"] = 1 - probabilities["prob_1"]
    probabilities = probabilities.div(probabilities.sum(axis=1), axis=0)
    combined = pd.concat([groups[["patient_id", "split", "label"]].first(), probabilities], axis=1)
    return combined.reset_index(names="slide_id")
