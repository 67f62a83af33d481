"""Several sets of features: every model reads each of them on the same splits, and tables set one against the other."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from layouts import GRID, write_trident
from safetensors.torch import load_file
from sklearn.decomposition import PCA

from mil_zoo import Bag, InputError
from mil_zoo.bench.parts import split_bags
from mil_zoo.bench.plan import make_plan
from mil_zoo.bench.runner import run_plan
from mil_zoo.bench.suite import read_suite
from mil_zoo.data import Standardiser, open_dataset
from mil_zoo.data.bags import Bags, as_bags
from mil_zoo.data.check import check_dataset
from mil_zoo.data.splits.split import Split
from mil_zoo.report.figures import draw_figures
from mil_zoo.report.load import Results
from mil_zoo.report.tables import write_tables
from mil_zoo.report.tables.encoders import without_encoder


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(24):
        noise = rng.normal(size=(12, 6)).astype(np.float32)
        write_trident(tmp_path, f"s{number:02d}", "good", noise[:, :4] + number % 2 * 3, GRID)
        write_trident(tmp_path, f"s{number:02d}", "noise", noise, GRID)
    labels = pd.DataFrame({"slide_id": [f"s{n:02d}" for n in range(24)], "label": [n % 2 for n in range(24)]})
    labels.to_csv(tmp_path / "labels.csv", index=False)
    return tmp_path


def test_encoder_against_aggregator(folder):
    name = str(folder)
    suite = read_suite(datasets=[name], models=["mean"], folds=2, epochs=3, overrides={"learning_rate": 0.05})
    with pytest.raises(InputError, match="holds 2 sets of features; choose with --features: good, noise"):
        make_plan(suite, name)
    with pytest.raises(InputError, match="no features called 'nois'; did you mean 'noise'"):
        make_plan(suite, name, features=["good", "nois"])
    assert make_plan(suite, name, features=["good"]).settings()["dataset"]["features"] == "good"
    run = run_plan(make_plan(suite, name, features=["good", "noise"]), folder / "run")
    write_tables(Results.load(run))
    table = pd.read_csv(run.path / "table.csv")
    assert table[["aggregator", "encoder"]].to_numpy().tolist() == [
        ["mean@features=good", "good"],
        ["mean@features=noise", "noise"],
    ]
    assert (table["trials_ok"] == 2).all()
    auc = table.groupby("encoder")["auc_mean"].mean()
    assert auc["good"] > 0.9 > auc["noise"]
    wide = pd.read_csv(run.path / "encoders.csv")
    assert list(wide.columns) == ["metric", "aggregator", "good_mean", "good_sd", "noise_mean", "noise_sd"]
    assert wide["aggregator"].tolist() == ["mean"] * 4
    assert "| Aggregator | Encoder |" in (run.path / "table.md").read_text()
    assert "| AUC | mean |" in (run.path / "encoders.md").read_text()
    trials = [run.path / "trials" / f"mean@features={encoder}-r0-f0-s0" for encoder in ("good", "noise")]
    good, noise = (pd.read_csv(trial / "predictions.csv")["slide_id"].tolist() for trial in trials)
    assert good == noise  # the same split


def test_encoders_side_by_side_and_projected(folder, run_cli):
    suite = read_suite(
        datasets=[str(folder)], models=["mean"], folds=2, epochs=3, overrides={"learning_rate": 0.05}, project=3
    )
    plan = make_plan(suite, str(folder), features=["good", "good+noise"])
    run = run_plan(plan, folder / "run")
    assert run.config["dataset"]["features"] == ["good", "good+noise"]
    assert run.config["dataset"]["projected"] == 3
    results = Results.load(run)
    table = pd.read_csv(write_tables(results)[0].parent / "table.csv")
    assert table["encoder"].tolist() == ["good", "good+noise"]
    assert table["parameters"].nunique() == 1  # whatever the width of the features
    assert (table["auc_mean"] > 0.9).all()
    (drawn,) = draw_figures(results, ["encoders", "ablation"])
    assert drawn.path.name == "encoders.png"
    assert drawn.path.read_bytes().startswith(b"\x89PNG")
    scaling = load_file(run.path / "trials" / "mean@features=good+noise-r0-f0-s0" / "standardiser.safetensors")
    assert scaling["axes"].shape == (10, 3)
    out = folder / "new"
    model = ("predict", "--run", run.path, "--model", "mean@features=good+noise", folder)
    code, _, err = run_cli(*model, "--features", "good+noise", "--out", out)
    assert code == 0, err
    assert len(pd.read_csv(out / "probabilities.csv")) == 24
    run_cli(*model, "--features", "good", "--out", out)
    assert "4 features a patch and the aggregator was trained on 10" in (out / "probabilities.csv").read_text()
    code, _, err = run_cli(*model, "--features", "noise+good", "--out", out)  # as wide, and another thing
    assert (code, "in another order; pass --features good+noise" in err) == (2, True)
    assert run_cli("export", run.path, "--model", "mean@features=good+noise", "--out", folder / "model")[0] == 0
    card = (folder / "model" / "README.md").read_text()
    assert "a whole slide, `[N, 10]`, and predicts `prob_0` (class 0), `prob_1` (class 1)." in card


def test_axes_are_those_of_the_training_instances_and_of_one_sign():
    rng = np.random.default_rng(0)
    mixed = (rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)) + 1000).astype(np.float32)
    bags = as_bags([Bag(features=part, label=0, slide_id=str(i)) for i, part in enumerate(np.split(mixed, 3))])
    scaling = Standardiser.projecting(bags, 2)
    expected = PCA(2).fit(mixed.astype(np.float64))
    np.testing.assert_allclose(np.abs(scaling.axes.T.numpy()), np.abs(expected.components_), atol=1e-9)
    found = scaling(bags[0]).features
    assert found.dtype == torch.float32
    np.testing.assert_allclose(np.abs(found.numpy()), np.abs(expected.transform(mixed[:20])), rtol=1e-5)
    assert (scaling.axes.gather(0, scaling.axes.abs().argmax(0, keepdim=True)) > 0).all()
    for width in (0, 6):
        with pytest.raises(InputError, match=f"--project must be from 1 to 5, not {width}: .* 5 features a patch"):
            Standardiser.projecting(bags, width)


def test_axes_know_nothing_of_test_slides(bag_table):
    dataset = open_dataset(str(bag_table))
    ids = dataset.bags.slide_ids
    split = Split(0, 0, ids[:20], ids[20:30], ids[30:])
    poisoned = [
        replace(slide, bag=slide.bag.with_features(1e6 * slide.bag.features)) if slide.slide_id in split.test else slide
        for slide in dataset.bags.slides
    ]
    parts, scaling = split_bags(dataset, split, project=3)
    _, again = split_bags(replace(dataset, bags=Bags(poisoned)), split, project=3)
    assert torch.equal(scaling.axes, again.axes)
    assert torch.equal(scaling.mean, again.mean)
    assert {part.dim for part in parts.values()} == {3}


@pytest.mark.parametrize(
    ("slide", "coords", "sentence"),
    [
        ("s03", GRID[:11], "slide 's03' has 12 (and 11 patches in|patches in one set of features and 11 in another)"),
        ("s03", GRID[::-1].copy(), "slide 's03' has patches at other coordinates, or in another order"),
        ("extra", GRID, "the features 'good' and 'noise' are of different slides: extra"),
    ],
)
def test_sets_of_other_patches_are_not_joined(folder, slide, coords, sentence):
    write_trident(folder, slide, "noise", np.zeros((len(coords), 6), np.float32), coords)
    with pytest.raises(InputError, match=sentence):
        list(open_dataset(str(folder), features="good+noise").bags)


def test_a_slide_without_numbers_is_named_before_axes_are_found(folder):
    features = np.ones((12, 6), np.float32)
    features[5, 2] = np.nan
    write_trident(folder, "s03", "noise", features, GRID)
    bags = open_dataset(str(folder), features="good+noise").bags
    with pytest.raises(InputError, match=r"slide 's03': features are NaN or infinite in 1 of 12 patches .*patch 5"):
        Standardiser.projecting(bags, 3)


@pytest.mark.parametrize(
    ("asked", "width", "sentence"),
    [
        ("good,noise", 5, "--project must be from 1 to 4, not 5: good has 4 features a patch"),
        ("noise,good", 5, "--project must be from 1 to 4, not 5: good has 4 features a patch"),
        ("good+noise", 11, "--project must be from 1 to 10, not 11: good+noise has 10 features a patch"),
        ("good", 0, "--project must be at least 1, not 0"),
        ("good,good", 2, "--features must name each set once, not good,good"),
    ],
)
def test_widths_that_no_trial_could_have(folder, run_cli, asked, width, sentence):
    out = folder / "run"
    code, _, err = run_cli(
        "bench", "--models", "mean", "--dataset", folder, "--features", asked, "--project", width, "--out", out
    )
    assert (code, sentence in err, out.exists()) == (2, True, False), err


def test_sets_are_chosen_in_folders_alone(folder, bag_table):
    (path,) = folder.glob("*/features_good/s03.h5")
    for source in (str(bag_table), "demo", str(path)):
        with pytest.raises(
            InputError, match=r"--features good\+noise chooses among the sets in a folder, and .* no such"
        ):
            open_dataset(source, features="good+noise")


def test_a_set_may_have_a_plus_in_its_name(folder):
    (path,) = folder.glob("*/features_noise")
    path.rename(path.with_name("features_uni+conch"))
    assert open_dataset(str(folder), features="uni+conch").in_dim == 6
    assert [report.ok for report in check_dataset(str(folder), features=["uni+conch", "good"])] == [True, True]


def test_joined_sets_are_checked_as_one(folder):
    (report,) = check_dataset(str(folder), features=["good+noise"])
    assert (report.features, report.ok, set(report.slides["dimensions"])) == ("good+noise", True, {10})


def test_labels_without_the_encoder():
    assert without_encoder("abmil@features=uni", "uni") == "abmil"
    assert without_encoder("abmil@features=uni%2Fv1,dim=64", "uni/v1") == "abmil@dim=64"
    assert without_encoder("abmil@features=uni (patients)", "uni") == "abmil (patients)"


def test_slides_of_one_encoder_alone(folder, run_cli):
    """Side by side, what both encoders have is taken on request; a comparison needs the same slides."""
    for encoder, slide in (("good", "s03"), ("noise", "s10"), ("noise", "s11")):
        next(folder.glob(f"*/features_{encoder}/{slide}.h5")).unlink()
    with pytest.raises(
        InputError, match=r"'good' and 'noise' are of different slides: s03, s10, s11 .*--allow-missing"
    ):
        open_dataset(str(folder), features="good+noise")
    dataset = open_dataset(str(folder), features="good+noise", allow_missing=True)
    assert len(dataset.bags) == 21
    assert not {"s03", "s10", "s11"} & {*dataset.bags.slide_ids, *dataset.features.files}
    assert dataset.bags[0].features.shape[1] == 10
    note = "3 of the 24 slides in labels.csv have no features of good+noise and are left out, as asked."
    assert note in dataset.card.warnings
    (report,) = check_dataset(str(folder), features=["good+noise"], allow_missing=True)
    assert note in [finding.text for finding in report.findings]
    assert report.ok
    run = ("bench", "--dataset", folder, "--models", "mean", "--folds", 2, "--epochs", 1, "--allow-missing")
    code, _, err = run_cli(*run, "--features", "good+noise", "--out", folder / "joined")
    assert (code, err) == (0, "")
    assert note in (folder / "joined" / "table.md").read_text()
    code, _, err = run_cli(*run, "--features", "good,noise", "--out", folder / "compared")
    assert (code, err.count("\n")) == (2, 1)
    assert "the features 'good' and 'noise' are of different slides: s03, s10, s11 (3 in all)" in err
    for slide in (f"s{number:02d}" for number in range(24)):
        for path in folder.glob(f"*/features_{'good' if int(slide[1:]) % 2 else 'noise'}/{slide}.h5"):
            path.unlink()
    with pytest.raises(InputError, match="no slide has the features of all of good, noise"):
        open_dataset(str(folder), features="good+noise", allow_missing=True)
