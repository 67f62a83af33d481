"""The run directory: atomic rows, checksums, one runner at a time, settings that must agree."""

import hashlib
import json
import subprocess
import sys

import pandas as pd
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
    (row,) = run.trials()
    assert row == {"trial": "a-1", "status": "ok", "value": 0.1, "files": {"x.csv": hashlib.sha256(b"x").hexdigest()}}
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
        pytest.raises(InputError, match=r"other settings \(models: a there, a, b now; split.folds: 3 there, 5 now\)"),
        run.writing(other),
    ):
        pass
    assert run.config == SETTINGS


def test_trials_without_their_settings_are_never_taken_for_those_of_others(tmp_path):
    run = RunDirectory(tmp_path)
    with run.writing({"seeds": [0]}):
        run.add_trial({"trial": "mean-r0-f0-s0", "status": "ok"})
    (tmp_path / "config.yaml").unlink()
    with (
        pytest.raises(InputError, match=r"finished trials and no config.yaml, which says how they were made"),
        RunDirectory(tmp_path).writing({"seeds": [1]}),
    ):
        pass
    assert not (tmp_path / "config.yaml").exists()


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


def test_of_many_differences_a_few_are_listed_and_plugins_are_compared_by_content(tmp_path):
    settings = SETTINGS | {"plugins": {"/here/mine.py": "abc"}, "grid": {f"option_{i}": [i] for i in range(9)}}
    run = RunDirectory(tmp_path)
    with run.writing(settings):
        pass
    with run.writing(settings | {"plugins": {"/there/mine.py": "abc"}}):  # the same file elsewhere
        pass
    other = {"grid": {f"option_{i}": [i, i] for i in range(9)}, "split": {"folds": 3, "hash": "y"}}
    with (
        pytest.raises(InputError, match="option_4: 4 there, 4, 4 now and 4 more") as error,
        run.writing(settings | other),
    ):
        pass
    assert "hash" not in str(error.value)
    with (
        pytest.raises(InputError, match=r"plugins.mine.py: abc there, xyz now"),
        run.writing(settings | {"plugins": {"/here/mine.py": "xyz"}}),
    ):
        pass


@pytest.mark.parametrize("name", ["predictions.csv", "epochs.csv", "skew.csv", "attention.h5", "weights.safetensors"])
@pytest.mark.parametrize("how", ["half", "empty", "longer", "gone", "another's"])
def test_a_changed_file_is_found_when_it_is_read(tmp_path, name, how):
    run = RunDirectory(tmp_path)
    with run.writing(SETTINGS):
        for trial in ("a-1", "a-2"):
            run.add_trial(
                {"trial": trial, "status": "ok"},
                lambda folder, trial=trial: (folder / name).write_text(f"{trial},b\n1,2\n"),
            )
    assert run.damage("a-1") == ""
    path = tmp_path / "trials" / "a-1" / name
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        other = (tmp_path / "trials" / "a-2" / name).read_bytes()
        changed = {"half": content[:4], "empty": b"", "longer": content + b"3,4\n", "another's": other}
        path.write_bytes(changed[how])
    again = RunDirectory(tmp_path)
    with pytest.raises(InputError, match=rf"a-1/{name} .*--out .* again, which repeats the trial"):
        again.read("a-1", name)
    reads = {"predictions.csv": again.predictions, "epochs.csv": again.epochs, "skew.csv": again.skew}
    if name != "weights.safetensors":
        with pytest.raises(InputError, match=name):
            (reads | {"attention.h5": again.attention})[name]("a-1")
    assert name in again.damage("a-1")
    assert again.damage("a-2") == ""


def test_slides_may_be_called_na(tmp_path):
    run = RunDirectory(tmp_path)
    text = "slide_id,patient_id,split,prob_0\nNA,,test,0.5\nnull,None,test,nan\n007,NA,test,\n"
    run.add_trial({"trial": "a-r0-f0-s0"}, lambda folder: (folder / "predictions.csv").write_text(text))
    table = run.predictions("a-r0-f0-s0")
    assert table["slide_id"].tolist() == ["NA", "null", "007"]
    assert table["patient_id"].fillna("-").tolist() == ["-", "None", "NA"]
    assert table["prob_0"].fillna(-1.0).tolist() == [0.5, -1.0, -1.0]


def test_tables_read_together_are_those_read_alone(tmp_path):
    run = RunDirectory(tmp_path)
    contents = {
        "whole": "slide_id,patient_id,split,time,prob\nNA,,test,3,0.25\nnan,p,val,4,1e-3\n",
        "decimal": "slide_id,patient_id,split,time,prob\n007,,test,3.5,\ns,,test,2,nan\n",
        "quoted": 'slide_id,patient_id,split,time,prob\n"a,""b""",,test,1,0.1\n',
        "empty": "slide_id,patient_id,split,time,prob\n",
        "other": "slide_id,patient_id,split,label\nx,y,test,1\n",
    }
    for trial, text in contents.items():
        run.add_trial(
            {"trial": trial}, lambda folder, text=text: (folder / "predictions.csv").write_text(text, encoding="utf-8")
        )
    together = run.tables(list(contents), "predictions.csv")
    assert list(together) == list(contents)
    for trial, table in together.items():
        pd.testing.assert_frame_equal(table, run.predictions(trial), check_index_type=False)
    (tmp_path / "trials" / "decimal" / "predictions.csv").write_text(contents["whole"])
    with pytest.raises(InputError, match=r"decimal/predictions\.csv was changed after the trial wrote it"):
        run.tables(list(contents), "predictions.csv")
