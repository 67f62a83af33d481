"""Ranks over datasets, bootstrap, calibration and curves, against published worked examples and scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as sk

from mil_zoo import InputError
from mil_zoo.stats import (
    TestSet,
    bootstrap,
    brier_score,
    calibration,
    friedman_nemenyi,
    mean_curve,
    summarise,
)

# Demsar 2006, table 6: AUC of C4.5, C4.5+m, C4.5+cf, C4.5+m+cf on 14 data sets. (Voting prints
# 0.975 twice and ranks them 2 and 3: the ranks are of unrounded numbers.)
DEMSAR = [
    [0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569], [0.954, 0.971, 0.968, 0.967],
    [0.628, 0.661, 0.654, 0.657], [0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931],
    [0.661, 0.668, 0.609, 0.685], [0.583, 0.583, 0.563, 0.625], [0.775, 0.838, 0.866, 0.875],
    [1.000, 1.000, 1.000, 1.000], [0.940, 0.962, 0.965, 0.962], [0.619, 0.666, 0.614, 0.669],
    [0.972, 0.981, 0.975, 0.9749], [0.957, 0.978, 0.946, 0.970],
]  # fmt: skip


def test_friedman_and_nemenyi_on_demsars_example():
    result = friedman_nemenyi(DEMSAR)
    assert result.ranks == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    assert result.critical_difference == pytest.approx(1.25, abs=5e-3)
    assert friedman_nemenyi(DEMSAR, alpha=0.10).critical_difference == pytest.approx(1.12, abs=5e-3)
    # The paper's 9.28 and 3.69 leave ties out: with (t^3 - t) of each tied set they become scipy's.
    uncorrected = 12 * 14 / (4 * 5) * (np.square(result.ranks).sum() - 4 * 25 / 4)
    assert uncorrected == pytest.approx(9.28, abs=5e-3)
    assert 13 * uncorrected / (14 * 3 - uncorrected) == pytest.approx(3.69, abs=5e-3)
    ties = sum(count**3 - count for row in DEMSAR for count in np.unique(row, return_counts=True)[1])
    assert result.chi2 == pytest.approx(uncorrected / (1 - ties / (14 * 4 * 15)))
    assert result.p_f < 0.05


def test_groups_of_demsars_figure_1a():
    """C4.5+m+cf and C4.5+m against the others: no pair is 1.25 apart; 1.12 parts C4.5 from both (10 %)."""
    assert [set(group) for group in friedman_nemenyi(DEMSAR).groups()] == [{0, 1, 2, 3}]
    assert [set(group) for group in friedman_nemenyi(DEMSAR, alpha=0.10).groups()] == [{3, 1, 2}, {2, 0}]


def test_ranks_at_the_edges():
    assert friedman_nemenyi(np.ones((3, 3))).p_chi2 == 1
    same = friedman_nemenyi([[3, 2, 1]] * 4)
    assert (same.f, same.p_f) == (np.inf, 0)
    for wrong in ([[1, 2, 3]], [[1, 2], [1, 2]], [[1, 2, np.nan]] * 3):
        with pytest.raises(InputError, match="at least 3 aggregators"):
            friedman_nemenyi(wrong)


def random_set(n=40, classes=2, seeds=1, seed=0, per_patient=1):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    values = rng.dirichlet(np.ones(classes), (seeds, n)) + 0.4 * np.eye(classes)[labels]
    patients = (np.arange(n) // per_patient).astype(str)
    return TestSet(labels, values / values.sum(-1, keepdims=True), patients)


def elsewhere(part, prefix):
    """The same predictions of other patients."""
    return TestSet(part.labels, part.probabilities, np.char.add(prefix, part.patients))


def test_the_bootstrap_interval_of_an_accuracy_is_the_binomials():
    labels = np.array([0, 1] * 100)
    wrong = np.arange(200) % 10 < 2  # 20 % of either class
    values = np.where(wrong, 1 - labels, labels).astype(float)
    part = TestSet(labels, np.stack([1 - values, values], -1)[None], np.arange(200).astype(str))
    low, high = bootstrap([part], 4000)["accuracy"]
    error = 1.96 * np.sqrt(0.8 * 0.2 / 200)
    assert (low, high) == (pytest.approx(0.8 - error, abs=0.01), pytest.approx(0.8 + error, abs=0.01))


def test_the_bootstrap_draws_patients_and_averages_splits():
    alone = bootstrap([random_set(n=120)])["auc"]
    together = bootstrap([random_set(n=120, per_patient=12)])["auc"]
    assert together[1] - together[0] != alone[1] - alone[0]
    splits = bootstrap([elsewhere(random_set(n=120, seed=i), f"{i} ") for i in range(4)])["auc"]
    assert splits[1] - splits[0] == pytest.approx((alone[1] - alone[0]) / 2, rel=0.35)
    assert bootstrap([random_set()]) == bootstrap([random_set()])


def test_calibration_error_of_two_classes():
    """The worked example of torchmetrics' BinaryCalibrationError: 2 bins, 0.29."""
    positive = np.array([0.25, 0.25, 0.55, 0.75, 0.75])
    labels = np.array([0, 0, 1, 1, 1])
    result = calibration(labels, np.stack([1 - positive, positive], 1), bins=2)
    assert result.ece == pytest.approx(0.29)
    assert result.counts.tolist() == [2, 3]
    assert result.observed.tolist() == [0, 1]
    assert result.middles.tolist() == [0.25, 0.75]
    assert result.predicted == pytest.approx([0.25, (0.55 + 0.75 + 0.75) / 3])
    assert result.brier == pytest.approx(sk.brier_score_loss(labels, positive))


