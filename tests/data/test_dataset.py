"""Datasets by card and by path: counts, tables, label tables, standardising."""

import numpy as np
import pytest
import torch

from mil_zoo import Bag, InputError
from mil_zoo.data import DatasetSource, Standardiser, list_cards, open_dataset, read_card, read_table
from mil_zoo.data.open import locate

X = np.arange(12, dtype=np.float32).reshape(6, 2)


def table(path, **change):
    arrays = {"X": X, "bag_ptr": [0, 2, 3, 6], "bag_label": [0, 1, 1]} | change
    np.savez(path, **{name: np.asarray(values) for name, values in arrays.items() if values is not None})
    return path


def test_a_table_becomes_bags(tmp_path):
    bags = read_table(
        table(
            tmp_path / "t.npz",
            bag_name=["a", "b", "c"],
            patient_id=["p", "p", "q"],
            coords=X,
            inst_class=[0, 1, 0, 1, 1, 0],
        ),
        positive_instance_class=0,
    )
    assert [bag.slide_id for bag in bags] == ["a", "b", "c"]
    assert [bag.patient_id for bag in bags] == ["p", "p", "q"]
    assert [bag.label for bag in bags] == [0, 1, 1]
    assert bags[2].features.tolist() == X[3:].tolist()
    assert bags[2].coords.tolist() == X[3:].tolist()
    assert bags[2].instance_labels.tolist() == [0, 0, 1]
    assert read_table(table(tmp_path / "u.npz"))[1].slide_id == "bag_0001"


def test_unknown_instance_labels_are_none(tmp_path):
    assert read_table(table(tmp_path / "t.npz", inst_label=[0, 1, -1, 0, 0, 0]))[0].instance_labels is None
    assert read_table(table(tmp_path / "t.npz", inst_label=[0, 1, 0, 0, 0, 0]))[0].instance_labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": None}, "the array 'X' is missing"),
        ({"X": np.array([["a"] * 2] * 6)}, "X must be numbers"),
        ({"X": np.where(X == 7, np.nan, X)}, r"X is NaN or infinite in row 3 \(bag 2\)"),
        ({"X": np.where(X == 7, np.inf, X)}, "NaN or infinite in row 3"),
        ({"bag_ptr": [0, 2, 2, 6]}, "slide 'bag_0001': the bag is empty"),
        ({"bag_ptr": [0, 2, 3, 5]}, "bag_ptr must rise from 0 to the 6 rows"),
        ({"bag_label": [0, 1]}, "bag_label has \\[2\\] entries for 3 bags"),
        ({"bag_label": [0.5, 1, 1]}, "is 0.5, not a whole number"),
        ({"bag_label": [-1, 1, 1]}, "is -1, not a whole number"),
        ({"bag_name": ["a", "a", "b"]}, "holds a name twice"),
        ({"coords": np.zeros((5, 2))}, "coords has 5 rows and X 6"),
    ],
)
def test_malformed_tables_name_the_file_and_the_field(tmp_path, change, message):
    path = table(tmp_path / "t.npz", **change)
    with pytest.raises(InputError, match=message) as error:
        read_table(path)
    assert "t.npz" in str(error.value) or "slide" in str(error.value)


def test_missing_damaged_and_pickled_tables_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_table(tmp_path / "none.npz")
    whole = table(tmp_path / "t.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("not a table")
    np.savez(tmp_path / "pickled.npz", X=np.array([{"code": print}], dtype=object))
    for name, message in {
        "cut": " is not a readable",
        "text": " is not a readable",
        "pickled": ": X holds Python",
    }.items():
        with pytest.raises(InputError, match=f"{name}.npz{message}"):
            read_table(tmp_path / f"{name}.npz")


def test_single_label_bags_of_large_enough_classes(tmp_path):
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]])
    path = tmp_path / "t.npz"
    np.savez(path, X=np.arange(10.0).reshape(5, 2), bag_ptr=np.arange(6), bag_labels=labels)
    bags = read_table(path, single_label=1)
    assert [(bag.slide_id, bag.label) for bag in bags] == [
        ("bag_0000", 0),
        ("bag_0002", 2),
        ("bag_0003", 0),
        ("bag_0004", 1),
    ]
    bags = read_table(path, single_label=2)
    assert [(bag.slide_id, bag.label) for bag in bags] == [("bag_0000", 0), ("bag_0003", 0)]
    assert bags[1].features.tolist() == [[6.0, 7.0]]


def test_every_card_is_complete():
    for name in list_cards():
        card = read_card(name)
        assert card.source, name
        assert card.licence, name
        assert card.citation, name
        assert card.label_rule, name
        assert card.split_protocol, name
        assert card.kind == "simulated" or "**Traps.**" in card.text, name
        assert len(card.classes) >= 2 or not card.of_classes, name
        assert card.text.startswith("# "), name
        assert card.bags_per_class is None or sum(card.bags_per_class) == card.bags, name


