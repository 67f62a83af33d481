"""The packed store: what comes back, bag by bag, after kills, from full disks and damaged files."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from mil_zoo import InputError
from mil_zoo.bench.plan import make_plan
from mil_zoo.bench.runner import run_plan
from mil_zoo.bench.suite import read_suite
from mil_zoo.data import prefetch
from mil_zoo.data.dataset import open_dataset
from mil_zoo.data.packed import writer as store_writer
from mil_zoo.data.packed.store import PackedStore, checksum
from mil_zoo.data.packed.writer import import_dataset
from mil_zoo.data.prefetch import read_ahead
from mil_zoo.data.source import DatasetSource
from mil_zoo.data.splits.draw import kfold


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """A folder of 12 slides as TRIDENT writes them, with labels and patients."""
    folder = tmp_path_factory.mktemp("trident")
    below = folder / "20x_256px_0px_overlap" / "features_uni_v1"
    below.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(12):
        sites = rng.permutation(100)[: rng.integers(5, 40)]
        with h5py.File(below / f"slide_{i:02d}.h5", "w") as file:
            file["features"] = rng.normal(size=(len(sites), 8)).astype(np.float32)
            file["coords"] = np.stack([sites % 10, sites // 10], 1) * 512
            file["coords"].attrs.update(patch_size=256, patch_size_level0=512)
    table = {"slide_id": [f"slide_{i:02d}" for i in range(12)], "label": [i % 2 for i in range(12)]}
    pd.DataFrame(table | {"patient_id": [f"p{i // 2}" for i in range(12)]}).to_csv(folder / "labels.csv", index=False)
    return folder


@pytest.fixture
def dataset(slides):
    return open_dataset(str(slides))


def assert_same_bags(got, expected, tolerance=0.0):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        names = ("slide_id", "patient_id", "label", "patch_size", "unit", "geometry")
        assert [getattr(a, name) for name in names] == [getattr(b, name) for name in names]
        assert a.features.dtype == torch.float32
        assert ((a.features - b.features).abs() <= tolerance * b.features.abs()).all()
        for name in ("coords", "instance_labels"):
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None and y is None) or torch.equal(x, y), name


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 0), ("fp16", 2**-11), ("bf16", 2**-8)])
def test_every_bag_comes_back(dataset, tmp_path, dtype, tolerance):
    import_dataset(dataset, tmp_path / "s", dtype, graphs=["window:2"])
    opened = open_dataset(str(tmp_path / "s"))
    assert_same_bags(opened.bags, dataset.bags, tolerance)
    assert opened.card == dataset.card
    assert opened.in_dim == 8
    for stored, bag in zip(opened.bags, dataset.bags, strict=True):
        assert "window:2" in stored.graphs  # read, not built
        got, expected = stored.graph("window:2"), bag.graph("window:2")
        assert torch.equal(got.indptr, expected.indptr)
        assert torch.equal(got.indices, expected.indices)
        for name in ("indptr", "indices", "edge"):
            assert torch.equal(getattr(got.transposed, name), getattr(expected.transposed, name)), name
        assert stored.graph("knn:3").num_edges == bag.graph("knn:3").num_edges  # others are built


def test_a_table_keeps_its_instance_labels_folds_and_standardisation(bag_table, tmp_path):
    dataset = open_dataset(str(bag_table))
    import_dataset(dataset, tmp_path / "s", "fp32")
    opened = open_dataset(str(tmp_path / "s"))
    assert_same_bags(opened.bags, dataset.bags)
    assert opened.card == dataset.card
    assert opened.card.standardise
    splits = kfold(dataset.bags, 2)
    import_dataset(
        dataclasses.replace(dataset, site_of={"slide_00": "A"}, published_splits=splits), tmp_path / "t", "fp32"
    )
    again = open_dataset(str(tmp_path / "t"))
    assert list(again.published_splits) == splits
    assert again.site_of == {"slide_00": "A"}


def small_plan(name):
    suite = read_suite(
        None, datasets=[name], models=["srmil", "abmil"], folds=2, epochs=1, overrides={"srmil.hidden": 8}
    )
    return make_plan(suite, name)


def test_training_on_a_store_gives_the_same_predictions(slides, tmp_path):
    import_dataset(open_dataset(str(slides)), tmp_path / "s", "fp32", graphs=["window:2"])
    expected = run_plan(small_plan(str(slides)), tmp_path / "a")
    run = run_plan(small_plan(str(tmp_path / "s")), tmp_path / "b")
    for row in expected.trials():
        assert row["status"] == "ok", row
        assert run.predictions(row["trial"]).equals(expected.predictions(row["trial"]))


def test_an_import_killed_between_and_within_slides_goes_on(dataset, tmp_path, monkeypatch):
    whole = import_dataset(dataset, tmp_path / "whole", graphs=["window:1"])
    place_of = store_writer._pack
    for at in (0, 5):

        def dies(bag, head, ends, at=at):
            if bag.slide_id == f"slide_{at:02d}":
                raise KeyboardInterrupt
            return place_of(bag, head, ends)

        monkeypatch.setattr(store_writer, "_pack", dies)
        with pytest.raises(KeyboardInterrupt):
            import_dataset(dataset, tmp_path / "s", graphs=["window:1"])
    with pytest.raises(InputError, match="interrupted"):
        PackedStore.open(tmp_path / "s")
    for name in ("features.bin", "index.jsonl"):  # a kill within the sixth slide
        with (tmp_path / "s" / name).open("ab") as file:
            file.write(b'{"slide_id": "torn')
    monkeypatch.setattr(store_writer, "_pack", place_of)
    seen = []
    import_dataset(dataset, tmp_path / "s", graphs=["window:1"], on_slide=seen.append)
    assert seen == [f"slide_{i:02d}" for i in range(12)]
    names = sorted(path.name for path in whole.path.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "s").iterdir())
    for name in names:
        assert (whole.path / name).read_bytes() == (tmp_path / "s" / name).read_bytes(), name


def test_refusals(dataset, tmp_path, slides):
    with pytest.raises(InputError, match="--dtype must be one of fp16, bf16, fp32"):
        import_dataset(dataset, tmp_path / "s", "fp8")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="is not empty"):
        import_dataset(dataset, tmp_path / "mine")
    import_dataset(dataset, tmp_path / "s")
    with pytest.raises(InputError, match="complete store already"):
        import_dataset(dataset, tmp_path / "s")
    os.rename(tmp_path / "s" / "store.json", tmp_path / "s" / ".store.json.partial")
    with pytest.raises(InputError, match=r"other settings or data .*dtype"):
        import_dataset(dataset, tmp_path / "s", "bf16")
    with pytest.raises(InputError, match="interrupted"):
        open_dataset(str(tmp_path / "s"))


def test_features_too_large_for_fp16_are_refused_by_name(tmp_path, bag_table):
    dataset = open_dataset(str(bag_table))
    dataset.bags[3].features[0, 0] = 1e5
    with pytest.raises(InputError, match=r"slide 'slide_03'.*do not fit fp16.*bf16"):
        import_dataset(dataset, tmp_path / "s")


def test_damage_is_found(dataset, tmp_path, run_cli):
    store = import_dataset(dataset, tmp_path / "s")
    assert store.damaged() == []
    with (tmp_path / "s" / "features.bin").open("r+b") as file:
        file.seek(2 * 8 * store.entries[4]["row"])
        file.write(b"\x01")
    assert PackedStore.open(tmp_path / "s").damaged() == ["slide_04"]
    code, _, err = run_cli("data", "import", tmp_path, tmp_path / "s")
    assert code == 2
    assert "1 slides are not those that were written (slide_04)" in err
    os.truncate(tmp_path / "s" / "features.bin", 100)
    with pytest.raises(InputError, match=r"features.bin is missing or not of \d+ bytes"):
        PackedStore.open(tmp_path / "s")


@pytest.mark.parametrize("name", ["store.json", "index.jsonl"])
def test_a_letter_that_changed_is_found(dataset, tmp_path, name):
    store = import_dataset(dataset, tmp_path / "s").path
    whole = (store / name).read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(len(whole), size=60):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        (store / name).write_bytes(bytes(changed))
        try:  # only another way of writing the same is let through
            assert open_dataset(str(store)).card == dataset.card
        except InputError as error:
            assert name in str(error)  # noqa: PT017
        else:
            assert json.loads(bytes(changed)) == json.loads(whole)
    for content in (b"", b"{}", b"[]", b"null", b"\xff\xfe", whole[: len(whole) // 2], b"[" * 100_000):
        (store / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            open_dataset(str(store))


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("index.jsonl", "patient_id", None),
        ("index.jsonl", "row", {}),
        ("index.jsonl", "row", -4),
        ("index.jsonl", "n", 2**70),
        ("index.jsonl", "coords", "x"),
        ("index.jsonl", "graphs", []),
        ("index.jsonl", "slide_id", 7),
        ("store.json", "dim", None),
        ("store.json", "dtype", "<f4"),
        ("store.json", "card", []),
        ("store.json", "published_splits", [1]),
    ],
)
def test_a_store_that_another_program_wrote_wrongly_is_a_sentence(dataset, tmp_path, file, key, value):
    """All of its checksums are right; None takes the key away."""
    import_dataset(dataset, tmp_path / "store")
    head = json.loads((tmp_path / "store" / "store.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "store" / "index.jsonl").read_text().splitlines()]
    changed = rows[0] if file == "index.jsonl" else head
    changed.pop(key)
    if value is not None:
        changed[key] = value
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "store" / "index.jsonl").write_text(text)
    del head["sha256"]
    head["index_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (tmp_path / "store" / "store.json").write_text(json.dumps(head | {"sha256": checksum(head)}))
    with pytest.raises(InputError, match=r"import (the store|it) again|must be a mapping"):
        PackedStore.open(tmp_path / "store")


def test_the_command(run_cli, slides, tmp_path, monkeypatch):
    out = tmp_path / "s"
    command = ("data", "import", slides, out, "--dtype", "bf16", "--graph", "window:2")
    pack = store_writer._pack

    def full(bag, head, ends):
        if bag.slide_id == "slide_07":
            raise OSError(28, "No space left on device")
        return pack(bag, head, ends)

    monkeypatch.setattr(store_writer, "_pack", full)
    code, _, err = run_cli(*command)
    assert code == 2
    assert "No space left on device" in err
    assert "kept" in err
    monkeypatch.setattr(store_writer, "_pack", pack)
    code, text, err = run_cli(*command)
    assert (code, err) == (0, "")
    assert "12 slides" in text
    assert "bf16" in text
    assert "every checksum is right" in run_cli(*command)[1]
    code, _, err = run_cli(
        "bench", "--dataset", out, "--models", "mean", "--folds", 2, "--epochs", 1, "--out", tmp_path / "r"
    )
    assert (code, err) == (0, "")


def test_other_labels(slides, tmp_path):
    import_dataset(open_dataset(str(slides)), tmp_path / "s")
    table = {"slide_id": [f"slide_{i:02d}" for i in range(12)], "label": [(i + 1) % 2 for i in range(12)]}
    pd.DataFrame(table).to_csv(tmp_path / "other.csv", index=False)
    opened = open_dataset(str(tmp_path / "s"), labels=tmp_path / "other.csv")
    assert [bag.label for bag in opened.bags] == table["label"]
    assert "other.csv" in opened.card.warnings[-1]


def test_reading_ahead_gives_the_bags_in_order_and_no_more_than_it_needs(dataset, monkeypatch):
    order = [3, 1, 4, 1, 5]
    assert [bag.slide_id for bag in read_ahead(dataset.bags, order)] == [f"slide_{i:02d}" for i in order]
    read, original = [], type(dataset.bags.slides[0]).read
    monkeypatch.setattr(type(dataset.bags.slides[0]), "read", lambda self: read.append(1) or original(self))
    bags = read_ahead(dataset.bags)
    next(bags)
    bags.close()  # waits for the one that is being read
    assert len(read) <= 1 + prefetch.AHEAD + 1


def test_reading_ahead_raises_what_reading_raises(slides, tmp_path):
    dataset = open_dataset(str(slides))
    missing = dataclasses.replace(dataset.bags.slides[1], path=tmp_path / "gone.h5")
    bags = dataclasses.replace(dataset.bags, slides=[dataset.bags.slides[0], missing])
    with pytest.raises(InputError, match=r"gone.h5"):
        list(read_ahead(bags))


MEMORY = """
import json, sys, psutil
from mil_zoo.data.dataset import open_dataset
from mil_zoo.data.prefetch import read_ahead
rss = lambda: psutil.Process().memory_info().rss
bags = open_dataset(sys.argv[1]).bags
order = list(range(len(bags)))
seen, total = [], 0
for turn in range(6):
    for bag in read_ahead(bags, order, "window:1"):
        total += float(bag.features[0, 0])
    seen.append(rss())
