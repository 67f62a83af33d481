"""Random cohorts beside lifelines and scikit-survival, which see the same patients and must give the same numbers.

They hold back pandas and scikit-learn, so that the tests do not install them: ``make oracles`` runs this file in an
environment of their own, without torch; elsewhere it runs where they happen to be installed.
"""

import numpy as np
import pandas as pd
import pytest

from mil_zoo.survival import (
    breslow_baseline,
    brier_survival,
    censoring_curve,
    concordance,
    concordance_ipcw,
    concordance_pairs,
    cox,
    cumulative_dynamic_auc,
    hazard_ratio,
    integrated_brier,
    kaplan_meier,
    likelihood_ratio,
    logrank,
)

SAME = {"rtol": 1e-9, "atol": 1e-12}


class Cohort:
    """Test patients, and training patients of the same kind.

    Times are tied among those with the event and among the others, never between the two where ``apart``:
    scikit-survival weighs an event by G at its time and not just before it, where Uno et al. and R have G(t-).
    """

    def __init__(self, seed, n, lost, steps, apart=False):
        rng = np.random.default_rng(seed)
        self.x = np.stack([rng.normal(size=2 * n), rng.integers(0, 3, 2 * n)], axis=1)
        log_hazard = self.x @ [0.8, -0.4]
        death, end = rng.exponential(20 * np.exp(-log_hazard)), rng.exponential(20 / lost, 2 * n)
        event = death <= end
        time = np.ceil(np.minimum(death, end) * steps) / steps
        self.time, self.event = time + (~event / (2 * steps) if apart else 0), event
        self.risk = np.round(log_hazard + rng.normal(size=2 * n), 1)  # many are tied
        self.stratum = rng.integers(0, 3, 2 * n)
        self.tested = np.arange(2 * n) < n

    def part(self, tested, *names):
        return [getattr(self, name)[self.tested == tested] for name in names]

    def scored(self):
        """Time and event of test and of training patients, risks of the former, and times of both to look at.

        Test patients who are followed beyond the training patients are left out: scikit-survival refuses them.
        """
        train = self.part(False, "time", "event")
        time, event, risk = self.part(True, "time", "event", "risk")
        followed = time <= train[0].max()
        time, event, risk = time[followed], event[followed], risk[followed]
        return (time, event), train, risk, np.linspace(time[event].min(), 0.8 * time.max(), 12)


KINDS = [
    {"n": 60, "lost": 0.5, "steps": 1000},
    {"n": 150, "lost": 2.0, "steps": 1},
    {"n": 120, "lost": 9.0, "steps": 2},  # nine of ten are censored
    {"n": 300, "lost": 1.0, "steps": 0.25},  # a dozen times in all
]
MANY = [(seed, kind) for seed in range(3) for kind in KINDS]


def each(apart=False):
    return [Cohort(seed, apart=apart, **kind) for seed, kind in MANY]


def structured(time, event):
    return np.array(list(zip(event, time, strict=True)), dtype=[("event", bool), ("time", float)])


def test_the_cohorts_are_tied_and_heavily_censored():
    shares = [1 - cohort.event.mean() for cohort in each()]
    assert min(shares) < 0.4
    assert max(shares) > 0.8
    assert min(len(np.unique(cohort.time)) for cohort in each()) < 40


def test_concordance():
    sksurv = pytest.importorskip("sksurv.metrics")
    for cohort in each():
        time, event, risk = cohort.part(True, "time", "event", "risk")
        value, right, wrong, tied, _ = sksurv.concordance_index_censored(event, time, risk)
        pairs = concordance_pairs(time, event, risk)
        assert [pairs.concordant, pairs.comparable, pairs.tied] == [right, right + wrong + tied, tied]
        np.testing.assert_allclose(concordance(time, event, risk), value, **SAME)


def test_concordance_of_lifelines():
    utils = pytest.importorskip("lifelines.utils")
    for cohort in each():
        time, event, risk = cohort.part(True, "time", "event", "risk")
        np.testing.assert_allclose(concordance(time, event, risk), utils.concordance_index(time, -risk, event), **SAME)


def test_concordance_of_uno():
    sksurv = pytest.importorskip("sksurv.metrics")
    for cohort in each(apart=True):
        test, train, risk, times = cohort.scored()
        for tau in times[[5, 11]]:
            value = sksurv.concordance_index_ipcw(structured(*train), structured(*test), risk, tau)[0]
            np.testing.assert_allclose(concordance_ipcw(*test, risk, *train, tau), value, **SAME)


def test_cumulative_dynamic_auc():
    sksurv = pytest.importorskip("sksurv.metrics")
    for cohort in each(apart=True):
        test, train, risk, times = cohort.scored()
        values, mean = sksurv.cumulative_dynamic_auc(structured(*train), structured(*test), risk, times)
        ours = cumulative_dynamic_auc(*test, risk, *train, times)
        np.testing.assert_allclose(ours.auc, values, **SAME)
        np.testing.assert_allclose(ours.mean, mean, **SAME)


def test_brier_scores():
    sksurv = pytest.importorskip("sksurv.metrics")
    for cohort in each(apart=True):
        test, train, risk, times = cohort.scored()
        survival = np.exp(-np.exp(risk)[:, None] * times / 30)
        given = structured(*train), structured(*test), survival, times
        _, scores = sksurv.brier_score(*given)
        ours = [brier_survival(*test, survival[:, place], *train, t) for place, t in enumerate(times)]
        np.testing.assert_allclose(ours, scores, **SAME)
        whole = integrated_brier(*test, survival, *train, times)
        np.testing.assert_allclose(whole, sksurv.integrated_brier_score(*given), **SAME)


