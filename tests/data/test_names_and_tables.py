"""Names that meet although they are written in another way, and tables as people save them."""

import gzip
import unicodedata

import numpy as np
import pandas as pd
import pytest
from layouts import write_clam

from mil_zoo import InputError
from mil_zoo.data import open_dataset
from mil_zoo.data.labels.columns import column_of
from mil_zoo.data.labels.names import alike, bare, match_names
from mil_zoo.data.labels.tables import class_indices, class_names, read_csv, read_labels, unknown_among
from mil_zoo.data.packed.writer import import_dataset

UUID = "d4ff32cd-38cf-40ea-8213-45c2b100ac01"
BARCODE = "TCGA-05-4244-01Z-00-DX1"


@pytest.mark.parametrize(
    ("given", "known"),
    [
        ("a.h5", "a"),
        ("a.svs.pt", "a"),
        ("a.ome.tif", "a"),
        ("a.ome.tiff", "a.ome"),
        ("a", "a.ome"),
        ("/data/positive, 1/pt_files/a.pt", "a"),
        ("D:\\slides\\a.mrxs", "a"),
        ("2015.0", "2015"),
        ("2015", "2015.0"),
        (unicodedata.normalize("NFC", "Präparat Größe"), unicodedata.normalize("NFD", "Präparat Größe")),
        ("SLIDE_1", "slide_1"),
        (" a  b ", "a b"),
        (BARCODE, f"{BARCODE}.{UUID}"),
        (f"{BARCODE}.{UUID}.svs", BARCODE),
        ("S20-1.2", "S20-1.2"),
    ],
)
def test_names_that_mean_one_slide(given, known):
    assert match_names([given], ["other", known, "another"]) == {given: known}


def test_names_that_mean_none_or_several():
    assert match_names(["a", "b"], ["x"]) == {}
    assert match_names(["a"], ["a", "A"]) == {"a": "a"}  # as it is written
    with pytest.raises(InputError, match=r"t.csv: 'a' could be any of 2 slides, 'A', 'A '; write the name of one"):
        match_names(["a"], ["A", "A "], "t.csv")
    with pytest.raises(InputError, match=r"could be any of 2 slides"):
        match_names([BARCODE], [f"{BARCODE}.{UUID}", f"{BARCODE}.{UUID.replace('0', '1')}"])
    assert alike(["a", "A", "b", "c ", "c"]) == [("a", "A"), ("c ", "c")]
    assert bare(".h5") == ".h5"


def test_a_dataset_says_three_names_of_each_side(tmp_path):
    for slide in ("s1", "s2", "s3", "s4"):
        write_clam(tmp_path, slide)
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,label\nx1,0\nx2,1\nx3,0\nx4,1\n")
    with pytest.raises(InputError, match=r"the table says 'x1', 'x2', 'x3'; the features are called 's1', 's2', 's3'"):
        open_dataset(str(tmp_path))
    labels.write_text("PATIENT,FILENAME,Label\np,s1.h5,1\np,s2.svs,1\nq,/x/S3.h5,2\nr,s4,2.0\n")
    dataset = open_dataset(str(tmp_path))
    assert dataset.bags.slide_ids == ["s1", "s2", "s3", "s4"]
    assert (dataset.card.classes, dataset.bags.labels) == (["class 1", "class 2"], [0, 0, 1, 1])
    labels.write_text("slide_id,label\ns1,0\ns1.h5,1\n")
    with pytest.raises(InputError, match=r"names slides twice: s1 \(1 in all\)"):
        open_dataset(str(tmp_path))


def test_classes_are_those_that_are_there():
    def names(*labels):
        import pandas as pd

        return class_names(pd.DataFrame({"label": labels}))

    assert names("0", "1") == names("1", "1") == ["class 0", "class 1"]
    assert names("1", "2") == ["class 1", "class 2"]
    assert names("0", "20230101") == ["class 0", "class 20230101"]
    assert names("None", "NA") == ["NA", "None"]
    assert names("²", "1") == ["1", "²"]
    assert class_indices(["class 1", "class 2"]) == {"1": 0, "2": 1, "class 1": 0, "class 2": 1}
    assert class_indices(["a", "b"]) == {"0": 0, "1": 1, "a": 0, "b": 1}


