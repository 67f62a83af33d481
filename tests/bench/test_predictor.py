"""Predicting with a run: the run's own predictions come back, ensembles are means, files open elsewhere."""

import json

import h5py
import jsonschema
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import shapely.geometry
import torch

import mil_zoo
from mil_zoo import InputError, Predictor
from mil_zoo.bench.plan import make_plan
from mil_zoo.bench.runner import run_plan
from mil_zoo.bench.suite import read_suite
from mil_zoo.data.dataset import open_dataset
from mil_zoo.data.packed.writer import import_dataset

# RFC 7946 for what is written here: a collection of features that are squares or points, with QuPath's properties.
POSITION = {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "number"}}
SCHEMA = {
    "type": "object",
    "required": ["type", "features"],
    "properties": {
        "type": {"const": "FeatureCollection"},
        "features": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "id", "geometry", "properties"],
                "properties": {
                    "type": {"const": "Feature"},
                    "id": {"type": "string", "pattern": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"},
                    "geometry": {
                        "oneOf": [
                            {
                                "properties": {"type": {"const": "Point"}, "coordinates": POSITION},
                                "required": ["type", "coordinates"],
                            },
                            {
                                "properties": {
                                    "type": {"const": "Polygon"},
                                    "coordinates": {
                                        "type": "array",
                                        "minItems": 1,
                                        "items": {"type": "array", "minItems": 4, "items": POSITION},
                                    },
                                },
                                "required": ["type", "coordinates"],
                            },
                        ]
                    },
                    "properties": {
                        "type": "object",
                        "required": ["objectType", "classification", "measurements"],
                        "properties": {
                            "objectType": {"enum": ["tile", "detection"]},
                            "classification": {
                                "required": ["name", "color"],
                                "properties": {
                                    "name": {"type": "string"},
                                    "color": {
                                        "type": "array",
                                        "minItems": 3,
                                        "maxItems": 3,
                                        "items": {"type": "integer", "minimum": 0, "maximum": 255},
                                    },
                                },
                            },
                            "measurements": {"type": "object", "additionalProperties": {"type": "number"}},
                        },
                    },
                },
            },
        },
    },
}


