"""Dry runs: the trials that are left, and an estimate that follows what is asked for."""

import numpy as np
import pytest

from mil_zoo.bench.forecast import forecast
from mil_zoo.bench.plan import make_plan
from mil_zoo.bench.suite import read_suite


def plan_of(table, **given):
    base = {"datasets": [str(table)], "models": ["abmil", "mean"], "folds": 4, "epochs": 3, "overrides": {}}
    return make_plan(read_suite(None, **base | given), str(table))


def test_an_estimate_grows_with_the_budget_and_knows_what_is_done(bag_table):
    short, long = forecast(plan_of(bag_table)), forecast(plan_of(bag_table, epochs=300))
    for few, many in zip(short, long, strict=True):
        assert (few.trials, few.epochs, many.epochs) == (4, 3, 300)
        assert 10 < many.seconds / few.seconds < 1000  # 100, but for the noise of single steps
    left = forecast(plan_of(bag_table), done={"abmil-r0-f0-s0", "abmil-r0-f1-s0"})
    assert [found.trials for found in left] == [2, 4]


def test_a_model_that_cannot_be_measured_says_why(bag_table):
    found = forecast(plan_of(bag_table, models=["srmil", "mean"], overrides={"srmil.heads": 3, "srmil.hidden": 8}))
    assert np.isnan(found[0].seconds)
    assert found[0].reason
    assert found[1].seconds > 0
    assert [one.failed for one in found] == [True, False]


def test_a_stage_before_the_training_needs_more_slides_than_are_measured(bag_table):
    staged, alone = forecast(plan_of(bag_table, models=["ibmil", "abmil"]))
    assert (staged.reason, alone.reason) == ("", "")
    assert staged.seconds > alone.seconds


@pytest.mark.parametrize("task", ["survival", "survival_cox", "survival_rank"])
def test_survival_is_measured_too(task):
    """A metric of survival asks for the training patients, which the task is fitted to."""
    suite = read_suite(None, datasets=["demo_survival"], models=["mean"], folds=3, epochs=2, task={"name": task})
    (found,) = forecast(make_plan(suite, "demo_survival"))
    assert found.reason == ""
    assert found.seconds > 0


def test_the_command_lists_and_runs_nothing(run_cli, bag_table, tmp_path):
    command = ("bench", "--dataset", bag_table, "--models", "abmil,mean", "--folds", 2, "--epochs", 2, "--dry-run")
    code, out, err = run_cli(*command, "--jobs", 2, "--out", tmp_path / "r")
    assert (code, err) == (0, "")
    assert [line for line in out.splitlines() if line.endswith("-s0")] == [
        "abmil-r0-f0-s0", "mean-r0-f0-s0", "abmil-r0-f1-s0", "mean-r0-f1-s0",
    ]  # fmt: skip
    assert "4 trials to run, 0 done" in out
    assert not (tmp_path / "r").exists()
    faulty = ("--models", "srmil", "--set", "srmil.heads=3", "--set", "srmil.hidden=8", "--out", tmp_path / "r")
    code, out, err = run_cli("bench", "--dataset", bag_table, "--folds", 2, *faulty, "--dry-run")
    assert (code, err) == (1, "")
    assert "InputError" in out
