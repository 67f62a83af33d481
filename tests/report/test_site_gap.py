"""Patient-level folds against site-preserving ones: a shortcut of the site is found, other runs are refused."""

import numpy as np
import pandas as pd
import pytest

from mil_zoo import InputError
from mil_zoo.bench.plan import make_plan
from mil_zoo.bench.runner import run_plan
from mil_zoo.bench.suite import read_suite
from mil_zoo.metrics.classification import roc_area
from mil_zoo.report.across_runs.site_gap import site_gap, site_pair
from mil_zoo.report.load import Results

SITES = 6


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Simulated: slides whose only signal is a stain of their site, and sites that have more of one class."""
    folder = tmp_path_factory.mktemp("sites")
    rng = np.random.default_rng(0)
    site = np.repeat(np.arange(SITES), 20)
    slides = [f"s{number:03d}" for number in range(len(site))]
    stain = np.pad(3.0 * np.repeat(np.eye(SITES), 3, axis=1)[site], ((0, 0), (0, 22)))
    pd.DataFrame(stain + rng.normal(size=stain.shape), index=slides).to_csv(folder / "stain.csv")
    label = rng.random(len(site)) < np.where(site % 2, 0.9, 0.1)
    patients = [f"p{number // 2}" for number in range(len(site))]  # of two slides, at one site
    table = {"slide_id": slides, "patient_id": patients, "site": [f"h{s}" for s in site], "label": label.astype(int)}
    pd.DataFrame(table).to_csv(folder / "labels.csv", index=False)
    found = {}
    for name, options in {"kfold": {}, "site": {"split": "site"}, "two": {"folds": 2}}.items():
        suite = read_suite(datasets=[str(folder)], models=["linear_probe"], **({"folds": 3} | options))
        found[name] = Results.load(run_plan(make_plan(suite, str(folder)), folder / name))
    return found


def test_a_shortcut_of_sites_is_found(runs, run_cli, tmp_path):
    patients, sites = runs["kfold"], runs["site"]
    assert site_pair([sites, patients]) == site_pair([patients, sites]) == (patients, sites)
    table = site_gap(patients, sites).set_index("metric")
    row = table.loc["auc"]
    for results, name in ((patients, "patient_level"), (sites, "site_preserving")):
        areas = []
        for trial in results.trials:
            rows = results.test_predictions(trial)
            areas.append(roc_area(rows["label"].to_numpy() == 1, rows["prob_1"].to_numpy(), np.ones(len(rows))))
        assert row[name] == pytest.approx(np.mean(areas))
    assert row["gap"] == pytest.approx(row["patient_level"] - row["site_preserving"])
    assert 0 < row["low"] < row["gap"] < row["high"]
    assert (table["p_holm"] >= table["p"]).all()
    code, out, err = run_cli("compare", sites.path, patients.path, "--out", tmp_path / "gap")
    assert (code, err.strip()) == (0, "")
    assert "Patient-level: stratified k-fold" in out
    assert sorted(path.name for path in (tmp_path / "gap").iterdir()) == ["site_gap.csv", "site_gap.md", "site_gap.tex"]
    pd.testing.assert_series_equal(
        pd.read_csv(tmp_path / "gap" / "site_gap.csv").set_index("metric").loc["auc"], row, rtol=1e-5
    )


def test_runs_that_do_not_fit(runs, write):
    two, sites = runs["two"], runs["site"]
    with pytest.raises(InputError, match=r"has 2 folds x 1 and .* 3 x 1; run both with the same --folds"):
        site_gap(two, sites)
    assert site_pair([two, two]) is None
    other = Results.load(write.run([write.row("max", fold) for fold in range(2)], ["max"]))
    assert site_pair([other, sites]) is None