def write_slide(path, i, dim=8, n=None):
    rng = np.random.default_rng(i)
    sites = rng.permutation(100)[: n or rng.integers(10, 40)]
    with h5py.File(path, "w") as file:
        file["features"] = (rng.normal(size=(len(sites), dim)) + i % 2).astype(np.float32)
        file["coords"] = np.stack([sites % 10, sites // 10], 1) * 512
        file["coords"].attrs.update(patch_size=256, patch_size_level0=512)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    for i in range(16):
        write_slide(folder / f"slide_{i:02d}.h5", i)
    table = {"slide_id": [f"slide_{i:02d}" for i in range(16)], "label": [i % 2 for i in range(16)]}
    pd.DataFrame(table).to_csv(folder / "labels.csv", index=False)
    (folder / "card.yaml").write_text("kind: simulated\n")
    suite = read_suite(
        None, datasets=[str(folder)], models=["srmil", "mean"], folds=2, epochs=1,
        overrides={"srmil.hidden": 8, "srmil.heads": 2},
    )  # fmt: skip
    plan = make_plan(suite, str(folder))
    return plan, run_plan(plan, tmp_path_factory.mktemp("run"))


def test_a_trial_alone_gives_its_own_predictions_again(run):
    plan, directory = run
    for trial in plan.trials:
        predictor = Predictor(directory.path, trial.model.name, trial.id)
        expected = directory.predictions(trial.id).set_index("slide_id")
        for prediction in predictor(plan.dataset.bags):
            slide = prediction.bag.slide_id
            assert prediction.trained_on == int(slide not in trial.split.test)
            if slide in expected.index:
                np.testing.assert_allclose(
                    prediction.probabilities, expected.loc[slide, ["prob_0", "prob_1"]].astype(float), rtol=1e-5
                )
            if slide in trial.split.test and trial.model.name == "srmil":
                with h5py.File(directory.attention(trial.id)) as file:
                    np.testing.assert_allclose(prediction.attention, file[slide]["attention"], rtol=1e-5)


def test_an_ensemble_is_the_mean_of_its_members(run):
    plan, directory = run
    bag = plan.dataset.bags[3]
    members = [Predictor(directory, "srmil", f"srmil-r0-f{fold}-s0").predict(bag) for fold in (0, 1)]
    together = Predictor(directory, "srmil").predict(bag)
    np.testing.assert_allclose(together.probabilities, np.mean([m.probabilities for m in members], 0))
    np.testing.assert_allclose(together.spread, np.std([m.probabilities for m in members], 0))
    np.testing.assert_allclose(together.attention, np.mean([m.attention for m in members], 0))
    assert together.attention.sum() == pytest.approx(1)
    assert together.trained_on == 1  # it is a test slide of one of the two folds


def test_a_table_is_standardised_as_in_training(bag_table, tmp_path):
    suite = read_suite(None, datasets=[str(bag_table)], models=["abmil"], folds=2, epochs=1, overrides={})
    plan = make_plan(suite, str(bag_table))
    directory = run_plan(plan, tmp_path)
    trial = plan.trials[0]
    expected = directory.predictions(trial.id).set_index("slide_id")
    got = {p.bag.slide_id: p.probabilities for p in Predictor(directory, "abmil", trial.id)(plan.dataset.bags)}
    for slide, row in expected.iterrows():
        np.testing.assert_allclose(got[slide], row[["prob_0", "prob_1"]].astype(float), rtol=1e-5)


def test_the_command_writes_what_others_open_and_a_bad_slide_costs_itself(run, run_cli, tmp_path):
    plan, directory = run
    new, nasty = tmp_path / "new.h5", tmp_path / "a<b>&'c.h5"
    write_slide(new, 50)
    write_slide(nasty, 51)
    (tmp_path / "broken.h5").write_bytes(b"not HDF5")
    write_slide(tmp_path / "other.h5", 1, dim=5)
    out = tmp_path / "p"
    code, text, err = run_cli(
        "predict", "--run", directory.path, "--model", "srmil", "--out", out,
        new, tmp_path / "broken.h5", nasty, tmp_path / "other.h5", tmp_path / "gone.h5", plan.source.name,
    )  # fmt: skip
    assert (code, err) == (1, "")
    assert "18 of 21 slides predicted by 2 trials of srmil" in text
    assert "16 slides were training or validation slides" in text
    said = " ".join(text.split())
    for reason in ("Failed, 1 slide:", "5 features a patch", "not a readable", "no such file"):
        assert reason in said, reason
    table = pd.read_csv(out / "probabilities.csv", dtype={"reason": str}).set_index("slide_id")
    classes = pd.read_csv(out / "classes.csv").set_index("column")["class"]
    assert classes.to_dict() == {"prob_0": "class 0", "prob_1": "class 1"}
    assert "(prob_0: class 0, prob_1: class 1)" in said
    assert list(table.index[:5]) == ["new", "broken", "a<b>&'c", "other", "gone"]
    assert table["status"].tolist() == ["ok", "failed", "ok", "failed", "failed"] + ["ok"] * 16
    for slide, reason in {"broken": "not a readable", "other": "5 features a patch", "gone": "no such file"}.items():
        assert reason in table.loc[slide, "reason"]
    assert table.loc["new", ["prob_0", "prob_1"]].sum() == pytest.approx(1, abs=1e-5)
    assert table.loc["new", "trained_on"] == 0
    assert len(list((out / "attention").iterdir())) == 3 * 18
    attention = pd.read_csv(out / "attention" / "new.csv")
    assert attention["attention"].sum() == pytest.approx(1, abs=1e-4)
    assert (out / "attention" / "new.png").stat().st_size > 5000
    collection = json.loads((out / "attention" / "a%3Cb%3E%26%27c.geojson").read_text())
    jsonschema.validate(collection, SCHEMA)
    features = collection["features"]
    assert len({feature["id"] for feature in features}) == len(features) == table.loc["a<b>&'c", "instances"]
    for feature in features:
        square = shapely.geometry.shape(feature["geometry"])
        assert square.is_valid
        assert square.area == 512**2
        assert square.exterior.is_ccw
    measured = [feature["properties"]["measurements"]["attention"] for feature in features]
    assert sum(measured) == pytest.approx(1, abs=1e-4)


def test_what_a_model_of_simulated_slides_leaves_says_so(run, run_cli, tmp_path, bag_table, monkeypatch):
    _, directory = run
    titles, set_title = [], mpl.axes.Axes.set_title

    def keep(axes, title, *arguments, **options):
        titles.append(" ".join(title.split()))
        return set_title(axes, title, *arguments, **options)

    monkeypatch.setattr(mpl.axes.Axes, "set_title", keep)
    write_slide(tmp_path / "new.h5", 50)
    said, out = "the model was trained on simulated slides", tmp_path / "p"
    code, text, _ = run_cli("predict", "--run", directory.path, "--model", "srmil", tmp_path / "new.h5", "--out", out)
    assert code == 0
    assert f"Noted, 1 slide: {said}" in " ".join(text.split())
    assert pd.read_csv(out / "probabilities.csv")["reason"].tolist() == [said]
    assert json.loads((out / "attention" / "new.geojson").read_text())["warning"] == said
    assert [title.endswith(f"({said})") for title in titles] == [True]

    suite = read_suite(None, datasets=[str(bag_table)], models=["abmil"], folds=2, epochs=1, overrides={})
    other = run_plan(make_plan(suite, str(bag_table)), tmp_path / "run")  # whose card says nothing of simulation
    given = ("predict", "--run", other.path, "--model", "abmil", bag_table, "--out", tmp_path / "q")
    assert "Noted" not in run_cli(*given, "--write", "csv")[1]
    assert pd.read_csv(tmp_path / "q" / "probabilities.csv")["reason"].isna().all()


def test_files_of_an_earlier_prediction_are_no_files_of_this_one(run, run_cli, tmp_path):
    _, directory = run
    write_slide(tmp_path / "one.h5", 50)
    write_slide(tmp_path / "two.h5", 51)
    command = ("predict", "--run", directory.path, "--model", "srmil", "--out", tmp_path / "p")
    _, text, _ = run_cli(*command, tmp_path / "one.h5", tmp_path / "two.h5", "--write", "csv,geojson")
    assert "an earlier prediction" not in text
    assert "Training slides are told by their names" in " ".join(text.split())
    _, text, _ = run_cli(*command, tmp_path / "one.h5", "--write", "csv")
    written = sorted(path.name for path in (tmp_path / "p" / "attention").iterdir())
    assert written == ["one.csv", "two.csv", "two.geojson"]
    assert "2 files in" in text
    assert "of slides of an earlier prediction" in " ".join(text.split())


def test_explanations_are_means_over_members_and_lie_beside_each_other(run, run_cli, tmp_path):
    _, directory = run
    write_slide(tmp_path / "new.h5", 50)
    names = "attention,gradient,integrated_gradients,occlusion,random"
    command = ("predict", "--run", directory.path, "--model", "srmil", tmp_path / "new.h5", "--explain", names)
    assert run_cli(*command, "--write", "png", "--out", tmp_path / "p")[0] == 0
    written = tmp_path / "p" / "explanations"
    assert sorted(path.name for path in written.iterdir()) == ["new.csv", "new.png"]
    table = pd.read_csv(written / "new.csv", index_col="patch")
    assert list(table) == ["x", "y", *names.split(",")]
    assert (written / "new.png").stat().st_size > 5000

    together = Predictor(directory, "srmil")
    prediction = together.predict(mil_zoo.data.read_bag(tmp_path / "new.h5"))
    np.testing.assert_allclose(table["attention"], prediction.attention, rtol=1e-4)
    # Of a smooth model the scores add up to what a slide of zeros changes, in the mean over the members.
    together = Predictor(directory, "mean")
    prediction = together.predict(prediction.bag)
    (scores,) = together.explain(prediction, ["integrated_gradients"]).values()
    empty = prediction.bag.with_features(torch.zeros_like(prediction.bag.features))
    shown, changes = int(prediction.probabilities.argmax()), []
    for member in together.members:
        full, none = (member.predict([bag])[0].probabilities for bag in (prediction.bag, empty))
        changes.append(np.log(full[shown] / full[1 - shown]) - np.log(none[shown] / none[1 - shown]))
    assert scores.sum() == pytest.approx(np.mean(changes), rel=0.02)


def test_a_model_without_attention_is_explained_by_the_others(run, run_cli, tmp_path):
    _, directory = run
    write_slide(tmp_path / "new.h5", 50)
    command = ("predict", "--run", directory.path, "--model", "mean", tmp_path / "new.h5", "--write", "none")
    assert run_cli(*command, "--explain", "attention,gradient", "--out", tmp_path / "p")[0] == 0
    table = pd.read_csv(tmp_path / "p" / "explanations" / "new.csv")
    assert list(table) == ["patch", "x", "y", "gradient"]
    row = pd.read_csv(tmp_path / "p" / "probabilities.csv").iloc[0]
    assert (row["status"], row["reason"]) == (
        "ok",
        "the model was trained on simulated slides; no explanation by attention: the model has none",
    )
    code, _, err = run_cli(*command, "--explain", "gradents", "--out", tmp_path / "q")
    assert code == 2
    assert "did you mean 'gradient'" in err
    assert not (tmp_path / "q").exists()


def test_stores_and_tables_are_slides_too(run, run_cli, tmp_path, bag_table):
    plan, directory = run
    import_dataset(open_dataset(plan.source.name), tmp_path / "s", "fp32")
    command = ("predict", "--run", directory.path, "--model", "mean", "--write", "none")
    assert run_cli(*command, "--out", tmp_path / "a", tmp_path / "s")[0] == 0
    assert run_cli(*command, "--out", tmp_path / "b", plan.source.name)[0] == 0
    a, b = (pd.read_csv(tmp_path / name / "probabilities.csv").drop(columns="source") for name in "ab")
    assert a.equals(b)
    assert not (tmp_path / "a" / "attention").exists()
    code, _, _ = run_cli(*command, "--out", tmp_path / "c", bag_table)
    assert code == 1  # the table has 6 features
    assert len(pd.read_csv(tmp_path / "c" / "probabilities.csv")) == 40


def test_mistakes_are_one_sentence(run, run_cli, tmp_path):
    _, directory = run
    base = ("predict", "--run", directory.path)
    for arguments, message in {
        (*base, "--model", "srml", "x.h5"): "holds no model 'srml'; did you mean 'srmil'",
        (*base, "--model", "srmil", "--trial", "srmil-r0-f9-s0", "x.h5"): "holds no trial 'srmil-r0-f9-s0'",
        (*base, "--model", "srmil", "--write", "svg", "x.h5"): "--write takes csv, png, geojson or none",
        ("predict", "--run", tmp_path, "--model", "srmil", "x.h5"): "is not a run directory",
    }.items():
        code, _, err = run_cli(*arguments)
        assert code == 2
        assert message in err
    weights = directory.path / "trials" / "mean-r0-f0-s0" / "weights.safetensors"
    content = weights.read_bytes()
    try:
        weights.write_bytes(content[:50])
        with pytest.raises(InputError, match=r"weights\.safetensors was changed after the trial wrote it"):
            Predictor(directory, "mean")
    finally:
        weights.write_bytes(content)