ROWS = [("slide 1", "0"), ("slide, 2", "None"), ("Größe", "1,5")]
TABLES = {
    "commas": ',slide_id,label\n0,slide 1,0\n1,"slide, 2",None\n2,Größe,"1,5"\n'.encode(),
    "semicolons": "slide_id;label\nslide 1;0\nslide, 2;None\nGröße;1,5\n".encode(),
    "tabs, UTF-16": "slide_id\tlabel\r\nslide 1\t0\r\nslide, 2\tNone\r\nGröße\t1,5\r\n".encode("utf-16"),
    "bars, a mark, comments": "\ufeff# made\n\nslide_id | label\nslide 1|0\n\nslide, 2|None|\nGröße|1,5\n".encode(),
    "as Excel asks": "sep=;\r\nslide_id;label\r\nslide 1;0\r\nslide, 2;None\r\nGröße;1,5\r\n".encode(),
    "carriage returns": b'slide_id,label\rslide 1,0\r"slide, 2",None\rGr\xc3\xb6\xc3\x9fe,"1,5"\r',
}


@pytest.mark.parametrize("name", TABLES)
def test_dialects(tmp_path, name):
    (tmp_path / "t.csv").write_bytes(TABLES[name])
    table = read_csv(tmp_path / "t.csv")
    assert list(zip(table["slide_id"], table["label"], strict=True)) == ROWS
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(TABLES[name]))
    assert read_csv(tmp_path / "t.csv.gz").equals(table)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "t.csv is empty"),
        (b"slide_id,label\n", "holds a header and no rows"),
        (b"PK\x03\x04" + bytes(99), "is an Excel workbook, not a csv; save the table as csv"),
        (b"slide_id,label\nGr\xf6\xdfe,1\n", r"is not UTF-8 text \(byte 0xf6\)"),
        (
            b"slide_id,label\n/data/a, b.h5,1\n",
            "row 2 has 3 fields and the header 2; put names that hold",
        ),
        (b"slide_id,label,label\na,1,0\n", "the column 'label' occurs twice"),
        (b"slide_id,label\na,\nb,1\nc,0\n", "label is empty in row 2"),
        (b"case_id,label\na,1\n", "the column 'slide_id' is missing"),
    ],
)
def test_tables_that_are_none(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_labels(tmp_path / "t.csv")


def test_slides_that_cannot_be_called_so(tmp_path):
    for odd in ("a\r", "", "..", "a\nb"):
        np.savez(tmp_path / "t.npz", X=np.zeros((4, 2)), bag_ptr=[0, 2, 4], bag_label=[0, 1], bag_name=[odd, "b"])
        with pytest.raises(InputError, match="slides cannot be called so; names are printable text"):
            open_dataset(str(tmp_path / "t.npz"))
    np.savez(tmp_path / "t.npz", X=np.zeros((4, 2)), bag_ptr=[0, 2, 4], bag_label=[0, 1], bag_name=["a", "A"])
    assert open_dataset(str(tmp_path / "t.npz")).card.warnings == [
        "The dataset holds slides whose names differ in case, blanks or accents only: a, A."
    ]


@pytest.mark.parametrize(
    "header",
    [
        "slide_id;Case ID;label",
        "Slide ID;Case.ID;Label",
        "SlideID;PatientID;label",
        "File Name;case-id;LABEL",
        "slide.id;bcr_patient_barcode;label",
    ],
)
def test_columns_are_known_however_they_are_spelled(tmp_path, header):
    (tmp_path / "t.csv").write_text(f"{header}\na;p;0\nb;p;1\n")
    table = read_labels(tmp_path / "t.csv")
    assert table.to_dict("list") == {"slide_id": ["a", "b"], "label": ["0", "1"], "patient_id": ["p", "p"]}


def test_of_two_spellings_the_plain_one_is_the_column():
    table = pd.DataFrame(columns=["Case ID", "case_id", "er+", "er-"])
    assert column_of(table, ["case_id"]) == "case_id"
    assert [column_of(table, [name]) for name in ("er-", "er", "case")] == ["er-", None, None]


def test_classes_of_a_column_that_a_card_names(tmp_path):
    for slide in "abcd":
        write_clam(tmp_path, slide)
    (tmp_path / "t.csv").write_text("Slide;Case ID;Diagnosis\na;p;LUAD\nb;q;LUSC\nc;p;LUAD\nd;r;LUSC\n")
    with pytest.raises(InputError, match=r"write label_column: NAME into a card\.yaml beside the features; it needs"):
        open_dataset(str(tmp_path), labels=tmp_path / "t.csv")
    (tmp_path / "card.yaml").write_text("label_column: Diagnosis\n")
    dataset = open_dataset(str(tmp_path), labels=tmp_path / "t.csv")
    assert dataset.card.classes == ["LUAD", "LUSC"]
    assert [slide.patient_id for slide in dataset.bags.slides] == ["p", "q", "p", "r"]


def test_patients_whose_names_are_nearly_one(tmp_path):
    for slide in "abcd":
        write_clam(tmp_path, slide)
    (tmp_path / "labels.csv").write_text("slide_id,label,patient_id\na,0,P1\nb,0,p1\nc,1,p2\nd,1,p3\n")
    said = open_dataset(str(tmp_path), labels=tmp_path / "labels.csv").card.warnings
    assert said == ["The dataset holds patients whose names differ in case or blanks only: P1, p1."]


def test_classes_that_cannot_be_named_so(tmp_path):
    for slide in "abcd":
        write_clam(tmp_path, slide)
    for label, said in (
        ('"tu\nmor"', r"'tu\\nmor' is no name of a class"),
        ("low", "every bag is of one class, 'low'"),
    ):
        (tmp_path / "labels.csv").write_text(f"slide_id,label\na,low\nb,low\nc,{label}\nd,{label}\n")
        with pytest.raises(InputError, match=said):
            open_dataset(str(tmp_path), labels=tmp_path / "labels.csv").task  # noqa: B018
    (tmp_path / "labels.csv").write_text("slide_id,label\na,0\nb,0\nc,1\nd,1\n")
    (tmp_path / "card.yaml").write_text('classes: [low, "hi\\agh"]\n')
    with pytest.raises(InputError, match=r"'hi\\x07gh' is no name of a class"):
        open_dataset(str(tmp_path))


def test_a_column_of_names_is_no_label(tmp_path):
    for i in range(6):
        write_clam(tmp_path, f"s{i}")
    (tmp_path / "labels.csv").write_text("slide_id,label\n" + "".join(f"s{i},2023010{i}\n" for i in range(6)))
    with pytest.raises(InputError, match="6 different labels of 6 slides are no classes"):
        open_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("labels", "marks"),
    [
        (["0", "1", "-1"], ["-1"]),
        (["0", "1", "-1.0", "-9"], ["-1.0", "-9"]),
        (["0", "1", "2", "99"], ["99"]),
        (["0", "1", "255"], ["255"]),
        (["1", "2", "NA"], ["NA"]),
        (["0", "Unknown"], ["Unknown"]),
        (["0", "1", "[Not Available]", "#N/A"], ["#N/A", "[Not Available]"]),
        (["0", "-1"], ["-1"]),
        (["1", "-1"], []),  # of support vector machines
        (["0", "255"], []),
        (["98", "99", "97"], []),
        (["0", "1+", "2+", "3+"], []),
        (["None", "NA", "tumor"], []),
    ],
)
def test_marks_of_what_is_not_known(labels, marks):
    assert unknown_among(labels) == marks


