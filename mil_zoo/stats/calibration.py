"""Whether probabilities mean what they say: Brier score, expected calibration error, reliability."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mil_zoo.stats.resampling import Floats, Ints


@dataclass(frozen=True)
class Calibration:
    """Result of :func:`calibration`.

    Attributes:
        ece: expected calibration error, in [0, 1].
        brier: Brier score, in [0, 1] with two classes, else in [0, 2].
        predicted: mean probability in each bin that holds a slide.
        observed: share of slides for which it came true.
        counts: slides in the bin.
        middles: of these bins.
    """

    ece: float
    brier: float
    predicted: Floats
    observed: Floats
    counts: Ints
    middles: Floats


def brier_score(labels: Ints, probabilities: Floats) -> float:
    """Mean squared distance of ``probabilities`` ``[n, C]`` from the truth ``[n]``.

    Of class 1 with two classes (Brier's original sum over both is twice that), else summed over classes.
    """
    error = (probabilities - np.eye(probabilities.shape[1])[labels]) ** 2
    return float(error[:, 1].mean() if probabilities.shape[1] == 2 else error.sum(1).mean())


def calibration(labels: Ints, probabilities: Floats, bins: int = 10) -> Calibration:
    """Calibration in ``bins`` bins of equal width.

    With two classes the probability is that of class 1 and what may come true is class 1; with more it is that of the
    predicted class and whether it is right. ``ece = sum_b n_b / n |observed_b - predicted_b|``. A bin holds its upper
    edge; the first holds 0 too.

    Args:
        labels: ``[n]``.
        probabilities: ``[n, C]``.
        bins: number of bins.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017; Brier, Monthly Weather Review 78 (1950).
    """
    if probabilities.shape[1] == 2:
        scores, true = probabilities[:, 1], labels == 1
    else:
        scores, true = probabilities.max(1), probabilities.argmax(1) == labels
    edges = np.linspace(0, 1, bins + 1)
    place = np.digitize(scores, edges[1:-1], right=True)
    counts = np.bincount(place, minlength=bins)
    held = counts > 0
    predicted = np.bincount(place, scores, bins)[held] / counts[held]
    observed = np.bincount(place, true, bins)[held] / counts[held]
    ece = float((counts[held] * np.abs(observed - predicted)).sum() / len(labels))
    middles = (edges[:-1] + edges[1:])[held] / 2
    return Calibration(ece, brier_score(labels, probabilities), predicted, observed, counts[held], middles)