def test_calibration_error_of_three_classes():
    """The worked example of torchmetrics' MulticlassCalibrationError: 3 bins, 0.2."""
    probabilities = np.array([[0.25, 0.20, 0.55], [0.55, 0.05, 0.40], [0.10, 0.30, 0.60], [0.90, 0.05, 0.05]])
    assert calibration(np.array([0, 1, 2, 0]), probabilities, bins=3).ece == pytest.approx(0.2)


def test_brier_of_three_classes_by_hand():
    assert brier_score(np.array([0, 2]), np.array([[1, 0, 0], [0.5, 0.5, 0]])) == pytest.approx((0 + 1.5) / 2)


def test_edges_of_bins():
    result = calibration(np.array([0, 0, 1]), np.array([[1, 0], [0.5, 0.5], [0, 1]]), bins=2)
    assert result.counts.tolist() == [2, 1]


@pytest.mark.parametrize("seed", range(5))
def test_one_curve_is_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(30) % 2
    scores = rng.integers(0, 8, 30) / 8 + 0.02 * labels * (seed % 2)  # ties
    part = TestSet(labels, np.stack([1 - scores, scores], -1)[None], np.arange(30).astype(str))
    roc = mean_curve([part], "roc", 1, 1)
    false, true, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    for x, y in zip(roc.x, roc.y, strict=True):
        expected = max(
            [t for f, t in zip(false, true, strict=True) if abs(f - x) < 1e-9], default=np.interp(x, false, true)
        )
        assert y == pytest.approx(expected, abs=1e-6)
    assert np.trapezoid(roc.y, roc.x) == pytest.approx(sk.roc_auc_score(labels, scores), abs=0.02)
    pr = mean_curve([part], "pr", 1, 1)
    precision, recall, _ = sk.precision_recall_curve(labels, scores)
    for x, y in zip(pr.x, pr.y, strict=True):
        assert y == pytest.approx(max(p for p, r in zip(precision[:-1], recall[:-1], strict=True) if r >= x - 1e-9))
    assert (roc.low <= roc.y + 1e-9).all()
    assert (roc.high >= roc.y - 1e-9).all()


def test_the_band_of_folds_is_their_interval():
    parts = [elsewhere(random_set(seed=i), f"{i} ") for i in range(3)]
    together = mean_curve(parts, "roc", 80, 40)
    apart = [mean_curve([part], "roc", 80, 40).y for part in parts]
    for i in (10, 50):
        summary = summarise([y[i] for y in apart], 80, 40)
        assert together.y[i] == pytest.approx(summary.mean)
        assert together.low[i] == pytest.approx(np.clip(summary.low, 0, 1))
    with pytest.raises(InputError, match="needs slides of it and of others"):
        mean_curve([TestSet(np.array([1]), np.array([[[0.5, 0.5]]]), np.array(["p"]))], "pr", 1, 1)


def test_a_random_curve_lies_on_the_diagonal():
    rng = np.random.default_rng(0)
    labels = np.arange(4000) % 2
    scores = rng.random(4000)
    part = TestSet(labels, np.stack([1 - scores, scores], -1)[None], np.arange(4000).astype(str))
    assert mean_curve([part, part], "roc", 1, 1).y == pytest.approx(np.linspace(0, 1, 101), abs=0.04)