print(json.dumps(seen))
"""


def test_memory_stays_while_all_slides_are_read(tmp_path):
    """A store of 64 MB is read six times over: mapped rows and cached graphs are let go of with their bag."""
    rng = np.random.default_rng(0)
    sites = np.stack(np.meshgrid(np.arange(25), np.arange(40)), -1).reshape(-1, 2)
    count, bags = 64, len(sites)
    np.savez(
        tmp_path / "t.npz",
        X=rng.normal(size=(count * bags, 256)).astype(np.float32),
        bag_ptr=np.arange(count + 1) * bags,
        bag_label=np.arange(count) % 2,
        coords=np.tile(sites * 256.0, (count, 1)),
    )
    dataset = open_dataset(str(tmp_path / "t.npz"))
    for bag in dataset.bags:
        bag.patch_size = 256.0
    import_dataset(dataset, tmp_path / "s", "fp32", graphs=["window:1"])
    done = subprocess.run([sys.executable, "-c", MEMORY, tmp_path / "s"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert max(seen) - seen[0] < 16 * 2**20, seen


@pytest.fixture
def cohort(slides, tmp_path):
    """The same slides with outcomes and a covariate that one patient lacks."""
    folder = tmp_path / "cohort"
    shutil.copytree(slides, folder)
    table = pd.read_csv(folder / "labels.csv", dtype=str)
    patient = table["patient_id"].str[1:].astype(int)
    table["time_months"], table["event"], table["age"] = patient + 1, (patient < 4) * 1, 50 + patient
    table.loc[:1, "age"] = None
    table.drop(columns="label").to_csv(folder / "labels.csv", index=False)
    (folder / "card.yaml").write_text("task: {name: survival}\ncovariates: [age]\n", encoding="utf-8")
    return folder


def test_a_store_of_packed_patients_counts_patients(slides, tmp_path):
    """The card's counts of slides say nothing of bags that are patients."""
    counts = "bags: 12\nbags_per_class: [6, 6]\npatients: 6\npatient_level: packed\n"
    folder = tmp_path / "packed"
    shutil.copytree(slides, folder)
    labels = [f"slide_{i:02d},{i // 2 % 2},p{i // 2}\n" for i in range(12)]
    (folder / "labels.csv").write_text("slide_id,label,patient_id\n" + "".join(labels))
    (folder / "card.yaml").write_text("classes: [a, b]\n" + counts, encoding="utf-8")
    store = import_dataset(open_dataset(str(folder)), tmp_path / "store").path
    assert open_dataset(str(store)).bags.slide_ids == [f"p{i}" for i in range(6)]
    (folder / "labels.csv").write_text("slide_id,label,patient_id\n" + "".join(labels[2:]))
    with pytest.raises(InputError, match=r"holds 10 bags .*, its card states 12"):
        open_dataset(str(folder))