def test_a_slide_of_which_nothing_is_known_is_no_class(tmp_path, tmp_path_factory):
    tables = tmp_path_factory.mktemp("tables")
    for i in range(9):
        write_clam(tmp_path, f"s{i}")
    for third, said in (
        ("-1", "label '-1' beside numbers marks slides of which nothing is known; drop these slides' rows"),
        ("NA", r"label 'NA' beside numbers .* s2, s5, s8 \(3 in all\)"),
        ("255", "label '255' beside numbers"),
    ):
        rows = "".join(f"s{i},{('0', '1', third)[i % 3]}\n" for i in range(9))
        (tmp_path / "labels.csv").write_text("slide_id,label\n" + rows)
        with pytest.raises(InputError, match=said):
            open_dataset(str(tmp_path))
        np.savez(tables / "t.npz", X=np.zeros((9, 2)), bag_ptr=np.arange(10), bag_label=["0", "1", third] * 3)
        with pytest.raises(InputError, match=f"{third}.* (beside numbers|not a whole number)"):
            open_dataset(str(tables / "t.npz"))
    rows = "".join(f"s{i},{('low', 'high', 'unknown')[i % 3]}\n" for i in range(9))
    (tmp_path / "labels.csv").write_text("slide_id,label\n" + rows)
    card = open_dataset(str(tmp_path)).card
    assert card.classes == ["high", "low", "unknown"]
    assert card.warnings == ["The label 'unknown' (3 slides) is taken as a class of its own."]


