"""Sites told from targets, from predictions given the target, and from embeddings, of the same patients each."""

import numpy as np
import pandas as pd
import pytest

from mil_zoo.report.load import Results
from mil_zoo.report.rescore import Columns, rescore
from mil_zoo.report.site_leaks import EMBEDDING, PREDICTION, TARGET, site_leaks
from mil_zoo.report.tables.subgroup_table import shown_subgroups
from mil_zoo.stats.site_leak import mean_leak, site_probe
from mil_zoo.tasks import Classification, MultiLabel, Ordinal, Regression, Survival, Task

N = 240
RNG = np.random.default_rng


def beyond(task, targets, predictions, sites):
    """How much better sites are told with the prediction than without it."""
    known, told = task.given_target(np.asarray(targets, float), np.asarray(predictions, float))
    patients = np.arange(len(sites)).astype(str)
    alone = site_probe(known, sites, patients)
    both = site_probe(np.concatenate([known, told], axis=1), sites, patients)
    return (both.accuracy - alone.accuracy).interval()


def cohort(task, bias):
    """Targets that differ between two sites, and a prediction that follows the target alone, but for a ``bias``."""
    rng, site = RNG(3), np.arange(N) % 2
    hidden = rng.normal(size=N) + site
    truth = {"regression": hidden, "ordinal": np.digitize(hidden, [0, 1])}.get(task.name, hidden > 0.5)
    guess = 1.5 * truth - 1 + rng.normal(0, 0.7, N) + bias * site
    chance = 1 / (1 + np.exp(-guess))
    if isinstance(task, Regression):
        return truth[:, None], guess[:, None], site
    if isinstance(task, Ordinal):
        known = np.stack([1 - chance, chance * (1 - chance), chance**2], 1)
        return truth[:, None], np.concatenate([known, guess[:, None], guess[:, None]], 1), site
    if isinstance(task, MultiLabel):
        labels = np.stack([truth, rng.random(N) < 0.5], 1).astype(float)
        labels[rng.random(N) < 0.4, 0] = np.nan  # a fair guess of what is unknown differs between sites
        return labels, np.stack([chance, rng.random(N)], 1), site
    return truth[:, None], np.stack([1 - chance, chance], 1), site


@pytest.mark.parametrize(
    "task", [Classification(2), Ordinal(3), MultiLabel(("a", "b")), Regression()], ids=lambda task: task.name
)
def test_a_prediction_tells_a_site_beyond_the_target_only_where_it_is_unfair(task):
    fair, unfair = (beyond(task, *cohort(task, bias)) for bias in (0.0, 3.0))
    assert fair.low <= 0 <= fair.high
    assert unfair.low > 0.05


def survival(bias):
    """Sites that differ in survival, and a risk that follows the time of death alone, but for a ``bias``."""
    rng, n = RNG(0), 800
    site = np.arange(n) % 2
    death, lost = rng.normal(3 - site, 1, n).clip(0.1), rng.uniform(0.5, 3, n)
    risk = -death + rng.normal(0, 0.5, n) + bias * site
    task = Survival("rank", unit="months")
    return task, np.stack([np.minimum(death, lost), death <= lost], 1), risk[:, None], site


def test_a_risk_counts_where_the_time_of_the_event_is_known():
    task, targets, risk, site = survival(0.0)
    fair = beyond(task, targets, risk, site)
    assert fair.low <= 0 <= fair.high
    patients = np.arange(len(site)).astype(str)
    of_all = np.concatenate([task.given_target(targets, risk)[0], risk * (1 - targets[:, 1:])], axis=1)
    alone = site_probe(task.given_target(targets, risk)[0], site, patients)
    assert (site_probe(of_all, site, patients).accuracy - alone.accuracy).interval().low > 0.02  # of the censored
    assert beyond(*survival(2.0)).low > 0.02


def test_every_source_is_of_the_same_patients_sites_and_folds(tmp_path, make_sites_run):
    results = make_sites_run(embeddings=True)
    told = {one.source: one for one in site_leaks(results)}
    assert list(told) == [TARGET, PREDICTION, EMBEDDING]
    assert {(one.leak.patients, one.leak.sites, one.leak.chance) for one in told.values()} == {(N - 24, 3, 1 / 3)}
    # The same numbers tell the same wherever they stand: an embedding that holds the target alone.
    assert told[EMBEDDING].leak.accuracy.value == told[TARGET].leak.accuracy.value
    np.testing.assert_array_equal(told[EMBEDDING].leak.accuracy.drawn, told[TARGET].leak.accuracy.drawn)
    assert told[EMBEDDING].beyond.value == 0
    assert told[PREDICTION].beyond.low > 0  # the third site's scores are shifted
    text = shown_subgroups(results).markdown()
    assert f"| site | m | target and prediction | {N - 24} | 3 | 0.333 |" in text


