"""Time of the concordance of a large cohort and of the draws of a bootstrap: ``pytest benchmarks/test_survival.py``.

The floor is one pass over times, events and risks. The baselines count pair by pair, patient after patient, as
scikit-survival does (and scikit-survival itself where it is installed).
"""

from __future__ import annotations

import numpy as np
import pytest

from mil_zoo.stats import concordance, concordance_ipcw


def cohort(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Simulated: times of 0.1 months, so that many are tied, 35 % with the event."""
    rng = np.random.default_rng(0)
    return rng.exponential(30, n).round(1), rng.random(n) < 0.35, rng.normal(size=n)


def pair_by_pair(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> float:
    right = comparable = 0.0
    for i in np.flatnonzero(event):
        later = risk[(time > time[i]) | ((time == time[i]) & ~event)]
        comparable += len(later)
        right += (later < risk[i] - 1e-8).sum() + (abs(later - risk[i]) <= 1e-8).sum() / 2
    return right / comparable


@pytest.mark.parametrize("case", ["concordance", "concordance_ipcw", "pair by pair", "scikit-survival"])
@pytest.mark.parametrize("n", [1000, 20_000])
def test_concordance(benchmark, measure, tiny, case, n):
    n = 50 if tiny else n
    benchmark.group = f"C-index of {n} patients"
    time, event, risk = cohort(n)
    steps = {
        "concordance": lambda: concordance(time, event, risk),
        "concordance_ipcw": lambda: concordance_ipcw(time, event, risk, time, event, 60),
        "pair by pair": lambda: pair_by_pair(time, event, risk),
    }
    if case == "scikit-survival":
        censored = pytest.importorskip("sksurv.metrics").concordance_index_censored
        steps[case] = lambda: censored(event, time, risk)
    baseline = case in ("pair by pair", "scikit-survival")
    measure(steps[case], case, floor_bytes=17 * n, size=n, baseline=baseline, rounds=3)


@pytest.mark.parametrize("case", ["all draws at once", "one after another"])
def test_bootstrap(benchmark, measure, tiny, case):
    n, draws = 400, 20 if tiny else 2000
    benchmark.group = f"C-index of {n} patients, {draws} draws"
    time, event, risk = cohort(n)
    weights = np.random.default_rng(1).multinomial(n, np.full(n, 1 / n), draws).astype(float)
    steps = {
        "all draws at once": lambda: concordance(time, event, risk, weights),
        "one after another": lambda: [concordance(time, event, risk, row) for row in weights],
    }
    baseline = case == "one after another"
    measure(steps[case], case, floor_bytes=weights.nbytes, size=n, baseline=baseline, rounds=3)
