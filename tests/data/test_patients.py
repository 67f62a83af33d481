"""Patients of several slides, and training on one dataset to test on another."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import make_bag
from layouts import write_clam

from mil_zoo import Bag, InputError, Predictor
from mil_zoo.bench.plan import make_plan
from mil_zoo.bench.runner import run_plan
from mil_zoo.bench.suite import read_suite
from mil_zoo.data import DatasetSource, open_dataset
from mil_zoo.data.patients import merged, pack_patients, pack_splits, settle_rule
from mil_zoo.data.splits.schemes import draw_splits
from mil_zoo.data.splits.split import Split
from mil_zoo.metrics import patient_predictions, score
from mil_zoo.report.load import Results
from mil_zoo.report.tables import write_tables


def bags(labels, patients):
    return [
        Bag(features=torch.full((2, 3), float(i)), label=label, slide_id=f"s{i}", patient_id=patient)
        for i, (label, patient) in enumerate(zip(labels, patients, strict=True))
    ]


def test_which_rule_applies():
    several, torn = bags([0, 0, 1], "aab"), bags([0, 1, 1], "aab")
    assert settle_rule(several, None) == "mean"
    assert settle_rule(several, "packed") == "packed"
    assert settle_rule(bags([0, 0, 1], "abc"), "max") is None
    assert settle_rule(torn, None) is None  # slide labels that differ within a patient are no mistake (BRACS)
    with pytest.raises(InputError, match=r"different labels have none of their own: a \(1 in all\)"):
        settle_rule(torn, "mean")


def test_packed_patients_hold_the_instances_of_their_slides():
    slides = bags([0, 1, 0, 1], "abac")
    packed = pack_patients(slides)
    assert [(bag.slide_id, bag.label, len(bag)) for bag in packed] == [("a", 0, 4), ("b", 1, 2), ("c", 1, 2)]
    assert packed[0].features[:, 0].tolist() == [0, 0, 2, 2]
    assert packed[0].coords is packed[0].instance_labels is None
    splits = pack_splits([Split(0, 0, ("s0", "s2"), ("s1",), ("s3",))], slides)
    assert splits == [Split(0, 0, ("a",), ("b",), ("c",))]


def test_graphs_of_a_packed_patient_join_no_slides():
    one, other = make_bag(40, 3, 1, seed=1), make_bag(30, 3, 1, seed=2)
    other.coords, other.patch_size = other.coords / 2, 128.0  # the same grid at half the size
    bag = merged([one, other], "p", 1)
    assert bag.instance_labels.tolist() == one.instance_labels.tolist() + other.instance_labels.tolist()
    for spec in ("window:2", "knn:4"):
        graph = bag.graph(spec)
        rows = np.repeat(np.arange(70), np.diff(graph.indptr))
        assert ((rows < 40) == (graph.indices.numpy() < 40)).all()
        assert len(graph.indices) == len(one.graph(spec).indices) + len(make_bag(30, 3, 1, seed=2).graph(spec).indices)


def test_predictions_of_patients():
    slides = pd.DataFrame(
        {
            "slide_id": ["s0", "s1", "s2", "s3"],
            "patient_id": ["b", "b", "", "a"],
            "split": "test",
            "label": [1, 1, 0, 0],
            "prob_0": [0.9, 0.3, 0.6, 0.8],
            "prob_1": [0.1, 0.7, 0.4, 0.2],
        }
    )
    mean = patient_predictions(slides, "mean")
    assert mean["slide_id"].tolist() == ["a", "b", "s2"]
    assert mean["label"].tolist() == [0, 1, 0]
    np.testing.assert_allclose(mean[["prob_0", "prob_1"]], [[0.8, 0.2], [0.6, 0.4], [0.6, 0.4]])
    largest = patient_predictions(slides, "max")
    np.testing.assert_allclose(largest[["prob_0", "prob_1"]], [[0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    three = patient_predictions(slides.assign(prob_2=0.5), "max")
    np.testing.assert_allclose(
        three.loc[1, ["prob_0", "prob_1", "prob_2"]].astype(float), np.array([0.9, 0.7, 0.5]) / 2.1
    )


def write_folder(root, names, labels, dim=3, classes=("blue", "red"), seed=0):
    rng = np.random.default_rng(seed)
    for name, label in zip(names, labels, strict=True):
        write_clam(root / "f", name, (rng.normal(size=(12, dim)) + 2 * label).astype(np.float32), patch_size=None)
    table = pd.DataFrame({"slide_id": names, "case_id": [name[:3] for name in names]})
    table["label"] = [classes[label] for label in labels]
    table.to_csv(root / "labels.csv", index=False)
    return root


@pytest.fixture
def folder(tmp_path):
    """30 slides, two a patient."""
    names = [f"p{i // 2:02d}-{i}" for i in range(30)]
    return write_folder(tmp_path / "a", names, [i // 2 % 2 for i in range(30)])


def run_small(out, folder, **given):
    suite = read_suite(None, **{"datasets": [str(folder)], "models": ["mean"], "folds": 3, "epochs": 1} | given)
    run = run_plan(make_plan(suite, str(folder)), out)
    write_tables(Results.load(run))
    return run, (out / "table.md").read_text()


def test_a_bench_tells_of_slides_and_patients(folder):
    run, text = run_small(folder.parent / "run", folder, models=["abmil", "mean"])
    rows = run.trials()
    predictions = run.predictions(rows[0]["trial"]).query("split == 'test'")
    by_patient = patient_predictions(predictions, "mean")
    expected = score(by_patient["label"].to_numpy(), by_patient[["prob_0", "prob_1"]].to_numpy())
    assert rows[0]["patient_metrics"] == pytest.approx(expected)
    assert len(by_patient) == 5
    table = pd.read_csv(run.path / "table.csv")
    assert list(table["aggregator"]) == ["abmil", "abmil (patients)", "mean", "mean (patients)"]
    assert table["auc_mean"][1] == pytest.approx(np.mean([row["patient_metrics"]["auc"] for row in rows[::2]]))
    assert "mean of its slides' probabilities (15 patients, 30 slides)" in text
    splits = pd.read_csv(run.path / "splits.csv")
    assert (splits["r0-f0"] == "test").sum() == 10
    assert list(splits.columns[:3]) == ["slide_id", "patient_id", "label"]


def test_a_bench_on_packed_patients(folder):
    run, text = run_small(
        folder.parent / "run", folder, patients="packed", models=["srmil"], overrides={"srmil.hidden": 8}
    )
    predictions = run.predictions("srmil-r0-f0-s0")
    assert list(predictions["slide_id"]) == list(predictions["patient_id"])
    assert list(pd.read_csv(run.path / "table.csv")["aggregator"]) == ["srmil"]
    assert "every number is of patients (15)" in text
    # The file of splits names slides: it can be used again, and prediction knows which of them were trained on.
    splits = pd.read_csv(run.path / "splits.csv")
    assert list(splits["slide_id"]) == open_dataset(folder).bags.slide_ids
    packed = open_dataset(folder, patients="packed")
    again = draw_splits(packed, str(run.path / "splits.csv")).splits
    assert [len(split.test) for split in again] == [5, 5, 5]
    assert again[0].test == tuple(dict.fromkeys(splits[splits["r0-f0"] == "test"]["patient_id"]))
    trained = dict(zip(splits["slide_id"], splits["r0-f0"] != "test", strict=True))
    predictor = Predictor(run, "srmil", "srmil-r0-f0-s0")
    for prediction in predictor(open_dataset(folder).bags):
        assert prediction.trained_on == trained[prediction.bag.slide_id]
    for prediction in predictor(packed.bags):
        patient = prediction.bag.slide_id
        assert prediction.trained_on == any(trained[name] for name in trained if name.startswith(patient))


def test_train_on_one_and_test_on_the_other(folder):
    other = write_folder(folder.parent / "b", [f"q{i:02d}-x" for i in range(10)], [i % 2 for i in range(10)], seed=1)
    run, text = run_small(folder.parent / "run", folder, test_on=str(other), repeats=2)
    assert [row["trial"] for row in run.trials()] == ["mean-r0-f0-s0", "mean-r1-f0-s0"]
    predictions = run.predictions("mean-r1-f0-s0")
    assert sorted(predictions[predictions["split"] == "test"]["slide_id"]) == [f"q{i:02d}-x" for i in range(10)]
    assert set(predictions[predictions["split"] == "val"]["slide_id"].str[0]) == {"p"}
    assert "all 10 slides of the other dataset are tested" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"classes": ("blue", "green")},
            "classes blue, red and 'b' blue, green; .* call those of 'b' so in its label table",
        ),
        ({"dim": 4}, "'a' has 3 features a patch and 'b' 4"),
        ({"names": ["p03-new", *(f"q{i:02d}" for i in range(9))]}, "patients are in both 'a' and 'b': p03"),
        (
            {"names": ["P03-new", *(f"q{i:02d}" for i in range(9))]},
            r"patients are in both 'a' and 'b': p03 \(P03 there\)",
        ),
    ],
)
def test_datasets_that_do_not_go_together_are_refused(folder, change, message):
    given = {"names": [f"q{i:02d}" for i in range(10)], "labels": [i % 2 for i in range(10)]} | change
    other = write_folder(folder.parent / "b", **given)
    with pytest.raises(InputError, match=message):
        open_dataset(str(folder), test_on=DatasetSource(str(other)))
