"""Folders of feature files: found, labelled, read one at a time, and one sentence for every fault."""

import shutil
from dataclasses import replace

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from layouts import GRID, write_clam, write_trident

from mil_zoo import Bag, InputError
from mil_zoo.data import graph_cache, open_dataset
from mil_zoo.data import open as open_module
from mil_zoo.data.card import DataCard


@pytest.fixture
def folder(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for i in range(24):
        features = rng.normal(size=(12, 3)).astype(np.float32) + i // 2 % 2
        write_clam(tmp_path / "mine", f"TCGA-{i // 2:02d}-{i}", features, GRID)
    table = pd.DataFrame({"slide_id": [f"TCGA-{i // 2:02d}-{i}" for i in range(24)]})
    table["label"] = ["red" if i // 2 % 2 else "blue" for i in range(24)]
    table["split"] = ["test" if i < 8 else "train" for i in range(24)]
    table.to_csv(tmp_path / "labels.csv", index=False)
    card = DataCard("mine", "Mine", "real", "slides", ["blue", "red"], path=".", bags=24, patient_prefix=7)
    monkeypatch.setattr(open_module, "read_card", lambda name: card)
    return tmp_path


def test_slides_are_read_when_they_are_needed(folder):
    dataset = open_dataset("mine", root=folder)
    bags = dataset.bags
    assert (len(bags), dataset.in_dim, bags.num_instances) == (24, 3, 288)
    assert bags.labels[:4] == [0, 0, 1, 1]
    assert bags[3].patient_id == "TCGA-01"
    assert bags[3].graph("window:2") is bags[3].graph("window:2")  # read twice, built once
    chosen = bags.select(["TCGA-01-3", "TCGA-00-0"])
    assert [bag.slide_id for bag in chosen] == ["TCGA-01-3", "TCGA-00-0"]
    assert [bag.label for bag in chosen.relabelled([0, 1])] == [0, 1]
    (split,) = dataset.published_splits
    assert [len(part) for part in (split.train, split.val, split.test)] == [16, 0, 8]


def test_the_graphs_used_last_are_kept_within_a_limit(folder, monkeypatch):
    bags = open_dataset("mine", root=folder).bags
    first = [bags[i].graph("window:2") for i in range(3)]
    assert all(bags[i].graph("window:2") is first[i] for i in (0, 2, 1))  # kept; slide 0 was used first
    monkeypatch.setattr(graph_cache, "GRAPH_EDGES", 3 * first[0].num_edges)
    bags[3].graph("window:2")
    assert bags[2].graph("window:2") is first[2]
    assert bags[1].graph("window:2") is first[1]
    assert bags[0].graph("window:2") is not first[0]  # made room, and is built again


def test_a_bench_on_a_folder_of_slides_with_its_official_split(folder, run_cli):
    code, _, err = run_cli(
        "bench", "--dataset", "mine", "--root", folder, "--models", "abmil,srmil", "--folds", "published",
        "--seeds", "0,1", "--epochs", 2, "--set", "srmil.hidden=8", "--permute-labels", "--class-weights", "balanced",
        "--out", folder / "run",
    )  # fmt: skip
    assert (code, err) == (0, "")
    predictions = pd.read_csv(folder / "run" / "trials" / "srmil-r0-f0-s1" / "predictions.csv")
    test = predictions[predictions["split"] == "test"]
    assert sorted(test["slide_id"]) == sorted(f"TCGA-{i // 2:02d}-{i}" for i in range(8))
    assert list(test["label"]) == [int(slide[5:7]) % 2 for slide in test["slide_id"]]  # true labels, not shuffled ones


def test_annotations_give_instance_labels_when_a_slide_is_read(folder, monkeypatch):
    card = replace(
        open_module.read_card("mine"), lesion_free_class="blue", incomplete_annotations=["TCGA-03-6"],
        annotation_threshold=0.4,
    )  # fmt: skip
    monkeypatch.setattr(open_module, "read_card", lambda name: card)
    (folder / "annotations").mkdir()
    x, y = GRID[0]
    for slide in ("TCGA-01-2.svs", "TCGA-03-6"):  # covers the first patch, and half of the second
        csv = f"polygon,x,y\n1,{x},{y}\n1,{x + 768},{y}\n1,{x + 768},{y + 512}\n1,{x},{y + 512}\n"
        (folder / "annotations" / f"{slide}.csv").write_text(csv)
    dataset = open_dataset("mine", root=folder)
    assert dataset.card.instance_labels == "more than 40 % of the patch lies in annotated lesions"
    labels = {bag.slide_id: bag.instance_labels for bag in dataset.bags}
    assert labels["TCGA-01-2"].tolist() == [1, 1] + [0] * 10
    assert labels["TCGA-00-0"].tolist() == [0] * 12  # of the class without lesions
    assert labels["TCGA-01-3"] is labels["TCGA-03-6"] is None  # no annotations, incomplete ones
    (folder / "annotations" / "TCGA-01-2.svs.csv").unlink()
    assert dataset.bags[2].instance_labels.tolist() == [1, 1] + [0] * 10  # read once
    (folder / "annotations" / "TCGA-03-6.xml").write_text("<none/>")
    with pytest.raises(InputError, match=r"two annotation files of slide 'TCGA-03-6'"):
        open_dataset("mine", root=folder)


def test_folders_that_do_not_fit_are_refused(folder):
    labels = folder / "labels.csv"
    text = labels.read_text()
    for change, message in {
        text + "zz,red,train\n": r"labels.csv names slides without features; .* \(--allow-missing\): zz \(1 in all\)",
        text.replace(
            "blue", "green"
        ): r"csv: label 'green' is none of 0, 1, blue, red; .*: TCGA-00-0, .* \(12 in all\)",
        text + "TCGA-00-0,red,train\n": "names slides twice: TCGA-00-0",
        text.rsplit("\n", 2)[0] + "\n": "holds 23 bags .* its card states 24",
    }.items():
        labels.write_text(change)
        with pytest.raises(InputError, match=message):
            open_dataset("mine", root=folder)
    labels.write_text(text)
    write_clam(folder / "another", "TCGA-00-0")
    with pytest.raises(InputError, match=r"2 sets of features; choose with --features: another, mine"):
        open_dataset("mine", root=folder)
    with pytest.raises(InputError, match=r"no features called 'anotter'; did you mean 'another'"):
        open_dataset("mine", root=folder, features="anotter")
    with pytest.raises(InputError, match=r"places of patches: pass the folder of the features"):
        open_dataset("mine", root=folder / "mine" / "patches", labels=labels)
    labels.unlink()
    with pytest.raises(InputError, match=r"no labels.csv; pass --labels FILE.csv"):
        open_dataset("mine", root=folder, features="mine")


def test_a_folder_without_a_card(tmp_path):
    for slide in "abcd":
        write_trident(tmp_path, slide, "uni")
        write_trident(tmp_path, slide, "conch", features=np.ones((12, 5), np.float32))
    labels = tmp_path / "clam_dataset.csv"
    labels.write_text(
        "\ufeffcase_id,slide_id,label\np1,a.svs,tumor\np1,b.svs,tumor\np2,c.svs,normal\n", encoding="utf-8"
    )
    dataset = open_dataset(str(tmp_path), features="conch")
    assert (dataset.in_dim, dataset.card.classes, dataset.features.name) == (5, ["normal", "tumor"], "conch")
    assert dataset.bags.labels == [1, 1, 0]
    assert [bag.patient_id for bag in dataset.bags] == ["p1", "p1", "p2"]
    assert dataset.card.warnings == ["1 slides with features have no label and are left out: d."]
    labels.write_text("slide_id,label\na,0\nb,2\n")
    assert open_dataset(str(tmp_path), features="uni").card.classes == ["class 0", "class 2"]
    labels.write_bytes("slide_id,label\na,Kr\u00e4he\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"clam_dataset.csv is not UTF-8 text \(byte 0xe4\); save it again as UTF-8"):
        open_dataset(str(tmp_path), labels=labels, features="uni")


def test_opening_a_large_folder_reads_no_features(tmp_path, monkeypatch):
    first = write_clam(tmp_path, "slide_0000", patch_size=None)
    for i in range(1, 2000):
        (first.parent / f"slide_{i:04d}.h5").hardlink_to(first)
    table = pd.DataFrame({"slide_id": [f"slide_{i:04d}" for i in range(2000)], "label": np.arange(2000) % 2})
    table.to_csv(tmp_path / "labels.csv", index=False)
    opened = []
    real = h5py.File
    monkeypatch.setattr(h5py, "File", lambda *a, **k: opened.append(a) or real(*a, **k))
    dataset = open_dataset(str(tmp_path))
    assert (len(dataset.bags), dataset.in_dim) == (2000, 3)
    assert len(opened) < 10


def test_a_folder_may_bring_its_own_card(folder):
    (folder / "card.yaml").write_text("title: Mine, simulated\nkind: simulated\nwarnings: [made up]\n")
    card = open_dataset("mine", root=folder).card
    assert (card.title, card.kind, card.warnings, card.bags) == ("Mine, simulated", "simulated", ["made up"], 24)
    assert open_dataset(str(folder)).card.title == "Mine, simulated"
    (folder / "card.yaml").write_text("titel: Mine\n")
    with pytest.raises(InputError, match=r"card.yaml: unknown key 'titel'; did you mean 'title'"):
        open_dataset("mine", root=folder)


def test_a_card_beside_a_table_says_what_differs_from_the_shipped_card(bag_table, tmp_path, monkeypatch):
    shipped = DataCard("mine", "Mine", "real", "table", ["low", "high"], path="bags.npz")
    monkeypatch.setattr(open_module, "read_card", lambda name: shipped)
    shutil.copy(bag_table, tmp_path)
    assert open_dataset("mine", root=tmp_path).card.kind == "real"
    (tmp_path / "card.yaml").write_text("kind: simulated\nclasses: [a, b]\nsingle_label: 1\n")
    card = open_dataset("mine", root=tmp_path).card
    assert (card.kind, card.classes, card.single_label, card.title) == ("simulated", ["a", "b"], 1, "Mine")


@pytest.mark.parametrize("form", ["folder", "table"])
def test_features_are_the_user_s_own_unless_a_card_says_what_they_are(folder, bag_table, tmp_path, form):
    place = folder if form == "folder" else shutil.copy(bag_table, tmp_path)
    without = open_dataset(str(place)).card
    assert without.kind == "own"
    (tmp_path / "card.yaml").write_text("kind: real\ntitle: Hospital A\n")
    card = open_dataset(str(place)).card
    assert card == replace(without, kind="real", title="Hospital A")


def test_instances_of_a_slide_need_not_touch():
    coords = torch.tensor([[x, y] for x in range(4) for y in range(4)]) * 256.0
    bag = Bag(features=torch.ones(16, 3), coords=coords, patch_size=256, slide_id="s")
    apart = bag.subset(torch.tensor([0, 15]))  # the corners: what is left of a slide, not a wrong patch size
    assert apart.graph("window:1").num_edges == 2
    assert apart.changed(label=1).graph("window:2").num_edges == 2
