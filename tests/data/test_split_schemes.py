"""Ways to split by name, split files of other tools, and what the real published splits share."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from mil_zoo import Bag, InputError
from mil_zoo.data.card import DataCard
from mil_zoo.data.labelled import Dataset
from mil_zoo.data.splits.draw import kfold, monte_carlo, train_elsewhere
from mil_zoo.data.splits.files import read_splits, splits_csv
from mil_zoo.data.splits.formats import read_split_file
from mil_zoo.data.splits.leaks import report_leaks
from mil_zoo.data.splits.schemes import draw_splits, low_label
from mil_zoo.data.splits.split import Split, leaks_of, split_hash

PATIENTS = {f"s{i:03d}": f"TCGA-{i // 20:02d}-{i // 2:04d}" for i in range(120)}


@pytest.fixture
def slides():
    return [
        Bag(features=torch.zeros(1, 1), label=i // 2 % 2, slide_id=slide, patient_id=patient)
        for i, (slide, patient) in enumerate(PATIENTS.items())
    ]


@pytest.fixture
def dataset(slides):
    card = DataCard("mine", "Mine", "real", "slides", ["a", "b"])
    return Dataset(card, slides, site_of={slide: f"{int(slide[1:]) % 40 // 2}" for slide in PATIENTS})


def test_schemes_by_name(dataset):
    kinds = {
        "kfold": "stratified k-fold by patient",
        "site": "site-preserved k-fold (20 sites)",
        "monte-carlo": "stratified Monte-Carlo draws by patient, 20 % for test",
        "low-label:20": "stratified k-fold by patient, 20 training slides",
        "low-label:25%": "stratified k-fold by patient, 25% of the training slides",
    }
    for scheme, kind in kinds.items():
        drawn = draw_splits(dataset, scheme, folds=4)
        assert (drawn.kind, len(drawn.splits), drawn.warnings) == (kind, 4, [])
        assert leaks_of(drawn.splits, PATIENTS) == {}
    assert len(draw_splits(dataset, "kfold", folds=4, repeats=3).splits) == 12


def test_few_labels_of_a_published_split(dataset, slides):
    (whole,) = draw_splits(replace(dataset, published_splits=kfold(slides, 4)[:1]), "official").splits
    drawn = draw_splits(replace(dataset, published_splits=[whole]), "low-label:20", folds="published")
    (few,) = drawn.splits
    assert (few.test, len(few.train), drawn.kind) == (whole.test, 20, "official split, 20 training slides")


def test_monte_carlo_draws_are_independent(slides):
    splits = monte_carlo(slides, 6)
    assert [(split.repeat, split.fold) for split in splits] == [(0, fold) for fold in range(6)]
    assert all(20 <= len(split.test) <= 28 for split in splits)
    assert len({split.test for split in splits}) == 6
    assert set(splits[0].test) & set(splits[1].test)


def test_few_labels_leave_the_test_parts_alone(slides):
    whole = kfold(slides, 4)
    for labelled in (10, 40):
        for split, few in zip(whole, low_label(whole, slides, labelled), strict=True):
            assert few.test == split.test
            assert set(few.train) <= set(split.train)
            assert len(few.train) == labelled
            assert 2 <= len(few.val) <= np.ceil(len(split.val) * labelled / len(split.train)) + 1
            assert set(few.val) <= set(split.val)
    shares = [
        len(few.train) / len(split.train) for split, few in zip(whole, low_label(whole, slides, 0.25), strict=True)
    ]
    assert np.allclose(shares, 0.25, atol=0.02)
    with pytest.raises(InputError, match="at most"):
        low_label(whole, slides, 500)


def test_training_here_and_testing_there(slides):
    test = [bag.slide_id for bag in slides[80:]]
    first, second = train_elsewhere(slides, test, repeats=2)
    assert set(first.test) == set(second.test) == set(test)
    assert sorted(first.train + first.val) == sorted(second.train + second.val) == sorted(set(PATIENTS) - set(test))
    assert first.val != second.val
    with pytest.raises(InputError, match="in both train and test: TCGA-04-0040"):
        train_elsewhere(slides, test[1:])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scheme": "kfolds"}, "did you mean 'kfold'"),
        ({"scheme": "low-label"}, "low-label:50"),
        ({"scheme": "low-label:0"}, "write low-label:50"),
        ({"scheme": "low-label:200%"}, "write low-label:50"),
        ({"scheme": "official"}, "comes without published folds"),
        ({"scheme": "site", "folds": "published"}, "draws its own folds"),
        ({"scheme": "monte-carlo", "repeats": 2}, "leave --repeats out"),
        ({"scheme": "none.csv"}, "none.csv: no such file; a split file lists slides"),
    ],
)
def test_schemes_that_cannot_be_are_refused(dataset, given, message):
    with pytest.raises(InputError, match=message):
        draw_splits(dataset, **given)


def test_a_dataset_without_sites(dataset, slides):
    with pytest.raises(InputError, match="add a column 'site'"):
        draw_splits(Dataset(dataset.card, slides), "site")


def test_a_class_without_slides(dataset, slides):
    empty = replace(dataset, card=replace(dataset.card, classes=["a", "b", "c"]))
    with pytest.raises(InputError, match="no slide of Mine has the label 'c'"):
        draw_splits(empty)


@pytest.fixture
def split(slides):
    return kfold(slides, 4)[0]


def columns(**parts):
    return pd.concat([pd.Series(list(ids), name=name, dtype=str) for name, ids in parts.items()], axis=1)


def test_split_files_of_other_tools(tmp_path, dataset, split):
    """CLAM: splits_<i>.csv with padded columns, and _bool; torchmil: bag_name, split; Giga-SSL: train, test."""
    clam = tmp_path / "clam"
    clam.mkdir()
    columns(train=split.train, val=split.val, test=split.test).to_csv(clam / "splits_10.csv")
    columns(train=split.test, val=split.val, test=split.train).to_csv(clam / "splits_9.csv")
    bools = pd.DataFrame({part: [s in getattr(split, part) for s in PATIENTS] for part in ("train", "val", "test")})
    bools.index = list(PATIENTS)
    bools.to_csv(clam / "splits_9_bool.csv")
    first, second = read_splits(str(clam))
    assert (first.fold, second.fold) == (0, 1)
    assert (first.test, second.test) == (split.train, split.test)
    (from_bools,) = read_splits(str(clam / "splits_9_bool.csv"))
    assert split_hash([from_bools]) == split_hash([split])
    drawn = draw_splits(dataset, str(clam / "splits_10.csv"))
    assert (drawn.splits, drawn.kind) == ([split], "read from splits_10.csv")

    rows = [(f"{slide}.svs", part) for part in ("train", "val", "test") for slide in getattr(split, part)]
    pd.DataFrame(rows, columns=["bag_name", "split"]).to_csv(tmp_path / "splits.csv", index=False)
    assert read_splits(str(tmp_path / "splits.csv")) == [split]

    columns(train=split.train + split.val, test=split.test).to_csv(tmp_path / "split_0.csv", index=False)
    (published,) = read_splits(str(tmp_path / "split_0.csv"))
    assert published.val == ()
    (run,) = draw_splits(dataset, str(tmp_path / "split_0.csv")).splits
    assert run.test == split.test
    assert sorted(run.train + run.val) == sorted(split.train + split.val)

    codes = np.array([[{True: 1}.get(s in split.train, 2 * (s in split.test)) for s in PATIENTS]] * 2, dtype=np.int8)
    np.savez(
        tmp_path / "g.npz", slide_id=list(PATIENTS), case_id=list(PATIENTS.values()), split_50=codes, split_x=codes
    )
    with pytest.raises(InputError, match=r"holds several splits; choose one, .*g.npz:NAME, of split_50, split_x"):
        read_splits(str(tmp_path / "g.npz"))
    with pytest.raises(InputError, match="holds no split 'split_5'; did you mean 'split_50'"):
        read_splits(f"{tmp_path}/g.npz:split_5")
    both = read_splits(f"{tmp_path}/g.npz:split_50")
    assert [(s.fold, s.train, s.val, s.test) for s in both] == [(i, split.train, (), split.test) for i in (0, 1)]
    assert read_split_file(tmp_path / "g.npz").patient_of == PATIENTS


def test_a_run_s_own_splits_come_back_with_their_hash(tmp_path, dataset, slides):
    splits = kfold(slides, 3, repeats=2)
    (tmp_path / "splits.csv").write_text(splits_csv(splits, slides))
    again = draw_splits(dataset, str(tmp_path / "splits.csv")).splits
    assert split_hash(again) == split_hash(splits)
    assert read_split_file(tmp_path / "splits.csv").patient_of == PATIENTS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train,test\ns000,s001\nzz,s003\n", "train slide 'zz' is not in the dataset"),
        ("train,test\ns000,s001\ns001,s003\n", "slide 's001' is in the split twice"),
        ("train,test\ns000,\ns001,\n", "no test slides"),
        ("slide_id,split\ns000,train\ns001,tset\n", "beside slide_id: the column split holds 'tset', which is none of"),
        ("slide_id,fold\ns000,0\ns001,1\n", "a column fold belongs into the label table, for --folds published"),
        ("slide_id,split\n", "it holds a header and no rows"),
        ("a,b\n1,2\n", "is no split file"),
    ],
)
def test_split_files_that_do_not_fit_are_refused(tmp_path, dataset, text, message):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        draw_splits(dataset, str(tmp_path / "s.csv"))


def test_a_leaky_file_is_an_error_and_a_warning_where_it_is_allowed(tmp_path, dataset):
    ids = list(PATIENTS)
    columns(train=ids[:61], test=ids[61:]).to_csv(tmp_path / "s.csv", index=False)
    with pytest.raises(InputError, match="patients in both train and test: TCGA-03-0030; split by patient"):
        draw_splits(dataset, str(tmp_path / "s.csv"))
    drawn = draw_splits(dataset, str(tmp_path / "s.csv"), allow_leaks=True)
    assert "LEAKY SPLIT" in drawn.warnings[0]
    assert "(1 in all: TCGA-03-0030)" in drawn.warnings[0]


def test_real_published_splits(real_data):
    """CLAM's rule of a split a column, and Giga-SSL's bundles, as the shared files hold them."""
    folder = real_data / "labels_splits"
    lung = read_split_file(folder / "gigassl_lung_splits.npz")
    assert {name: len(splits) for name, splits in lung.splits.items()} == dict.fromkeys(
        ("split_100", "split_25p", "split_50", "split_full"), 10
    )
    assert all(len(split.train) == 50 for split in lung.splits["split_50"])
    bracs = read_split_file(folder / "bracs_slides.csv")
    assert len(bracs.splits["split"][0].train) == 395
    assert [patients for patients in leaks_of(bracs.splits["split"], bracs.patient_of).values()] == [["67"]]
    nsclc = read_split_file(folder / "tcga_nsclc_slides.csv.gz")
    assert leaks_of(nsclc.splits["panther_split"], nsclc.patient_of) == {}
    assert isinstance(nsclc.splits["zhao_fold0"][0], Split)


def test_leaks_are_reported_by_the_command(tmp_path, run_cli):
    ids = list(PATIENTS)
    columns(train=ids[:61], test=ids[61:]).to_csv(tmp_path / "splits_0.csv", index=False)
    columns(train=ids[:60], test=ids[60:]).to_csv(tmp_path / "splits_1.csv", index=False)
    pd.DataFrame({"slide_id": ids, "case_id": list(PATIENTS.values())}).to_csv(tmp_path / "p.csv", index=False)
    code, out, _ = run_cli("data", "leaks", tmp_path, "--patients", tmp_path / "p.csv", "--markdown")
    assert code == 1
    assert "| 2 | 61 / 0 / 59 | case_id | 1 of 2, 1 patients each | 1 (TCGA-03-0030) | 0 |" in out
    code, out, _ = run_cli("data", "leaks", tmp_path / "splits_0.csv")  # no patients: every slide is one
    assert code == 0
    assert "unknown" in out
    code, _, err = run_cli("data", "leaks", tmp_path / "splits_0.csv", "--patients", tmp_path / "splits_1.csv")
    assert code == 2
    assert "slide_id or patient_id (case_id) is missing" in err


def test_leaks_of_the_published_splits(real_data):
    folder = real_data / "labels_splits"
    (lung,) = [r for r in report_leaks(folder / "gigassl_lung_splits.npz") if r.name.endswith(":split_full")]
    assert (lung.leaky, len(lung.shared)) == (10, 28)
    bracs = {r.name: r.shared + r.with_val for r in report_leaks(folder / "bracs_slides.csv")}
    assert set(map(tuple, bracs.values())) == {("67",)}


def parts_of(split):
    return {part: getattr(split, part) for part in ("train", "val", "test")}


def test_panther_s_folders(tmp_path, dataset, split):
    """train.csv, val.csv and test.csv with one row a slide; a folder a fold of survival; further test sets by name."""
    for number in (1, 0):
        folder = tmp_path / "survival" / f"TCGA_BLCA_overall_survival_k={number}"
        folder.mkdir(parents=True)
        sides = [split.train, split.test] if number == 0 else [split.test, split.train]
        for name, ids in zip(("train", "test"), sides, strict=True):
            rows = {
                "case_id": [PATIENTS[s] for s in ids],
                "slide_id": [f"{s}.svs" for s in ids],
                "dss_survival_days": 1,
            }
            pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)
    first, second = read_splits(str(tmp_path / "survival"))
    assert (first.fold, first.train, first.val, first.test) == (0, split.train, (), split.test)
    assert (second.fold, second.test) == (1, split.train)
    assert read_split_file(tmp_path / "survival").patient_of["s000"] == PATIENTS["s000"]
    folder = tmp_path / "panda"
    folder.mkdir()
    for name, ids in parts_of(split).items():
        pd.DataFrame({"FILENAME": ids, "PATIENT": ids}).to_csv(folder / f"{name}.csv", index=False)
    assert [parts_of(one) for one in read_splits(str(folder))] == [parts_of(split)]
    pd.DataFrame({"FILENAME": split.test[:5]}).to_csv(folder / "test_K.csv", index=False)
    assert read_splits(str(folder))[0].test == split.test
    assert read_splits(f"{folder}:test_K")[0].test == split.test[:5]
    assert draw_splits(dataset, str(folder)).splits == [split]
    (folder / "test.csv").unlink()
    (folder / "test_K.csv").unlink()
    with pytest.raises(InputError, match=r"panda: no test.csv beside the others"):
        read_splits(str(folder))


def test_prov_gigapath_s_and_psemix_s_and_mil_baseline_s_files(tmp_path, dataset, split):
    gigapath = tmp_path / "gigapath"
    gigapath.mkdir()
    for number, (name, ids) in ((n, item) for n in (0, 1) for item in parts_of(split).items()):
        pd.DataFrame({"slide_id": ids, "label": 0}).to_csv(gigapath / f"{name}_{number}.csv", index=False)
    assert [(one.fold, parts_of(one)) for one in read_splits(str(gigapath))] == [(n, parts_of(split)) for n in (0, 1)]
    psemix = tmp_path / "psemix"
    psemix.mkdir()
    patients = {f"{name}_patients": sorted({PATIENTS[s] for s in ids}) for name, ids in parts_of(split).items()}
    np.savez(psemix / "TCGA_BRCA-fold0.npz", **patients)
    (one,) = draw_splits(dataset, str(psemix)).splits
    assert one == split
    assert draw_splits(dataset, str(psemix / "TCGA_BRCA-fold0.npz")).splits == [split]
    with pytest.raises(InputError, match="splits patients; it needs a dataset"):
        read_splits(str(psemix))
    np.savez(psemix / "TCGA_BRCA-fold0.npz", **{**patients, "test_patients": ["nobody"]})
    with pytest.raises(InputError, match="patient 'nobody' is not in the dataset"):
        draw_splits(dataset, str(psemix))
    baseline = tmp_path / "baseline"
    baseline.mkdir()
    paths = {
        f"{name}_slide_path": [f"/data/feat/pt_files/{s}.pt" for s in ids] for name, ids in parts_of(split).items()
    }
    columns(**paths).to_csv(baseline / "Total_5-fold_GEM-2cls_1fold.csv", index=False)
    assert draw_splits(dataset, str(baseline)).splits == [split]


def test_ids_that_pandas_wrote_as_floats_are_found(tmp_path):
    names = {str(2001 + i): f"p{i}" for i in range(12)}
    text = "train,val,test\n2001,2003.0,2005.0\n2002,2004.0,2006.0\n2007,,\n"
    (tmp_path / "splits_0.csv").write_text(text)
    (split,) = read_splits(str(tmp_path / "splits_0.csv"), names)
    assert (split.val, split.test) == (("2003", "2004"), ("2005", "2006"))


def test_a_file_s_error_names_it_the_class_and_what_to_do(tmp_path, dataset):
    first = [slide for slide in PATIENTS if int(slide[1:]) // 2 % 2 == 0]
    columns(train=list(PATIENTS)[:60], test=first[-20:]).to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(InputError, match=r"mine.csv, repeat 0, fold 0: no test slide is of class 'b'; put slides"):
        draw_splits(dataset, str(tmp_path / "mine.csv"))


def test_withheld_labels_leave_the_training_side_as_large_as_it_is(tmp_path, dataset, slides):
    """low-label:50 and a grid of labels are one experiment: what intervals correct for goes by whole training sides."""
    whole, few = draw_splits(dataset, "kfold", 4).splits, draw_splits(dataset, "low-label:20", 4).splits
    assert [len(one.train) + len(one.withheld) for one in few] == [len(one.train) for one in whole]
    (tmp_path / "splits.csv").write_text(splits_csv(few, slides))
    again = draw_splits(dataset, str(tmp_path / "splits.csv")).splits
    assert again == few
    assert split_hash(again) == split_hash(few)


def test_a_class_of_few_patients_is_said(dataset, slides):
    rare = replace(dataset, bags=[bag for bag in slides if bag.label == 0 or int(bag.slide_id[1:]) < 14])
    (warning,) = draw_splits(rare, "kfold", 3).warnings
    assert warning.startswith("Class 'b' has few patients: the validation part takes one of 2 (50% where 15% were")


def test_an_odd_validation_part_is_said_once(dataset):
    """Six slides of six patients: two folds leave three for training, of which one is 33 %."""
    six = replace(dataset, bags=[replace(bag, label=None) for bag in list(dataset.bags)[:12:2]])
    (warning,) = draw_splits(six, folds=2, strata=[0] * 6).warnings
    assert warning.startswith("The validation part holds 33% of the training slides in 2 of 2 splits, where 15% were")


@pytest.mark.parametrize(
    "header", ["train,val,test", "Train,Val,Test", "TRAIN,VALIDATION,TESTING", "training,dev,test"], ids=str
)
def test_parts_however_columns_call_them(tmp_path, header):
    (tmp_path / "s.csv").write_text(f"{header}\na,c,d\nb,,\n")
    (split,) = read_splits(str(tmp_path / "s.csv"), {slide: slide for slide in "abcd"})
    assert (split.train, split.val, split.test) == (("a", "b"), ("c",), ("d",))


def test_patients_of_a_split_file_however_their_column_is_spelled(tmp_path):
    (tmp_path / "s.csv").write_text("Slide ID,Case ID,split\na,p,train\nb,,train\nc,q,test\n")
    assert read_split_file(tmp_path / "s.csv").patient_of == {"a": "p", "c": "q"}
