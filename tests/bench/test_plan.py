"""Plans: what a command line and a suite settle, and what they refuse."""

import importlib.metadata

import numpy as np
import pytest
import yaml

from mil_zoo import InputError
from mil_zoo.aggregators.registry import AGGREGATORS
from mil_zoo.bench.models import plan_models
from mil_zoo.bench.plan import VERSIONS, make_plan
from mil_zoo.bench.suite import parse_overrides, read_suite
from mil_zoo.config import from_mapping, read_shipped, shipped_names
from mil_zoo.train.config import TrainingConfig
from mil_zoo.train.protocols import model_options


def plan(table, **given):
    suite = read_suite(None, **{"datasets": [str(table)], "models": ["abmil"], "folds": 2} | given)
    return make_plan(suite, suite.datasets[0])


def test_trials_are_every_model_on_every_split_with_every_seed(bag_table):
    made = plan(bag_table, models=["abmil", "mean"], folds=2, repeats=2, seeds=[0, 7])
    assert [trial.id for trial in made.trials][:5] == [
        "abmil-r0-f0-s0", "mean-r0-f0-s0", "abmil-r0-f0-s7", "mean-r0-f0-s7", "abmil-r0-f1-s0",
    ]  # fmt: skip
    assert len(made.trials) == len({trial.id for trial in made.trials}) == 16


def test_a_configuration_names_the_versions_that_numbers_depend_on(bag_table):
    versions = plan(bag_table).settings()["versions"]
    assert {"numpy", "scipy", "scikit-learn", "torch", "numba"} <= set(versions) <= set(VERSIONS)
    for name, version in versions.items():
        assert importlib.metadata.version(name).partition("+")[0] == version


def test_overrides_reach_options_training_and_graph(bag_table):
    overrides = parse_overrides(
        ["srmil.mask_rate=0.5", "srmil.learning_rate=0.01", "weight_decay=0", "srmil.graph=knn:3"]
    )
    made = plan(bag_table, models=["srmil", "abmil"], epochs=7, overrides=overrides)
    srmil, abmil = made.models
    assert srmil.options["mask_rate"] == 0.5
    assert srmil.training.learning_rate == 0.01
    assert abmil.training.learning_rate == 1e-4
    assert srmil.training.weight_decay == abmil.training.weight_decay == 0
    assert srmil.training.epochs == abmil.training.epochs == 7
    assert (srmil.graph, abmil.graph) == ("knn:3", None)
    assert made.settings()["model_settings"]["srmil"]["options"]["mask_rate"] == 0.5
    changed = {"mask_rate": 0.7, "learning_rate": 5e-4, "weight_decay": 1e-5, "epochs": 100, "graph": "knn:8"}
    assert srmil.replaced == changed, "what the recipe has, the dataset's graph with it"
    assert abmil.replaced == {"weight_decay": 5e-4, "epochs": 100}
    assert all(model.replaced == {} for model in plan(bag_table, models=["srmil"], overrides={}, epochs=None).models)
    assert yaml.safe_load(yaml.safe_dump(made.settings())) == made.settings(), "or a run could not be resumed"


def test_a_setting_for_all_models_goes_to_those_that_read_it(bag_table):
    overrides = {"learning_rate": 2e-3, "schedule": "constant", "labelled": 0.5}
    models = ["linear_probe", "knn_probe", "gigassl", "mean"]
    made = plan(bag_table, models=models, epochs=7, overrides=overrides)
    said = made.settings()["model_settings"]
    for probe in made.models[:2]:
        assert said[probe.name]["training"] == {"labelled": 0.5, "select": "last"}
        assert made.settings()["selection"][probe.name] == "nothing is chosen on validation slides", "and no epoch"
        assert probe.replaced == {"labelled": 1.0}
        assert probe.training.epochs == 1
    gigassl, mean = made.models[2:]
    reads = {"epochs", "learning_rate", "weight_decay", "bags_per_step", "labelled"}
    assert set(said["gigassl"]["training"]) == {*reads, "select"}
    assert gigassl.replaced == {"epochs": 1000, "learning_rate": 0.03, "labelled": 1.0}
    assert gigassl.training.schedule == "cosine"
    assert (mean.training.schedule, mean.training.epochs) == ("constant", 7)


