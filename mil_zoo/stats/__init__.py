"""Statistics of a benchmark: intervals, paired tests, ranks over datasets, calibration, curves. Nothing here trains.

Which question each answers, where models are compared on slides of one dataset:

- how well a training *procedure* does, over the choice of training and test slides: ``summarise`` and
  ``corrected_t_test`` over test sets (Nadeau & Bengio)
- how well *these trained models* do, over the choice of test patients alone: ``patient_interval``, ``bootstrap``,
  ``delong_test``, ``permutation_test``
- which of them, for a table of one run: ``estimate`` (the interval that the design supports)
- what may be said of all of them together: ``could_be_best``, ``holm``, ``detectable_difference``
- whether two are practically equal: ``correlated_t`` (Bayesian), and what results vary by: ``variance_components``

and over several datasets: ``friedman_nemenyi``, ``wilcoxon_test`` (Demšar).

- how well these models do by any metric of any task, and the difference of two: ``bootstrap_patients``,
  ``bootstrap_difference``, on another cohort ``external_difference``, of two
  ways of splitting ``design_difference``

Of censored times (``concordance``, ``kaplan_meier``, ``logrank``, ``cox``, ...) the estimators are those of
``mil_zoo.survival``, which metrics and tasks use too.

Trainings that share a test set are seeds of one split (``distinct_test_sets``), and slides of a patient are never
counted as if they were several patients.
"""

from mil_zoo.stats.calibration import Calibration, brier_score, calibration
from mil_zoo.stats.clinical import Clinical, Covariates, adds_to_clinical, fit_clinical, read_covariates
from mil_zoo.stats.components import Components, variance_components
from mil_zoo.stats.curves import Curve, mean_curve
from mil_zoo.stats.decisions import Best, area_error, could_be_best, design_error, detectable_difference, holm
from mil_zoo.stats.drawn import (
    Drawn,
    Draws,
    Scored,
    bootstrap_difference,
    bootstrap_patients,
    design_difference,
    external_difference,
    patient_draws,
    pooled_concordance,
)
from mil_zoo.stats.equivalence import ROPE, Equivalence, correlated_t, posterior_of_difference
from mil_zoo.stats.intervals import ALL_EQUAL, Estimate, Interval, Summary, estimate, patient_interval, summarise
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
from mil_zoo.stats.possible import possible_positives, possible_sizes
from mil_zoo.stats.ranks import FriedmanNemenyi, friedman_nemenyi
from mil_zoo.stats.resampling import TestSet, bootstrap, distinct_test_sets
from mil_zoo.stats.risk_groups import RiskGroups, risk_groups
from mil_zoo.survival import (
    Baseline,
    CalibrationGroups,
    Cox,
    DCalibration,
    HazardRatio,
    KaplanMeier,
    LikelihoodRatio,
    LogRank,
    Pairs,
    TimeDependentAUC,
    bin_edges,
    breslow_baseline,
    brier_survival,
    calibration_groups,
    censoring_curve,
    concordance,
    concordance_ipcw,
    concordance_pairs,
    cox,
    cox_log_likelihood,
    cumulative_dynamic_auc,
    d_calibration,
    discrete_survival,
    follow_up,
    hazard_ratio,
    integrated_brier,
    kaplan_meier,
    likelihood_ratio,
    logrank,
    observed_over_expected,
    time_bins,
)

__all__ = [
    "ALL_EQUAL",
    "EXCHANGED",
    "ROPE",
    "Baseline",
    "Best",
    "Calibration",
    "CalibrationGroups",
    "Clinical",
    "Components",
    "Covariates",
    "Cox",
    "Curve",
    "DCalibration",
    "DeLong",
    "Drawn",
    "Draws",
    "Equivalence",
    "Estimate",
    "FriedmanNemenyi",
    "HazardRatio",
    "Interval",
    "KaplanMeier",
    "LikelihoodRatio",
    "LogRank",
    "PairedT",
    "Pairs",
    "RiskGroups",
    "Scored",
    "Summary",
    "TestSet",
    "TimeDependentAUC",
    "adds_to_clinical",
    "area_error",
    "bin_edges",
    "bootstrap",
    "bootstrap_difference",
    "bootstrap_patients",
    "breslow_baseline",
    "brier_score",
    "brier_survival",
    "calibration",
    "calibration_groups",
    "censoring_curve",
    "concordance",
    "concordance_ipcw",
    "concordance_pairs",
    "corrected_t_test",
    "correlated_t",
    "could_be_best",
    "cox",
    "cox_log_likelihood",
    "cumulative_dynamic_auc",
    "d_calibration",
    "delong_test",
    "design_difference",
    "design_error",
    "detectable_difference",
    "discrete_survival",
    "distinct_test_sets",
    "estimate",
    "external_difference",
    "fit_clinical",
    "follow_up",
    "friedman_nemenyi",
    "hazard_ratio",
    "holm",
    "integrated_brier",
    "kaplan_meier",
    "likelihood_ratio",
    "logrank",
    "mean_curve",
    "observed_over_expected",
    "patient_draws",
    "patient_interval",
    "patient_test",
    "permutation_test",
    "pooled_concordance",
    "possible_positives",
    "possible_sizes",
    "posterior_of_difference",
    "read_covariates",
    "risk_groups",
    "summarise",
    "time_bins",
    "variance_components",
    "wilcoxon_test",
]
