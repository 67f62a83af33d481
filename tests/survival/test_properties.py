"""What holds for any patients: definitions counted pair by pair, other packages, and the traps of published code."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from statsmodels.duration.hazard_regression import PHReg
from statsmodels.duration.survfunc import SurvfuncRight, survdiff

from mil_zoo import InputError
from mil_zoo.noted import note_of
from mil_zoo.stats import (
    bin_edges,
    breslow_baseline,
    brier_survival,
    calibration_groups,
    censoring_curve,
    concordance,
    concordance_ipcw,
    concordance_pairs,
    cox,
    cumulative_dynamic_auc,
    d_calibration,
    discrete_survival,
    follow_up,
    integrated_brier,
    kaplan_meier,
    logrank,
    observed_over_expected,
    time_bins,
)

SOME = settings(max_examples=80, deadline=None)


@st.composite
def patients(draw, least=2):
    """Times of few values, so that many are tied, events and risks; a seed for what else is random."""
    n = draw(st.integers(least, 25))
    time = draw(st.lists(st.integers(0, 8), min_size=n, max_size=n))
    event = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    risk = draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return np.array(time, float), np.array(event), np.array(risk, float), rng


def simulated(n=300, seed=0):
    """Simulated patients whose log hazard is the risk, censored at random; made of random numbers alone."""
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=n)
    time, lost = rng.exponential(30 / np.exp(risk)), rng.exponential(60, n)
    return np.minimum(time, lost), time <= lost, risk


# Concordance ----------------------------------------------------------------------------------------------------------


def by_hand(time, event, risk, weight=None):
    """Concordant, discordant, tied: pair by pair."""
    counts = np.zeros(3)
    for i in np.flatnonzero(event):
        for j in range(len(time)):
            if time[j] > time[i] or (time[j] == time[i] and not event[j]):
                apart = risk[i] - risk[j]
                place = 2 if abs(apart) <= 1e-8 else 0 if apart > 0 else 1
                counts[place] += 1 if weight is None else weight[i]
    return counts


@SOME
@given(patients())
def test_pairs_are_counted(data):
    time, event, risk, rng = data
    pairs = concordance_pairs(time, event, risk)
    assert [pairs.concordant, pairs.discordant, pairs.tied] == by_hand(time, event, risk).tolist()
    order = rng.permutation(len(time))
    assert concordance_pairs(time[order], event[order], risk[order]) == pairs
    weights = rng.random(len(time))
    weighed = concordance_pairs(time, event, risk, event_weights=weights)
    expected = by_hand(time, event, risk, weights)
    assert [weighed.concordant, weighed.discordant, weighed.tied] == pytest.approx(expected.tolist())


@SOME
@given(patients())
def test_concordance_knows_the_order_of_risks_only(data):
    time, event, risk, _ = data
    value = concordance(time, event, risk)
    assume(not np.isnan(value))
    assert concordance(time, event, np.exp(2 * risk) - 7) == value
    assert concordance(time, event, -risk) == pytest.approx(1 - value)
    assert 0 <= value <= 1
    comparable = concordance_pairs(time, event, risk).comparable
    assert comparable == by_hand(time, event, risk).sum()


@SOME
@given(patients())
def test_uno_by_hand(data):
    time, event, risk, rng = data
    train_time = rng.integers(0, 12, 30).astype(float)
    train_event = rng.random(30) < 0.5
    tau = 6.0
    curve = censoring_curve(train_time, train_event)
    counted = event & (time < tau)
    before = curve.before(time)
    value = concordance_ipcw(time, event, risk, train_time, train_event, tau)
    if (counted & ~(before > 0)).any():
        assert "choose a smaller tau" in note_of(value)
        return
    weight = np.where(counted, 1 / np.where(counted, before, 1) ** 2, 0)
    counts = by_hand(time, event, risk, weight)
    if counts.sum():
        assert value == pytest.approx((counts[0] + counts[2] / 2) / counts.sum())
    else:
        assert np.isnan(value)
        assert note_of(value)


def test_the_sign_and_nobody_turns_it_round():
    time, event, _ = simulated()
    assert concordance(time, event, -time) == 1
    assert concordance(time, event, time) == 0


def test_a_flipped_event_is_another_number():
    """Censorship read as event: C of these patients is that of chance, or of the wrong thing, and differs."""
    time, event, risk = simulated()
    right, flipped = concordance(time, event, risk), concordance(time, ~event, risk)
    assert right > 0.7
    assert abs(right - flipped) > 0.15
    assert concordance(time, event.astype(int), risk) == concordance(time, event.astype(float), risk) == right


def test_shuffled_outcomes_are_chance():
    """Permuted (time, event) pairs: C near one half, and p of the log-rank test is uniform."""
    time, event, risk = simulated(200)
    rng = np.random.default_rng(1)
    values, p = [], []
    for _ in range(200):
        order = rng.permutation(len(time))
        values.append(concordance(time[order], event[order], risk))
        p.append(logrank(time[order], event[order], risk > 0).p)
    assert np.mean(values) == pytest.approx(0.5, abs=0.01)
    assert np.quantile(p, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.12)


def test_a_patient_of_many_slides_counts_once():
    """C is of patients: merged slides give what one slide gives; scored slide by slide it would be another number."""
    time, event, risk = simulated(60)
    slides = np.concatenate([np.arange(60), np.full(16, 3)])
    assert concordance(time, event, risk) != concordance(time[slides], event[slides], risk[slides])
    merged = [np.bincount(slides, risk[slides]) / np.bincount(slides)]
    assert concordance(time, event, merged[0]) == concordance(time, event, risk)


def test_missing_risks_are_missing():
    """No zero in their place: a patient at time 0 with the highest risk would win against everybody."""
    time, event, risk = simulated(50)
    risk[:3] = np.nan
    for value in (
        concordance(time, event, risk),
        concordance_ipcw(time, event, risk, time, event, 40),
        cumulative_dynamic_auc(time, event, risk, time, event, [12]).mean,
    ):
        assert note_of(value) == "3 of 50 patients have no risk (NaN)"
    assert np.isnan(concordance(time, event, risk, np.ones((4, 50)))).all()
    assert note_of(brier_survival(time, event, risk, time, event, 12)).startswith("3 of 50 patients have no predicted")


def test_large_cohorts_and_draws():
    """Twenty thousand patients as pair by pair, and many weightings as one by one."""
    time, event, risk = simulated(1500, 3)
    time, risk = time.round(), risk.round(1)
    later = (time[:, None] < time) | ((time[:, None] == time) & ~event)
    comparable = later & event[:, None]
    apart = risk[:, None] - risk
    expected = (comparable & (apart > 1e-8)).sum() + (comparable & (abs(apart) <= 1e-8)).sum() / 2
    assert concordance(time, event, risk) == pytest.approx(expected / comparable.sum(), abs=1e-14)
    weights = np.random.default_rng(0).integers(0, 3, (5, 1500))
    together = concordance(time, event, risk, weights)
    assert together == pytest.approx([concordance(time, event, risk, row) for row in weights])


# Scores at a time -----------------------------------------------------------------------------------------------------


@SOME
@given(patients(), st.sampled_from([2.0, 4.5, 7.0]))
def test_auc_and_brier_by_hand(data, t):
    time, event, risk, rng = data
    train_time, train_event = np.append(rng.integers(0, 12, 30), 14).astype(float), rng.random(31) < 0.5
    curve = censoring_curve(train_time, train_event)
    survival = rng.random(len(time))
    dead, alive = event & (time <= t), time > t
    g = curve.before(time)
    auc = cumulative_dynamic_auc(time, event, risk, train_time, train_event, t)
    brier = brier_survival(time, event, survival, train_time, train_event, t)
    if (dead & ~(g > 0)).any():
        assert np.isnan(auc.auc[0])
        assert np.isnan(brier)
        return
    above = sum(
        ((risk[i] > risk[j]) + 0.5 * (risk[i] == risk[j])) / g[i]
        for i in np.flatnonzero(dead)
        for j in np.flatnonzero(alive)
    )
    total = sum(1 / g[i] for i in np.flatnonzero(dead)) * alive.sum()
    assert auc.auc[0] == pytest.approx(above / total if total else np.nan, nan_ok=True)
    assert bool(auc.reasons[0]) == (not total)
    error = np.where(dead, survival**2 / np.where(dead, g, 1), 0)
    if alive.any() and not curve.at(t) > 0:
        assert np.isnan(brier)
    else:
        error = error + np.where(alive, (1 - survival) ** 2 / (curve.at(t) if alive.any() else 1), 0)
        assert brier == pytest.approx(error.mean())


def test_no_weight_of_zero_in_the_place_of_an_infinite_one():
    """An event where the training censoring curve is 0: NaN with advice; other patients' scores are not given."""
    train_time, train_event = np.array([2.0, 5.0, 9.0]), np.array([1, 1, 0])
    time, event, risk = np.array([4.0, 10.0, 12.0, 15.0]), np.array([1, 1, 0, 0]), np.array([3.0, 2, 1, 0])
    late = concordance_ipcw(time, event, risk, train_time, train_event)
    assert note_of(late) == (
        "the training patients' censoring curve is 0 or not known at time 10; choose a smaller tau or horizon"
    )
    assert concordance_ipcw(time, event, risk, train_time, train_event, tau=8) == 1
    assert note_of(brier_survival(time, event, risk / 3, train_time, train_event, 11)) == (
        "the training patients are followed to time 9, not to time 11"
    )
    survival = np.full((4, 3), 0.5)
    value = integrated_brier(time, event, survival, train_time, train_event, [3, 6, 11])
    assert note_of(value).startswith("the training patients are followed to time 9")
    weights = np.array([[1.0, 0, 1, 1], [1, 1, 1, 1]])
    both = concordance_ipcw(time, event, risk, train_time, train_event, None, weights)
    assert both[0] == 1
    assert np.isnan(both[1])


