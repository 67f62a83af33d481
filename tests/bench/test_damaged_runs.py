"""A run directory damaged in a hundred ways: one sentence each, or the numbers that were there; never others."""

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mil_zoo import InputError
from mil_zoo.bench.plan import make_plan
from mil_zoo.bench.predictor import Predictor
from mil_zoo.bench.run_directory import RunDirectory
from mil_zoo.bench.runner import run_plan
from mil_zoo.bench.suite import Suite
from mil_zoo.data.dataset import open_dataset
from mil_zoo.report.load import Results
from mil_zoo.report.tables.sentences import notes

FIRST, SECOND = "abmil-r0-f0-s0", "abmil-r0-f1-s0"
OF_TRIAL = ("predictions.csv", "epochs.csv", "skew.csv", "attention.h5", "weights.safetensors")
FILES = ("config.yaml", "splits.csv", "trials.jsonl", *(f"trials/{FIRST}/{name}" for name in OF_TRIAL))


def cut(share):
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def flipped(share):
    def flip(path):
        content = bytearray(path.read_bytes())
        content[int(share * (len(content) - 1))] ^= 1
        path.write_bytes(content)

    return flip


def other_digits(path):
    content = path.read_bytes()
    at = content.rindex(b"0", 0, int(0.9 * len(content)))
    path.write_bytes(content[:at] + b"9" + content[at + 1 :])


