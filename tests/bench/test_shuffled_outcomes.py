"""The control with shuffled outcomes: what is exchanged, and that nothing is left to learn."""

import re

import numpy as np
import pytest
from survival_runs import make_cohort

from mil_zoo.bench.plan import make_plan
from mil_zoo.bench.runner import run_plan
from mil_zoo.bench.suite import Suite
from mil_zoo.bench.trial import split_bags
from mil_zoo.data.source import DatasetSource
from mil_zoo.data.splits.split import patient_key
from mil_zoo.survival import concordance

TASK = {"name": "survival", "time": "os_months", "censorship": "censorship"}
FAST = {"learning_rate": 0.02, "bags_per_step": 8, "record": "end"}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohort"))


def plan(table, **given):
    source = DatasetSource(str(table / "bags.npz"), labels=table / "labels.csv", patients=given.pop("patients", None))
    return make_plan(Suite(datasets=["x"], models=["mean"], task=TASK, overrides=FAST, **given), source)


@pytest.mark.parametrize("rule", ["packed", "mean"])
def test_time_and_event_of_patients_are_exchanged_together(table, rule):
    made = plan(table, folds=2, patients=rule)
    true, shuffled = (split_bags(made.dataset, made.splits[0], seed)[0] for seed in (None, 0))
    for part in ("train", "val"):
        of_patient = [
            {patient_key(slide): tuple(slide.target) for slide in parts[part].slides} for parts in (true, shuffled)
        ]
        assert sorted(of_patient[0].values()) == sorted(of_patient[1].values())  # pairs, whole
        assert all(tuple(slide.target) == of_patient[1][patient_key(slide)] for slide in shuffled[part].slides)
        if part == "train":
            assert np.mean([of_patient[0][name] != of_patient[1][name] for name in of_patient[0]]) > 0.8
    assert [slide.target for slide in shuffled["test"].slides] == [slide.target for slide in true["test"].slides]


def test_shuffled_outcomes_leave_nothing_to_learn(table, tmp_path):
    """C is above .7 with the real outcomes, and within the stated band of .5 with shuffled ones."""
    made = plan(table, folds=2, epochs=5)
    real = run_plan(made, tmp_path / "real").trials()
    shuffled = run_plan(control := plan(table, folds=2, epochs=5, permute_labels=True), tmp_path / "shuffled").trials()
    means = [np.mean([row["metrics"]["c_index"] for row in rows]) for rows in (real, shuffled)]
    (warning,) = [text for text in control.config().dataset.warnings if "SHUFFLED" in text]
    band = float(re.search(r"95 % of mean concordances lie in 0\.50 \+- (0\.\d+)", warning)[1])
    assert 0.05 < band < 0.2
    assert means[0] > 0.5 + band
    assert abs(means[1] - 0.5) < 1.5 * band


def test_the_band_is_the_spread_over_models_that_know_nothing(table):
    made = plan(table, folds=2)
    targets = made.dataset.bags.select(made.splits[0].test).targets
    rng = np.random.default_rng(1)
    drawn = [concordance(*targets.T, rng.random(len(targets))) for _ in range(400)]
    assert np.sqrt(made.dataset.task.variance_at_chance(targets)) == pytest.approx(np.std(drawn), rel=0.2)