def test_a_horizon_beyond_the_follow_up():
    time, event, risk = simulated(80)
    event[time.argmax()] = False
    end = time.max() + 1
    survival = np.full(80, 0.5)
    assert "follow-up ends at" in note_of(observed_over_expected(time, event, survival, end))
    assert np.isnan(kaplan_meier(time, event).at(end))
    assert np.isnan(cumulative_dynamic_auc(time, event, risk, time, event, end).auc).all()
    groups = calibration_groups(time, event, 1 / (1 + np.exp(risk)), end)
    assert not groups.drawn.any()


@SOME
@given(patients())
def test_weights_are_patients_drawn_again(data):
    time, event, risk, rng = data
    drawn = rng.integers(0, len(time), len(time))
    weights = np.bincount(drawn, minlength=len(time))
    again = time[drawn], event[drawn]
    near = {"rel": 1e-9, "nan_ok": True}
    assert concordance(time, event, risk, weights) == pytest.approx(concordance(*again, risk[drawn]), **near)
    survival = 1 / (1 + np.exp(risk))
    train = np.append(time, 20.0), np.append(event, False)
    for function, values in ((brier_survival, survival),):
        expected = function(*again, values[drawn], *train, 3)
        assert function(time, event, values, *train, 3, weights) == pytest.approx(expected, **near)
    expected = observed_over_expected(*again, survival[drawn], 3)
    assert observed_over_expected(time, event, survival, 3, weights) == pytest.approx(expected, **near)
    expected = d_calibration(event[drawn], survival[drawn])
    got = d_calibration(event, survival, weights=weights)
    assert got.p == pytest.approx(expected.p, **near)
    assert got.counts == pytest.approx(expected.counts)


