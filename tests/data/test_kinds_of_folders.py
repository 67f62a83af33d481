"""Folders as people keep them: one a class or a part, CLAM's two, none with labels, and tables of more slides."""

import shutil

import numpy as np
import pytest
import torch
from layouts import FEATURES, GRID, write_clam, write_h5, write_trident

from mil_zoo import InputError
from mil_zoo.data import open_dataset, read_bag
from mil_zoo.data.check import check_dataset
from mil_zoo.data.dataset import open_slides
from mil_zoo.data.layouts.find import find_features
from mil_zoo.data.splits.schemes import draw_splits


def features(number):
    return FEATURES + np.float32(number)


def write_labels(folder, rows, header="slide_id,label"):
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n")


def test_a_folder_a_class_or_a_part_is_one_set(tmp_path):
    places = {"training/normal": "ab", "training/tumor": "cd", "testing/images": "ef"}
    for kind in ("plain", "clam", "trident"):
        root = tmp_path / kind
        for folder, names in places.items():
            for name in names:
                if kind == "trident":
                    write_trident(root / folder, name)
                elif kind == "clam":
                    write_clam(root / folder, name)
                else:
                    write_h5(root / folder / f"{name}.h5", features=FEATURES, coords=GRID)
        (found,) = find_features(root)
        assert sorted(found.files) == list("abcdef")
        assert found.folder == root
        assert found.name == ("uni_v1" if kind == "trident" else kind)


def test_encoders_stay_apart(tmp_path):
    for encoder in ("uni", "conch"):
        for folder, names in {"normal": "ab", "tumor": "cd"}.items():
            for name in names:
                write_h5(tmp_path / encoder / folder / f"{name}.h5", features=FEATURES, coords=GRID)
    assert [(found.name, sorted(found.files)) for found in find_features(tmp_path)] == [
        ("conch", list("abcd")),
        ("uni", list("abcd")),
    ]
    write_trident(tmp_path / "job", "a", "uni")
    write_trident(tmp_path / "job", "b", "gigapath")  # shares no slide, and says that it is another encoder
    assert [found.name for found in find_features(tmp_path / "job")] == ["gigapath", "uni"]


def test_clam_writes_features_and_patches_into_two_folders(tmp_path):
    tmp_path = tmp_path / "project"  # folders beside that of the features are searched: not those of other tests
    path = write_clam(tmp_path / "FEATURES", "a[1]", patch_size=None)
    for name in "bc":  # of a single slide whose places nothing tells, another project's patches could not be told
        torch.save(torch.from_numpy(FEATURES), tmp_path / "FEATURES" / f"{name}.pt")
    assert read_bag(path).geometry.startswith("the coordinates' own step")
    assert read_bag(path).patch_size == 512
    for folder in ("patches", "PATCHES", "Patches"):
        write_h5(tmp_path / folder / folder / "a[1].h5", coords_attrs={"patch_size": 512}, coords=GRID)
        assert read_bag(path).geometry == f"patch_size x downsample of ../{folder}/{folder}/<slide>.h5"
        shutil.rmtree(tmp_path / folder)
        write_h5(tmp_path / folder / "a[1].h5", coords_attrs={"patch_size": 512}, coords=GRID)
        assert read_bag(path).geometry == f"patch_size x downsample of ../{folder}/<slide>.h5"
        shutil.rmtree(tmp_path / folder)
    for name, size in {"a[1]": 256, "b": 512, "c": 512}.items():
        attrs = {"patch_size": size, "downsample": np.array([512 / size] * 2)}
        write_h5(tmp_path / "RESULTS" / "patches" / f"{name}.h5", coords_attrs=attrs, coords=GRID)
    assert read_bag(path).geometry == "patch_size x downsample of ../RESULTS/patches/<slide>.h5"
    assert read_bag(tmp_path / "FEATURES" / "b.pt").coords.tolist() == GRID.tolist()
    write_h5(tmp_path / "RESULTS" / "patches" / "b.h5", coords=GRID[:5])  # of another magnification
    assert read_bag(tmp_path / "FEATURES" / "b.pt").coords is None


@pytest.fixture
def six(tmp_path):
    for number in range(6):
        write_clam(tmp_path, f"s{number}", features=features(number))
    return tmp_path


def test_slides_without_labels(six):
    assert open_slides(str(six)).bags.labels == [None] * 6
    with pytest.raises(InputError, match=r"no labels.csv; pass --labels"):
        open_dataset(str(six))
    write_labels(six, ["s0,a,p", "S3.svs,b,q"], "slide_id,label,patient_id")
    bags = open_slides(str(six)).bags
    assert bags.labels == [0, None, None, 1, None, None]
    assert [slide.patient_id for slide in bags.slides] == ["p", None, None, "q", None, None]


def test_pretraining_and_embedding_need_no_labels(six, run_cli, tmp_path_factory):
    small = ("--epochs", 1, "--batch-size", 4, "--set", "out_dim=4", "--set", "projection_dim=2", "--set", "views=2")
    out = tmp_path_factory.mktemp("out")
    code, text, err = run_cli("pretrain", "--dataset", six, *small, "--out", out / "run")
    assert (code, err) == (0, "")
    assert "kNN" not in text
    code, _, err = run_cli("embed", out / "run" / "encoder.safetensors", "--dataset", six, "--out", out / "emb")
    assert (code, err) == (0, "")
    assert np.load(out / "emb" / "ids.npy").tolist() == [f"s{i}" for i in range(6)]