def test_a_class_may_be_called_by_the_number_of_another(tmp_path, tmp_path_factory):
    """Names go before places, in label tables, in bag tables and in stores."""
    tables = tmp_path_factory.mktemp("tables")
    for i in range(4):
        write_clam(tmp_path, f"s{i}")
    (tmp_path / "card.yaml").write_text("classes: ['1', '0']\n")
    (tmp_path / "labels.csv").write_text("slide_id,label\ns0,0\ns1,1\ns2,1\ns3,0\n")
    dataset = open_dataset(str(tmp_path))
    assert dataset.bags.labels == [1, 0, 0, 1]
    store = import_dataset(dataset, tmp_path / "store").path
    assert open_dataset(str(store)).bags.labels == [1, 0, 0, 1]
    np.savez(tables / "t.npz", X=np.zeros((4, 2)), bag_ptr=np.arange(5), bag_label=["1+", "1", "0", "1+"])
    table = open_dataset(str(tables / "t.npz"))
    assert (table.card.classes, table.bags.labels) == (["0", "1", "1+"], [2, 1, 0, 2])
    np.savez(tables / "t.npz", X=np.zeros((4, 2)), bag_ptr=np.arange(5), bag_label=["+1", "-1", "1+", "1"])
    table = open_dataset(str(tables / "t.npz"))
    assert [table.card.classes[label] for label in table.bags.labels] == ["+1", "-1", "1+", "1"]


def test_grades_without_a_card_say_their_order(tmp_path):
    for i in range(6):
        write_clam(tmp_path, f"s{i}")
    rows = "".join(f"s{i},{('low', 'high', 'medium')[i % 3]}\n" for i in range(6))
    (tmp_path / "labels.csv").write_text("slide_id,label\n" + rows)
    ordinal = (("name", "ordinal"),)
    with pytest.raises(InputError, match="nothing says which of the classes high, low, medium is above which; state"):
        open_dataset(str(tmp_path), task=ordinal)
    stated = (*ordinal, ("classes", ("low", "medium", "high")))
    assert open_dataset(str(tmp_path), task=stated).bags.labels == [0, 2, 1] * 2
    (tmp_path / "card.yaml").write_text("classes: [low, medium, high]\n")
    dataset = open_dataset(str(tmp_path), task=ordinal)
    assert (dataset.card.warnings, dataset.bags.labels) == ([], [0, 2, 1] * 2)


@pytest.mark.parametrize(
    ("two", "classes"),
    [
        (("01", "00"), ["class 0", "class 1"]),
        (("+1", "0"), ["class 0", "class 1"]),
        (("007", "1"), ["class 1", "class 7"]),
        (("\u22121", "1"), ["-1", "1"]),
        (("1e0", "0e0"), ["0e0", "1e0"]),
    ],
)
def test_numbers_however_they_are_written(tmp_path, two, classes):
    for i in range(4):
        write_clam(tmp_path, f"s{i}")
    rows = "".join(f"s{i},{two[i % 2]}\n" for i in range(4))
    (tmp_path / "labels.csv").write_text("slide_id,label\n" + rows, encoding="utf-8")
    assert open_dataset(str(tmp_path)).card.classes == classes


def test_classes_that_look_alike(tmp_path):
    for i in range(4):
        write_clam(tmp_path, f"s{i}")
    for one, other in (("na\u00efve", "nai\u0308ve"), ("a\u200b", "a"), ("\uff11", "1")):
        rows = "".join(f"s{i},{(one, other)[i % 2]}\n" for i in range(4))
        (tmp_path / "labels.csv").write_text("slide_id,label\n" + rows, encoding="utf-8")
        with pytest.raises(InputError, match="classes differ in case, blanks or accents only"):
            open_dataset(str(tmp_path))
