"""Statistics of a benchmark: intervals, paired tests, ranks over datasets, calibration, curves. Nothing here trains.

Which question each answers, where models are compared on slides of one dataset:

- how well a training *procedure* does, over the choice of training and test slides: ``summarise`` and
  ``corrected_t_test`` over folds (Nadeau & Bengio)
- how well *these trained models* do, over the choice of test slides alone: ``bootstrap``, ``delong_test``,
  ``permutation_test``

and over several datasets: ``friedman_nemenyi`` (Demšar).
"""

from mil_zoo.stats.calibration import Calibration, brier_score, calibration
from mil_zoo.stats.curves import Curve, mean_curve
from mil_zoo.stats.intervals import Summary, summarise
from mil_zoo.stats.paired import (
    DeLong,
    corrected_t_test,
    delong_test,
    holm,
    permutation_test,
    wilcoxon_test,
)
from mil_zoo.stats.ranks import FriedmanNemenyi, friedman_nemenyi
from mil_zoo.stats.resampling import TestSet, bootstrap

__all__ = [
    "Calibration",
    "Curve",
    "DeLong",
    "FriedmanNemenyi",
    "Summary",
    "TestSet",
    "bootstrap",
    "brier_score",
    "calibration",
    "corrected_t_test",
    "delong_test",
    "friedman_nemenyi",
    "holm",
    "mean_curve",
    "permutation_test",
    "summarise",
    "wilcoxon_test",
]