# Curves and tests -----------------------------------------------------------------------------------------------------


@SOME
@given(patients())
def test_kaplan_meier_of_statsmodels(data):
    time, event, _, rng = data
    assume(event.any())
    curve, other = kaplan_meier(time, event), SurvfuncRight(time, event)
    assert curve.at(other.surv_times) == pytest.approx(other.surv_prob, abs=1e-12)
    order = rng.permutation(len(time))
    again = kaplan_meier(time[order], event[order])
    assert (again.survival == curve.survival).all()
    assert (np.diff(curve.survival) <= 0).all()
    inside = ~np.isnan(curve.low)
    assert (curve.low[inside] < curve.survival[inside]).all()
    assert (curve.high[inside] > curve.survival[inside]).all()
    assert (curve.low[inside] >= 0).all()
    assert (curve.high[inside] <= 1).all()


def test_reading_a_curve():
    curve = kaplan_meier([5, 8, 8, 12, 20], [1, 1, 0, 1, 0])
    assert curve.at([0, 4.9, 5, 8, 12, 19]) == pytest.approx([1, 1, 0.8, 0.6, 0.3, 0.3])
    assert curve.before([5, 8, 20, 21]) == pytest.approx([1, 0.8, 0.3, np.nan], nan_ok=True)
    assert np.isnan(curve.at(20.1))
    assert curve.number_at_risk([0, 8, 8.5, 20, 21]).tolist() == [5, 4, 2, 1, 0]
    assert curve.median == 12
    assert curve.restricted_mean(10) == pytest.approx(5 + 3 * 0.8 + 2 * 0.6)
    assert note_of(curve.restricted_mean(25)) == "follow-up ends at time 20, before time 25"
    assert follow_up([5, 8, 8, 12, 20], [1, 1, 0, 1, 0]) == 20
    ended = kaplan_meier([1, 2], [1, 1])
    assert ended.at(100) == 0
    assert ended.restricted_mean(100) == pytest.approx(1.5)
    low, high = curve.band([2, 6])
    assert np.isnan(low[0])
    assert low[1] < 0.8 < high[1]


