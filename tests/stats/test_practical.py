"""Variance components and practical equivalence, against draws from their models and against closed forms."""

import numpy as np
import pytest

from mil_zoo.errors import InputError
from mil_zoo.stats import corrected_t_test, correlated_t, posterior_of_difference, variance_components


def test_components_of_a_table_without_rest():
    found = variance_components([[0.80, 0.82], [0.90, 0.92], [0.70, 0.72]])
    assert found.split == pytest.approx(0.01)
    assert found.seed == pytest.approx(0.0002)
    assert found.rest == 0
    assert (found.splits, found.seeds, found.negative) == (3, 2, [])


@pytest.mark.parametrize(
    ("values", "raw"),
    [
        ([[1, 2], [3, 6]], (4, 1.5, 1)),  # mean squares 9, 4 and 1
        ([[1, 2], [6, 3]], (2.5, -1.5, 4)),  # 9, 1 and 4
    ],
)
def test_components_by_hand(values, raw):
    found = variance_components(values)
    assert found.raw == pytest.approx(raw)
    assert (found.split, found.seed, found.rest) == pytest.approx(np.maximum(raw, 0))
    assert found.negative == ["seed"] * (raw[1] < 0)


def test_components_are_right_on_average():
    rng = np.random.default_rng(0)
    raw = []
    for _ in range(2000):
        y = rng.normal(0, 0.05, (10, 1)) + rng.normal(0, 0.01, (1, 5)) + rng.normal(0, 0.02, (10, 5)) + 0.8
        raw.append(variance_components(y).raw)
    assert np.mean(raw, axis=0) == pytest.approx([0.05**2, 0.01**2, 0.02**2], rel=0.08)


def test_a_component_that_comes_out_negative_is_zero_and_named():
    rng = np.random.default_rng(1)
    found = variance_components(rng.normal(0.8, 0.02, (6, 3)) + np.linspace(0, 0.1, 6)[:, None])
    tables = [variance_components(rng.normal(0.8, 0.02, (6, 3))) for _ in range(50)]
    negative = [one for one in tables if "seed" in one.negative]
    assert found.split > 0
    assert 10 < len(negative) < 45
    assert all(one.seed == 0 > one.raw[1] for one in negative)


def test_components_need_splits_and_seeds():
    for values in ([[0.8, 0.9]], [[0.8], [0.9]], [[0.8, np.nan], [0.9, 0.7]]):
        with pytest.raises(InputError, match=r"need a table \[splits, seeds\]"):
            variance_components(values)


def test_the_posterior_is_that_of_the_correlated_t_test():
    differences, n_train, n_test, rope = [0.02, 0.03, 0.01, 0.02, 0.03], 80, 20, 0.01
    n, rho = len(differences), n_test / (n_train + n_test)
    scale = np.sqrt((1 / n + rho / (1 - rho)) * np.var(differences, ddof=1))
    draws = np.mean(differences) + scale * np.random.default_rng(0).standard_t(n - 1, 400_000)
    found = correlated_t(differences, n_train, n_test, rope)
    shares = (draws > rope).mean(), (np.abs(draws) <= rope).mean(), (draws < -rope).mean()
    assert (found.above, found.equal, found.below) == pytest.approx(shares, abs=0.003)
    assert found.above + found.equal + found.below == pytest.approx(1)
    # Without a region its two sides are the one-sided p of the corrected t.
    alone = correlated_t(differences, n_train, n_test, rope=0)
    assert alone.below == pytest.approx(1 - corrected_t_test(differences, n_train, n_test).p_worse)
    assert alone.equal == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("repeats", "expected"), [(1, (0.671929, 0.324863, 0.003208)), (2, (0.635549, 0.353054, 0.011397))]
)
def test_baycomp_gives_the_same(repeats, expected):
    """``CorrelatedTTest.probs`` of baycomp 1.0.3, whose test sets are a share ``runs / n`` of the slides."""
    a = [0.91, 0.88, 0.93, 0.90, 0.86, 0.92, 0.89, 0.94, 0.90, 0.87]
    b = [0.90, 0.85, 0.92, 0.91, 0.84, 0.90, 0.90, 0.92, 0.87, 0.86]
    found = correlated_t(np.subtract(a, b), 10 - repeats, repeats, rope=0.01)
    assert (found.above, found.equal, found.below) == pytest.approx(expected, abs=1e-6)


def test_turned_round_the_sides_change_places():
    one, other = correlated_t([0.02, 0.05, -0.01], 60, 20), correlated_t([-0.02, -0.05, 0.01], 60, 20)
    assert (one.above, one.equal, one.below) == pytest.approx((other.below, other.equal, other.above))


def test_more_splits_of_equal_models_make_them_equal():
    rng = np.random.default_rng(0)
    few, many = (correlated_t(rng.normal(0, 0.004, n), 90, 10).equal for n in (5, 50))
    assert 0.9 < few < many


def test_without_a_spread_or_results():
    assert np.isnan(posterior_of_difference(0.005, 0.0, 4).equal)
    assert np.isnan(correlated_t([0.0] * 5, 90, 10).equal), "equal in five folds is not certain in the next"
    assert np.isnan(correlated_t([0.1], 90, 10).equal)
    assert np.isnan(correlated_t([None, np.nan], 90, 10).equal)
    with pytest.raises(InputError, match="has a width"):
        posterior_of_difference(0, 1, 4, -0.1)
