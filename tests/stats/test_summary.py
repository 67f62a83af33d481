import math

import numpy as np
import pytest

from mil_zoo.errors import InputError
from mil_zoo.noted import note_of
from mil_zoo.stats import summarise

T_2 = 4.302652729911275  # the 97.5 % point of Student's t with 2 degrees of freedom, from a printed table


def test_by_hand():
    summary = summarise([0.8, 0.9, 1.0], n_train=80, n_test=20)
    half_width = T_2 * 0.1 * math.sqrt(1 / 3 + 20 / 80)
    assert summary.mean == pytest.approx(0.9)
    assert summary.sd == pytest.approx(0.1)
    assert summary.low == pytest.approx(0.9 - half_width)
    assert summary.high == pytest.approx(0.9 + half_width)
    assert summary.n == 3


def test_the_interval_is_not_clipped():
    assert summarise([0.8, 0.9, 1.0], 80, 20).high == pytest.approx(1.2286203)


def test_undefined_values_are_left_out_and_not_counted():
    holes = summarise([None, 0.8, float("nan"), 0.9, 1.0], 80, 20)
    assert holes == summarise([0.8, 0.9, 1.0], 80, 20)


def test_one_value_has_no_interval():
    summary = summarise([0.7], 80, 20)
    assert (summary.mean, summary.n) == (0.7, 1)
    assert all(map(math.isnan, (summary.sd, summary.low, summary.high)))


@pytest.mark.parametrize("values", [[], [None, float("nan")]])
def test_no_value(values):
    summary = summarise(values, 80, 20)
    assert summary.n == 0
    assert all(map(math.isnan, (summary.mean, summary.sd, summary.low, summary.high)))


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_equal_values_have_no_interval_and_say_why(value):
    summary = summarise([value] * 5, 80, 20)
    assert (summary.mean, summary.sd, summary.n) == (value, 0, 5)
    for end in (summary.low, summary.high):
        assert math.isnan(end)
        assert "the same value" in note_of(end)


@pytest.mark.parametrize(("n_train", "n_test"), [(0, 20), (80, 0), (float("nan"), 20)])
def test_a_side_without_slides_is_refused(n_train, n_test):
    with pytest.raises(InputError, match="both sides"):
        summarise([0.5, 0.6], n_train, n_test)


def test_the_interval_covers_the_mean_of_correlated_folds():
    """The correction takes results of folds to have the correlation n_test / (n_train + n_test)."""
    rng = np.random.default_rng(0)
    n, train, test, runs = 5, 80, 20, 2000
    rho = test / (train + test)
    shared, own = rng.normal(size=(runs, 1)), rng.normal(size=(runs, n))
    values = math.sqrt(rho) * shared + math.sqrt(1 - rho) * own
    held = np.mean([summary.low <= 0 <= summary.high for summary in (summarise(row, train, test) for row in values)])
    assert held == pytest.approx(0.95, abs=0.015)
