"""What cannot be written: one sentence that says why, nothing half-written, and what was there stays."""

import contextlib
import os
import signal
import sys

import pandas as pd
import pytest

from mil_zoo.cli.predicted_files import write_classes
from mil_zoo.tasks import Classification

resource = pytest.importorskip("resource")  # limits are POSIX's

SMALL = ("--backbone", "mean", "--epochs", 1, "--batch-size", 16, "--set", "projection_dim=4", "--set", "views=2")


@contextlib.contextmanager
def files_of_at_most(size):
    """No file can grow beyond ``size`` bytes, as on a file system that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    compiles, sys.dont_write_bytecode = not sys.dont_write_bytecode, True  # a module's cache would be cut short, unseen
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        sys.dont_write_bytecode = not compiles
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture(scope="module")
def bench(bag_table, tmp_path_factory):
    """A finished run without its tables."""
    from mil_zoo.bench.plan import make_plan
    from mil_zoo.bench.runner import run_plan
    from mil_zoo.bench.suite import Suite

    suite = Suite([str(bag_table)], ["mean"], folds=2, epochs=1)
    return run_plan(make_plan(suite, str(bag_table)), tmp_path_factory.mktemp("bench") / "run").path


def sentence(run_cli, *command):
    code, _, err = run_cli(*command)
    assert (code, err.count("\n")) == (2, 1), err
    return err


def left(folder):
    return sorted(path.name for path in folder.rglob("*") if path.name.endswith(".partial"))


def test_a_report(run_cli, bench):
    with files_of_at_most(300):
        err = sentence(run_cli, "report", bench)
    assert f"writing to {bench} failed (File too large" in err
    assert f"the results are kept: start mil-zoo report {bench} again" in err
    assert left(bench) == []
    assert not (bench / "table.csv").exists()
    (bench / "table.csv").write_text("as it was")
    with files_of_at_most(300):
        sentence(run_cli, "report", bench)
    assert (bench / "table.csv").read_text() == "as it was"


@pytest.mark.parametrize("size", [0, 500, 3000])
def test_a_pretraining(run_cli, bag_table, tmp_path, size):
    command = ("pretrain", "--dataset", bag_table, *SMALL, "--out", tmp_path / "run")
    with files_of_at_most(size):
        assert f"writing to {tmp_path / 'run'} failed (File too large" in sentence(run_cli, *command)
    assert left(tmp_path) == []
    assert run_cli(*command)[0] == 0  # goes on once there is space


def test_predictions_and_probes(run_cli, bag_table, bench, tmp_path):
    predict = ("predict", "--run", bench, "--model", "mean", bag_table, "--write", "none", "--out", tmp_path / "p")
    with files_of_at_most(1000):
        err = sentence(run_cli, *predict)
    assert "(File too large" in err
    assert f"the rows so far are in {tmp_path / 'p' / 'probabilities.unfinished.csv'}" in err
    assert not (tmp_path / "p" / "probabilities.csv").exists()
    assert run_cli(*predict)[0] == 0
    whole = (tmp_path / "p" / "probabilities.csv").read_bytes()
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["classes.csv", "probabilities.csv"]
    for size in (0, 100, 1000):
        with files_of_at_most(size):
            sentence(run_cli, *predict)
        assert (tmp_path / "p" / "probabilities.csv").read_bytes() == whole  # an earlier table is not lost
    (tmp_path / "file").write_text("")
    assert "(Not a directory" in sentence(run_cli, *predict[:-1], tmp_path / "file" / "p")


def test_classes_are_all_in_a_file_and_the_first_in_a_sentence(tmp_path):
    names = ["a,b", 'q"uote', *(f"class {i}" for i in range(998))]
    said = write_classes(tmp_path / "classes.csv", Classification(1000, tuple(names)))
    assert said.startswith(' (prob_0: a,b, prob_1: q"uote, prob_2: class 0, ')
    assert said.endswith(", prob_9: class 7, ... and 990 more in classes.csv)")
    table = pd.read_csv(tmp_path / "classes.csv")
    assert table.to_numpy().tolist() == [[f"prob_{i}", name] for i, name in enumerate(names)]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(run_cli, bench):
    bench.chmod(0o500)
    try:
        assert "(Permission denied" in sentence(run_cli, "report", bench)
    finally:
        bench.chmod(0o700)


def test_text_that_is_no_utf_8_and_markup_are_shown_as_they_are(run_cli, bag_table, tmp_path):
    plugin = tmp_path / "odd.py"
    plugin.write_text(
        "from mil_zoo import register_aggregator\n"
        "from mil_zoo.aggregators.mean_max import MeanPooling\n"
        "@register_aggregator('odd')\n"
        "class Odd(MeanPooling):\n"
        "    def losses(self, batch):\n"
        "        raise ValueError('half a \\ud800 pair, [bold]not bold[/bold] and [/]')\n"
    )
    run = ("bench", "--dataset", bag_table, "--models", "odd,mean", "--folds", 2, "--epochs", 1, "--plugin", plugin)
    code, out, err = run_cli(*run, "--title", "[red]A[/] $x$ \\begin", "--out", tmp_path / "[bold]run")
    assert (code, err) == (1, "")
    assert "[red]A[/] $x$ \\begin: 40 bags" in out
    assert "[bold]not bold[/bold] and [/]" in out
    assert f"Page:    {tmp_path / '[bold]run'}" in out
    page = (tmp_path / "[bold]run" / "report.html").read_text(encoding="utf-8")
    assert "half a \\ud800 pair" in page
