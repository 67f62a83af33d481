"""Statistics over random predictions: as brute force has them, within their bounds, and blind to order and names."""

import gc

import numpy as np
import pytest
from examples import some
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from mil_zoo.metrics import score
from mil_zoo.stats.decisions import holm
from mil_zoo.stats.intervals import summarise
from mil_zoo.stats.paired import corrected_t_test, delong_test, wilcoxon_test
from mil_zoo.stats.resampling import TestSet

PAIRS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8), st.integers(0, 8)), min_size=2, max_size=30)
VALUES = st.lists(st.none() | st.floats(-1, 1, allow_subnormal=False), max_size=12)


def area(labels, scores):
    """The share of pairs in the right order, ties counting half."""
    pairs = [(s > t) + (s == t) / 2 for s in scores[labels == 1] for t in scores[labels == 0]]
    return np.mean(pairs) if pairs else np.nan


@some
@given(rows=PAIRS, seed=st.integers(0, 99))
def test_the_area_is_that_of_all_pairs(rows, seed):
    labels, scores = (np.array(column) for column in list(zip(*rows, strict=True))[:2])
    probabilities = np.stack([1 - scores / 8, scores / 8], 1)
    found = score(labels, probabilities)["auc"]
    assert found == pytest.approx(area(labels, scores), nan_ok=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    assert score(labels[order], probabilities[order])["auc"] == pytest.approx(found, nan_ok=True)


def predicted(labels, scores):
    slides = np.array([f"s{i}" for i in range(len(labels))])
    return TestSet(labels, np.stack([1 - scores / 8, scores / 8], 1)[None], slides)


@some
@given(rows=PAIRS)
def test_delong_is_antisymmetric_and_its_areas_are_those_of_all_pairs(rows):
    labels, a, b = (np.array(column) for column in zip(*rows, strict=True))
    if len(set(labels.tolist())) < 2:
        return
    there, back = (delong_test([predicted(labels, x)], [predicted(labels, y)]) for x, y in ((a, b), (b, a)))
    assert there.auc_a == pytest.approx(area(labels, a))
    assert there.difference == pytest.approx(-back.difference)
    assert there.p == pytest.approx(back.p, nan_ok=True)
    assert np.isnan(there.p) or 0 <= there.p <= 1
    assert delong_test([predicted(labels, a)], [predicted(labels, a)]).p == 1


@some
@given(values=VALUES, n_train=st.integers(1, 200), n_test=st.integers(1, 200))
def test_intervals_hold_their_mean_and_tests_turn_with_their_sign(values, n_train, n_test):
    told = [value for value in values if value is not None]
    found = summarise(values, n_train, n_test)
    assert found.n == len(told)
    if found.n > 1:
        assert np.isnan(found.low) == np.isnan(found.high) == (found.sd == 0)
        assert not found.sd or found.low <= found.mean <= found.high
        assert found.mean == pytest.approx(np.mean(told))
    there = corrected_t_test(values, n_train, n_test)
    back = corrected_t_test([None if value is None else -value for value in values], n_train, n_test)
    assert there.p == pytest.approx(back.p, nan_ok=True)
    assert there.difference.mean == pytest.approx(-back.difference.mean, nan_ok=True)
    assert np.isnan(there.p) or 0 <= there.p <= 1
    p = wilcoxon_test(values)
    assert np.isnan(p) or 0 < p <= 1


@some
@given(p_values=st.lists(st.floats(0, 1) | st.just(float("nan")), max_size=12))
def test_holm_keeps_order_and_never_lowers_a_p_value(p_values):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", lambda: 0)  # which multipletests asks for at every call, of all that tests hold
        check_holm(p_values)


def check_holm(p_values):
    p, adjusted = np.array(p_values), holm(p_values)
    told = ~np.isnan(p)
    assert (np.isnan(adjusted) == ~told).all()
    assert (adjusted[told] >= p[told] - 1e-12).all()
    assert (adjusted[told] <= 1).all()
    if told.any():
        assert adjusted[told].tolist() == multipletests(p[told], method="holm")[1].tolist()
    assert (np.diff(adjusted[told][np.argsort(p[told], kind="stable")]) >= -1e-12).all()
