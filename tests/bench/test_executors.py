"""Executors: the same bytes wherever trials run, and nothing but an attempt lost when a process dies."""

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
from survival_runs import make_cohort
from task_runs import TASKS, jobs_of, task_plan

from mil_zoo.bench import executors
from mil_zoo.bench.executors import Processes
from mil_zoo.bench.plan import make_plan
from mil_zoo.bench.ray_executor import OnRay
from mil_zoo.bench.runner import run_plan
from mil_zoo.bench.suite import read_suite
from mil_zoo.bench.trial import Worker
from mil_zoo.registry import PLUGINS, load_plugin
from mil_zoo.report.load import Results
from mil_zoo.report.tables import write_tables

SAME = ("predictions.csv", "skew.csv", "weights.safetensors", "standardiser.safetensors")


def small_plan(table, **given):
    small = {"folds": 2, "epochs": 2, "models": ["srmil", "abmil"], "overrides": {"srmil.hidden": 8, "srmil.heads": 2}}
    return make_plan(read_suite(None, **{"datasets": [str(table)]} | small | given), str(table))


@pytest.fixture(scope="module")
def in_process(bag_table, tmp_path_factory):
    run = run_plan(small_plan(bag_table), tmp_path_factory.mktemp("in_process"))
    write_tables(Results.load(run))
    return run


def assert_same_results(run, expected):
    write_tables(Results.load(run))
    for name in ("config.yaml", "table.csv", "skew.csv"):
        assert (run.path / name).read_bytes() == (expected.path / name).read_bytes(), name
    for row in expected.trials():
        for name in SAME:
            here, there = (which.path / "trials" / row["trial"] / name for which in (run, expected))
            assert here.read_bytes() == there.read_bytes(), (row["trial"], name)


def test_processes_give_the_same_bytes_as_one(bag_table, in_process, tmp_path):
    started, epochs = [], []
    run = run_plan(
        small_plan(bag_table),
        tmp_path,
        executor=Processes(2),
        on_trial=lambda trial: started.append(trial.id),
        on_epoch=lambda trial, row: epochs.append((trial.id, row["epoch"])),
    )
    assert_same_results(run, in_process)
    assert sorted(started) == sorted(row["trial"] for row in in_process.trials())
    assert sorted(epochs) == sorted((trial, epoch) for trial in started for epoch in (1, 2))
    assert not list(run.path.glob("trials/.*"))
    assert not multiprocessing.active_children()


def test_trials_of_the_models_that_take_longest_start_first(bag_table, tmp_path, monkeypatch):
    started, clock = [], SimpleNamespace(now=0.0)

    def on_trial(trial):
        started.append(trial.model.name)
        clock.now += {"mean": 1.0, "max": 16.0}[trial.model.name]

    monkeypatch.setattr(executors, "time", SimpleNamespace(monotonic=lambda: clock.now))
    plan = small_plan(bag_table, models=["mean", "max"], folds=3, epochs=1, overrides={})
    run_plan(plan, tmp_path / "run", executor=Processes(1), on_trial=on_trial)
    assert started == ["mean", "max", "max", "max", "mean", "mean"]  # each once, then what took longer


PLUGIN = """
import os, signal, stat, time
from pathlib import Path
from mil_zoo import register_aggregator
from mil_zoo.aggregators.mean_max import MeanPooling

@register_aggregator("dies_once")
class DiesOnce(MeanPooling):
    def losses(self, batch):
        marker = Path({marker!r})
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().losses(batch)

@register_aggregator("dies_always")
class DiesAlways(MeanPooling):
    def losses(self, batch):
        os.kill(os.getpid(), signal.SIGKILL)

@register_aggregator("dies_seemingly")
class DiesSeemingly(MeanPooling):
    def losses(self, batch):
        for file in range(3, 200):
            try:
                if stat.S_ISSOCK(os.fstat(file).st_mode):
                    os.close(file)
            except OSError:
                pass
        time.sleep(60)
"""


def test_a_killed_process_costs_its_attempt_only(bag_table, tmp_path, monkeypatch):
    plugin = tmp_path / "deadly.py"
    plugin.write_text(PLUGIN.format(marker=str(tmp_path / "marker")))
    load_plugin(plugin)
    monkeypatch.setattr(executors, "ATTEMPTS", 2)
    monkeypatch.setattr(executors, "GRACE_SECONDS", 0.2)
    plan = small_plan(bag_table, models=["dies_always", "dies_once", "dies_seemingly", "mean"], overrides={})
    plan = dataclasses.replace(plan, drawn=dataclasses.replace(plan.drawn, splits=plan.splits[:1]))
    run = run_plan(plan, tmp_path / "run", executor=Processes(1))
    rows = {row["aggregator"]: row for row in run.trials()}
    names = ("dies_once", "mean", "dies_always", "dies_seemingly")
    assert [rows[name]["status"] for name in names] == ["ok", "ok", "failed", "failed"]
    assert rows["dies_seemingly"]["reason"].startswith(
        "the process closed its connection and went on; a model must leave"
    )
    assert "killed (signal 9" in rows["dies_always"]["reason"]
    assert rows["dies_always"]["reason"].endswith("in 2 attempts")
    assert not (run.path / "trials" / "dies_always-r0-f0-s0").exists()
    assert not list(run.path.glob("trials/.*"))
    plan = dataclasses.replace(plan, models=plan.models[1:2])  # dies_once, which now lives
    undisturbed = run_plan(plan, tmp_path / "undisturbed")
    assert undisturbed.predictions("dies_once-r0-f0-s0").equals(run.predictions("dies_once-r0-f0-s0"))


