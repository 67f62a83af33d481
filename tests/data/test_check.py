"""Checking a dataset as it lies on disk: every fault is found in one pass, named, and counted in the exit code."""

import numpy as np
import pandas as pd
import pytest
from layouts import FEATURES, GRID, write_clam, write_h5, write_srmil, write_trident

from mil_zoo import InputError
from mil_zoo.data import open_dataset, read_card
from mil_zoo.data.check import check_dataset
from mil_zoo.data.layouts.base import LAYOUTS


def features(number):
    return FEATURES + np.float32(number)


@pytest.fixture
def folder(tmp_path):
    """Eight sound slides of four patients."""
    for number in range(8):
        write_trident(tmp_path, f"s{number}", features=features(number))
    rows = [(f"s{n}", "ab"[n // 2 % 2], f"p{n // 2}", "test" if n < 4 else "train") for n in range(8)]
    pd.DataFrame(rows, columns=["slide_id", "label", "case_id", "split"]).to_csv(tmp_path / "labels.csv", index=False)
    return tmp_path


def found(report):
    return [(finding.level, finding.text, finding.slides) for finding in report.findings]


def test_a_sound_dataset(folder, run_cli):
    (report,) = check_dataset(str(folder))
    assert report.ok, found(report)
    assert report.findings == []
    summary = report.summary()
    assert (summary["kind"], summary["layout"]) == ("own", "trident")
    (folder / "card.yaml").write_text("kind: simulated\n")
    assert check_dataset(str(folder))[0].summary()["kind"] == "simulated"
    assert summary["slides"] == "8, 8 without a problem"
    assert summary["labels"] == "a: 4, b: 4"
    assert (summary["patients"], summary["split"]) == ("4", "test: 4, train: 4")
    assert summary["patches"] == "96 (12 to 12 a slide, median 12)"
    assert (summary["dimensions"], summary["patch size"]) == ("3", "512 px (8 slides)")
    assert summary["isolated patches"] == "0 (0.00%)"
    code, out, _ = run_cli("data", "check", folder, "--csv", folder / "slides.tsv")
    assert code == 0
    assert "nothing to mend" in out
    table = pd.read_csv(folder / "slides.tsv")
    assert table["patches"].tolist() == [12] * 8
    assert table["digest"].nunique() == 8


def test_every_fault_is_found_in_one_pass(folder, run_cli):
    base = folder / "20x_256px_0px_overlap" / "features_uni_v1"
    whole = (base / "s0.h5").read_bytes()
    (base / "s0.h5").write_bytes(whole[: len(whole) // 2])
    write_trident(folder, "s1", features=np.full((12, 3), np.nan, np.float32))
    write_trident(folder, "s2", features=features(3))  # the features of s3
    write_trident(folder, "s4", features=np.ones((12, 5), np.float32))
    write_trident(folder, "s5", coords=GRID * 8)
    write_trident(folder, "spare", features=features(99))
    write_trident(folder, "s6", features=features(6), coords=np.concatenate([GRID[:11], GRID[:1]]))
    labels = pd.read_csv(folder / "labels.csv")
    labels.loc[len(labels)] = ["gone", "a", "p3", "train"]
    labels.loc[len(labels) - 2, "case_id"] = "p0"
    labels.to_csv(folder / "labels.csv", index=False)
    (report,) = check_dataset(str(folder))
    assert not report.ok
    text = "\n".join(f"{finding.level}: {finding.text} [{','.join(finding.slides)}]" for finding in report.findings)
    for expected in (
        "s0.h5 is not a readable feature file",
        "slide 's1': features are NaN or infinite in 12 of 12 patches",
        "error: identical features under several ids; keep one [s2,s3]",
        "error: features have 3 dimensions in most slides and others here; use one encoder [s4]",
        "slide 's5': no patch has another one within two steps of 512 px",
        "warning: slides with features have no label and are left out (labels: ",
        "[spare]",
        "(the table says 'gone'; the features are called 'spare'); extract them, drop their rows, or use those there",
        "patients in both test and train; split by patient [p0]",
        "patients with slides of different labels [p0,p3]",
        "warning: 1 patches lie at the place of another one [s6]",
    ):
        assert expected in text, (expected, text)
    sound = int((report.slides["problem"] == "").sum())
    assert report.summary()["slides"] == f"9, {sound} without a problem; 1 more in the labels, without features"
    code, out, _ = run_cli("data", "check", folder)
    assert code == 1
    assert "mend the errors" in out
    code, out, _ = run_cli("data", "check", folder, "--markdown")
    assert "**error**: identical features under several ids; keep one (2: s2, s3)" in out
    labels = pd.read_csv(folder / "labels.csv").replace({"label": {"a": "a|b"}})
    labels.to_csv(folder / "labels.csv", index=False)
    assert r"a\|b: " in run_cli("data", "check", folder, "--markdown")[1]


def test_without_labels_only_features_are_checked(folder, run_cli):
    (folder / "labels.csv").unlink()
    (report,) = check_dataset(str(folder))
    assert report.ok
    assert report.findings[0].text.startswith("only the features were checked, there are no labels: ")
    path = folder / "20x_256px_0px_overlap" / "features_uni_v1" / "s0.h5"
    assert run_cli("data", "check", path)[0] == 0
    (folder / "bad.csv").write_bytes(b"slide_id,label\ns0,\xe4\n")
    code, out, _ = run_cli("data", "check", folder, "--labels", folder / "bad.csv")
    assert code == 1
    assert "is not UTF-8 text" in out
    (folder / "bad.csv").rename(folder / "labels.csv")  # which is there, and cannot be read
    assert [finding.level for finding in check_dataset(str(folder))[0].findings] == ["error"]
    code, _, err = run_cli("data", "check", folder / "nothing")
    assert (code, "no such file or folder" in err) == (2, True)


def test_several_sets_of_features(folder, run_cli):
    for number in range(8):
        write_trident(folder, f"s{number}", "conch", features=features(number)[:, :2])
    reports = check_dataset(str(folder))
    assert [(report.features, report.ok) for report in reports] == [("conch", True), ("uni_v1", True)]
    assert [report.features for report in check_dataset(str(folder), features=["uni_v1"])] == ["uni_v1"]
    code, _, err = run_cli("data", "check", folder, "--features", "uni")
    assert code == 2
    assert "no features called 'uni'; did you mean 'uni_v1'" in err


def test_a_real_clam_file_is_checked_for_its_coordinates(real_data):
    (path,) = (real_data / "coords").glob("TCGA*.h5")
    (report,) = check_dataset(str(path))
    assert not report.ok
    assert "it holds coords" in report.findings[0].text
    summary = report.summary()
    assert (summary["patches"].split()[0], summary["patch size"]) == ("1,502", "512 px (1 slide)")
    assert summary["isolated patches"].startswith("0 ")


def test_real_tables(real_data):
    for name, slides in (("musk1", 92), ("elephant", 200), ("tiger", 200), ("birds", 182), ("crchisto", 100)):
        (report,) = check_dataset(name, root=real_data)
        assert report.ok, found(report)
        assert len(report.slides) == slides


def test_pickles(tmp_path):
    write_srmil(tmp_path / "slides.pkl", {"a": 0, "b": 1})
    (report,) = check_dataset(str(tmp_path))
    assert report.findings[0].text == "identical features under several ids; keep one"
    assert report.slides["label"].tolist() == ["0", "1"]


def tables_of(real_data):
    folder = real_data / "labels_splits"
    tnbc = np.load(folder / "gigassl_tnbc_splits.npz")
    return {
        "camelyon16": pd.read_csv(folder / "camelyon16_slides.csv"),
        "tcga_nsclc": pd.read_csv(folder / "tcga_nsclc_slides.csv.gz"),
        "bracs": pd.read_csv(folder / "bracs_slides.csv"),
        "bracs_coarse": pd.read_csv(folder / "bracs_slides.csv"),
        "tcga_tnbc": pd.DataFrame({key: tnbc[key] for key in ("slide_id", "label", "case_id")}),
    }


def test_cards_agree_with_the_published_tables(real_data, tmp_path):
    for name, table in tables_of(real_data).items():
        root = tmp_path / name
        first = write_h5(root / "h5_files" / "first.h5", features=FEATURES, coords=GRID)
        for slide in table["slide_id"]:
            (first.parent / f"{slide}.h5").hardlink_to(first)
        first.unlink()
        table.to_csv(root / "labels.csv", index=False)
        dataset = open_dataset(name, root=root)
        card = read_card(name)
        assert len(dataset.bags) == card.bags, name
        assert card.patients is None or len({slide.patient_id for slide in dataset.bags.slides}) == card.patients, name
        table.drop(index=table.index[5]).to_csv(root / "labels.csv", index=False)
        with pytest.raises(InputError, match=rf"dataset '{name}' holds {card.bags - 1} bags"):
            open_dataset(name, root=root)


def test_labels_of_patients(tmp_path, monkeypatch):
    for slide in ("TCGA-05-4244-a", "TCGA-05-4244-b", "TCGA-06-0001-a"):
        write_clam(tmp_path, slide)
    (tmp_path / "labels.csv").write_text("slide_id,label\nTCGA-05-4244-a,IDC\nTCGA-05-4244-b,ILC\nTCGA-06-0001-a,IDC\n")
    with pytest.raises(InputError, match=r"patients with slides of different labels: TCGA-05-4244 \(1 in all\)"):
        open_dataset("tcga_brca", root=tmp_path)
    (tmp_path / "labels.csv").write_text("slide_id,label\nTCGA-05-4244-a,IDC\nTCGA-05-4244-b,IDC\nTCGA-06-0001-a,ILC\n")
    warnings = open_dataset("tcga_brca", root=tmp_path).card.warnings
    assert warnings == ["The dataset holds 3 bags ([2, 1] by class), its card states 875 ([726, 149])."]


def test_show(run_cli):
    code, out, _ = run_cli("data", "show", "camelyon16")
    assert code == 0
    for words in ("CC0 1.0", "239 normal, 160 tumour", "test_049", "159 + 111", "micro", "Traps"):
        assert words in out, words
    text = run_cli("data", "--help")[1]
    assert "Examples" in text
    assert all(
        f" {layout}" in text.replace("\n", " ")
        for layout in LAYOUTS
        if "plugin" not in type(LAYOUTS.get(layout)).__module__
    )
    assert "did you mean 'camelyon16'" in run_cli("data", "show", "camelyon")[2]


def test_outcomes_are_checked_as_what_they_are(folder, run_cli):
    """Times and events are told by their columns; the columns of other tasks by --task."""
    labels = pd.read_csv(folder / "labels.csv").drop(columns="label")
    labels["time_months"], labels["event"] = np.arange(len(labels)) // 2, np.arange(len(labels)) // 2 % 2
    labels.loc[0, "time_months"] = None
    labels.to_csv(folder / "labels.csv", index=False)
    (report,) = check_dataset(str(folder))
    assert [(finding.level, finding.slides) for finding in report.findings] == [("warning", ("s0",))]
    labels["event"] = 2
    labels.to_csv(folder / "labels.csv", index=False)
    (report,) = check_dataset(str(folder))
    assert "takes 0 and 1 (true and false), not what" in report.findings[0].text
    assert "'s1' '2'" in report.findings[0].text
    code, out, _ = run_cli("data", "check", folder, "--task", "regression:column=age")
    assert (code, "the column 'age' is missing" in " ".join(out.replace("│", "").split())) == (1, True)


def test_columns_of_survival_are_named_as_for_a_bench(folder, run_cli):
    """``--time`` and ``--event`` are those of bench; a missing column is asked for by them."""
    (folder / "labels.csv").unlink()
    times = [10.0, 10.0, 20.0, 20.0, 30.0, 30.0, 40.0, 40.0]
    table = pd.DataFrame({"slide_id": [f"s{n}" for n in range(8)], "case_id": [f"p{n // 2}" for n in range(8)]})
    table = table.assign(os_months=times, dead=[1, 1, 0, 0, 1, 1, 0, 0])
    table.to_csv(folder / "outcome.csv", index=False)
    command = ("data", "check", folder, "--labels", folder / "outcome.csv")
    code, out, _ = run_cli(*command, "--time", "os_months", "--event", "dead")
    assert code == 0, out
    assert "2 of 4 patients had the event (50 %)" in " ".join(out.replace("│", " ").split())
    code, out, _ = run_cli(*command, "--task", "survival")
    assert code == 1
    said = " ".join(out.replace("│", " ").split())
    assert "the column 'time' is missing" in said
    assert "name the table's own: --time COLUMN, with --event COLUMN or --censorship COLUMN" in said
    table.loc[1, "os_months"] = 11.0
    table.to_csv(folder / "outcome.csv", index=False)
    code, out, _ = run_cli(*command, "--time", "os_months", "--event", "dead")
    assert code == 1
    assert "patient 'p0' has time_months 10, event 1 on slide 's0' and time_months 11" in " ".join(
        out.replace("│", " ").split()
    )


def test_a_column_of_numbers_is_named_in_its_task(folder, run_cli):
    table = pd.read_csv(folder / "labels.csv").assign(age=range(50, 58)).drop(columns=["label"])
    table.to_csv(folder / "labels.csv", index=False)
    (report,) = check_dataset(str(folder), task=(("name", "regression"), ("column", "age"), ("unit", "years")))
    assert report.summary()["outcome"].startswith("Target: age, 50 to 57 years")
    (report,) = check_dataset(str(folder), task=(("name", "regression"),))
    assert "name the table's own: --task regression:column=COLUMN" in found(report)[0][1]
