"""Cox regression, on real patients and by hand."""

import numpy as np
import pandas as pd
import pytest

from mil_zoo import InputError
from mil_zoo.noted import note_of
from mil_zoo.stats import concordance, cox, cox_log_likelihood, hazard_ratio, likelihood_ratio

RNG = np.random.default_rng(0)
TIME = RNG.integers(1, 12, 60).astype(float)
EVENT = RNG.random(60) < 0.6
X = RNG.normal(size=(60, 2))


def patients(real_data, name: str) -> pd.DataFrame:
    """One row a patient of a table of slides, of those in a fold."""
    table = pd.read_csv(real_data / "survival" / f"{name}.csv.gz", dtype=str, keep_default_na=False)
    return table[table["fold"] != ""].drop_duplicates("patient_id")


def covariates(table: pd.DataFrame, columns: str) -> np.ndarray:
    stage = table["stage"].str.extract("^(IV|I{1,3})")[0]
    known = {
        "age": pd.to_numeric(table["age"]),
        "male": table["sex"].map({"M": 1.0, "F": 0.0}),
        "stage": stage.map({"I": 1.0, "II": 2.0, "III": 3.0, "IV": 4.0}),
    }
    names = columns.split()
    types = [name for name in names if name not in known]
    known |= {name: (table["type"] == name.removeprefix("type_")).astype(float) for name in types}
    return np.stack([known[name] for name in names], axis=1)


def test_clinical_models_of_five_cohorts(real_data):
    """Age, sex and stage (or type) fitted on four folds and scored on the fifth, as two libraries have it."""
    expected = pd.read_csv(real_data / "survival" / "golden" / "clinical_cox.csv")
    assert len(expected) >= 25
    for row in expected.itertuples():
        table = patients(real_data, row.file)
        months = "time_months" in table
        time = table["time_months" if months else "os_days"].astype(float).to_numpy()
        event = table["event" if months else "os_event"].astype(int).to_numpy()
        x, test = covariates(table, row.columns), (table["fold"] == str(row.fold)).to_numpy()
        x = np.where(np.isnan(x), np.nanmedian(x[~test], axis=0), x)
        varies = x[~test].std(0) > 0
        x = ((x - x[~test].mean(0)) / np.where(varies, x[~test].std(0), 1))[:, varies]
        fit = cox(time[~test], event[~test], x[~test])
        assert (test.sum(), event[test].sum()) == (row.n_test, row.events_test)
        assert fit.log_likelihood == pytest.approx(row.log_likelihood_train, abs=1e-6), row
        assert concordance(time[test], event[test], fit.risk(x[test])) == pytest.approx(row.c_index, abs=1e-9), row


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("strata", [None, np.arange(60) % 3])
def test_the_fit_is_the_highest_likelihood(ties, strata):
    fit = cox(TIME, EVENT, X, ties, strata=strata)

    def likelihood(beta):
        return cox_log_likelihood(TIME, EVENT, X @ beta, ties, strata)

    assert fit.converged
    assert fit.log_likelihood == pytest.approx(likelihood(fit.coefficients), rel=1e-12)
    assert fit.null_log_likelihood == pytest.approx(likelihood(np.zeros(2)), rel=1e-12)
    h, eye = 1e-3, np.eye(2)
    slope = [(likelihood(fit.coefficients + h * e) - likelihood(fit.coefficients - h * e)) / (2 * h) for e in eye]
    assert slope == pytest.approx([0, 0], abs=1e-4)
    bend = np.array(
        [
            [
                sum(
                    sign * other * likelihood(fit.coefficients + h * (sign * a + other * b))
                    for sign in (1, -1)
                    for other in (1, -1)
                )
                / (4 * h * h)
                for b in eye
            ]
            for a in eye
        ]
    )
    assert fit.se == pytest.approx(np.sqrt(np.diag(np.linalg.inv(-bend))), rel=1e-4)


def test_strata_are_likelihoods_added():
    number = np.arange(60) % 3
    parts = sum(cox_log_likelihood(TIME[number == s], EVENT[number == s], X[number == s, 0]) for s in range(3))
    assert cox_log_likelihood(TIME, EVENT, X[:, 0], strata=number) == pytest.approx(parts)


def test_a_ridge_holds_a_covariate_that_separates():
    """A covariate of nobody with the event goes to minus infinity without it; one without variation stays at 0."""
    few = ((np.arange(60) % 10 == 0) & ~EVENT).astype(float)
    assert few.sum() > 1
    x = np.stack([X[:, 0], few, np.ones(60)], axis=1)
    free, held = cox(TIME, EVENT, x), cox(TIME, EVENT, x, ridge=1e-4)
    assert free.coefficients[1] < -15
    assert held.converged
    assert -15 < held.coefficients[1] < -3
    assert held.coefficients[2] == 0
    assert np.isnan(held.se[2])
    assert held.log_likelihood == pytest.approx(free.log_likelihood, abs=0.02)
    alone = cox(TIME, EVENT, X[:, 0])
    assert held.coefficients[0] == pytest.approx(alone.coefficients[0], abs=0.1)


def test_likelihood_ratio():
    both, one = cox(TIME, EVENT, X), cox(TIME, EVENT, X[:, 0])
    test = likelihood_ratio(both, one)
    assert test.df == 1
    assert test.chi2 == pytest.approx(2 * (both.log_likelihood - one.log_likelihood))
    assert likelihood_ratio(both).df == 2
    with pytest.raises(InputError, match="same patients"):
        likelihood_ratio(both, cox(TIME[1:], EVENT[1:], X[1:, 0]))


def test_hazard_ratio():
    group = X[:, 0] > 0
    ratio, other = hazard_ratio(TIME, EVENT, group), hazard_ratio(TIME, EVENT, ~group)
    fit = cox(TIME, EVENT, group.astype(float))
    assert ratio.value == pytest.approx(np.exp(fit.coefficients[0]))
    assert ratio.value == pytest.approx(1 / other.value)
    assert ratio.low == pytest.approx(1 / other.high)
    assert ratio.low < ratio.value < ratio.high
    for case, why in ((group | True, "one group is empty"), (EVENT, "one group has no event")):
        undefined = hazard_ratio(TIME, EVENT, case)
        assert np.isnan(undefined.value)
        assert note_of(undefined.p) == why
    assert note_of(hazard_ratio(TIME, EVENT & False, group).value) == "no event"


def test_what_cannot_be_fitted():
    with pytest.raises(InputError, match="needs an event"):
        cox(TIME, np.zeros(60), X)
    with pytest.raises(InputError, match="1 of 60 patients have no value of a covariate"):
        cox(TIME, EVENT, np.where(np.arange(120).reshape(60, 2) == 7, np.nan, X))


def test_no_risk_is_too_large():
    """Log hazards of thousands, as a network may give them."""
    risk = np.array([1000.0, -1000.0, 500.0])
    assert cox_log_likelihood([1, 2, 3], [1, 1, 1], risk) == pytest.approx(0 - 1500)