SLOW = """
import time
from mil_zoo import register_aggregator
from mil_zoo.aggregators.mean_max import MeanPooling

@register_aggregator("slow")
class Slow(MeanPooling):
    def losses(self, batch):
        time.sleep(60)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_the_run_and_what_is_done_is_kept(bag_table, tmp_path, sent):
    plugin, out = tmp_path / "slow.py", tmp_path / "run"
    plugin.write_text(SLOW)
    command = [
        sys.executable, "-c", "from mil_zoo.cli import main; main()", "bench", "--plugin", plugin,
        "--dataset", bag_table, "--models", "mean,slow", "--folds", "2", "--epochs", "1",
        "--jobs", "2", "--out", out,
    ]  # fmt: skip
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A shell starts its background jobs with Ctrl-C ignored, and the tests may be one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        rows = out / "trials.jsonl"
        deadline = time.monotonic() + 120
        while not (rows.exists() and rows.read_text().endswith("\n")):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) >= 2
        if sent == signal.SIGINT:
            os.killpg(process.pid, sent)  # as a terminal does: to the workers too
        else:
            process.send_signal(sent)
        output = process.communicate(timeout=60)[0]
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    assert json.loads(rows.read_text().splitlines()[0])["status"] == "ok"
    if sent != signal.SIGKILL:
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[sent]
        assert f"--out {out} continues" in " ".join(output.split())
        assert "Traceback" not in output
        assert "leaked" not in output  # as Python says of semaphores that nobody closed


def test_a_full_disk_of_a_process_is_one_sentence(bag_table, tmp_path, run_cli):
    plugin, out = tmp_path / "full.py", tmp_path / "run"
    plugin.write_text(
        "import os\nfrom pathlib import Path\n"
        "def full(*_):\n    raise OSError(28, os.strerror(28))\n"
        "if 'FULL' in os.environ:\n    Path.write_bytes = full\n"
    )
    command = ["bench", "--dataset", bag_table, "--models", "mean", "--folds", 2, "--epochs", 1, "--out", out]
    command += ["--plugin", plugin]
    done = subprocess.run(
        [sys.executable, "-m", "mil_zoo", *map(str, command), "--jobs", "2"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"FULL": "1"},
    )
    assert done.returncode == 2
    assert "(No space left on device); free some space; 0 finished trials are kept" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert run_cli(*command)[0] == 0  # the same command goes on once there is space


def test_jobs_are_as_many_as_cores_and_memory_allow(bag_table, monkeypatch):
    plan = small_plan(bag_table, folds=4)  # 8 trials of one thread

    def fit(cores, mib, plan=plan):
        monkeypatch.setattr(executors, "cores", lambda: cores)
        monkeypatch.setattr(executors.memory, "available", lambda: mib)
        return executors.jobs_that_fit(plan)

    assert [fit(cores, None) for cores in (1, 2, 3, 16)] == [1, 2, 3, 4]
    assert [fit(16, mib) for mib in (500.0, 2500.0, 1e6)] == [1, 2, 4]
    assert fit(16, 1e6, small_plan(bag_table, folds=4, threads=8)) == 2
    assert fit(16, 1e6, small_plan(bag_table, folds=2, models=["mean"], overrides={})) == 1


def test_impossible_numbers(run_cli, bag_table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for options, message in {
        ("--jobs", 0): "--jobs must be at least 1",
        ("--jobs", -1, "--dry-run"): "--jobs must be at least 1",
        ("--time-limit", "nan", "--dry-run"): "--time-limit must be positive and finite",
        ("--jobs", "many"): "--jobs is a number of trials or auto, not 'many'",
        ("--threads", 0): "--threads must be at least 1",
        ("--jobs", 2, "--executor", "local"): "--executor local runs one trial at a time",
    }.items():
        code, _, err = run_cli("bench", "--dataset", bag_table, "--models", "mean", *options)
        assert code == 2
        assert message in err


@pytest.fixture
def on_ray(monkeypatch):
    """One cluster for all runs of a test: starting it takes most of the time."""
    import ray

    monkeypatch.setenv("RAY_worker_niceness", "0")  # else its processes wait for all others, the tests beside this one
    yield OnRay(jobs=2)
    ray.shutdown()


def test_ray_gives_the_same_bytes_and_survives_a_kill(bag_table, in_process, tmp_path, on_ray, monkeypatch):
    plugin = tmp_path / "deadly_on_ray.py"
    plugin.write_text(PLUGIN.format(marker=str(tmp_path / "marker")).replace("dies_", "dies_on_ray_"))
    load_plugin(plugin)
    plan = small_plan(bag_table, models=["dies_on_ray_once"], overrides={})
    plan = dataclasses.replace(plan, drawn=dataclasses.replace(plan.drawn, splits=plan.splits[:1]))
    killed = run_plan(plan, tmp_path / "killed", executor=on_ray)
    assert (tmp_path / "marker").exists()
    assert [row["status"] for row in killed.trials()] == ["ok"]
    assert_same_results(run_plan(small_plan(bag_table), tmp_path / "run", executor=on_ray), in_process)
    ends = tmp_path / "ends_on_ray.py"
    text = PLUGIN.format(marker=str(tmp_path / "marker")).replace("dies_", "ends_on_ray_")
    ends.write_text(f"import os\nif os.getpid() != {os.getpid()}: os.kill(os.getpid(), 9)\n{text}")
    load_plugin(ends)
    plan = small_plan(bag_table, models=["ends_on_ray_once", "mean"], overrides={})
    plan = dataclasses.replace(plan, drawn=dataclasses.replace(plan.drawn, splits=plan.splits[:1]))
    rows = {row["aggregator"]: row for row in run_plan(plan, tmp_path / "ends", executor=on_ray).trials()}
    assert {name: row["status"] for name, row in rows.items()} == {"ends_on_ray_once": "failed", "mean": "ok"}
    assert rows["ends_on_ray_once"]["reason"].startswith(f"plugin {ends} cannot be imported there: WorkerCrashedError")
    PLUGINS.files.remove(ends)  # the workers of other tests must not load it
    plans = {task: task_plan(make_cohort(tmp_path), task) for task in TASKS}
    here, there = (jobs_of(plans, tmp_path / place) for place in ("here", "there"))
    assert all(trial.ok for trial in on_ray.run(list(there.values()), lambda trial: None, lambda trial, row: None))
    hangs = tmp_path / "hangs_on_ray.py"
    hangs.write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(executors, "IMPORT_SECONDS", 2.0)
    late = dataclasses.replace(there["survival"], plugins=(hangs,))
    (trial,) = on_ray.run([late], lambda trial: None, lambda trial, row: None)
    assert trial.reason == f"plugin {hangs} cannot be imported there: its import took longer than 0.0333333 minutes"
    for task, job in here.items():
        assert Worker().run(job).ok
        for name in ("predictions.csv", "skew.csv", "weights.safetensors"):
            assert (job.folder / name).read_bytes() == (there[task].folder / name).read_bytes(), (task, name)
    tuned = small_plan(bag_table, models=["mean"], epochs=1, tune=3, overrides={"embed_dim": 8})
    tuned = dataclasses.replace(tuned, drawn=dataclasses.replace(tuned.drawn, splits=tuned.splits[:1]))
    here, there = (run_plan(tuned, tmp_path / f"tuned_{i}", executor=at) for i, at in enumerate((None, on_ray)))
    (row,) = here.trials()
    assert there.trials()[0]["settings"] == row["settings"]
    searched = [run.tuning(row["trial"]).drop(columns="seconds") for run in (here, there)]
    pd.testing.assert_frame_equal(*searched, check_exact=True)
    assert here.read(row["trial"], "predictions.csv") == there.read(row["trial"], "predictions.csv")


def test_what_ray_cannot_do_is_one_sentence(run_cli, bag_table):
    command = ("bench", "--dataset", bag_table, "--models", "mean", "--executor", "ray")
    for address, message in {
        "127.0.0.1:9": "nothing answers there",
        "ray://127.0.0.1:9": "nothing answers there",
        "here": "must be host:port",
    }.items():
        code, _, err = run_cli(*command, "--address", address)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1


def test_a_trial_over_its_time_fails_and_the_next_one_runs(bag_table, tmp_path, run_cli):
    plugin = tmp_path / "slow_one.py"
    plugin.write_text(SLOW.replace('"slow"', '"slow_one"'))
    load_plugin(plugin)
    plan = small_plan(bag_table, models=["slow_one"], overrides={})
    plan = dataclasses.replace(plan, drawn=dataclasses.replace(plan.drawn, splits=plan.splits[:2]))
    rows = run_plan(plan, tmp_path / "run", executor=Processes(1, limit=1.0)).trials()
    assert [row["status"] for row in rows] == ["failed"] * 2
    assert rows[0]["reason"].startswith("it took longer than --time-limit, 0.0166667 minutes")
    code, _, err = run_cli("bench", "--dataset", bag_table, "--models", "mean", "--time-limit", "-1")
    assert (code, err) == (2, "mil-zoo: --time-limit must be positive and finite, not -1\n")
