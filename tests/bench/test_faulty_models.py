"""Aggregators of users that go wrong: each costs its own trials, says why, and leaves its traceback."""

import dataclasses
import io
import json
import re
from types import SimpleNamespace

import pandas as pd
import pytest
from rich.console import Console
from safetensors.torch import load_file

from mil_zoo.bench import executors
from mil_zoo.bench.plan import make_plan
from mil_zoo.bench.suite import read_suite
from mil_zoo.cli.progress import run_with_progress
from mil_zoo.registry import PLUGINS

HEAD = """
import sys, torch
from torch import nn
from mil_zoo import Aggregator, AggregatorOutput, register_aggregator
from mil_zoo.kernels import segment_reduce

@register_aggregator("{name}")
class Mine(Aggregator):
    def __init__(self, in_dim, num_classes=2, **more):
        super().__init__(in_dim, num_classes, **more)
        self.a = nn.Linear(in_dim, in_dim)
        self.classifier = nn.Linear(in_dim, num_classes)
        {init}

    def forward(self, batch):
        e = segment_reduce(batch.features, batch.offsets, "mean")
        {forward}
        return AggregatorOutput(self.classifier(e), e)
"""
LEAVES = {
    "leaves_at_once": ("sys.exit('no licence')", "pass", "no licence"),
    "leaves_later": ("pass", "sys.exit(0)", r"exit code 0\) \(leaves_later.py, line 17"),
    "leaves_in_haste": ("pass", "import os; os._exit(3)", r"exit code 3\) \(leaves_in_haste.py, line 17"),
    "changes_torch": ("pass", "torch.set_grad_enabled(False); raise ValueError('so')", "ValueError: so"),
    "speechless": ("pass", "raise type('E', (Exception,), {'__str__': lambda _: 1 / 0})", r"E: .* \(ZeroDivisionError"),
    "long_words": (
        "pass",
        r"raise ValueError('\x1b[31ma\nb' + 10**4 * 'x')",
        r"ValueError: \[31ma bx{492} \.\.\. \(all of it is in traceback\.txt\) \(long_words\.py, line 17\)$",
    ),
    "raises": ("pass", "raise ValueError('no good')", r"ValueError: no good \(raises.py, line 17\)"),
}


def write_plugin(folder, name, init, forward):
    path = folder / f"{name}.py"
    path.write_text(HEAD.format(name=name, init=init, forward=forward))
    return path


def bench(run_cli, table, out, plugin, *more):
    models = f"{plugin.stem},mean"
    return run_cli(
        "bench",
        "--plugin",
        plugin,
        "--models",
        models,
        "--dataset",
        table,
        "--folds",
        2,
        "--epochs",
        1,
        "--out",
        out,
        *more,
    )


@pytest.mark.parametrize("name", LEAVES)
def test_a_model_that_fails_or_leaves_costs_its_own_trials(run_cli, bag_table, tmp_path, name):
    init, forward, reason = LEAVES[name]
    code, out, _ = bench(run_cli, bag_table, tmp_path / "run", write_plugin(tmp_path, name, init, forward))
    assert code == 1
    rows = [json.loads(line) for line in (tmp_path / "run" / "trials.jsonl").read_text().splitlines()]
    assert [(row["aggregator"], row["status"]) for row in rows] == [(name, "failed"), ("mean", "ok")] * 2
    assert pd.Series([rows[0]["reason"]]).str.contains(reason).item()
    assert (tmp_path / "run" / "table.csv").exists()
    trace = tmp_path / "run" / "trials" / rows[0]["trial"] / "traceback.txt"
    assert f"{name}.py" in trace.read_text()
    assert "traceback.txt" in out