def test_a_table_of_more_slides_than_there_are(six, run_cli):
    write_labels(six, [f"s{number},{'ab'[number % 2]}" for number in range(100)])
    with pytest.raises(InputError, match=r"names slides without features; .* or use those there \(--allow-missing\)"):
        open_dataset(str(six))
    dataset = open_dataset(str(six), allow_missing=True)
    assert len(dataset.bags) == 6
    note = "94 of the 100 slides in labels.csv have no features and are left out, as asked."
    assert dataset.card.warnings == [note]
    (six / "split.csv").write_text("train,val,test\n" + "".join(f"s{i},s{i + 2},s{i + 4}\n" for i in (0, 1, 50, 60)))
    (split,) = draw_splits(dataset, str(six / "split.csv")).splits
    assert (split.train, split.val, split.test) == (("s0", "s1"), ("s2", "s3"), ("s4", "s5"))
    (report,) = check_dataset(str(six), allow_missing=True)
    assert report.ok
    assert run_cli("data", "check", six)[0] == 1
    assert run_cli("data", "check", six, "--allow-missing")[0] == 0
    write_labels(six, [f"x{number},{number % 2}" for number in range(9)])
    with pytest.raises(InputError, match=r"none of its 9 slides has features \(the table says 'x0', 'x1', 'x2'; the"):
        open_dataset(str(six), allow_missing=True)


def test_names_in_split_files_are_matched_as_those_in_tables(six):
    write_labels(six, [f"s{number},{'ab'[number % 2]}" for number in range(6)])
    dataset = open_dataset(str(six))
    (six / "split.csv").write_text("train,val,test\nS0,/x/s2.svs,s4.h5\n s1 ,s3.ome.tif,S5.pt\n")
    (split,) = draw_splits(dataset, str(six / "split.csv")).splits
    assert (split.train, split.val, split.test) == (("s0", "s1"), ("s2", "s3"), ("s4", "s5"))


def test_classes_that_differ_in_case_only(six):
    write_labels(six, [f"s{number},{['Tumor', 'normal', 'tumor'][number % 3]}" for number in range(6)])
    with pytest.raises(
        InputError, match=r"classes differ in case, blanks or accents only, 'Tumor' and 'tumor'; write one"
    ):
        open_dataset(str(six))
    write_labels(six, [f"s{number},{['Tumour', 'NORMAL'][number % 2]}" for number in range(6)])
    (six / "card.yaml").write_text("classes: [normal, tumour]\n")
    assert open_dataset(str(six)).bags.labels == [1, 0] * 3


def test_few_slides_of_several_classes_are_no_names(six):
    write_labels(six, [f"s{number},{'abcd'[number % 4]}" for number in range(6)])
    assert open_dataset(str(six)).card.classes == list("abcd")
    write_labels(six, [f"s{number},20230{number}" for number in range(6)])
    with pytest.raises(InputError, match="6 different labels of 6 slides are no classes"):
        open_dataset(str(six))


def test_some_barcodes_name_patients(tmp_path):
    names = ["TCGA-05-4244-01Z-00-DX1", "tcga-05-4244-01Z-00-DX2", "own_1", "own_2"]
    for number, name in enumerate(names):
        write_clam(tmp_path, name, features=features(number))
    write_labels(tmp_path, [f"{name},{number // 2}," for number, name in enumerate(names)], "slide_id,label,case_id")
    patients = [slide.patient_id for slide in open_dataset(str(tmp_path)).bags.slides]
    assert patients == ["TCGA-05-4244", "TCGA-05-4244", None, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mpp: -1", "mpp must be a positive number of micrometres, not -1"),
        ("mpp: .inf", "mpp must be a finite number"),
        ("annotation_threshold: 1.5", "annotation_threshold must be a share of a patch"),
        ("annotation_threshold: .inf", "annotation_threshold must be a finite number"),
        ("annotation_scale: 0", "annotation_scale must be a positive number"),
        ("classes: [a, a]", "classes must be different names, not 'a', 'a'"),
        ("classes: [a, '']", "classes must be different names"),
        ("classes: [a, b]\nlesion_free_class: c", "lesion_free_class must be one of a, b, not 'c'"),
        ("patient_prefix: 0", "patient_prefix must be 1 or more, not 0"),
        ("classes: [a, b]\nbags_per_class: [1]", "bags_per_class must be a number of bags for each of 2 classes"),
        ("classes: [a, b]\nsplit_counts: {test: [1, 2, 3]}", "split_counts test must be a number of bags"),
        ("classes: [a, b]\nbags_per_class: []", "bags_per_class must be a number of bags for each of 2 classes"),
        ("bags_per_class: [1, 5]", "bags_per_class counts bags by class, and the card names no classes; add classes"),
        ("title: ''", "title must be some text, not ''"),
        ('title: "a\\x07b"', r"title must be one line without control characters, not 'a\\x07b'"),
        ('title: "a\\u2028b"', "title must be one line without"),
    ],
)
def test_cards_that_cannot_be(six, text, message):
    write_labels(six, [f"s{number},{'ab'[number % 2]}" for number in range(6)])
    (six / "card.yaml").write_text(text)
    with pytest.raises(InputError, match=f"card.yaml: {message}"):
        open_dataset(str(six))


def test_counts_by_class_alone_state_their_sum(six):
    write_labels(six, [f"s{number},{'ab'[number % 2]}" for number in range(6)])
    (six / "card.yaml").write_text("classes: [a, b]\nbags_per_class: [1, 1]\n")
    with pytest.raises(InputError, match=r"holds 6 bags \(\[3, 3\] by class\), its card states 2 \(\[1, 1\]\)"):
        open_dataset(str(six))