def test_covariates_and_what_is_said_of_outcomes_come_back(cohort, tmp_path):
    """A store of a survival dataset has the clinical model, and says what there is to say once."""
    dataset = open_dataset(str(cohort))
    again = open_dataset(str(import_dataset(dataset, tmp_path / "store").path))
    assert dataset.covariates["age"].isna().tolist() == [True, *[False] * 5]
    pd.testing.assert_frame_equal(again.covariates, dataset.covariates, check_dtype=False)
    assert again.card.warnings == dataset.card.warnings


def test_a_run_keeps_covariates_and_outcomes_of_all_patients(cohort, tmp_path):
    """Of a single split too: the clinical model is fitted to training patients."""
    suite = read_suite("demo", datasets=["x"], models=["mean"], folds=2, epochs=1, overrides={})
    run = run_plan(make_plan(suite, DatasetSource(str(cohort))), tmp_path / "run")
    outcomes = pd.read_csv(run.path / "outcomes.csv")
    assert outcomes["patient_id"].tolist() == [f"p{i}" for i in range(6)]
    assert outcomes["time_months"].tolist() == [1, 2, 3, 4, 5, 6]
    assert outcomes["event"].tolist() == [1, 1, 1, 1, 0, 0]
    assert pd.read_csv(run.path / "covariates.csv")["age"].fillna(0).tolist() == [0, 51, 52, 53, 54, 55]
    table = pd.read_csv(cohort / "labels.csv", dtype=str).assign(age=None)
    table.to_csv(cohort / "labels.csv", index=False)
    warnings = make_plan(suite, DatasetSource(str(cohort))).drawn.warnings
    assert "No clinical model: the clinical covariate 'age' is empty for every patient; leave it out." in warnings
