"""Running plans: files, failures, resuming after a kill, and honesty checks."""

import itertools
import json
import os
import random
import signal
import time

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import in_fresh_interpreter
from safetensors.torch import load_file

from mil_zoo import create_aggregator
from mil_zoo.aggregators.mean_max import MeanPooling
from mil_zoo.bench.machine import machine_name
from mil_zoo.bench.parts import shuffled_order, split_bags
from mil_zoo.bench.plan import make_plan
from mil_zoo.bench.runner import run_plan
from mil_zoo.bench.suite import read_suite
from mil_zoo.data.bag import BagBatch
from mil_zoo.data.dataset import open_dataset
from mil_zoo.metrics import score
from mil_zoo.registry import Registry
from mil_zoo.report.load import Results
from mil_zoo.report.tables import write_tables
from mil_zoo.ssl.embed import read_embeddings
from mil_zoo.train.device import default_device
from mil_zoo.train.predict import predict

SMALL = {
    "models": ["srmil", "abmil", "mean"],
    "folds": 2,
    "epochs": 2,
    "overrides": {"srmil.hidden": 8, "srmil.heads": 2},
}


def small_plan(table, **given):
    suite = read_suite(None, **{"datasets": [str(table)]} | SMALL | given)
    return make_plan(suite, suite.datasets[0])


@pytest.fixture(scope="module")
def finished(bag_table, tmp_path_factory):
    plan = small_plan(bag_table)
    return plan, run_plan(plan, tmp_path_factory.mktemp("run"))


def test_every_trial_leaves_its_row_and_files(finished):
    plan, run = finished
    rows = {row["trial"]: row for row in run.trials()}
    assert list(rows) == [trial.id for trial in plan.trials]
    for trial in plan.trials:
        row, folder = rows[trial.id], run.path / "trials" / trial.id
        assert row["status"] == "ok"
        names = {path.name for path in folder.iterdir()}
        expected = {
            "predictions.csv",
            "epochs.csv",
            "weights.safetensors",
            "standardiser.safetensors",
            "embeddings.npy",
        }
        assert names == (expected if trial.model.name == "mean" else expected | {"skew.csv", "attention.h5"})
        predictions = run.predictions(trial.id)
        test = predictions[predictions["split"] == "test"]
        assert sorted(test["slide_id"]) == sorted(trial.split.test)
        assert sorted(predictions[predictions["split"] == "val"]["slide_id"]) == sorted(trial.split.val)
        assert row["metrics"] == score(test["label"].to_numpy(), test[["prob_0", "prob_1"]].to_numpy())
        assert (row["n_train"], row["n_test"]) == (len(trial.split.train), len(trial.split.test))
        epochs = run.epochs(trial.id)
        assert list(epochs["epoch"]) == [1, 2]
        assert epochs["selected"].sum() == 1
        assert row["selected_epoch"] == epochs["epoch"][epochs["selected"] == 1].item()
        assert 0 <= row["peak_mem_mib"] < 500  # above what the process held
        assert row["machine"] == machine_name(default_device())


def test_the_saved_weights_give_the_saved_predictions(finished):
    plan, run = finished
    trial = next(trial for trial in plan.trials if trial.model.name == "srmil")
    aggregator = create_aggregator("srmil", 6, 2, **trial.model.options)
    aggregator.load_state_dict(load_file(run.path / "trials" / trial.id / "weights.safetensors"))
    bags = split_bags(plan.dataset, trial.split)[0]["test"]
    got = [p.tolist() for _, _, p in predict(aggregator, bags, trial.model.graph)]
    predictions = run.predictions(trial.id)
    expected = predictions[predictions["split"] == "test"][["prob_0", "prob_1"]].to_numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_embeddings_are_those_of_the_test_slides_and_probe_reads_them(finished, run_cli, tmp_path):
    plan, run = finished
    trial = next(trial for trial in plan.trials if trial.model.name == "abmil")
    folder = run.path / "trials" / trial.id
    aggregator = create_aggregator("abmil", 6, 2, **trial.model.options).eval()
    aggregator.load_state_dict(load_file(folder / "weights.safetensors"))
    values, ids = read_embeddings(folder)
    assert np.load(folder / "embeddings.npy").dtype == np.float16
    assert sorted(ids) == sorted(trial.split.test)
    bags = split_bags(plan.dataset, trial.split)[0]["test"].select(ids)
    with torch.inference_mode():
        own = torch.cat([aggregator(BagBatch.from_bags([bag])).embedding for bag in bags]).numpy()
    np.testing.assert_allclose(values, own, rtol=1e-3, atol=1e-4)
    labels = pd.DataFrame({"slide_id": ids, "label": [bag.label for bag in bags]})
    labels.to_csv(tmp_path / "labels.csv", index=False)
    command = ("probe", folder, "--labels", tmp_path / "labels.csv", "--folds", 2, "--repeats", 1, "--regimes", "full")
    code, out, err = run_cli(*command, "--out", tmp_path / "probe")
    assert (code, err) == (0, ""), out
    assert (pd.read_csv(tmp_path / "probe" / "probe.csv")["auc"] > 0.9).all()  # the bags are told apart easily