def test_what_fails_in_a_worker_alone_costs_its_own_trials_and_says_why(run_cli, bag_table, tmp_path, monkeypatch):
    """The same plugins import and run in the main process."""
    monkeypatch.setattr(PLUGINS, "files", [])  # the workers of other tests must not load these
    monkeypatch.setattr(executors, "IMPORT_SECONDS", 3.0)
    worker = "import multiprocessing\nWORKER = multiprocessing.parent_process() is not None\n"
    faults = {
        "imports_not": ("if WORKER: raise ValueError('no licence here')", "pass", "line 4.*no licence here"),
        "exits": ("import os\nif WORKER: os._exit(0)", "pass", r"exits.py, line 5 failed to import.*exit \(code 0\)"),
        "dies": (
            "import os\nif WORKER: os.kill(os.getpid(), 9)",
            "pass",
            r"dies.py cannot be imported there.*signal 9",
        ),
        "hangs": (
            "import time\nif WORKER: time.sleep(600)",
            "pass",
            r"hangs.py cannot be imported there: its import took longer than 0.05 minutes",
        ),
        "interrupts": ("", "if WORKER: raise KeyboardInterrupt('mine')", r"KeyboardInterrupt: mine \(interrupts.py"),
    }
    plugins = []
    for name, (top, forward, _) in faults.items():
        plugins.append(write_plugin(tmp_path, name, "pass", forward))
        plugins[-1].write_text(f"{worker}\n{top}\n{plugins[-1].read_text()}")
    given = [one for plugin in plugins for one in ("--plugin", plugin)]
    models = ("--models", f"mean,{','.join(faults)}", "--dataset", bag_table, "--folds", 2, "--epochs", 1)
    code, out, _ = run_cli("bench", *given, *models, "--jobs", 2, "--out", tmp_path / "run")
    assert code == 1
    told = re.findall(r"^failed (\S+-s0:)", out, re.MULTILINE)  # and not a line of a reason that begins so
    assert told == [f"{name}-r0-f{fold}-s0:" for fold in (0, 1) for name in faults], "in whatever order they finished"
    rows = [json.loads(line) for line in (tmp_path / "run" / "trials.jsonl").read_text().splitlines()]
    assert {(row["aggregator"], row["status"]) for row in rows} == {
        ("mean", "ok"),
        *((name, "failed") for name in faults),
    }
    assert len(rows) == 2 * (1 + len(faults))
    for row in rows:
        if row["status"] == "failed":
            assert re.search(faults[row["aggregator"]][2], row["reason"])
        if row["status"] == "failed" and row["aggregator"] not in ("dies", "hangs"):
            trace = tmp_path / "run" / "trials" / row["trial"] / "traceback.txt"
            assert f"{row['aggregator']}.py" in trace.read_text()


def test_shared_parameters_are_written_under_both_names(run_cli, bag_table, tmp_path):
    plugin = write_plugin(
        tmp_path, "shares", "self.b = nn.Linear(in_dim, in_dim); self.b.weight = self.a.weight", "e = self.b(self.a(e))"
    )
    assert bench(run_cli, bag_table, tmp_path / "run", plugin)[0] == 0
    weights = load_file(tmp_path / "run" / "trials" / "shares-r0-f0-s0" / "weights.safetensors")
    assert weights["a.weight"].equal(weights["b.weight"])
    code, out, _ = run_cli(
        "predict", "--run", tmp_path / "run", "--model", "shares", bag_table, "--out", tmp_path / "p", "--write", "none"
    )
    assert code == 0
    assert "40 of 40 slides predicted" in out


def test_a_log_has_a_line_a_trial_and_says_what_is_done_while_figures_are_drawn(run_cli, bag_table, tmp_path):
    command = ("bench", "--models", "mean,max", "--dataset", bag_table, "--folds", 2, "--epochs", 1, "--out", tmp_path)
    code, out, _ = run_cli(*command)
    assert code == 0
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines if " of 4 trials" in line] == [
        "mean-r0-f0-s0",
        "max-r0-f0-s0",
        "mean-r0-f1-s0",
        "max-r0-f1-s0",
    ]
    assert [" left" in line for line in lines if " of 4 trials" in line] == [True, True, True, False]
    assert "Drawing tables and figures ..." in lines
    rows = (tmp_path / "trials.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "trials.jsonl").write_text("".join(rows[:3]))
    _, out, _ = run_cli(*command)
    assert "3 of 4 trials lie there already" in out
    assert out.count("; 4 of 4 trials\n") == out.count(" of 4 trials\n") == 1


class ByTheClock:
    """An executor whose trials fail, one after another, when the clock says so: srmil's after 16 s, abmil's after 2."""

    now = 0.0

    def run(self, jobs, on_trial, on_epoch):
        for job in jobs:
            on_trial(job.trial)
            seconds = {"srmil": 16.0, "abmil": 2.0}[job.trial.model.name]
            self.now += seconds
            yield dataclasses.replace(job.failed("so"), training_seconds=seconds)


def test_what_is_left_is_told_by_how_long_each_model_took(bag_table, tmp_path, monkeypatch):
    suite = read_suite(None, datasets=[str(bag_table)], models=["srmil", "abmil"], folds=2)
    clock, console = ByTheClock(), Console(file=io.StringIO())
    monkeypatch.setattr("mil_zoo.cli.progress.time", SimpleNamespace(monotonic=lambda: clock.now))
    run_with_progress(make_plan(suite, str(bag_table)), tmp_path, console, clock, 60.0)
    assert re.findall(r"about (\d+ s) left", console.file.getvalue()) == ["48 s", "18 s", "2 s"]


def test_what_a_model_loads_once_is_not_measured(run_cli, bag_table, tmp_path):
    load = "Mine.table = getattr(Mine, 'table', None) or [1] * 2**25"  # 256 MiB, at the first use in a process
    code, _, _ = bench(run_cli, bag_table, tmp_path / "run", write_plugin(tmp_path, "loads_once", "pass", load))
    assert code == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "trials.jsonl").read_text().splitlines()]
    assert [row["peak_mem_mib"] < 100 for row in rows] == [True] * 4