def test_kaplan_meier():
    lifelines = pytest.importorskip("lifelines")
    utils = pytest.importorskip("lifelines.utils")
    for cohort in each():
        fitter = lifelines.KaplanMeierFitter().fit(cohort.time, cohort.event)
        ours = kaplan_meier(cohort.time, cohort.event)
        table = fitter.event_table.iloc[1:]
        np.testing.assert_array_equal(ours.time, table.index)
        for name, own in {"at_risk": ours.at_risk, "observed": ours.events, "censored": ours.censored}.items():
            np.testing.assert_array_equal(own, table[name])
        np.testing.assert_allclose(ours.survival, fitter.survival_function_.iloc[1:, 0], **SAME)
        inside = (ours.survival > 0) & (ours.survival < 1)
        band = fitter.confidence_interval_.iloc[1:][inside]
        np.testing.assert_allclose(np.stack([ours.low, ours.high], 1)[inside], band, rtol=1e-7)
        assert ours.median == fitter.median_survival_time_ or (
            np.isnan(ours.median) and np.isinf(fitter.median_survival_time_)
        )
        for until in cohort.scored()[-1][[3, 11]]:
            mean = utils.restricted_mean_survival_time(fitter, t=until)
            np.testing.assert_allclose(ours.restricted_mean(until), mean, **SAME)


def test_curves_of_events_and_of_censoring():
    sksurv = pytest.importorskip("sksurv.nonparametric")
    for cohort in each():
        for reverse, curve in ((False, kaplan_meier), (True, censoring_curve)):
            time, survival = sksurv.kaplan_meier_estimator(cohort.event, cohort.time, reverse=reverse)
            np.testing.assert_allclose(curve(cohort.time, cohort.event).at(time), survival, **SAME)


def test_log_rank():
    lifelines = pytest.importorskip("lifelines.statistics")
    for cohort in each():
        for group in (cohort.risk > 0, cohort.stratum):
            theirs = lifelines.multivariate_logrank_test(cohort.time, group, cohort.event)
            ours = logrank(cohort.time, cohort.event, group)
            np.testing.assert_allclose([ours.chi2, ours.p], [theirs.test_statistic, theirs.p_value], rtol=1e-7)


def test_log_rank_of_scikit_survival():
    compare = pytest.importorskip("sksurv.compare")
    for cohort in each():
        chi2, p = compare.compare_survival(structured(cohort.time, cohort.event), cohort.stratum)
        ours = logrank(cohort.time, cohort.event, cohort.stratum)
        np.testing.assert_allclose([ours.chi2, ours.p], [chi2, p], rtol=1e-7)


@pytest.mark.parametrize("stratified", [False, True])
def test_cox_by_efron(stratified):
    lifelines = pytest.importorskip("lifelines")
    for cohort in each():
        table = pd.DataFrame(cohort.x, columns=["a", "b"])
        table = table.assign(time=cohort.time, event=cohort.event, stratum=cohort.stratum)
        strata = ["stratum"] if stratified else None
        fitter = lifelines.CoxPHFitter().fit(
            table if stratified else table.drop(columns="stratum"), "time", "event", strata=strata,
            fit_options={"precision": 1e-12},
        )  # fmt: skip
        ours = cox(cohort.time, cohort.event, cohort.x, strata=cohort.stratum if stratified else None)
        assert ours.log_likelihood >= fitter.log_likelihood_ - 1e-9  # it stops a little before the maximum
        np.testing.assert_allclose(ours.log_likelihood, fitter.log_likelihood_, rtol=1e-9)
        np.testing.assert_allclose(ours.coefficients, fitter.params_, rtol=1e-5)
        np.testing.assert_allclose(ours.se, fitter.standard_errors_, rtol=1e-5)
        test = fitter.log_likelihood_ratio_test()
        np.testing.assert_allclose(likelihood_ratio(ours).chi2, test.test_statistic, rtol=1e-6)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_cox_and_its_baseline(ties):
    linear = pytest.importorskip("sksurv.linear_model")
    for cohort in each():
        fitter = linear.CoxPHSurvivalAnalysis(ties=ties, tol=1e-12).fit(cohort.x, structured(cohort.time, cohort.event))
        ours = cox(cohort.time, cohort.event, cohort.x, ties)
        np.testing.assert_allclose(ours.coefficients, fitter.coef_, rtol=1e-6)
        baseline = breslow_baseline(cohort.time, cohort.event, cohort.x @ fitter.coef_)
        steps = np.isin(fitter.cum_baseline_hazard_.x, baseline.time)
        np.testing.assert_allclose(np.exp(baseline.log_hazard), fitter.cum_baseline_hazard_.y[steps], rtol=1e-9)


def test_hazard_ratio_of_two_groups():
    lifelines = pytest.importorskip("lifelines")
    for cohort in each():
        high = cohort.risk > 0
        table = pd.DataFrame({"high": high.astype(float), "time": cohort.time, "event": cohort.event})
        row = lifelines.CoxPHFitter().fit(table, "time", "event", fit_options={"precision": 1e-12}).summary.loc["high"]
        ours = hazard_ratio(cohort.time, cohort.event, high)
        theirs = row[["exp(coef)", "exp(coef) lower 95%", "exp(coef) upper 95%", "p"]].to_numpy(dtype=float)
        np.testing.assert_allclose([ours.value, ours.low, ours.high, ours.p], theirs, rtol=1e-5)
