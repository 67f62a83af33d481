"""Metrics by hand."""

import numpy as np
import pytest

from mil_zoo.train.metrics import METRICS, score

LABELS = np.array([0, 0, 0, 1, 1])
POSITIVE = np.array([0.1, 0.6, 0.3, 0.4, 0.9])  # predicted: 0 1 0 0 1
PROBABILITIES = np.stack([1 - POSITIVE, POSITIVE], axis=1)


def test_two_classes():
    got = score(LABELS, PROBABILITIES)
    assert got["accuracy"] == pytest.approx(3 / 5)
    assert got["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert got["auc"] == pytest.approx(5 / 6)  # of 6 pairs only (.6, .4) is in the wrong order
    assert got["f1"] == pytest.approx(2 * 0.5 * 0.5 / (0.5 + 0.5))


def test_three_classes():
    labels = np.array([0, 1, 2, 2])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.1, 0.6, 0.3], [0.1, 0.2, 0.7]])
    got = score(labels, probabilities)
    assert got["accuracy"] == pytest.approx(3 / 4)
    assert got["balanced_accuracy"] == pytest.approx((1 + 1 + 0.5) / 3)
    # One against rest: class 0 3/3, class 1 2/3, class 2 (.3 and .7 against .1 and .3) 3.5/4.
    assert got["auc"] == pytest.approx((1 + 2 / 3 + 3.5 / 4) / 3)
    assert got["f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


def test_auc_needs_every_class():
    assert np.isnan(METRICS["auc"](np.zeros(3, int), PROBABILITIES[:3]))
    assert METRICS["f1"](np.zeros(3, int), np.array([[1.0, 0.0]] * 3)) == 0