def test_a_graph_goes_to_those_that_need_one_and_to_one_that_is_named(bag_table):
    # without one, what needs one gets the dataset's: knn:8
    for text, expected in {"graph=knn:3": ("knn:3", None), "camil.graph=knn:3": ("knn:8", "knn:3")}.items():
        overrides = parse_overrides([text, "camil.neighbours=graph"])
        made = plan(bag_table, models=["sm_abmil", "camil"], overrides=overrides)
        assert tuple(model.graph for model in made.models) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abmil.gate=true", "did you mean 'gated'"),
        ("abmil.learning_rat=1", "did you mean 'learning_rate'"),
        ("srmil.mask_rate=0.5", "'srmil' is not among the models"),
        ("lerning_rate=1", "no aggregator has an option 'lerning_rate'; did you mean 'learning_rate'"),
        ("epochs=many", "epochs must be a whole number, not 'many'"),
        ("epochs=0", "training.epochs must be positive"),
        ("a.b.c=1", "must look like"),
    ],
)
def test_wrong_overrides_are_refused(bag_table, text, message):
    with pytest.raises(InputError, match=message):
        plan(bag_table, overrides=parse_overrides([text]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"models": ["abmill"]}, "did you mean 'abmil'"),
        ({"models": ["abmil", "abmil"]}, "name each aggregator once"),
        ({"models": []}, "name each aggregator once"),
        ({"seeds": []}, "name each seed once"),
        ({"folds": 30}, "fewer than the 30 folds"),
        ({"folds": "published"}, "comes without published folds"),
        ({"folds": "some"}, "folds must be"),
        ({"title": " "}, "--title must be some text"),
        ({"title": "a\nb"}, "--title must be one line without control characters"),
    ],
)
def test_wrong_plans_are_refused(bag_table, given, message):
    with pytest.raises(InputError, match=message):
        plan(bag_table, **given)


def test_the_split_says_whether_patients_were_known(bag_table, tmp_path):
    assert plan(bag_table).settings()["split"]["kind"] == "stratified k-fold by patient"
    with np.load(bag_table) as arrays:
        np.savez(tmp_path / "t.npz", **{name: arrays[name] for name in arrays.files if name != "patient_id"})
    assert plan(tmp_path / "t.npz").settings()["split"]["kind"] == "stratified k-fold by slide (patients unknown)"


def test_suites_by_name_path_and_dataset(tmp_path):
    assert read_suite().datasets == ["demo"]
    assert read_suite(datasets=["crchisto"]).folds == 10
    assert read_suite("classic").datasets == ["musk1", "elephant", "tiger"]
    assert read_suite(datasets=["musk1"]).folds == 5  # no suite of that name: the defaults
    # A suite's own overrides of a model that is not run are no mistake of the user's.
    assert all(key.startswith("mean.") for key in read_suite(datasets=["crchisto"], models=["mean"]).overrides)
    for name in ("demo", "demo_grade", "demo_survival"):
        rates = {"learning_rate": 2e-3, "schedule": "constant", "abmil.learning_rate": 4e-4}
        assert read_suite(name).overrides == rates, "and one budget for all"
        suite = read_suite(name, models=["mean", "abmil", "clam_sb", "srmil"])
        trained = [plan_models(model, suite)[0].training for model in suite.models]
        assert {(one.epochs, one.schedule) for one in trained} == {(suite.epochs, "constant")}
        assert [one.learning_rate for one in trained] == [2e-3, 4e-4, 2e-3, 2e-3], "also of models it does not name"
        suite = read_suite(name, overrides={"learning_rate": 1e-3})
        rates = [plan_models(model, suite)[0].training.learning_rate for model in suite.models]
        assert rates == [1e-3, 1e-3], "what is told now goes before what the suite says of single models"
    (tmp_path / "own.yaml").write_text(
        "datasets: [demo]\nmodels: [srmil]\noverrides: {srmil.epochs: 5, srmil.mask_rate: 0.5}\n"
    )
    assert read_suite(str(tmp_path / "own.yaml"), epochs=2).overrides == {"srmil.mask_rate": 0.5}
    (tmp_path / "mine.yaml").write_text("datasets: [demo]\nfolds: 4\n")
    assert read_suite(str(tmp_path / "mine.yaml")).folds == 4
    (tmp_path / "list.yaml").write_text("- demo\n")
    (tmp_path / "typo.yaml").write_text("datasets: [demo]\nfold: 4\n")
    for name, message in {
        "clasic": "unknown suite 'clasic'; did you mean 'classic'",
        str(tmp_path / "list.yaml"): "must hold a mapping",
        str(tmp_path / "typo.yaml"): "unknown key 'fold'; did you mean 'folds'",
        str(tmp_path / "none.yaml"): "no such file",
    }.items():
        with pytest.raises(InputError, match=message):
            read_suite(name)


