"""A forked child trains as its parent does: multiprocessing forks on Linux, and so do loaders of data."""

import os
import signal

import pandas as pd
import pytest
import torch
from helpers import in_fresh_interpreter

from mil_zoo.bench.plan import make_plan
from mil_zoo.bench.runner import run_plan
from mil_zoo.bench.suite import Suite


def train_here_and_in_a_fork(table, out):
    """Runs a bench in this process, which has two threads then, and in a fork of it; the exit code of the fork."""
    torch.set_num_threads(2)
    suite = Suite([str(table)], ["abmil", "mean"], folds=2, epochs=1, threads=2, overrides={"abmil.embed_dim": 8})
    plan = make_plan(suite, str(table))
    run_plan(plan, out / "parent")  # kernels and torch have their teams of threads now
    child = os.fork()
    if child == 0:
        signal.alarm(120)  # one that waits for threads that are not there is ended
        run = run_plan(plan, out / "child")
        os._exit(7 if all(row["status"] == "ok" for row in run.trials()) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_training_in_a_forked_child_ends_as_its_parents_does(bag_table, tmp_path):
    assert in_fresh_interpreter(train_here_and_in_a_fork, bag_table, tmp_path) == 7
    for trial in ("abmil-r0-f0-s0", "mean-r0-f1-s0"):
        parent, child = (tmp_path / run / "trials" / trial / "predictions.csv" for run in ("parent", "child"))
        one, other = (pd.read_csv(path)[["prob_0", "prob_1"]].to_numpy() for path in (parent, child))
        assert one == pytest.approx(other, abs=1e-4)  # the child has one thread and the kernels' reference