def test_recorded_attention_agrees_with_its_numbers(finished):
    plan, run = finished
    for trial in plan.trials:
        if trial.model.name == "mean":
            continue
        skew = run.skew(trial.id)
        train = skew[skew["split"] == "train"]
        assert set(train["slide_id"]) == set(trial.split.train)
        assert set(train["epoch"]) == {1, 2}
        with h5py.File(run.attention(trial.id)) as file:
            assert set(file) == set(trial.split.test)
            for slide, group in file.items():  # noqa: B007 (the query reads slide)
                attention = group["attention"][:]
                assert attention.sum() == pytest.approx(1, abs=1e-5)
                value = skew.query("split == 'test' and slide_id == @slide and name == 'max_attention'")["value"].item()
                assert value == pytest.approx(attention.max(), rel=1e-4)
                assert ("head_attention" in group) == (trial.model.name == "srmil")
                assert len(group["coords"]) == len(group["instance_labels"]) == len(attention)


def test_faithfulness_and_variants_are_recorded_where_asked(bag_table, tmp_path):
    plan = small_plan(
        bag_table, models=["abmil", "mean"], epochs=1, overrides={}, grid={"abmil.gated": [False, True]},
        faithfulness=[1, 3], embeddings=False,
    )  # fmt: skip
    run = run_plan(plan, tmp_path)
    assert not list(run.path.rglob("embeddings.npy"))
    rows = [row for row in run.trials() if row["aggregator"] == "abmil"]
    assert [row["grid"] for row in rows] == ["gated=False", "gated=True"] * 2
    skew = run.skew(rows[0]["trial"])
    numbers = skew[skew["name"].str.contains("_top[13]$|_random[13]$")]
    kinds = itertools.product(("remove", "keep"), ("top1", "top3", "random1", "random3"))
    assert set(numbers["name"]) == {"_".join(kind) for kind in kinds}
    assert numbers["value"].between(-1, 1).all()
    assert set(numbers["split"]) == {"test"}


def test_a_second_run_repeats_nothing_and_a_fresh_one_gives_the_same_bytes(finished, bag_table, tmp_path):
    plan, run = finished
    before = (run.path / "trials.jsonl").read_bytes()
    started = []
    run_plan(plan, run.path, on_trial=started.append)
    assert started == []
    assert (run.path / "trials.jsonl").read_bytes() == before
    again = run_plan(small_plan(bag_table), tmp_path)
    for trial in plan.trials:
        for name in ("predictions.csv", "skew.csv", "weights.safetensors"):
            file = run.path / "trials" / trial.id / name
            if file.exists():
                assert file.read_bytes() == (again.path / "trials" / trial.id / name).read_bytes(), (trial.id, name)


class Raises(MeanPooling):
    def losses(self, batch):
        raise ValueError("this aggregator is broken")


class Diverges(MeanPooling):
    def losses(self, batch):
        return {"loss": super().losses(batch)["loss"] * float("nan")}


class OutOfMemory(MeanPooling):
    def losses(self, batch):
        torch.empty(10**15)


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (Raises, "ValueError: this aggregator is broken"),
        (Diverges, "Diverged: the loss became nan in epoch 1"),
        (OutOfMemory, "RuntimeError: .*allocate"),
    ],
)
def test_a_failed_trial_is_a_row_and_the_others_go_on(bag_table, tmp_path, monkeypatch, run_cli, cls, reason):
    monkeypatch.setattr(Registry, "get", _with("broken", cls, Registry.get))
    code, out, _ = run_cli(
        "bench", "--dataset", bag_table, "--models", "broken,abmil", "--folds", 2, "--epochs", 1, "--out", tmp_path
    )
    assert code == 1
    rows = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert [(row["aggregator"], row["status"]) for row in rows] == [("broken", "failed"), ("abmil", "ok")] * 2
    assert pd.Series([rows[0]["reason"]]).str.contains(reason).item()
    assert "failed" in out
    assert "FAILED" in (tmp_path / "table.md").read_text()


def _with(name, cls, get):
    return lambda self, key: cls if key == name else get(self, key)