@SOME
@given(patients(least=6), st.booleans())
def test_logrank_of_statsmodels(data, stratified):
    time, event, risk, rng = data
    group = np.clip(risk, -1, 1)
    strata = rng.integers(0, 2, len(time)) if stratified else None
    ours = logrank(time, event, group, strata)
    if np.isnan(ours.p):
        assert note_of(ours.p) == note_of(ours.chi2) == "no event at which both groups are at risk"
        return
    assert ours.observed.sum() == pytest.approx(ours.expected.sum())
    back = logrank(time, event, -group, strata)
    assert back.chi2 == pytest.approx(ours.chi2, rel=1e-6, abs=1e-9)
    try:
        chi2, p = survdiff(time, event, group, strata=strata)
    except np.linalg.LinAlgError:
        return  # a group that is never at risk: statsmodels has no answer
    assume(ours.df == len(ours.groups) - 1)
    assert (ours.chi2, ours.p) == pytest.approx((chi2, p), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_cox_of_statsmodels(ties):
    time, event, risk = simulated(150)
    x = np.stack([risk, np.random.default_rng(5).normal(size=150)], axis=1)
    ours, other = cox(time.round(), event, x, ties), PHReg(time.round(), x, status=event, ties=ties).fit()
    assert ours.coefficients == pytest.approx(other.params, abs=1e-5)
    assert ours.se == pytest.approx(other.bse, abs=1e-5)
    assert ours.log_likelihood == pytest.approx(other.llf, abs=1e-7)


# Calibration and curves of models -------------------------------------------------------------------------------------


def test_calibrated_and_not():
    """Simulated patients with their true curves are calibrated; with curves of twice the hazard they are not."""
    time, event, risk = simulated(2000)
    own = np.exp(-time * np.exp(risk) / 30)
    assert d_calibration(event, own).p > 0.05
    assert d_calibration(event, own**2).p < 1e-6
    at = np.exp(-24 * np.exp(risk) / 30)
    assert observed_over_expected(time, event, at, 24) == pytest.approx(1, abs=0.06)
    assert observed_over_expected(time, event, at**2, 24) < 0.9
    groups = calibration_groups(time, event, at, 24)
    assert len(groups.predicted) == 5
    assert groups.drawn.all()
    assert ((groups.low < groups.predicted) & (groups.predicted < groups.high)).all()
    assert (np.diff(groups.observed) > 0).all()
    assert groups.patients.tolist() == [400] * 5
    assert len(calibration_groups(time[:90], event[:90], at[:90], 24).predicted) == 3
    assert len(calibration_groups(time, event, np.full(2000, 0.5), 24).predicted) == 1


def test_golden_bins(real_data):
    import pandas as pd

    golden = np.load(real_data / "survival" / "golden" / "losses.npz")
    names = sorted({key.split("/")[1] for key in golden.files if key.startswith("bins/")})
    assert len(names) == 10
    for name in names:
        path = real_data / "survival" / f"tcga_{name[:-1]}.csv.gz"
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        table = table[table["fold"] != ""].drop_duplicates("patient_id")
        time, event = table["time_months"].astype(float).to_numpy(), table["event"].astype(int).to_numpy()
        test = (table["fold"] == name[-1]).to_numpy()
        edges = bin_edges(time[~test], event[~test])
        assert edges == pytest.approx(golden[f"bins/{name}/inner_edges"], abs=1e-9)
        for part, key in ((~test, "counts_train"), (test, "counts_val")):
            counts = np.bincount(time_bins(time[part], edges), minlength=4)
            assert counts.tolist() == golden[f"bins/{name}/{key}"].tolist()


def test_bins_collapse_where_edges_are_equal():
    assert bin_edges([3, 3, 3, 3, 9], [1, 1, 1, 1, 0]).tolist() == [3]
    assert time_bins([0, 2.9, 3, 5], [3]).tolist() == [0, 0, 1, 1]
    with pytest.raises(InputError, match="none of the training patients has the event"):
        bin_edges([1, 2], [0, 0])


def test_survival_between_the_edges():
    hazard = np.array([[0.5, 0.2, 0.0], [0.0, 1.0, 0.5]])
    known = discrete_survival(hazard, [10, 20], 40, [0, 5, 10, 15, 20, 40, 41])
    expected = [[1, 0.75, 0.5, 0.45, 0.4, 0.4, np.nan], [1, 1, 1, 0.5, 0, 0, np.nan]]
    assert known == pytest.approx(np.array(expected), nan_ok=True)
    own = discrete_survival(hazard, [10, 20], 40, np.array([[15.0], [5.0]]))
    assert own[:, 0] == pytest.approx([0.45, 1])
    assert (np.diff(discrete_survival(hazard, [10, 20], 40, np.linspace(0, 40, 99))) <= 1e-12).all()
    one = discrete_survival(np.array([[0.5]]), [], 10, [5])
    assert one[0, 0] == pytest.approx(0.75)
    with pytest.raises(InputError, match="2 inner edges make 3 bins"):
        discrete_survival(hazard[:, :2], [10, 20], 40, [1])


def test_breslow_baseline():
    """With no risk it is Nelson and Aalen's; a shift of all risks changes no curve, nor do huge ones overflow."""
    time, event, risk = simulated(200)
    flat = breslow_baseline(time, event, np.zeros(200))
    at_risk = np.array([(time >= t).sum() for t in flat.time])
    assert np.exp(flat.log_hazard) == pytest.approx(np.cumsum(1 / at_risk))
    curve, moved = breslow_baseline(time, event, risk), breslow_baseline(time, event, risk + 900)
    grid = np.linspace(0, time.max(), 30)
    survival = curve.survival(risk, grid)
    assert moved.survival(risk + 900, grid) == pytest.approx(survival, abs=1e-9)
    assert (np.diff(survival, axis=1) <= 0).all()
    assert survival[:, 0] == pytest.approx(1)
    assert np.isnan(curve.survival(risk, [time.max() + 1])).all()
    assert curve.survival(risk[:2], time[:2, None]).shape == (2, 1)
    truth = np.exp(-grid[:20] * np.exp(risk[:, None]) / 30)
    assert np.abs(survival[:, :20] - truth).mean() < 0.06
    with pytest.raises(InputError, match="1 of 200 patients have no risk"):
        breslow_baseline(time, event, np.where(np.arange(200) == 0, np.nan, risk))


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time", "event", "message"),
    [
        ([1, -2], [0, 1], r"the time of patients\[1\] is -2"),
        ([1, np.nan], [0, 1], r"the time of patients\[1\] is nan"),
        ([1, 2], [0, 2], r"the event of patients\[1\] is 2; 1 means that it happened"),
        ([1, 2], [0.5, 1], r"the event of patients\[0\] is 0.5"),
        ([1, 2, 3], [0, 1], "need a time and an event each"),
        ([], [], "at least one"),
    ],
)
def test_what_is_no_outcome_is_refused(time, event, message):
    for function in (kaplan_meier, lambda t, e: concordance(t, e, np.zeros(len(t))), follow_up):
        with pytest.raises(InputError, match=message):
            function(time, event)


def test_risks_of_other_patients_are_refused():
    with pytest.raises(InputError, match="2 patients need a risk each"):
        concordance([1, 2], [0, 1], [1.0])
    with pytest.raises(InputError, match="training patients"):
        concordance_ipcw([1, 2], [0, 1], [1.0, 2], [1, 2], [1])
