"""Which test sets are one, what the interval of one is, and what may be said of several aggregators."""

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

from mil_zoo import InputError
from mil_zoo.metrics import Metric, find_metric
from mil_zoo.stats import (
    TestSet,
    bootstrap,
    could_be_best,
    delong_test,
    design_error,
    detectable_difference,
    distinct_test_sets,
    estimate,
    mean_curve,
    patient_interval,
    summarise,
)

METRICS = {name: find_metric(name) for name in ("accuracy", "balanced_accuracy", "auc", "f1")}


def slides(labels, scores, patients=None):
    names = np.arange(len(labels)) if patients is None else patients
    scores = np.atleast_2d(scores)
    return TestSet(np.array(labels), np.stack([1 - scores, scores], -1), np.array(names).astype(str))


def made(rng, n=40, shift=1.5, prefix="p", per=1):
    labels = np.arange(n) // per % 2
    scores = 1 / (1 + np.exp(-(shift * labels + rng.normal(size=n))))
    return slides(labels, scores, np.char.add(prefix, (np.arange(n) // per).astype(str)))


def test_the_same_patients_are_one_test_set():
    folds = [[f"p{i}" for i in range(start, start + 20)] for start in (0, 20, 0, 40)]
    assert distinct_test_sets(folds) == [0, 1, 0, 2]
    assert distinct_test_sets([folds[0], folds[0][1:], folds[0] * 2]) == [0, 0, 0]  # all but one; two slides each
    assert distinct_test_sets([folds[0], folds[0][5:] + folds[1][:5]]) == [0, 1]
    assert distinct_test_sets([]) == []


def test_five_trainings_tested_on_one_set_are_no_five_folds():
    rng = np.random.default_rng(0)
    one = made(rng)
    sets = {(r, 0): TestSet(one.labels, made(rng).probabilities, one.patients) for r in range(5)}
    values = {split: [METRICS["auc"](part.labels, part.probabilities[0])] for split, part in sets.items()}
    found = estimate(values, sets, METRICS["auc"], 30, 40)
    assert (found.n, found.test_sets, found.method) == (5, 1, "patients")
    assert found.sd == pytest.approx(np.std([value for (value,) in values.values()], ddof=1))
    interval = patient_interval(list(sets.values()), METRICS["auc"])
    assert (found.low, found.high) == (interval.low, interval.high)
    seeds = TestSet(one.labels, np.concatenate([part.probabilities for part in sets.values()]), one.patients)
    again = patient_interval([seeds], METRICS["auc"])
    assert (again.low, again.high) == pytest.approx((interval.low, interval.high))
    assert summarise([value for (value,) in values.values()], 30, 40).high - found.high != 0


def test_several_test_sets_have_the_corrected_t_of_their_means():
    rng = np.random.default_rng(1)
    sets = {(0, f): made(rng, prefix=f"{f}-") for f in range(3)}
    sets |= {(1, f): TestSet(sets[0, f].labels, made(rng).probabilities, sets[0, f].patients) for f in range(3)}
    values = {split: [METRICS["auc"](part.labels, part.probabilities[0])] for split, part in sets.items()}
    found = estimate(values, sets, METRICS["auc"], 80, 40)
    expected = summarise([(values[0, f][0] + values[1, f][0]) / 2 for f in range(3)], 80, 40)
    assert (found.mean, found.low, found.high, found.n) == pytest.approx(
        (expected.mean, expected.low, expected.high, 3)
    )
    assert found.method == "corrected t"
    without_files = estimate(values, {}, METRICS["auc"], 80, 40)
    assert without_files.n == 6
    assert estimate({(0, 0): [0.7]}, {}, METRICS["auc"], 80, 40).method == ""


def test_the_interval_of_an_accuracy_is_wilsons():
    for wrong, n in ((6, 40), (0, 40), (1, 25)):
        labels = np.arange(n) % 2
        scores = np.where(np.arange(n) < wrong, 1 - labels, labels) * 0.8 + 0.1
        found = patient_interval([slides(labels, scores)], METRICS["accuracy"])
        low, high = proportion_confint(n - wrong, n, method="wilson")
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.004)
    # Four slides a patient that agree count as one patient.
    labels = np.arange(160) // 4 % 2
    scores = np.where(np.arange(160) < 24, 1 - labels, labels) * 0.8 + 0.1
    found = patient_interval([slides(labels, scores, np.arange(160) // 4)], METRICS["accuracy"])
    low, high = proportion_confint(34, 40, method="wilson")
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.004)


@pytest.mark.parametrize("name", METRICS)
def test_a_perfect_test_set_has_an_interval(name):
    """Bootstrap and DeLong give no width; 20 of 20 leave doubt, and twice as much of half as many patients."""
    labels = np.arange(20) % 2
    sure = patient_interval([slides(labels, labels * 0.8 + 0.1)], METRICS[name])
    assert sure.high == 1
    assert 0.8 < sure.low < 0.9
    halves = patient_interval(
        [slides(labels, labels * 0.8 + 0.1, np.arange(20) % 2 + np.arange(20) // 4 * 2)], METRICS[name]
    )
    assert 0.6 < halves.low < sure.low


def test_the_interval_of_an_area_is_near_delongs_in_the_middle():
    part = made(np.random.default_rng(2), n=200, shift=0.8)
    found = patient_interval([part], METRICS["auc"])
    coin = slides(part.labels, np.full(200, 0.5), part.patients)
    delong = delong_test([part], [coin])
    assert found.se == pytest.approx(delong.se)
    assert (found.low, found.high) == pytest.approx(
        (delong.auc_a - 1.96 * delong.se, delong.auc_a + 1.96 * delong.se), abs=0.02
    )


def test_a_metric_without_bounds_has_a_t_interval():
    part = made(np.random.default_rng(3))
    error = Metric("error", "Error", "classification", False, lambda y, p: 100 * np.mean((y - p[:, 1]) ** 2))
    found = patient_interval([part], error)
    squares = 100 * (part.labels - part.probabilities[0, :, 1]) ** 2
    assert found.se == pytest.approx(squares.std(ddof=1) / np.sqrt(40))
    low, high = scipy_stats.t.interval(0.95, 39, squares.mean(), found.se)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_the_bootstrap_draws_a_patient_once_for_all_repeats():
    rng = np.random.default_rng(4)
    one = made(rng, n=120)
    again = [TestSet(one.labels, one.probabilities, one.patients) for _ in range(5)]
    alone, repeated = (np.diff(bootstrap(parts)["auc"]).item() for parts in ([one], again))
    assert repeated == pytest.approx(alone)


def test_the_band_of_one_test_set_is_over_its_patients():
    rng = np.random.default_rng(5)
    one = made(rng)
    parts = [TestSet(one.labels, made(rng).probabilities, one.patients) for _ in range(3)]
    band = mean_curve(parts, "roc", 30, 40)
    assert (band.high - band.low).max() > 0.1
    assert (band.low <= band.y + 1e-9).all()


@pytest.mark.parametrize("of_class", [0, 1])
@pytest.mark.parametrize("kind", ["roc", "pr"])
def test_the_band_has_a_width_where_every_slide_is_right(kind, of_class):
    labels, few = np.arange(40) % 2, np.arange(12) % 2
    widths = []
    for right in (labels, few):
        p = np.stack([1 - right, right], -1)[None].astype(float)
        curve = mean_curve([TestSet(right, p, np.arange(len(right)).astype(str))], kind, 1, 1, of_class)
        assert (curve.y == 1).all()
        assert (curve.high == 1).all()
        assert (curve.low < 0.97).all()
        assert (curve.low >= 0).all()
        widths.append(curve.high[50] - curve.low[50])
    assert widths[1] > 1.5 * widths[0], "fewer patients tell less"


def test_the_band_counts_patients_not_slides():
    right = np.repeat(np.arange(20) % 2, 4)
    p = np.stack([1 - right, right], -1)[None].astype(float)
    names = np.arange(80).astype(str)
    slides, patients = (
        mean_curve([TestSet(right, p, owners)], "roc", 1, 1) for owners in (names, np.repeat(names[:20], 4))
    )
    assert patients.low[50] < slides.low[50]


def test_the_best_is_told_without_a_choice_by_the_same_numbers():
    p = np.array([[np.nan, 0.9, 0.5], [0.004, np.nan, 0.02], [0.5, 0.98, np.nan]])
    found = could_be_best(p)
    assert found.p == pytest.approx([1.0, 0.016, 1.0])
    assert found.members == [0, 2]
    assert could_be_best(np.full((4, 4), np.nan)).members == [0, 1, 2, 3]
    assert could_be_best([[0.5]]).members == [0]
    assert could_be_best([[0.5, 0.03], [0.97, 0.5]]).p == pytest.approx([0.06, 1]), "of two: their two-sided p"
    with pytest.raises(InputError, match="table"):
        could_be_best([0.1, 0.2])


def test_the_best_is_left_out_in_one_of_twenty_at_most():
    rng = np.random.default_rng(6)
    out, runs, n = 0, 2000, 20
    for _ in range(runs):
        values = rng.normal(size=(n, 6))  # all are alike: any is the best
        t = values.mean(0)[:, None] - values.mean(0)[None]
        se = np.sqrt(np.var(values[:, :, None] - values[:, None, :], axis=0, ddof=1) / n)
        p = scipy_stats.t.cdf(t / np.where(se > 0, se, 1), n - 1)
        out += 0 not in could_be_best(p).members
    assert 0.005 < out / runs < 0.05


def test_what_can_be_seen():
    assert detectable_difference(1 / np.sqrt(2), 1) == pytest.approx(11.549890, rel=1e-5)  # TTestPower's by SciPy 1.17
    for n in (5, 30):  # with one degree of freedom SciPy below 1.16 is off by 3 %
        expected = TTestPower().solve_power(nobs=n, alpha=0.05, power=0.8, alternative="two-sided")
        assert detectable_difference(1 / np.sqrt(n), n - 1) == pytest.approx(expected, rel=1e-5)
    assert detectable_difference(0.02) == pytest.approx(0.02 * (1.959964 + 0.841621), rel=1e-4)
    assert detectable_difference(0.02, comparisons=14) > detectable_difference(0.02)
    assert np.isnan(detectable_difference(0.0, 4))
    assert np.isnan(detectable_difference(np.nan, 4))
    assert np.isnan(detectable_difference(0.1, 0))
    assert design_error(0.05, 5, 80, 20, correlation=0.5) == pytest.approx(0.05 * np.sqrt(1 / 5 + 0.25))


@pytest.mark.parametrize(("k", "comparisons"), [(5, 1), (10, 3)])
def test_what_can_be_seen_is_seen_four_times_in_five(k, comparisons):
    """Simulated differences of k folds that correlate as overlapping training sets make them, each tested."""
    rng, n, sd, rho = np.random.default_rng(0), 4000, 0.03, 1 / k
    se = design_error(sd * np.sqrt((1 - rho) / 2), k, k - 1, 1)
    folds = rng.normal(0, sd * np.sqrt(rho), (n, 1)) + rng.normal(0, sd * np.sqrt(1 - rho), (n, k))
    for shift, share in ((0, 0.05 / comparisons), (detectable_difference(se, k - 1, comparisons=comparisons), 0.8)):
        values = folds + shift
        t = values.mean(1) / (values.std(1, ddof=1) * np.sqrt(1 / k + 1 / (k - 1)))
        found = (2 * scipy_stats.t.sf(np.abs(t), k - 1) < 0.05 / comparisons).mean()
        assert found == pytest.approx(share, abs=0.02)