def kill_twenty_times(table, killed, whole):
    """Runs a bench in a fork of this process, kills it, starts it again; the folder of the last run."""
    torch.set_num_threads(1)
    small = {"srmil.hidden": 8, "srmil.heads": 2}
    suite = read_suite(
        None, datasets=[str(table)], models=["srmil", "abmil", "mean"], folds=2, epochs=2, overrides=small
    )
    plan = make_plan(suite, str(table))

    def attempt(folder, seconds=None):
        child = os.fork()
        if child == 0:
            write_tables(Results.load(run_plan(plan, folder, checkpoint_seconds=0.05)))
            os._exit(0)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        return os.waitpid(child, 0)[1]

    start = time.monotonic()
    assert attempt(whole) == 0
    duration = time.monotonic() - start
    draw = random.Random(0)
    kills = 0
    while kills < 20:
        status = attempt(killed, draw.uniform(0, duration / 4))
        kills += os.WIFSIGNALED(status)
        if not os.WIFSIGNALED(status):  # it was done before the signal: begin again elsewhere
            killed = killed.with_name(killed.name + "x")
    assert attempt(killed) == 0
    return killed


def test_a_run_killed_at_twenty_random_times_ends_with_the_same_bytes(bag_table, tmp_path):
    whole = tmp_path / "whole"
    killed = in_fresh_interpreter(kill_twenty_times, bag_table, tmp_path / "killed", whole)
    names = [
        "table.csv",
        "skew.csv",
        *(f"trials/{path.parent.name}/{path.name}" for path in whole.glob("trials/*/*.csv")),
        *(f"trials/{path.parent.name}/{path.name}" for path in whole.glob("trials/*/weights.safetensors")),
    ]
    assert len(names) == 2 + 3 * 6 + 4  # predictions, epochs and weights of 6 trials, skew of the 4 with attention
    for name in names:
        if not name.endswith("epochs.csv"):  # these hold measured seconds
            assert (whole / name).read_bytes() == (tmp_path / killed / name).read_bytes(), name
    assert not list((tmp_path / killed).glob("trials/.*"))


def test_shuffled_labels_are_the_same_ones_and_tell_nothing_of_the_truth():
    rng = np.random.default_rng(0)
    for counts in ([35, 34], [60, 9], [20, 30, 11]):
        labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
        first, second = (
            labels[shuffled_order(labels, np.random.default_rng(1))],
            labels[shuffled_order(labels, np.random.default_rng(2))],
        )
        assert np.bincount(first).tolist() == counts
        assert not np.array_equal(first, second)
        for truth in range(len(counts)):
            for label in range(len(counts)):
                expected = counts[truth] * counts[label] / len(labels)
                assert abs(np.sum(first[labels == truth] == label) - expected) < 1.5


def test_shuffled_training_labels_leave_nothing_to_learn(bag_table, tmp_path):
    """With real labels this table is easy; a leak of test labels would show as an AUC that stays high."""
    given = {"models": ["abmil"], "folds": 4, "epochs": 5, "overrides": {"learning_rate": 0.01}}
    true = run_plan(small_plan(bag_table, **given), tmp_path / "true").trials()
    run = run_plan(small_plan(bag_table, permute_labels=True, **given), tmp_path / "shuffled")
    assert np.mean([row["metrics"]["auc"] for row in true]) > 0.9
    aucs = [row["metrics"]["auc"] for row in run.trials()]
    assert abs(np.mean(aucs) - 0.5) < 0.15
    assert "SHUFFLED" in run.config["dataset"]["warnings"][-1]
    truth = {bag.slide_id: bag.label for bag in open_dataset(str(bag_table)).bags}
    for trial in run.trials():
        predictions = run.predictions(trial["trial"]).query("split == 'test'")
        assert all(
            truth[slide] == label for slide, label in zip(predictions["slide_id"], predictions["label"], strict=True)
        )


def test_shuffled_training_labels_leave_nothing_to_learn_on_the_demo(tmp_path):
    # With the real labels this small and quick ABMIL reaches an AUC of 0.84: a leak of them would be seen.
    small = {"abmil.embed_dim": 32, "abmil.attention_dim": 32, "learning_rate": 0.01}
    given = {"datasets": ["demo"], "models": ["abmil"], "folds": 5, "epochs": 3, "overrides": small}
    rows = run_plan(small_plan("demo", permute_labels=True, **given), tmp_path).trials()
    # 5 folds of 16 slides: the mean of so many AUCs of a coin has a standard deviation of about 0.07.
    assert abs(np.mean([row["metrics"]["auc"] for row in rows]) - 0.5) < 0.12


def test_every_seed_shuffles_anew_and_the_band_is_that_of_the_design(bag_table):
    plan = small_plan(bag_table, permute_labels=True, folds=4, seeds=[0, 1], models=["mean"], overrides={})
    split = plan.splits[0]
    first, again, other = (split_bags(plan.dataset, split, seed)[0]["train"].labels for seed in (0, 0, 1))
    assert list(first) == list(again)
    assert list(first) != list(other)
    # Four folds of 10 slides, 5 of each class: a fold's AUC varies by 11 / (12 * 25), the mean of four by a quarter.
    (warning,) = [text for text in plan.config().dataset.warnings if "SHUFFLED" in text]
    assert "0.50 +- 0.19" in warning
    assert "occur twice" in warning
