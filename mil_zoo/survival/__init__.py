"""Estimators from censored times: curves, concordance, scores, tests, Cox regression, discrete time. NumPy only.

Everywhere ``time`` is ``[n]``, not negative, in one unit; ``event`` is ``[n]``, 1 where the event happened at that time
and 0 where the patient was followed to it and not beyond (censored); a higher ``risk`` ``[n]`` means an earlier event.
A value that is undefined is NaN with its reason, see :mod:`mil_zoo.noted`. ``mil_zoo.stats`` offers the same functions.
"""

from mil_zoo.survival.censored_scores import (
    TimeDependentAUC,
    brier_survival,
    cumulative_dynamic_auc,
    integrated_brier,
)
from mil_zoo.survival.concordance import Pairs, concordance, concordance_ipcw, concordance_pairs
from mil_zoo.survival.cox import (
    Cox,
    HazardRatio,
    LikelihoodRatio,
    cox,
    cox_log_likelihood,
    hazard_ratio,
    likelihood_ratio,
)
from mil_zoo.survival.curves_of_models import (
    Baseline,
    bin_edges,
    breslow_baseline,
    discrete_survival,
    time_bins,
)
from mil_zoo.survival.kaplan_meier import KaplanMeier, censoring_curve, follow_up, kaplan_meier
from mil_zoo.survival.logrank import LogRank, logrank
from mil_zoo.survival.observed import (
    CalibrationGroups,
    DCalibration,
    calibration_groups,
    d_calibration,
    observed_over_expected,
)

__all__ = [
    "Baseline",
    "CalibrationGroups",
    "Cox",
    "DCalibration",
    "HazardRatio",
    "KaplanMeier",
    "LikelihoodRatio",
    "LogRank",
    "Pairs",
    "TimeDependentAUC",
    "bin_edges",
    "breslow_baseline",
    "brier_survival",
    "calibration_groups",
    "censoring_curve",
    "concordance",
    "concordance_ipcw",
    "concordance_pairs",
    "cox",
    "cox_log_likelihood",
    "cumulative_dynamic_auc",
    "d_calibration",
    "discrete_survival",
    "follow_up",
    "hazard_ratio",
    "integrated_brier",
    "kaplan_meier",
    "likelihood_ratio",
    "logrank",
    "observed_over_expected",
    "time_bins",
]