def test_what_cannot_be_told_says_why(make_sites_run, monkeypatch):
    results = make_sites_run(embeddings=False)
    told = {one.source: one for one in site_leaks(results)}
    assert told[EMBEDDING].leak.accuracy.value.note == "the run keeps no embeddings of its test slides"
    assert np.isnan(told[EMBEDDING].beyond.value)
    monkeypatch.setattr(Classification, "given_target", Task.given_target)  # a plugin's task says nothing of it
    text = shown_subgroups(Results.load(results.path)).markdown()
    assert text.count("(the task classification does not say what a prediction is given its target)") == 2


@pytest.fixture
def make_sites_run(tmp_path):
    """``make_sites_run(embeddings)``: two folds at three sites and a rare one; the third site's scores are shifted."""

    def make(embeddings):
        rng = RNG(0)
        label, fold = rng.integers(0, 2, N), np.arange(N) // (N // 2)
        site = np.array(["a", "b", "c"], dtype=object)[np.arange(N) % 3]
        site[np.arange(N) % 10 == 0] = "rare"
        for part in (0, 1):  # 9 patients of a test set are too few
            site[np.flatnonzero((fold == part) & (site == "rare"))[9:]] = ""
        score = np.clip(0.4 + 0.2 * label + rng.normal(0, 0.05, N) + 0.3 * (site == "c"), 0.01, 0.99)
        ids = [f"P{i:03d}" for i in range(N)]
        table = pd.DataFrame({"model": "m", "fold": fold, "patient_id": ids, "label": label, "score": score})
        table.to_csv(tmp_path / "p.csv", index=False)
        rescore([tmp_path / "p.csv"], tmp_path / "run", Columns({}))
        groups = pd.DataFrame({"slide_id": ids, "patient_id": ids, "site": site})
        groups.to_csv(tmp_path / "run" / "groups.csv", index=False)
        results = Results.load(tmp_path / "run")
        if not embeddings:
            return results
        for row in results.run.trials():
            trial = next(trial for trial in results.trials if trial.trial == row["trial"])
            rows = results.predictions(trial)
            values = np.eye(2)[rows["label"].astype(int)]
            kept = {name: results.run.read(trial.trial, name) for name in row.pop("files")}

            def write(folder, kept=kept, values=values):
                for name, content in kept.items():
                    (folder / name).write_bytes(content)
                np.save(folder / "embeddings.npy", values.astype(np.float16))

            results.run.add_trial(row, write)
        return Results.load(tmp_path / "run")

    return make


def test_a_site_in_the_embedding_is_found_and_noise_holds_none():
    rng = RNG(0)
    sites, patients = np.repeat(["x", "y", "z", "rare"], [30, 30, 30, 4]), np.arange(94).astype(str)
    noise = rng.normal(size=(94, 8))
    found = site_probe(noise + 3 * (sites == "y")[:, None], sites, patients)
    assert (found.sites, found.patients) == (3, 90)
    assert found.accuracy.value > 0.6
    none = site_probe(noise, sites, patients).accuracy.interval()
    assert none.low < 1 / 3 < none.high
    alone = site_probe(noise[:30], sites[:30], patients[:30])
    assert "telling sites apart needs two" in alone.accuracy.value.note
    noise[3, 2] = np.nan
    assert site_probe(noise, sites, patients).accuracy.value.note == "a slide's numbers are not finite"


def test_the_mean_over_test_sets_is_surer_than_each():
    rng = RNG(1)
    sites, patients = np.repeat(["x", "y", "z"], 30), np.arange(90).astype(str)
    probes = [site_probe(rng.normal(size=(90, 3)), sites, patients, seed=seed) for seed in range(4)]
    mean, cannot = mean_leak(probes), site_probe(np.zeros((5, 1)), sites[:5], patients[:5])
    assert mean.accuracy.value == pytest.approx(np.mean([probe.accuracy.value for probe in probes]))
    assert mean.patients == 360
    ends = [probe.accuracy.interval() for probe in (mean, *probes)]
    widths = [one.high - one.low for one in ends]
    assert widths[0] == pytest.approx(np.mean(widths[1:]) / 2, rel=0.15)
    assert mean_leak([cannot, *probes]).accuracy.value == mean.accuracy.value
    assert mean_leak([cannot]).accuracy.value.note.startswith("0 of 1 sites have 10 patients or more")


def test_slides_of_a_patient_do_not_tell_on_each_other():
    """Noise that a patient's slides share tells the patient, and would tell the site were they on both sides."""
    rng = RNG(0)
    patients = np.repeat(np.arange(60), 4).astype(str)
    own = np.repeat(rng.normal(size=(60, 40)), 4, axis=0)
    found = site_probe(own, np.repeat(["x", "y"], 120), patients).accuracy.interval()
    assert found.low < 0.5 < found.high
    alone = site_probe(own, np.repeat(["x", "y"], 120), np.arange(240).astype(str))
    assert alone.accuracy.interval().low > 0.8
