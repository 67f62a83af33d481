"""Ten hand-made cases, and results of R, to the last digits that were given."""

import numpy as np
import pandas as pd
import pytest
from helpers import GOLDEN, compared

from mil_zoo.noted import note_of
from mil_zoo.stats import (
    brier_survival,
    concordance,
    concordance_ipcw,
    cox_log_likelihood,
    cumulative_dynamic_auc,
    d_calibration,
    integrated_brier,
    kaplan_meier,
    logrank,
)
from mil_zoo.survival import censoring_curve, concordance_pairs

CASES = np.load(GOLDEN / "survival" / "metric_cases.npz", allow_pickle=False)
EXPECTED = pd.read_csv(GOLDEN / "survival" / "metric_expected.csv", dtype=str, keep_default_na=False)
NAMES = sorted({key.split("/")[0] for key in CASES.files if "/expected/" in key})
R = np.load(GOLDEN / "survival" / "r_reference.npz", allow_pickle=False)
GRID, TRAIN = CASES["grid"], (CASES["train/time"], CASES["train/event"])
EXACT = {"rel": 1e-9, "abs": 1e-9, "nan_ok": True}


def case(name: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{name}/"): CASES[key] for key in CASES.files if key.startswith(f"{name}/")}


def computed(one: dict[str, np.ndarray]) -> dict[str, float]:
    """Every quantity that ``metric_expected.csv`` names, by our functions."""
    outcome, risk = (one["time"], one["event"]), one["risk"]
    pairs, curve = concordance_pairs(*outcome, risk), kaplan_meier(*outcome)
    test = logrank(*outcome, one["group"])
    values = {
        "harrell_c": concordance(*outcome, risk),
        "concordant": pairs.concordant,
        "discordant": pairs.discordant,
        "tied_risk": pairs.tied,
        "comparable_pairs": pairs.comparable,
        "uno_c_tau_36_G(t-)": concordance_ipcw(*outcome, risk, *TRAIN, tau=36),
        "uno_c_tau_none_G(t-)": concordance_ipcw(*outcome, risk, *TRAIN),
        "ibs_6_to_24_G(t-)": integrated_brier(*outcome, one["survival"], *TRAIN, GRID),
        "median_survival": curve.median,
        "km_at_12": curve.at(12),
        "rmst_to_36": curve.restricted_mean(36),
        "rmst_to_9": curve.restricted_mean(9),
        "logrank_chi2": test.chi2,
        "logrank_p": test.p,
        "d_calibration_p_5_bins": d_calibration(one["event"], one["survival_at_own_time"], bins=5).p,
    }
    auc = cumulative_dynamic_auc(*outcome, risk, *TRAIN, GRID)
    for t, area, column in zip(GRID, auc.auc, one["survival"].T, strict=True):
        values[f"auc_at_{t:g}_G(t-)"] = area
        values[f"brier_at_{t:g}_G(t-)"] = brier_survival(*outcome, column, *TRAIN, t)
    high = risk > np.median(risk)
    for group, own in (("high", high), ("low", ~high)):
        if own.any():
            values[f"observed_{group}_risk_at_12"] = 1 - kaplan_meier(*(a[own] for a in outcome)).at(12)
            values[f"predicted_{group}_risk_at_12"] = 1 - one["survival_at_horizon"][own].mean()
    return values


@pytest.mark.parametrize("name", NAMES)
def test_every_quantity(name):
    values = computed(case(name))
    known = EXPECTED[(EXPECTED["case"] == name) & EXPECTED["quantity"].isin(list(values))]
    assert len(known) >= 24
    for quantity, text in zip(known["quantity"], known["value"], strict=True):
        if (name, quantity) == ("all_censored", "km_at_12"):
            text = ""  # the file carries the curve on beyond the last time, 9.6; ours ends there
        assert values[quantity] == pytest.approx(float(text or "nan"), **EXACT), quantity
        compared("survival/metric_expected", quantity, values[quantity], float(text or "nan"))


def test_what_is_undefined_says_why():
    """A reason stands on every NaN that is a plain value; on a number nothing but one of two remarks."""
    for name in NAMES:
        for quantity, value in computed(case(name)).items():
            if not quantity.startswith(("auc_", "observed_", "predicted_", "km_at")):
                assert note_of(value) or not np.isnan(value), (name, quantity)
                remark = "" if np.isnan(value) else note_of(value)
                assert remark in ("", "constant risk") or remark.startswith("nobody is followed beyond"), (name, remark)
    nobody = case("all_censored")
    assert note_of(concordance(nobody["time"], nobody["event"], nobody["risk"])) == "no event"
    alone = case("only_last_is_event")
    assert note_of(concordance(alone["time"], alone["event"], alone["risk"])).startswith("no comparable pair")
    auc = cumulative_dynamic_auc(alone["time"], alone["event"], alone["risk"], *TRAIN, GRID)
    assert auc.reasons[0] == "no event up to time 6"
    assert auc.reasons[1] == "nobody is followed beyond time 10"
    assert note_of(auc.mean) == "nobody is followed beyond time 10"
    never = cumulative_dynamic_auc(nobody["time"], nobody["event"], nobody["risk"], *TRAIN, GRID)
    assert "follow-up ends at time 9.6" in note_of(never.mean)
    same = case("constant_risk")
    assert note_of(concordance(same["time"], same["event"], same["risk"])) == "constant risk"
    late = case("beyond_training")
    value = concordance_ipcw(late["time"], late["event"], late["risk"], *TRAIN)
    assert "censoring curve is 0" in note_of(value)
    assert "smaller tau" in note_of(value)


@pytest.mark.parametrize("name", NAMES)
def test_curves(name):
    one = case(name)
    curve = kaplan_meier(one["time"], one["event"])
    for ours, key in (
        (curve.time, "km_time"),
        (curve.survival, "km_survival"),
        (curve.at_risk, "km_at_risk"),
        (curve.events, "km_events"),
        (curve.number_at_risk(GRID), "at_risk_on_grid"),
    ):
        assert ours == pytest.approx(one[f"expected/{key}"], **EXACT), key
    inside = (curve.survival > 0) & (curve.survival < 1)
    assert curve.se[inside] == pytest.approx(one["expected/km_greenwood_se"][inside], **EXACT)
    assert curve.low[inside] == pytest.approx(one["expected/km_lower_loglog"][inside], **EXACT)
    assert curve.high[inside] == pytest.approx(one["expected/km_upper_loglog"][inside], **EXACT)
    assert np.isnan(curve.low[~inside]).all()
    assert np.isnan(curve.high[~inside]).all()
    counts = d_calibration(one["event"], one["survival_at_own_time"], bins=5).counts
    assert counts == pytest.approx(one["expected/dcal_bins5_low_to_high"], **EXACT)
    assert counts.sum() == pytest.approx(len(one["time"]))


def of_r(kind: str) -> list[dict[str, np.ndarray]]:
    """The data sets of one kind of result."""
    names = sorted({key.split("/")[0] for key in R.files if key.split("/")[0].rstrip("0123456789") == kind})
    return [{key.split("/")[1]: R[key] for key in R.files if key.split("/")[0] == name} for name in names]


@pytest.mark.parametrize("data", of_r("cindex"))
def test_concordance_of_r(data):
    outcome = data["time"], data["event"], data["risk"]
    assert concordance(*outcome) == pytest.approx(float(data["harrell"]), abs=5e-5)
    train, tau = (data["time"], data["event"]), float(data["tau"])
    uno = concordance_ipcw(*outcome, *train, tau)
    # R leaves out the pair of an event and one censored at that very time: here these are censored a moment earlier.
    inverse = np.where(data["event"] & (data["time"] < tau), 1 / censoring_curve(*train).before(data["time"]), 0)
    earlier = data["time"] - 1e-3 * ~data["event"]
    pairs = concordance_pairs(earlier, data["event"], data["risk"], event_weights=inverse**2)
    assert float(pairs.share) == pytest.approx(float(data["uno"]), abs=2e-4)
    assert uno == pytest.approx(float(pairs.share), abs=1e-3)


@pytest.mark.parametrize("data", of_r("auc"))
def test_auc_of_r(data):
    outcome = data["time"], data["event"]
    auc = cumulative_dynamic_auc(*outcome, data["risk"], *outcome, data["times"]).auc
    assert auc == pytest.approx(data["auc"], abs=5.1e-5)
    if "auc_train_censoring" in data:
        train = data["train_time"], data["train_event"]
        auc = cumulative_dynamic_auc(*outcome, data["risk"], *train, data["times"]).auc
        assert auc == pytest.approx(data["auc_train_censoring"], abs=5.1e-5)


@pytest.mark.parametrize("data", of_r("brier"))
def test_brier_of_r(data):
    outcome = data["time"], data["event"]
    columns = zip(data["times"], data["survival"].astype(float).T, strict=True)
    brier = [brier_survival(*outcome, column, *outcome, t) for t, column in columns]
    assert brier == pytest.approx(data["brier"], abs=3e-4)


@pytest.mark.parametrize("data", of_r("km"))
def test_kaplan_meier_of_r(data):
    assert kaplan_meier(data["time"], data["event"]).at(data["times"]) == pytest.approx(data["survival"], abs=5e-5)


@pytest.mark.parametrize("data", of_r("ipcw"))
def test_censoring_weights_of_r(data):
    curve = censoring_curve(data["time"], data["event"])
    assert 1 / curve.at(data["times"]) == pytest.approx(data["weight_at_times"], abs=5e-5)
    g = curve.at(data["time"])
    weights = np.where(g > 0, 1 / np.where(g > 0, g, 1), 0)
    assert weights == pytest.approx(data["weight_of_patient"], abs=5e-5)


@pytest.mark.parametrize("data", [*of_r("cox_ties"), *of_r("cox_no_ties")])
def test_cox_likelihood_of_r(data):
    outcome = data["time"], data["event"]
    for ties in ("efron", "breslow"):
        suffix = f"_{ties}" if f"log_hazard_{ties}" in data else ""
        value = cox_log_likelihood(*outcome, data[f"log_hazard{suffix}"], ties)
        assert value == pytest.approx(float(data[f"log_likelihood{suffix}"]), abs=1.2e-3)
