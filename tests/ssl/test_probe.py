"""The linear probe, nearest neighbours, and the splits they run on."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from mil_zoo import InputError
from mil_zoo.data.splits.few_labels import choose_labelled
from mil_zoo.data.splits.split import find_leaks
from mil_zoo.report.tables.probe_table import probe_table, summary
from mil_zoo.ssl.probe import LinearProbe, ProbeSplit, knn_accuracy, probe
from mil_zoo.ssl.probe_splits import (
    ProbeTable,
    own_splits,
    read_bundle_labels,
    read_label_table,
    read_probe_splits,
    splits_named_as,
)


def cohort(number=60, classes=2, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(number) % classes
    embeddings = rng.normal(size=(number, 8)).astype(np.float32)
    embeddings[:, 0] += 2 * labels
    ids = [f"s{i:02d}" for i in range(number)]
    table = ProbeTable.of(ids, [f"class {label}" for label in labels], [f"p{i // 2}" for i in range(number)])
    return embeddings, ids, table


@pytest.mark.parametrize("classes", [2, 3])
def test_scores_are_those_of_the_authors_recipe(classes):
    embeddings, ids, table = cohort(classes=classes)
    splits = own_splits(table, ids, folds=3, repeats=1, regimes=["full"])
    rows = probe(embeddings, ids, table.labels, table.patients, splits)
    for row, split in zip(rows.to_dict("records"), splits, strict=True):
        places = [[ids.index(slide) for slide in side] for side in (split.train, split.test)]
        (x, test), (y, truth) = (
            [values[side] for side in places] for values in (embeddings, np.array(list(table.labels.values())))
        )
        scores = LogisticRegression(C=10, class_weight="balanced", max_iter=10000).fit(x, y).predict_proba(test)
        expected = roc_auc_score(truth, scores[:, 1] if classes == 2 else scores, multi_class="ovr")
        assert row["auc"] == pytest.approx(expected, abs=1e-6)
        assert (row["n_train"], row["n_test"], row["missing"], row["leaked_patients"]) == (len(x), len(test), 0, 0)


def test_a_class_without_training_slides_gets_probability_zero():
    embeddings, _, _ = cohort()
    fitted = LinearProbe(3).fit(embeddings, np.arange(60) % 2 * 2)
    probabilities = fitted.predict(embeddings)
    assert (probabilities[:, 1] == 0).all()
    np.testing.assert_allclose(probabilities.sum(1), 1)
    with pytest.raises(InputError, match="two classes"):
        LinearProbe(2).fit(embeddings, np.zeros(60, np.int64))


def test_leaks_and_missing_slides_are_counted_and_said():
    embeddings, ids, table = cohort()
    leaky = ProbeSplit("50", 0, tuple(ids[:31]), (*ids[31:], "absent"))  # s30 and s31 are of one patient
    rows = probe(embeddings, ids, table.labels, table.patients, [leaky])
    assert rows[["leaked_patients", "missing"]].to_numpy().tolist() == [[1, 1]]
    text = " ".join(probe_table(rows).notes)
    assert "LEAKS: 1 of 1 splits" in text
    assert "Up to 1 slides of a split were left out" in text
    assert "1 (up to 1 patients)" in probe_table(rows).markdown()
    apart = rows.assign(repeat=1, auc=rows["auc"] - 0.4)
    assert "[0.00, 1.00]" in probe_table(pd.concat([rows, apart])).markdown()  # and not beyond, where no AUC lies
    with pytest.raises(InputError, match="no test slide"):
        probe(embeddings, ids, table.labels, table.patients, [ProbeSplit("x", 0, tuple(ids), ("absent",))])


def test_own_splits_keep_patients_together_and_nest():
    _, ids, table = cohort(90)
    splits = own_splits(table, ids, folds=3, repeats=2, regimes=["full", "25%", "50", "100"])
    assert [split.regime for split in splits] == ["full"] * 6 + ["25%"] * 6 + ["50"] * 6  # 100 are not there
    for split in splits:
        assert find_leaks(split.train, split.test, table.patients) == []
        assert {table.labels[slide] for slide in split.train} == {0, 1}
    full, quarter, fifty = splits[:6], splits[6:12], splits[12:]
    for a, b, c in zip(full, quarter, fifty, strict=True):
        assert (len(a.train), len(b.train), len(c.train)) == (60, 15, 50)
        assert set(b.train) < set(c.train) < set(a.train)
        assert a.test == b.test == c.test
    with pytest.raises(InputError, match="regime 'half' must be"):
        own_splits(table, ids, regimes=["half"])
    with pytest.raises(InputError, match="regime '200%' must be"):
        own_splits(table, ids, regimes=["200%"])
    with pytest.raises(InputError, match="--regimes must name each regime once, not full,full"):
        own_splits(table, ids, regimes=["full", "full"])


def test_names_of_tables_and_splits_meet_those_of_the_embeddings():
    ids = ["slide A", "17", "b.c"]
    table = ProbeTable.of(["SLIDE a", "17.0", "b.c"], ["x", "y", "x"], ["p", None, "q"]).named_as(ids)
    assert table.labels == {"slide A": 0, "17": 1, "b.c": 0}
    assert table.patients == {"slide A": "p", "17": None, "b.c": "q"}
    splits = splits_named_as([ProbeSplit("full", 0, ("Slide a", "B.C", "gone"), ("17.0",))], ids)
    assert splits == [ProbeSplit("full", 0, ("slide A", "b.c", "gone"), ("17",))]


@pytest.mark.parametrize(
    ("slides", "labels", "words"),
    [
        (["a", "a"], ["x", "y"], "slide 'a' has the labels 'x' and 'y'; keep one row"),
        (["a", "b", "c"], ["Yes", "yes", "no"], "labels 'Yes' and 'yes' differ in case"),
        (["a", "b", "c"], ["0", "1", "NA"], "label 'NA' marks slides of which nothing is known"),
    ],
)
def test_labels_that_are_no_classes(slides, labels, words):
    with pytest.raises(InputError, match=words):
        ProbeTable.of(slides, labels, [None] * len(slides))


def test_more_training_slides_than_there_are():
    names = [f"s{i}" for i in range(20)]
    table = ProbeTable.of(names, ["x", "y"] * 10, [None] * 20)
    assert {split.regime for split in own_splits(table, names, folds=2, regimes=["full", "99"])} == {"full"}
    with pytest.raises(InputError, match="--regimes 99 asks for more than the 10 training slides of a split"):
        own_splits(table, names, folds=2, regimes=["99"])


def test_few_labels_are_stratified():
    labels = [0] * 90 + [1] * 10
    for labelled, number in ((0.1, 10), (0.105, 11), (20, 20), (1, 100), (0.001, 2), (100, 100)):
        chosen = choose_labelled(labels, labelled, 0)
        assert len(chosen) == number
        positives = sum(labels[i] for i in chosen)
        assert abs(positives - number / 10) <= 1
        assert positives >= 1
    assert set(choose_labelled(labels, 0.1, 3)) < set(choose_labelled(labels, 0.5, 3))
    assert choose_labelled(labels, 0.1, 3) != choose_labelled(labels, 0.1, 4)
    for wrong in (0, -1, 101):
        with pytest.raises(InputError, match="labelled must be a share"):
            choose_labelled(labels, wrong, 0)


def test_tables_and_split_files(tmp_path):
    (tmp_path / "lung.csv").write_text("ID,label,case_id\na,LUAD,P1\nb,LUSC,\n")
    table = read_label_table(tmp_path / "lung.csv")
    assert (table.classes, table.labels, table.patients) == (
        ["LUAD", "LUSC"],
        {"a": 0, "b": 1},
        {"a": "P1", "b": None},
    )
    for regime in ("50", "full"):
        folder = tmp_path / "splits" / regime
        folder.mkdir(parents=True)
        (folder / "split_0.csv").write_text("train,test\na,c\nb,\n")
        (folder / "split_1.csv").write_text("train,test\nc,a\n")
    expected = [ProbeSplit("50", 0, ("a", "b"), ("c",)), ProbeSplit("50", 1, ("c",), ("a",))]
    assert read_probe_splits(tmp_path / "splits" / "50") == expected
    assert read_probe_splits(tmp_path / "splits")[:2] == expected
    assert {split.regime for split in read_probe_splits(tmp_path / "splits")} == {"50", "full"}
    with pytest.raises(InputError, match=r"no splits_0\.csv"):
        read_probe_splits(tmp_path)


def test_a_bundle(tmp_path):
    arrays = {
        "slide_id": np.array(["a", "b", "c"]),
        "label": np.array(["x", "y", "x"]),
        "split_full": np.array([[1, 1, 2]], np.int8),
    }
    np.savez(tmp_path / "ok.npz", **arrays)
    assert read_probe_splits(tmp_path / "ok.npz") == [ProbeSplit("full", 0, ("a", "b"), ("c",))]
    assert read_bundle_labels(tmp_path / "ok.npz").patients == {"a": None, "b": None, "c": None}
    del arrays["label"]
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match="the array 'label' is missing"):
        read_bundle_labels(tmp_path / "bad.npz")


def test_published_splits_leak_and_it_is_reported(real_data):
    """The published lung splits share patients between train and test, the tnbc ones do not."""
    for name, leaky in (
        ("lung", {"full": 10, "25p": 10, "100": 9, "50": 9}),
        ("tnbc", {"full": 0, "25p": 0, "250": 0}),
    ):
        path = real_data / "labels_splits" / f"gigassl_{name}_splits.npz"
        table, splits = read_bundle_labels(path), read_probe_splits(path)
        rng = np.random.default_rng(0)
        embeddings = rng.normal(size=(len(table.labels), 4))
        rows = probe(embeddings, list(table.labels), table.labels, table.patients, splits)
        found = summary(rows).set_index("regime")
        for regime, number in leaky.items():
            assert found.loc[regime, "leaky"] == number
            assert found.loc[regime, "splits"] == 10
        assert found.loc["50", "n_train"] == 50
        assert abs(found["auc_mean"] - 0.5).max() < 0.08  # noise knows nothing


def test_neighbours_vote_without_their_own_patient():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    embeddings = rng.normal(size=(40, 5)) + 5 * (2 * labels[:, None] - 1) * [1, -1, 1, -1, 1]
    apart = [str(i) for i in range(40)]
    assert knn_accuracy(embeddings, labels.tolist(), apart, 5) == 1.0
    together = [f"p{label}" for label in labels]  # all slides of a class are of one patient
    assert knn_accuracy(embeddings, labels.tolist(), together, 5) == 0.0
    unknown = np.where(np.arange(40) < 4, -1, labels)
    assert knn_accuracy(embeddings, unknown.tolist(), apart, 5) == 1.0
    assert pd.isna(knn_accuracy(embeddings, [-1] * 40, apart))
