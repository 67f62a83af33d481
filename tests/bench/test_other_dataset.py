"""``--test-on`` beside the other options of a bench: each works, or is refused in one sentence before training."""

import json

import numpy as np
import pandas as pd
import pytest


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory):
    """Two bag tables of 24 and 16 slides, two a patient, and the sex of every patient."""
    folder = tmp_path_factory.mktemp("cohorts")
    rows = []
    for name, number in (("a", 24), ("b", 16)):
        rng = np.random.default_rng(number)
        labels = np.arange(number) // 2 % 2
        np.savez(
            folder / f"{name}.npz",
            X=(rng.normal(size=(3 * number, 4)) + np.repeat(labels, 3)[:, None]).astype(np.float32),
            bag_ptr=3 * np.arange(number + 1),
            bag_label=labels,
            bag_name=np.array([f"{name}{i:02d}" for i in range(number)]),
            patient_id=np.array([f"{name}_p{i // 2}" for i in range(number)]),
        )
        rows += [(f"{name}{i:02d}", "fm"[i // 2 % 3 == 0]) for i in range(number)]
    table = pd.DataFrame(rows, columns=["slide_id", "sex"])
    table.to_csv(folder / "sex.csv", index=False)
    table[:24].to_csv(folder / "sex_of_a.csv", index=False)
    parts = ["train"] * 16 + ["val"] * 4 + ["test"] * 4
    pd.DataFrame({"slide_id": table["slide_id"][:24], "split": parts}).to_csv(folder / "split.csv", index=False)
    return folder


def bench(run_cli, cohorts, out, *more):
    data = ("--dataset", cohorts / "a.npz", "--test-on", cohorts / "b.npz")
    more = [cohorts / one if str(one).endswith(".csv") else one for one in more]
    return run_cli("bench", "--models", "mean", *data, "--epochs", 1, "--out", out, *more)


WORKS = {
    "repetitions": (["--repeats", 2], 2),
    "shuffled": (["--permute-labels", "--seeds", "0,1"], 2),
    "tuned": (["--tune", 2, "--inner-folds", 2], 1),
    "grid": (["--grid", "learning_rate=0.001,0.01"], 2),
    "few labels": (["--grid", "labelled=4,8"], 2),
    "groups": (["--by", "sex", "--groups", "sex.csv"], 1),
    "patients": (["--patients", "mean"], 1),
    "processes": (["--repeats", 2, "--jobs", 2], 2),
    "together": (["--tune", 2, "--permute-labels", "--by", "sex", "--groups", "sex.csv", "--patients", "packed"], 1),
}


@pytest.mark.parametrize("case", WORKS)
def test_what_goes_with_another_dataset(run_cli, cohorts, tmp_path, case):
    more, trials = WORKS[case]
    code, _, _ = bench(run_cli, cohorts, tmp_path / "run", *more)
    assert code == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "trials.jsonl").read_text().splitlines()]
    assert len(rows) == trials
    for row in rows:
        table = pd.read_csv(tmp_path / "run" / "trials" / row["trial"] / "predictions.csv")
        assert table.groupby("split")["patient_id"].agg(lambda names: set(names.str[0])).to_dict() == {
            "val": {"a"},
            "test": {"b"},
        }
        assert table["patient_id"][table["split"] == "test"].nunique() == 8  # all of them
    if "--by" in more:
        scored = pd.read_csv(tmp_path / "run" / "subgroups.csv")
        assert scored.groupby("group")["patients"].first().to_dict() == {"f": 5, "m": 3}


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--split", "split.csv"], "--test-on tests on all slides of the other dataset; leave out --split"),
        (["--split", "site"], "leave out --split site"),
        (["--split", "monte-carlo"], "leave out --split monte-carlo"),
        (["--split", "low-label:8"], "leave out --split low-label:8"),
        (["--grid", "labelled=4,8", "--tune", 2], "--tune searches where --grid tries every value"),
        (["--by", "sex", "--groups", "sex_of_a.csv"], "--by sex: nothing says the sex of any slide that is tested"),
    ],
)
def test_what_does_not_is_one_sentence(run_cli, cohorts, tmp_path, more, sentence):
    code, _, err = bench(run_cli, cohorts, tmp_path / "run", *more)
    assert code == 2
    assert sentence in err
    assert not (tmp_path / "run" / "trials").exists()


@pytest.mark.parametrize(
    ("more", "sentences"),
    [
        (["--split", "split.csv"], ["split.csv says itself which folds", "split.csv says itself which repetitions"]),
        (["--test-on", "b.npz"], ["--folds changes nothing: --test-on tests on all slides"]),
    ],
)
def test_folds_that_change_nothing_are_told(run_cli, cohorts, more, sentences):
    """A script gives them whatever the split; the run is that of the file."""
    more = [cohorts / one if one.endswith(("csv", "npz")) else one for one in more]
    numbers = ("--folds", 3, "--repeats", 3, "--epochs", 1, "--dry-run")
    code, _, err = run_cli("bench", "--models", "mean", "--dataset", cohorts / "a.npz", *more, *numbers)
    assert code == 0, err
    for sentence in sentences:
        assert sentence in err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--test-root", "elsewhere"], "--test-root is the folder of --test-on"),
        (["--sampler", "random"], "--sampler proposes configurations; add --tune N"),
    ],
)
def test_options_of_others_that_are_not_there_are_refused(run_cli, cohorts, tmp_path, more, sentence):
    code, _, err = run_cli("bench", "--models", "mean", "--dataset", cohorts / "a.npz", "--out", tmp_path, *more)
    assert code == 2
    assert sentence in err
