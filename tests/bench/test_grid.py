"""Grids: from the text of a command line to the trials of a plan."""

import pytest

from mil_zoo import InputError
from mil_zoo.bench.grid import parse_grids, parse_values, points
from mil_zoo.bench.plan import make_plan
from mil_zoo.bench.suite import read_suite


def plan(table, **given):
    suite = read_suite(None, **{"datasets": [str(table)], "models": ["srmil", "abmil"], "folds": 2} | given)
    return make_plan(suite, suite.datasets[0])


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0,0.1,...,0.9", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        ("8,16, ... ,32,64", [8, 16, 24, 32, 64]),
        ("3,2,...,0", [3, 2, 1, 0]),
        ("1e-4,1e-3", [1e-4, 1e-3]),
        ("window:2,knn:8", ["window:2", "knn:8"]),
        ("true,null", [True, None]),
    ],
)
def test_values(text, values):
    assert parse_values(text, "--grid x") == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("srmil.mask_rate", "must look like"),
        ("a.b.c=1", "must look like"),
        ("x=0,,1", "empty value"),
        ("x=0,...,1", "two numbers before and one after"),
        ("x=0,1,...", "two numbers before and one after"),
        ("x=a,b,...,c", "two numbers before and one after"),
        ("x=0,0.3,...,1", "steps of 0.3 from 0.3 never meet 1"),
        ("x=0,1,...,-3", "never meet"),
        ("x=0,0.1,...,1e9", "more than 1000 values; take larger steps"),
        ("x=1,2,...,inf", "stands between finite numbers"),
        ("x=nan,1,...,2", "stands between finite numbers"),
    ],
)
def test_wrong_texts_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_grids([text])


def test_a_grid_given_twice_is_refused():
    with pytest.raises(InputError, match="given twice"):
        parse_grids(["x=1", "x=2"])


def test_grids_multiply_and_concern_their_own_model():
    grids = {"srmil.mask_rate": "0,0.5", "srmil.loss": {"both": {}, "none": {"w_gen": 0, "w_ce": 2}}, "epochs": [3]}
    assert points(grids, "abmil", {"epochs"}) == [("epochs=3", {"epochs": 3})]
    assert points(grids, "mean", set()) == [("", {})]
    srmil = points(grids, "srmil", {"epochs"})
    assert [name for name, _ in srmil] == [
        "mask_rate=0,loss=both,epochs=3", "mask_rate=0,loss=none,epochs=3",
        "mask_rate=0.5,loss=both,epochs=3", "mask_rate=0.5,loss=none,epochs=3",
    ]  # fmt: skip
    assert srmil[3][1] == {"mask_rate": 0.5, "w_gen": 0, "w_ce": 2, "epochs": 3}


def test_the_trials_of_a_grid(bag_table):
    grid = parse_grids(["srmil.mask_rate=0,0.5", "srmil.graph=window:2,knn:3"])
    made = plan(bag_table, grid=grid, overrides={"mask_rate": 0.9, "srmil.w_gen": 1.0})
    ids = [trial.id for trial in made.trials]
    assert ids[:5] == [
        "srmil@mask_rate=0,graph=window:2-r0-f0-s0", "srmil@mask_rate=0,graph=knn:3-r0-f0-s0",
        "srmil@mask_rate=0.5,graph=window:2-r0-f0-s0", "srmil@mask_rate=0.5,graph=knn:3-r0-f0-s0", "abmil-r0-f0-s0",
    ]  # fmt: skip
    assert len(ids) == len(set(ids)) == 10
    last = made.models[3]
    assert (last.options["mask_rate"], last.options["w_gen"], last.graph) == (0.5, 1.0, "knn:3")
    settings = made.settings()
    assert settings["grid"] == grid
    assert settings["model_settings"]["srmil@mask_rate=0.5,graph=knn:3"]["options"]["mask_rate"] == 0.5
    assert "grid" not in plan(bag_table).settings()


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"srmil.mask_rat": [0]}, "--grid srmil.mask_rat: srmil has no option 'mask_rat'; did you mean 'mask_rate'"),
        ({"clam_sb.k_sample": [1]}, "'clam_sb' is not among the models"),
        ({"mask_rat": [0]}, "no aggregator has an option 'mask_rat'"),
        ({"srmil.mask_rate": []}, "name each of its values once"),
        ({"srmil.mask_rate": [0.5, 0.5]}, "name each of its values once"),
        ({"srmil.mask_rate": 0.5}, "a list of values or a mapping"),
    ],
)
def test_wrong_grids_are_refused(bag_table, grid, message):
    with pytest.raises(InputError, match=message):
        plan(bag_table, grid=grid)


def test_a_setting_cannot_also_be_a_grid(bag_table):
    with pytest.raises(InputError, match="in --set and in --grid"):
        plan(bag_table, grid={"srmil.mask_rate": [0]}, overrides={"srmil.mask_rate": 1})


def test_the_command_line_goes_before_the_grid_of_a_suite(tmp_path):
    suite = tmp_path / "mine.yaml"
    suite.write_text("datasets: [demo]\nmodels: [srmil]\ngrid: {srmil.mask_rate: '0,0.1,...,0.3'}\n")
    assert read_suite(str(suite)).grid == {"srmil.mask_rate": "0,0.1,...,0.3"}
    assert read_suite(str(suite), grid={"srmil.mask_rate": [0.5]}).grid == {"srmil.mask_rate": [0.5]}
    assert read_suite(str(suite), overrides={"srmil.mask_rate": 0.5}).grid == {}
    assert read_suite(str(suite), models=["abmil"]).grid == {}
