"""The run directory: atomic rows, checksums, one runner at a time, settings that must agree."""

import json
import subprocess
import sys

import pytest

from mil_zoo import InputError
from mil_zoo.bench.run_directory import RunDirectory

SETTINGS = {"models": ["a"], "split": {"folds": 3, "hash": "x"}}


def test_rows_come_back_and_files_only_when_whole(tmp_path):
    run = RunDirectory(tmp_path / "run")
    with run.writing(SETTINGS):
        run.add_trial({"trial": "a-1", "status": "ok", "value": 0.1}, lambda folder: (folder / "x.csv").write_text("x"))

        def dies(folder):
            (folder / "x.csv").write_text("half")
            raise RuntimeError("power cut")

        with pytest.raises(RuntimeError):
            run.add_trial({"trial": "a-2", "status": "ok"}, dies)
    assert run.config == SETTINGS
    assert run.trials() == [{"trial": "a-1", "status": "ok", "value": 0.1}]
    assert (run.path / "trials" / "a-1" / "x.csv").read_text() == "x"
    assert not (run.path / "trials" / "a-2").exists()


def test_of_a_repeated_trial_the_last_row_counts(tmp_path):
    run = RunDirectory(tmp_path)
    with run.writing(SETTINGS):
        run.add_trial({"trial": "a-1", "status": "failed"})
        run.add_trial({"trial": "a-1", "status": "ok"})
    assert [row["status"] for row in run.trials()] == ["ok"]


def test_a_torn_last_row_is_dropped_and_an_altered_row_refused(tmp_path):
    run = RunDirectory(tmp_path)
    with run.writing(SETTINGS):
        run.add_trial({"trial": "a-1", "auc": 0.7})
    file = tmp_path / "trials.jsonl"
    whole = file.read_text()
    file.write_text(whole + whole[: len(whole) // 2])
    assert len(run.trials()) == 1
    with run.writing(SETTINGS):
        pass
    assert file.read_text() == whole
    file.write_text(whole.replace("0.7", "0.9"))
    with pytest.raises(InputError, match=r"trials.jsonl, line 1: the row was changed after it was written"):
        run.trials()
    file.write_text(json.dumps({"trial": "a-1", "auc": 0.9}) + "\n")
    with pytest.raises(InputError, match="line 1"):
        run.trials()


def test_other_settings_are_refused_and_named(tmp_path):
    run = RunDirectory(tmp_path)
    with run.writing(SETTINGS):
        pass
    other = {"models": ["a", "b"], "split": {"folds": 5, "hash": "x"}}
    with (
        pytest.raises(InputError, match=r"other settings .*models: \['a'\] there.*split.folds: 3 there, 5 now"),
        run.writing(other),
    ):
        pass
    assert run.config == SETTINGS


def test_a_second_runner_refuses(tmp_path):
    code = (
        "from mil_zoo.bench.run_directory import RunDirectory\nimport sys\n"
        f"with RunDirectory({str(tmp_path)!r}).writing({SETTINGS!r}):\n"
        "    print('in', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "in\n"
        with (
            pytest.raises(InputError, match="another mil-zoo is writing this run"),
            RunDirectory(tmp_path).writing(SETTINGS),
        ):
            pass
        other.kill()
    with RunDirectory(tmp_path).writing(SETTINGS):  # a dead runner holds nothing
        pass


def test_unwritable_places_and_other_folders_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="cannot be written"),
        RunDirectory(tmp_path / "file" / "run").writing(SETTINGS),
    ):
        pass
    with pytest.raises(InputError, match="is not a run directory"):
        RunDirectory.open(tmp_path)