@pytest.mark.parametrize("name", shipped_names("suites"))
def test_every_shipped_suite_can_be_planned(name):
    suite = read_suite(name)
    for model in suite.models:
        assert plan_models(model, suite)
    assert set(suite.datasets) <= set(shipped_names("data_cards"))


@pytest.mark.parametrize("name", ["classic", "crchisto"])
def test_a_small_budget_keeps_rate_times_epochs_of_each_recipe_and_one_width(name):
    shipped = read_shipped("suites", name)
    overrides = shipped["overrides"]
    builtin = [key for key in AGGREGATORS if AGGREGATORS.get(key).__module__.startswith("mil_zoo.")]
    for key in builtin:
        recipe = read_shipped("aggregators", key)["training"]
        scaled = recipe["learning_rate"] * recipe["epochs"] / shipped["epochs"]
        assert overrides[f"{key}.learning_rate"] == pytest.approx(scaled), key
        options = model_options(key)
        for width in {"embed_dim", "hidden"} & set(options):
            assert overrides[f"{key}.{width}"] == 128, key


@pytest.mark.parametrize("name", shipped_names("aggregators"))
def test_every_shipped_aggregator_configuration_fits_its_aggregator(name):
    mapping = read_shipped("aggregators", name)
    assert set(mapping) <= {"options", "training", "search"}
    assert set(mapping.get("options", {})) <= set(model_options(name))
    from_mapping(TrainingConfig, mapping["training"], name)
    if name in AGGREGATORS:
        AGGREGATORS.get(name)(8, 2, **mapping.get("options", {}))


def test_every_builtin_aggregator_has_a_configuration():
    builtin = [name for name in AGGREGATORS if AGGREGATORS.get(name).__module__.startswith("mil_zoo.")]
    assert set(builtin) <= set(shipped_names("aggregators"))


def test_a_dropout_rate_that_leaves_nothing_is_refused_before_training(bag_table):
    for wrong in (1.0, float("nan")):
        suite = read_suite(None, datasets=[str(bag_table)], models=["wikg"], folds=2, overrides={"wikg.dropout": wrong})
        with pytest.raises(InputError, match=r"wikg: dropout must be (at least 0 and below 1|a finite number)"):
            make_plan(suite, str(bag_table))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"overrides": {"abmil.embed_dim": 0}}, "abmil: embed_dim must be 1 or more, not 0"),
        ({"overrides": {"abmil.gated": "maybe"}}, "abmil: gated must be true or false, not 'maybe'"),
        ({"grid": {"abmil.embed_dim": [64, "wide"]}}, "abmil: embed_dim must be a whole number or None, not 'wide'"),
        ({"seeds": [10**23]}, r"--seeds must be below 2\^32"),
    ],
)
def test_values_that_nothing_can_be_made_of_are_refused_before_training(bag_table, given, message):
    suite = read_suite(None, datasets=[str(bag_table)], models=["abmil"], folds=2, **given)
    with pytest.raises(InputError, match=message):
        make_plan(suite, str(bag_table))
