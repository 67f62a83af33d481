"""Embeddings of whole slides, one vector each: as TRIDENT, slide2vec and STAMP write them, and in tables."""

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from layouts import FEATURES, GRID, write_h5, write_trident

from mil_zoo import InputError
from mil_zoo.data import find_features, open_dataset, read_bag

SLIDES = [f"s{number:02d}" for number in range(24)]
WIDTH = 40


def vectors(shift=3.0):
    """Simulated: ``[24, 40]``, of which every other slide's are shifted."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(24, WIDTH)) + shift * (np.arange(24) % 2)[:, None]).astype(np.float32)


def write_labels(folder):
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame({"slide_id": SLIDES, "label": [n % 2 for n in range(24)]})
    table.to_csv(folder / "labels.csv", index=False)


def write_csv(path, vectors, names=SLIDES, prefix="dim_"):
    table = pd.DataFrame(vectors, columns=[f"{prefix}{i}" for i in range(vectors.shape[1])])
    table.insert(0, "slide_id", names)
    table["cohort"] = "A"
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("shape", [(WIDTH,), (1, WIDTH)])
def test_a_file_a_slide(tmp_path, shape):
    vector = vectors()[0].reshape(shape)
    folder = tmp_path / "20x_512px_0px_overlap" / "slide_features_titan"
    attrs = {"patch_size": 512, "patch_size_level0": 1024}
    trident = write_h5(folder / "a.h5", coords_attrs=attrs, features=vector, coords=GRID)  # the places of its patches
    stamp = write_h5(tmp_path / "chief" / "a.h5", {"stamp_version": "2.3.0", "feat_type": "slide"}, feats=vector)
    slide2vec = tmp_path / "run" / "slide_embeddings" / "a.pt"
    slide2vec.parent.mkdir(parents=True)
    torch.save(torch.from_numpy(vector), slide2vec)
    for path in (trident, stamp, slide2vec):
        bag = read_bag(path)
        assert (bag.layout, bag.slide_id, bag.coords) == ("slide_embeddings", "a", None)
        np.testing.assert_array_equal(bag.features.numpy(), vector.reshape(1, -1))
    found = {features.name: features.layout for features in find_features(tmp_path)}
    assert found == dict.fromkeys(["titan", "chief", "slide_embeddings"], "slide_embeddings")


def test_all_slides_in_one_file(tmp_path):
    values = vectors()
    names = [f"cohort/{slide}.svs" for slide in SLIDES]
    write_csv(tmp_path / "titan.csv", values, names)
    pandas_index = pd.DataFrame(values, index=SLIDES)
    pandas_index.to_csv(tmp_path / "prism.csv", sep=";")
    write_h5(tmp_path / "gigapath.h5", embeddings=values.astype(np.float16), filenames=names)
    sets = find_features(tmp_path)
    assert [(found.name, found.layout) for found in sets] == [
        ("gigapath", "embedding_table"),
        ("prism", "embedding_table"),
        ("titan", "embedding_table"),
    ]
    write_labels(tmp_path)
    for name in ("titan", "prism", "gigapath"):
        bags = open_dataset(str(tmp_path), features=name).bags
        assert bags.slide_ids == SLIDES
        np.testing.assert_allclose(bags[3].features.numpy(), values[3:4], rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match="holds 3 sets of features; choose with --features: gigapath, prism, titan"):
        open_dataset(str(tmp_path))


def test_sets_of_patches_and_slides_are_counted_as_they_are_named(tmp_path):
    for encoder in ("conch_v15", "uni_v1"):
        write_trident(tmp_path, "a", encoder)
    folder = tmp_path / "20x_256px_0px_overlap" / "slide_features_titan"
    write_h5(folder / "a.h5", features=np.zeros(WIDTH, dtype=np.float32))
    with pytest.raises(InputError, match="holds 3 sets of features; choose with --features: conch_v15, uni_v1, titan"):
        open_dataset(str(tmp_path))


def test_tables_of_other_things_are_none(tmp_path):
    write_csv(tmp_path / "folds.csv", np.zeros((24, 10)), prefix="fold_")
    write_csv(tmp_path / "gaps.csv", np.zeros((24, WIDTH))).write_text(
        ",".join(["slide_id", *(f"g{2 * i}" for i in range(WIDTH))]) + "\n"
    )
    (tmp_path / "damaged.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="no feature files below it"):
        find_features(tmp_path)


def test_probes_of_a_slide_encoder_stand_beside_aggregators_of_a_patch_encoder(tmp_path, run_cli):
    rng = np.random.default_rng(1)
    folder = tmp_path / "20x_256px_0px_overlap" / "slide_features_titan"
    for slide, vector in zip(SLIDES, vectors(), strict=True):
        write_trident(tmp_path, slide, "uni_v1", rng.normal(size=FEATURES.shape).astype(np.float32), GRID)
        write_h5(folder / f"{slide}.h5", features=vector)
    write_labels(tmp_path)
    assert open_dataset(str(tmp_path)).features.name == "uni_v1"  # patches, where nothing is said
    code, out, err = run_cli("data", "check", tmp_path)
    assert (code, err.strip()) == (0, ""), out
    run = ("bench", "--dataset", tmp_path, "--models", "mean,linear_probe,knn_probe", "--features", "uni_v1,titan")
    code, _, err = run_cli(*run, "--folds", 2, "--epochs", 1, "--out", tmp_path / "run")
    assert (code, err.strip()) == (0, "")
    table = pd.read_csv(tmp_path / "run" / "table.csv").set_index("aggregator")
    assert len(table) == 6
    assert (table["trials_ok"] == 2).all()
    assert (table.loc[["linear_probe@features=titan", "knn_probe@features=titan"], "auc_mean"] > 0.99).all()
    assert (table.loc[["linear_probe@features=uni_v1", "knn_probe@features=uni_v1"], "auc_mean"] < 0.9).all()
    with pytest.raises(InputError, match="12 patches in one set of features and 1 in another"):
        list(open_dataset(str(tmp_path), features="uni_v1+titan").bags)


def test_faults_name_the_file_and_what_to_do(tmp_path):
    values = vectors()
    folder = tmp_path / "slide_features_titan"
    with pytest.raises(InputError, match=r"a.h5 should hold one vector, the slide's embedding, and holds \[12, 3\]"):
        read_bag(write_h5(folder / "a.h5", features=FEATURES))
    with pytest.raises(InputError, match=r"empty.h5 should hold one vector"):
        read_bag(write_h5(folder / "empty.h5", features=np.zeros((0, 5))))
    twice = write_csv(tmp_path / "twice.csv", values[:2], ["a.svs", "a.tif"])
    with pytest.raises(InputError, match=r"twice.csv: slide 'a' has two rows; keep one of them"):
        read_bag(twice, slide="a")
    text = write_csv(tmp_path / "text.csv", values[:2].astype(str).astype(object) + "x", ["a", "b"])
    with pytest.raises(InputError, match=r"text.csv is not a readable table of slide embeddings"):
        read_bag(text, slide="a")
    few = write_csv(tmp_path / "few.csv", values[:2, :0], ["a", "b"])
    with pytest.raises(InputError, match=r"few.csv: a table of slide embeddings has a column slide_id and numbered"):
        read_bag(few, "embedding_table", slide="a")
    gap = write_csv(tmp_path / "gap.csv", np.where(np.arange(WIDTH) == 3, np.nan, values[:1]), ["a"])
    with pytest.raises(InputError, match=r"slide 'a'.*NaN or infinite"):
        read_bag(gap, slide="a").check()
    for name, ids, sentence in (
        ("short", SLIDES[:5], r"slide_id is \[5\] for 24 slides; it needs one name each"),
        ("coded", np.arange(24), "slide_id is not an array of text"),
    ):
        path = write_h5(tmp_path / f"{name}.h5", embeddings=values, slide_id=ids)
        with pytest.raises(InputError, match=sentence):
            read_bag(path, slide="s00")
    with h5py.File(tmp_path / "linked.h5", "w") as file:
        file["embeddings"] = values
        file["slide_id"] = h5py.ExternalLink(str(tmp_path / "short.h5"), "slide_id")
    with pytest.raises(InputError, match="slide_id lies in another file, which is not read"):
        read_bag(tmp_path / "linked.h5", slide="s00")
