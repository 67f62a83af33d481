"""Statistics of a benchmark: intervals, paired tests, ranks over datasets, calibration, curves. Nothing here trains.

Which question each answers, where models are compared on slides of one dataset:

- how well a training *procedure* does, over the choice of training and test slides: ``summarise`` and
  ``corrected_t_test`` over test sets (Nadeau & Bengio)
- how well *these trained models* do, over the choice of test patients alone: ``patient_interval``, ``bootstrap``,
  ``delong_test``, ``permutation_test``
- which of them, for a table of one run: ``estimate`` (the interval that the design supports)
- what may be said of all of them together: ``could_be_best``, ``holm``, ``detectable_difference``

and over several datasets: ``friedman_nemenyi``, ``wilcoxon_test`` (Demšar).

Trainings that share a test set are seeds of one split (``distinct_test_sets``), and slides of a patient are never
counted as if they were several patients.
"""

from mil_zoo.stats.calibration import Calibration, brier_score, calibration
from mil_zoo.stats.curves import Curve, mean_curve
from mil_zoo.stats.decisions import Best, could_be_best, design_error, detectable_difference, holm
from mil_zoo.stats.intervals import Estimate, Interval, Summary, estimate, patient_interval, summarise
from mil_zoo.stats.paired import (
    EXCHANGED,
    DeLong,
    PairedT,
    corrected_t_test,
    delong_test,
    patient_test,
    permutation_test,
    wilcoxon_test,
)
from mil_zoo.stats.ranks import FriedmanNemenyi, friedman_nemenyi
from mil_zoo.stats.resampling import TestSet, bootstrap, distinct_test_sets

__all__ = [
    "EXCHANGED",
    "Best",
    "Calibration",
    "Curve",
    "DeLong",
    "Estimate",
    "FriedmanNemenyi",
    "Interval",
    "PairedT",
    "Summary",
    "TestSet",
    "bootstrap",
    "brier_score",
    "calibration",
    "corrected_t_test",
    "could_be_best",
    "delong_test",
    "design_error",
    "detectable_difference",
    "distinct_test_sets",
    "estimate",
    "friedman_nemenyi",
    "holm",
    "mean_curve",
    "patient_interval",
    "patient_test",
    "permutation_test",
    "summarise",
    "wilcoxon_test",
]
