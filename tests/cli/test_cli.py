"""The command line as its users meet it: help, lists, a whole run, and one sentence for every mistake."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from helpers import needs_dgl

from mil_zoo import cli
from mil_zoo.aggregators.mean_max import MeanPooling
from mil_zoo.bench import run_directory as store


def modules_loaded_by(*arguments):
    """Runs a command in a fresh interpreter; its output, and which heavy modules it imported."""
    code = (
        f"import sys; sys.argv = ['mil-zoo', *{[str(argument) for argument in arguments]!r}]\n"
        "from mil_zoo.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = ('torch', 'dgl', 'numpy', 'pandas', 'matplotlib', 'rich')\n"
        "print(*[name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *output, modules = done.stdout.splitlines()
    return "\n".join(output), modules.split()


def test_help_names_every_command_and_loads_nothing_heavy():
    output, modules = modules_loaded_by("--help")
    assert modules == []  # so it answers at once
    for command in ("bench", "report", "compare", "published", "data", "models", "datasets", "graphs", "doctor"):
        assert command in output


@pytest.mark.parametrize(("entry", "jobs"), [("console", "auto"), ("main", "1")])
def test_a_bench_fills_the_cores_unless_a_script_calls_it(entry, jobs, monkeypatch, capsys):
    monkeypatch.delenv("MIL_ZOO_JOBS")
    monkeypatch.setattr(sys, "argv", ["mil-zoo", "bench", "--help"])
    with pytest.raises(SystemExit):
        getattr(cli, entry)()
    assert f"default: {jobs}]" in " ".join(capsys.readouterr().out.split())


def test_lists(run_cli):
    for command, words in {
        "models": ["abmil", "srmil", "window:2"],
        "datasets": ["demo", "crchisto", "simulated", "histology/crchisto_nuclei.npz"],
        "graphs": ["window:w", "feature_knn:k", "delaunay"],
        "doctor": ["torch", "reference", "dgl", "numba", "triton", "graph_attention", "threads"],
    }.items():
        code, out, _ = run_cli(command)
        assert code == 0
        for word in words:
            assert word in out, (command, word)
    assert "Examples" in run_cli("bench", "--help")[1]
    _, out, _ = run_cli("models", "srmil")
    for word in ("mask_rate", "0.7", "masked patch-feature reconstruction", "2602.19487"):
        assert word in out, word
    hint = (
        "did you mean 'srmil' or 's4mil'? If a file of yours registers it, pass --plugin FILE.py (in Python, import it)"
    )
    assert hint in run_cli("models", "srml")[2]
    assert "did you mean 'linear_probe'" in run_cli("models", "linear_prob")[2]
    assert "linear_probe" in run_cli("models")[1]
    _, out, _ = run_cli("models", "linear_probe")
    assert "inverse strength of the L2 penalty" in " ".join(out.split())
    assert "mil-zoo bench --models linear_probe" in out


def test_a_model_is_told_in_full(run_cli):
    _, out, _ = run_cli("models", "dsmil")
    for words in (
        "critical instance of class k",
        "https://github.com/binli123/dsmil-wsi",
        "Deviations: probabilities are the sigmoids",
        "Family: attention. Needs: features.",
        "Cost: 153,860 parameters. Eval",
        "dropout rate of the features that become values",  # of an option, from the docstring
        "betas [0.5, 0.9]",  # of the recipe
        "train_tcga.py",  # its source
        'load_published("checkpoint.pth")',
    ):
        assert words in out, words
    assert "load_published" not in run_cli("models", "mean")[1]


def test_measurements_are_kept_and_shown(run_cli, tmp_path, monkeypatch):
    from mil_zoo.bench import cost

    measured = []

    def measure(name, threads, plugins):
        measured.append(name)
        return cost.Cost(name, 5, 12.4, 34.0, 1567.0, 890.0, f"a machine, {threads} threads", "2026-01-01")

    monkeypatch.setattr(cost, "measure", measure)
    path = tmp_path / "costs.csv"
    _, out, _ = run_cli("models", "mean", "--measure", path, "--threads", 3)
    assert measured == list(cost.read_costs(path)) == ["mean"]
    assert "Eval 12 ms, 34 MiB; training step 1,567 ms, 890 MiB" in out
    assert "Measured on a machine, 3 threads, 2026-01-01" in out
    run_cli("models", "abmil", "--measure", path)
    assert list(cost.read_costs(path)) == ["abmil", "mean"], "other rows are kept"
    monkeypatch.setattr(cost, "read_costs", lambda path=None: {})  # as of an aggregator of one's own
    _, out, _ = run_cli("models", "mean")
    assert "525,826 parameters. Time and memory are not measured; --measure FILE.csv does it." in out
    monkeypatch.undo()
    monkeypatch.setattr(cost, "measure", measure)
    measured.clear()
    _, out, _ = run_cli("models", "--measure", path, "--markdown")
    assert {"srmil", "transmil"} < set(measured)
    assert "| window:2 | 12 ms, 34 MiB | 1,567 ms, 890 MiB | no licence stated |" in out


@pytest.mark.figures
def test_bench_and_report(run_cli, bag_table, tmp_path, monkeypatch):
    out_dir = tmp_path / "run"
    code, out, err = run_cli(
        "bench", "--dataset", bag_table, "--models", "abmil,mean", "--folds", 2, "--epochs", 2, "--out", out_dir
    )
    assert (code, err) == (0, "")
    assert "AUC" in out
    assert f"Tables:  {out_dir} (table.csv, table.md, table.tex, " in out
    figures = {path.name for path in (out_dir / "figures").iterdir()}
    assert {"figure3.png", "figure3-abmil.png", "metrics.png"} <= figures
    assert any(name.startswith("attention-slide_") for name in figures)
    drawn = [path for path in out_dir.glob("*.*") if path.suffix in (".csv", ".md", ".tex") and path.stem != "splits"]
    before = {path: path.read_bytes() for path in drawn}
    tables = {"table.csv", "table.md", "table.tex", "cost.csv", "cost.md", "comparisons.csv", "comparisons.md"}
    names = {path.name for path in before} - {"undefined.csv"}  # there where two folds have the same score
    assert names == tables | {
        "baseline.csv",
        "diagnostics.csv",
        "equivalence.csv",
        "last_epoch.csv",
        "last_epoch.md",
        "reporting.md",
        "skew.csv",
        "skew.md",
    }
    for path in before:
        path.unlink()
    monkeypatch.setattr("mil_zoo.report.figures.draw_figures", lambda results: [])  # they were looked at above
    code, _, _ = run_cli("report", out_dir)
    assert code == 0
    assert {path: path.read_bytes() for path in before} == before


def test_names_of_datasets_are_whole(run_cli, monkeypatch):
    """A name is what is typed: no column is too narrow for it."""
    from mil_zoo.data.card import list_cards

    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run_cli("datasets")
    assert {name for name in list_cards() if name not in out} == set()
    assert "…" not in out


def test_several_datasets_share_a_folder(run_cli, bag_table, tmp_path):
    other = tmp_path / "other.npz"
    other.write_bytes(bag_table.read_bytes())
    code, _, _ = run_cli(
        "bench",
        "--dataset",
        f"{bag_table},{other}",
        "--models",
        "mean",
        "--folds",
        2,
        "--epochs",
        1,
        "--out",
        tmp_path / "r",
    )
    assert code == 0
    assert (tmp_path / "r" / "bags" / "table.csv").exists()
    assert (tmp_path / "r" / "other" / "table.csv").exists()


def test_options_for_all_aggregators(run_cli, bag_table, tmp_path):
    code, _, _ = run_cli(
        "bench", "--dataset", bag_table, "--models", "abmil,mean", "--folds", 2, "--epochs", 1, "--out", tmp_path / "r",
        "--class-weights", "balanced", "--max-instances", 3, "--set", "mean.max_instances=5",
    )  # fmt: skip
    assert code == 0
    settings = store.RunDirectory(tmp_path / "r").config["model_settings"]
    assert {name: settings[name]["training"]["max_instances"] for name in settings} == {"abmil": 3, "mean": 5}
    assert {settings[name]["training"]["class_weights"] for name in settings} == {"balanced"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bnch"], "unknown command 'bnch'; did you mean 'bench'"),
        (["bench", "--model", "abmil"], "--models"),
        (["bench", "--models", "abmill"], "unknown aggregator 'abmill'; did you mean 'abmil'"),
        (["bench", "--models", "qqq"], "; if a file of yours registers it, pass --plugin FILE.py"),
        (["bench", "--dataset", "crchistoo"], "unknown dataset 'crchistoo'; did you mean 'crchisto'"),
        (["bench", "--suite", "dem"], "unknown suite 'dem'; did you mean 'demo'"),
        (["bench", "--dataset", "none.npz"], "none.npz: no such file"),
        (["bench", "--set", "srmil.mask_ratio=1"], "did you mean 'mask_rate'"),
        (["bench", "--seeds", "a"], "--seeds 'a'"),
        (["bench", "--folds", "ten"], "--folds must be a number or 'published'"),
        (["bench", "--plugin", "none.py"], "none.py does not exist"),
        (["report", "nowhere"], "nowhere is not a run directory"),
        (("bench", "--dataset", ""), "what follows --dataset is empty, as an unset variable of the shell is"),
        (("report", " "), "what follows report is empty"),
        (("bench", "--dataset", ","), "--dataset ',' names nothing"),
        (("bench", "--models", ", "), "--models ', ' names nothing"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(run_cli, arguments, message):
    code, _, err = run_cli(*arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_an_output_place_that_cannot_be_written(run_cli, bag_table, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run_cli("bench", "--dataset", bag_table, "--models", "mean", "--out", tmp_path / "file" / "run")
    assert code == 2
    assert "cannot be written" in err


def test_a_full_disk_loses_nothing_that_was_computed(run_cli, bag_table, tmp_path, monkeypatch):
    command = (
        "bench",
        "--dataset",
        bag_table,
        "--models",
        "abmil,mean",
        "--folds",
        2,
        "--epochs",
        1,
        "--out",
        tmp_path / "r",
    )
    add_trial, left = store.RunDirectory.add_trial, [2]

    def full(self, row, write=None):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        add_trial(self, row, write)

    monkeypatch.setattr(store.RunDirectory, "add_trial", full)
    code, _, err = run_cli(*command)
    assert code == 2
    assert "No space left on device" in err
    assert "2 finished trials are kept" in err
    monkeypatch.setattr(store.RunDirectory, "add_trial", add_trial)
    assert len(store.RunDirectory(tmp_path / "r").trials()) == 2
    assert run_cli(*command)[0] == 0
    assert len(store.RunDirectory(tmp_path / "r").trials()) == 4


def test_an_edited_result_is_refused(run_cli, bag_table, tmp_path):
    command = ("bench", "--dataset", bag_table, "--models", "mean", "--folds", 2, "--epochs", 1, "--out", tmp_path)
    assert run_cli(*command)[0] == 0
    file = tmp_path / "trials.jsonl"
    file.write_text(file.read_text().replace('"auc": ', '"auc": 0.00001'))
    for arguments in (command, ("report", tmp_path)):
        code, _, err = run_cli(*arguments)
        assert code == 2
        assert "was changed after it was written" in err
    file.unlink()
    kept = (tmp_path / "table.csv").read_bytes()
    code, _, err = run_cli("report", tmp_path)
    assert (code, (tmp_path / "table.csv").read_bytes()) == (2, kept)
    assert "keeps the tables of a run without its trials" in err


def test_other_settings_in_the_same_folder_are_refused(run_cli, bag_table, tmp_path):
    command = ["bench", "--dataset", bag_table, "--models", "mean", "--folds", 2, "--out", tmp_path]
    assert run_cli(*command, "--epochs", 1)[0] == 0
    code, _, err = run_cli(*command, "--epochs", 2)
    assert code == 2
    assert "model_settings.mean.training.epochs: 1 there, 2 now" in err


@needs_dgl
def test_a_plugin_takes_part(run_cli, bag_table, tmp_path):
    plugin = tmp_path / "plugged.py"
    plugin.write_text(
        "from mil_zoo import register_aggregator, register_graph\n"
        "from mil_zoo._dgl import dgl\n"
        "from mil_zoo.aggregators.srmil.fast import SRMIL\n"
        "@register_graph('three')\n"
        "def three(coords):\n    return dgl.knn_graph(coords, min(4, len(coords)))\n"
        "@register_aggregator('plugged')\n"
        "class Plugged(SRMIL):\n    graph = 'three'\n"
    )
    code, _, err = run_cli(
        "bench", "--plugin", plugin, "--dataset", bag_table, "--models", "plugged", "--folds", 2, "--epochs", 1,
        "--set", "plugged.hidden=8", "--set", "plugged.graph=three", "--out", tmp_path / "r",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert store.RunDirectory(tmp_path / "r").config["model_settings"]["plugged"]["graph"] == "three"
    _, out, _ = run_cli("models", "plugged", "--plugin", plugin)
    assert f"mil-zoo bench --plugin {plugin} --models plugged" in out


def test_a_slide_with_nan_features_is_named(run_cli, tmp_path):
    features = np.ones((6, 2))
    features[4] = np.nan
    np.savez(tmp_path / "t.npz", X=features, bag_ptr=[0, 3, 6], bag_label=[0, 1])
    code, _, err = run_cli("bench", "--dataset", tmp_path / "t.npz", "--models", "mean")
    assert code == 2
    assert "X is NaN or infinite in row 4 (bag 1)" in err


def test_an_interrupt_keeps_what_is_done_and_says_how_to_go_on(run_cli, bag_table, tmp_path, monkeypatch):
    add_trial = store.RunDirectory.add_trial

    def interrupted(self, row, write=None):
        add_trial(self, row, write)
        raise KeyboardInterrupt

    monkeypatch.setattr(store.RunDirectory, "add_trial", interrupted)
    code, out, _ = run_cli(
        "bench", "--dataset", bag_table, "--models", "mean", "--folds", 2, "--epochs", 1, "--out", tmp_path
    )
    assert code == 130
    assert f"--out {tmp_path} continues" in out
    assert len(store.RunDirectory(tmp_path).trials()) == 1


def test_a_file_that_ends_early_is_no_interrupt(run_cli, tmp_path, monkeypatch):
    def ended(path):
        raise EOFError("Ran out of input")

    monkeypatch.setattr(store.RunDirectory, "open", ended)
    with pytest.raises(EOFError, match="Ran out of input"):
        run_cli("report", tmp_path)


def test_a_scheduler_that_ends_a_run_leaves_the_same_word(run_cli, bag_table, tmp_path, monkeypatch):
    """Also where the shell ignores Ctrl-C, as it does for jobs in the background: no failure of the aggregator's."""
    monkeypatch.setattr(MeanPooling, "losses", lambda self, batch: os.kill(os.getpid(), signal.SIGTERM))
    kept = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code, out, err = run_cli(
            "bench", "--dataset", bag_table, "--models", "mean", "--folds", 2, "--epochs", 1, "--out", tmp_path
        )
    finally:
        signal.signal(signal.SIGINT, kept)
    assert (code, err.strip()) == (143, "mil-zoo: ended by SIGTERM")
    assert f"Interrupted after 0 of 2 trials; they are kept. The same command with --out {tmp_path} continues." in out
    assert store.RunDirectory(tmp_path).trials() == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_comma_in_a_path(tmp_path, monkeypatch, run_cli):
    """It parts datasets, unless the path is there."""
    monkeypatch.chdir(tmp_path)
    for name in ("Smith, John.npz", "b.npz"):
        np.savez(
            name, X=np.random.default_rng(0).normal(size=(16, 4)), bag_ptr=np.arange(0, 17, 2), bag_label=[0, 1] * 4
        )
    given = ("--models", "mean", "--folds", "2", "--epochs", "1", "--dry-run", "--out", tmp_path / "out")
    for datasets, plans in (("Smith, John.npz", 1), ("b.npz, Smith, John.npz", 2)):
        code, out, err = run_cli("bench", "--dataset", datasets, *given)
        assert code == 0, err
        assert out.count("2 trials to run, 0 done") == plans
    code, _, err = run_cli("bench", "--dataset", "b.npz,Smith", *given)
    assert (code, "Smith" in err) == (2, True)