def without_a_line(path):
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(lines[: len(lines) // 2] + lines[len(lines) // 2 + 1 :]))


def a_line_twice(path):
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[: len(lines) // 2], *lines[len(lines) // 2 - 1 :]]))


def exchanged(path):
    """The file of another fold, or of the run, in its place."""
    other = path.parents[1] / SECOND / path.name if path.parent.name == FIRST else path.with_name("trials.jsonl")
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def a_folder(path):
    path.unlink()
    path.mkdir()


def a_dangling_link(path):
    path.unlink()
    path.symlink_to("/nonexistent/file")


DAMAGES = {
    "missing": Path.unlink,
    "empty": cut(0),
    "cut to a tenth": cut(0.1),
    "cut to a half": cut(0.5),
    "cut by a byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "flipped at the start": flipped(0.0),
    "flipped in the middle": flipped(0.5),
    "flipped near the end": flipped(0.97),
    "other digits": other_digits,
    "a line less": without_a_line,
    "a line twice": a_line_twice,
    "exchanged": exchanged,
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a folder": a_folder,
    "a dangling link": a_dangling_link,
}
WHOLE = {  # of the directory
    "no trials": lambda run: shutil.rmtree(run / "trials"),
    "no folder of a trial": lambda run: shutil.rmtree(run / "trials" / FIRST),
    "an empty folder of a trial": lambda run: (shutil.rmtree(run / "trials" / FIRST), (run / "trials" / FIRST).mkdir()),
    "folders exchanged": lambda run: (
        (run / "trials" / FIRST).rename(run / "x"),
        (run / "trials" / SECOND).rename(run / "trials" / FIRST),
        (run / "x").rename(run / "trials" / SECOND),
    ),
    "another trial's row": lambda run: (run / "trials.jsonl").write_text(
        (run / "trials.jsonl").read_text().replace(f'"trial": "{FIRST}"', '"trial": "abmil-r0-f9-s0"')
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, bag_table):
    """A finished run, what is said of it, and what it predicts."""
    suite = Suite([str(bag_table)], ["mean", "abmil"], folds=2, epochs=1, overrides={"abmil.embed_dim": 8})
    path = run_plan(make_plan(suite, str(bag_table)), tmp_path_factory.mktemp("whole") / "run").path
    bags = [open_dataset(str(bag_table)).bags[i] for i in (0, 1)]
    return path, bags, said(path), predicted(path, bags)


def said(path):
    """All that tables, figures and page are made from."""
    results = Results.load(path)
    said = [results.config.to_yaml(), *map(str, results.trials), *notes(results)]
    for label, trials in results.finished.items():
        said += [str((key, part.labels, part.probabilities)) for key, part in results.test_sets(label).items()]
        for trial in trials:
            tables = results.predictions(trial), results.epochs(trial), results.test_skew(trial)
            said += [table.to_csv() for table in (*tables, results.training_skew(trial))]
            slides = results.attention.slides(trial.trial)
            said += [str(results.attention.read(trial.trial, slide, "attention")) for slide in slides]
    return said


def predicted(path, bags):
    return np.stack([prediction.values for prediction in Predictor(path, "abmil")(bags)])


def refusal(use, *arguments):
    """The sentence that a use of the run ends in, or None and what came of it."""
    try:
        return None, use(*arguments)
    except InputError as error:
        return str(error), None


def outcome(path, bags, before, probabilities):
    """What a report and a prediction come to: "refused", "same" or "said" (that trials are missing)."""
    found = []
    sentence, after = refusal(said, path)
    if sentence is not None:
        assert "\n" not in sentence
        assert str(path) in sentence
        found.append("refused")
    else:
        found.append("same" if after == before else "said" if "not at its end" in "".join(after) else "OTHER NUMBERS")
    sentence, values = refusal(predicted, path, bags)
    if sentence is not None:
        assert "\n" not in sentence
        found.append("refused")
    else:
        found.append("same" if np.array_equal(values, probabilities) or "said" in found else "OTHER NUMBERS")
    return found


def test_damage_is_a_sentence_and_never_another_number(whole, tmp_path):
    path, bags, before, probabilities = whole
    counted, tried = Counter(), 0
    for damage, change in [
        *(
            ((name, file), lambda run, f=file, d=damage: d(run / f))
            for name, damage in DAMAGES.items()
            for file in FILES
        ),
        *(((name, "the run"), change) for name, change in WHOLE.items()),
    ]:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(path, tmp_path / "run")
        change(tmp_path / "run")
        came_to = outcome(tmp_path / "run", bags, before, probabilities)
        assert "OTHER NUMBERS" not in came_to, damage
        counted.update(came_to)
        tried += 1
    assert tried >= 100
    assert counted["refused"] > tried  # of two uses each


@pytest.mark.parametrize("name", ["predictions.csv", "weights.safetensors", "attention.h5"])
def test_the_bench_repeats_a_damaged_trial(whole, tmp_path, bag_table, run_cli, name):
    path, *_ = whole
    shutil.copytree(path, tmp_path / "run")
    exchanged(tmp_path / "run" / "trials" / FIRST / name)
    suite = Suite([str(bag_table)], ["mean", "abmil"], folds=2, epochs=1, overrides={"abmil.embed_dim": 8})
    told: list[str] = []
    run_plan(make_plan(suite, str(bag_table)), tmp_path / "run", on_damage=told.append)
    assert [FIRST in told[0], SECOND in told[1]] == [True, True]
    for trial in (FIRST, SECOND):
        for file in ("predictions.csv", "weights.safetensors", "skew.csv"):
            assert RunDirectory(tmp_path / "run").read(trial, file) == RunDirectory(path).read(trial, file)


def test_nothing_is_written_through_a_link(whole, tmp_path, run_cli):
    path, *_ = whole
    outside = tmp_path / "outside"
    for name, text in (("report.html", "mine"), ("trials.jsonl", None), ("figures", None), ("table.csv", "mine")):
        run = tmp_path / f"run-{name}"
        shutil.copytree(path, run)
        if (run / name).exists():
            (run / name).rename(outside)
        elif text is None:
            outside.mkdir(exist_ok=True)
        else:
            outside.write_text(text)
        (run / name).symlink_to(outside)
        code, _, err = run_cli("report", run)
        assert code == 2
        assert f"{name} is a link" in err
        with pytest.raises(InputError, match="is a link"), RunDirectory(run).writing({}):
            pass
        if text is not None:
            assert outside.read_text() == text
        shutil.rmtree(outside) if outside.is_dir() else os.unlink(outside)


@pytest.mark.parametrize("name", ["config.yaml", "splits.csv", "trials.jsonl", "table.csv", *FILES[3:]])
def test_nothing_waits_for_a_pipe_in_place_of_a_file(whole, tmp_path, name):
    shutil.copytree(whole[0], run := tmp_path / "run")
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    sentence = (
        r"has no config.yaml" if name == "config.yaml" else rf"{Path(name).name} is a pipe or a device and no file"
    )
    with pytest.raises(InputError, match=sentence):
        RunDirectory.open(run).checked(FIRST, Path(name).name)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"a,b\n1,2\n"])
def test_a_damaged_list_of_splits_is_a_sentence(whole, tmp_path, content):
    shutil.copytree(whole[0], run := tmp_path / "run")
    (run / "splits.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"splits.csv was changed or cannot be read \("):
        RunDirectory.open(run).table("splits.csv", ["slide_id"])
    (run / "groups.csv").write_bytes(content)  # whose digest no run keeps
    with pytest.raises(InputError, match=r"groups.csv was changed or cannot be read \("):
        RunDirectory.open(run).table("groups.csv", ["slide_id"])