def test_unknown_names_and_missing_roots(tmp_path, monkeypatch):
    monkeypatch.delenv("MIL_ZOO_REAL_DATA", raising=False)
    with pytest.raises(InputError, match="unknown dataset 'crchist'; did you mean 'crchisto'"):
        open_dataset("crchist")
    with pytest.raises(InputError, match=r"known: .* \(nor is a file or folder here called so\)"):
        open_dataset("qqqq")
    with pytest.raises(InputError, match="qqqq: no such file or folder; pass a file or folder of features"):
        open_dataset("./qqqq")
    with pytest.raises(InputError, match="pass --root DIR"):
        open_dataset("crchisto")
    with pytest.raises(InputError, match="does not exist; --root must be"):
        open_dataset("crchisto", root=tmp_path)


def test_a_card_is_meant_where_a_folder_has_its_name(tmp_path, monkeypatch):
    (tmp_path / "musk1").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MIL_ZOO_REAL_DATA", raising=False)
    for source in (DatasetSource("musk1"), DatasetSource("musk1").anywhere()):
        with pytest.raises(InputError, match=r"dataset 'musk1' needs its files: pass --root DIR"):
            locate(source)
    assert locate(DatasetSource("./musk1").anywhere()).kind == "slides"


def test_counts_that_differ_from_the_card_are_an_error(tmp_path):
    (tmp_path / "histology").mkdir()
    table(tmp_path / "histology" / "crchisto_nuclei.npz")
    with pytest.raises(InputError, match=r"holds 3 bags \(\[1, 2\] by class\), its card states 100"):
        open_dataset("crchisto", root=tmp_path)


def test_real_tables(real_data):
    crchisto = open_dataset("crchisto", root=real_data)
    assert (len(crchisto.bags), crchisto.in_dim, sum(map(len, crchisto.bags))) == (100, 69, 22_444)
    for bag in crchisto.bags:  # a bag is positive when it holds any epithelial nucleus
        assert bag.label == int(bag.instance_labels.any()), bag.slide_id
    for name, (bags, instances) in {"musk1": (92, 476), "elephant": (200, 1391), "tiger": (200, 1220)}.items():
        dataset = open_dataset(name, root=real_data)
        assert (len(dataset.bags), sum(map(len, dataset.bags))) == (bags, instances)
        assert len(dataset.published_splits) == 50
    assert np.bincount([bag.label for bag in open_dataset("birds", root=real_data).bags]).tolist() == [50, 10, 19, 103]


def labels_csv(path, text):
    path.write_text(text)
    return path


def test_a_label_table_replaces_labels_and_patients(tmp_path):
    path = table(tmp_path / "t.npz", bag_name=["a", "b", "c"])
    labels = labels_csv(tmp_path / "labels.csv", "slide_id,label,patient_id\nc,0,p\na,1,p\nb,0,q\n")
    assert [(bag.label, bag.patient_id) for bag in open_dataset(str(path), labels=labels).bags] == [
        (1, "p"),
        (0, "q"),
        (0, "p"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide_id,label\na,0\nb,1\nc,1\nzz,0\n", r"names slides without features; .*: zz \(1 in all\)"),
        ("slide_id,label\na,0\nb,1\nc,1\na,0\n", "names slides twice: a"),
        ("name,label\na,0\n", "the column 'slide_id' is missing"),
        ("slide_id,label\na,\nb,1\nc,0\n", "label is empty in row 2"),
    ],
)
def test_label_tables_that_do_not_fit_are_refused(tmp_path, text, message):
    path = table(tmp_path / "t.npz", bag_name=["a", "b", "c"])
    with pytest.raises(InputError, match=message):
        open_dataset(str(path), labels=labels_csv(tmp_path / "labels.csv", text))


def test_a_table_given_with_a_task_may_have_other_classes_than_the_card(real_data, tmp_path):
    names = open_dataset("crchisto", root=real_data).bags.slide_ids
    rows = "".join(f"{name},{i % 3}\n" for i, name in enumerate(names))
    labels = labels_csv(tmp_path / "grades.csv", "slide_id,label\n" + rows)
    with pytest.raises(InputError, match=r"label '2' is none of .* take the table's classes by --labels and --task"):
        open_dataset("crchisto", root=real_data, labels=labels)
    card = open_dataset("crchisto", root=real_data, labels=labels, task=(("name", "ordinal"),)).card
    assert card.classes == ["class 0", "class 1", "class 2"]
    said = "Classes are those of grades.csv (class 0, class 1, class 2), not the card's (no epithelial nucleus, "
    assert any(warning.startswith(said) for warning in card.warnings)


def test_standardising_uses_training_instances_only():
    train = [Bag(features=torch.tensor([[0.0, 5.0], [2.0, 5.0]])), Bag(features=torch.tensor([[4.0, 5.0]]))]
    scale = Standardiser.fit(train)
    assert scale.mean.tolist() == [2.0, 5.0]
    assert scale.scale.tolist() == pytest.approx([(8 / 3) ** 0.5, 1.0])  # a constant feature is left as it is
    assert scale(Bag(features=torch.tensor([[2.0, 6.0]]))).features.tolist() == [[0.0, 1.0]]
