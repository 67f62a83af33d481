"""Calibration on another cohort, thresholds and temperatures, against statsmodels and simulated truth."""

import numpy as np
import pytest
from scipy.special import expit, logit, softmax

from mil_zoo.noted import note_of
from mil_zoo.stats.calibration import calibration
from mil_zoo.stats.shift import (
    at_temperature,
    best_threshold,
    calibration_in_the_large,
    calibration_slope,
    fit_temperature,
    negative_log_likelihood,
)


def cohort(n=4000, a=0.0, b=1.0, seed=0):
    """Probabilities p, and labels whose log-odds are a + b logit(p)."""
    rng = np.random.default_rng(seed)
    p = expit(rng.normal(0, 1.5, n))
    return (rng.random(n) < expit(a + b * logit(p))).astype(int), p


def test_both_are_those_of_logistic_regressions():
    from statsmodels.api import GLM, add_constant
    from statsmodels.genmod.families import Binomial

    y, p = cohort(300, a=0.7, b=0.5)
    z = logit(p)
    slope = GLM(y, add_constant(z), family=Binomial()).fit().params[1]
    large = GLM(y, np.ones(len(y)), family=Binomial(), offset=z).fit().params[0]
    assert calibration_slope(y, p) == pytest.approx(slope, abs=1e-5)
    assert calibration_in_the_large(y, p) == pytest.approx(large, abs=1e-6)


def test_they_find_how_predictions_are_off():
    assert calibration_in_the_large(*cohort()) == pytest.approx(0, abs=0.1)
    assert calibration_slope(*cohort()) == pytest.approx(1, abs=0.1)
    assert calibration_slope(*cohort(b=0.4)) == pytest.approx(0.4, abs=0.06)
    assert calibration_in_the_large(*cohort(a=1.0)) == pytest.approx(1.0, abs=0.1)


def test_what_is_undefined_says_why():
    for value, why in (
        (calibration_slope([1, 1], [0.2, 0.9]), "one class"),
        (calibration_in_the_large([0, 0], [0.2, 0.9]), "one class"),
        (calibration_slope([0, 1, 1], [0.5, 0.5, 0.5]), "constant predictions"),
        (calibration_slope([0, 0, 1], [0.1, 0.2, 0.9]), "without error"),
        (best_threshold([0, 0], [0.2, 0.9]), "one class"),
        (fit_temperature([], np.empty((0, 2))), "no validation slide"),
    ):
        assert np.isnan(value)
        assert why in note_of(value)


def test_the_temperature_undoes_overconfidence():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1, (3000, 3))
    labels = np.array([rng.choice(3, p=row) for row in softmax(logits, axis=1)])
    sure = softmax(3 * logits, axis=1)
    found = fit_temperature(labels, sure)
    assert found == pytest.approx(3, rel=0.1)
    mended = at_temperature(sure, found)
    assert negative_log_likelihood(labels, mended) < negative_log_likelihood(labels, sure)
    assert calibration(labels, mended).ece < calibration(labels, sure).ece / 3
    assert (mended.argmax(1) == sure.argmax(1)).all()


def test_a_threshold_is_where_balanced_accuracy_is_best():
    assert best_threshold([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.9]) == pytest.approx(0.25)
    y, p = cohort(500, a=-2)
    t = best_threshold(y, p)
    score = [((p >= cut)[y == 1].mean() + (p < cut)[y == 0].mean()) / 2 for cut in (t, 0.5, 0.2, 0.9)]
    assert score[0] == max(score)
