"""Tuning: equal budgets, inside the training part alone, the same wherever and however often it is begun."""

import itertools
import json
import signal
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from mil_zoo import InputError
from mil_zoo.aggregators.mean_max import MeanPooling
from mil_zoo.aggregators.registry import list_aggregators
from mil_zoo.bench.executors import Processes
from mil_zoo.bench.models import plan_models, settable
from mil_zoo.bench.plan import make_plan
from mil_zoo.bench.predictor import Predictor
from mil_zoo.bench.runner import run_plan
from mil_zoo.bench.search import Judged, ranking, search
from mil_zoo.bench.space import Dimension, Range
from mil_zoo.bench.suite import Suite, read_suite
from mil_zoo.data.bags import as_bags
from mil_zoo.train.protocols import PROTOCOLS

MEASURED = ["seconds"]
SPACE = (Dimension("learning_rate", Range(1e-5, 1e-1, log=True)), Dimension("width", choices=(4, 8)))


def tuned_plan(table, **given):
    models = given.get("models", ["mean", "abmil"])
    search = {"embed_dim": [8, 16], "learning_rate": {"low": 1e-4, "high": 0.1}}
    overrides = {"embed_dim": 8}
    if "abmil" in models:
        search["attention_dim"], overrides["attention_dim"] = [4, 8], 4
    small = {"folds": 2, "epochs": 2, "tune": 4, "search": search, "overrides": overrides}
    suite = read_suite(None, **{"datasets": [str(table)], "models": models} | small | given)
    return make_plan(suite, suite.datasets[0])


def first_fold(plan):
    return replace(plan, drawn=replace(plan.drawn, splits=plan.splits[:1]))


def configurations(run, trial):
    return pd.read_csv(run.path / "trials" / trial / "tuning.csv").drop(columns=MEASURED)


@pytest.fixture(scope="module")
def tuned(bag_table, tmp_path_factory):
    plan = first_fold(tuned_plan(bag_table))
    return plan, run_plan(plan, tmp_path_factory.mktemp("tuned"))


def test_every_aggregator_gets_the_same_number_and_its_recipe_first(tuned):
    plan, run = tuned
    for trial, row in zip(plan.trials, run.trials(), strict=True):
        assert row["status"] == "ok"
        found = configurations(run, trial.id)
        assert list(found["configuration"]) == [0, 1, 2, 3]
        assert json.loads(found["settings"][0]) == trial.model.recipe
        assert found["settings"].nunique() == 4
        assert found["chosen"].sum() == 1
        best = found[found["chosen"] == 1].iloc[0]
        assert best["validation"] == found["validation"].max() == row["val_metrics"]["auc"]
        assert best["test"] == row["metrics"]["auc"]
        assert row["settings"] == json.loads(best["settings"])
        assert (found["epochs"] == 2).all()
        assert row["training_seconds"] > 0
    assert not list((run.path / "trials").glob(".*"))
    config = run.config
    assert config["tuning"]["configurations"] == 4
    assert config["model_settings"]["abmil"]["search"]["attention_dim"] == [4, 8]


def test_the_chosen_configuration_is_a_trial_like_any_other(tuned, bag_table, tmp_path):
    plan, run = tuned
    trial = plan.trials[1]
    chosen = run.trials()[1]["settings"]
    model = trial.model.configured(chosen)
    alone = first_fold(tuned_plan(bag_table, tune=None, search={}, models=["abmil"]))
    alone = replace(alone, models=[replace(model, space=())])
    plain = run_plan(alone, tmp_path)
    for name in ("predictions.csv", "weights.safetensors", "skew.csv", "embeddings.npy"):
        assert run.read(trial.id, name) == plain.read(trial.id, name), name
    Predictor(run, "abmil")  # its weights fit the options that it chose


def with_garbage(plan):
    """The same plan, its test slides replaced by noise."""
    (split,) = plan.splits
    rng = np.random.default_rng(0)
    bags = [
        bag.with_features(bag.features * 0 + torch.from_numpy(rng.normal(size=bag.features.shape) * 9).float())
        if bag.slide_id in split.test
        else bag
        for bag in plan.dataset.bags
    ]
    return replace(plan, dataset=replace(plan.dataset, bags=as_bags(bags)))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"inner_folds": 2, "sampler": "random", "tune": 3, "models": ["mean"], "overrides": {}},
        {"tune": 3, "models": ["linear_probe"], "overrides": {}, "search": {}},
    ],
)
def test_no_objective_reads_a_test_slide(bag_table, tmp_path, tuned, given):
    plan = tuned[0] if not given else first_fold(tuned_plan(bag_table, **given))
    honest = tuned[1] if not given else run_plan(plan, tmp_path / "honest")
    garbled = run_plan(with_garbage(plan), tmp_path / "garbled")
    for one, other in zip(honest.trials(), garbled.trials(), strict=True):
        assert one["settings"] == other["settings"]
        assert one["val_metrics"] == other["val_metrics"]
        assert one["metrics"] != other["metrics"]  # they were replaced
        same = ["settings", "validation", "validation_loss", "chosen", "epochs"]
        for name in same:
            pd.testing.assert_series_equal(
                configurations(honest, one["trial"])[name], configurations(garbled, one["trial"])[name]
            )


class Stopped(KeyboardInterrupt):
    pass


@pytest.fixture
def keyboard():
    """The keyboard interrupts, also where the tests run in the background of a shell, which ignores it."""
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, kept)


@pytest.mark.usefixtures("keyboard")
def test_a_search_that_is_broken_off_goes_on(tuned, tmp_path, monkeypatch):
    plan, run = tuned
    plan = replace(plan, models=plan.models[:1])
    trained, fit = [], MeanPooling.losses

    def losses(self, batch):
        trained.append(1)
        if len(trained) == stop_at:
            raise Stopped
        return fit(self, batch)

    monkeypatch.setattr(MeanPooling, "losses", losses)
    for stop_at in (50, 70):  # noqa: B007 (losses reads it)
        trained.clear()
        with pytest.raises(Stopped):
            run_plan(plan, tmp_path)
    trained.clear()
    stop_at = 0
    again = run_plan(plan, tmp_path)
    (trial,) = plan.trials
    pd.testing.assert_frame_equal(configurations(again, trial.id), configurations(run, trial.id))
    steps = 4 * 2 * len(trial.split.train)
    assert len(trained) < steps - 50  # what was done is not done again


def test_a_configuration_that_fails_is_a_row_with_its_reason(bag_table, tmp_path, monkeypatch):
    init = MeanPooling.__init__

    def broken(self, in_dim, num_classes, embed_dim=512):
        if embed_dim == 16:
            raise ValueError("too wide")
        init(self, in_dim, num_classes, embed_dim)

    monkeypatch.setattr(MeanPooling, "__init__", broken)
    plan = first_fold(tuned_plan(bag_table, models=["mean"], tune=6))
    run = run_plan(plan, tmp_path)
    found = configurations(run, plan.trials[0].id)
    failed = found["settings"].str.contains("16}")
    assert 0 < failed.sum() < 6
    assert (found["reason"][failed] == "ValueError: too wide").all()
    assert found["validation"][failed].isna().all()
    assert run.trials()[0]["settings"]["embed_dim"] == 8


@pytest.mark.parametrize(
    ("broken", "reason"),
    [(True, "ValueError: no such layer"), (False, "auc is undefined on the validation slides; put slides of every")],
)
def test_a_trial_of_which_no_configuration_can_be_judged_fails(bag_table, tmp_path, monkeypatch, broken, reason):
    plan = first_fold(tuned_plan(bag_table, models=["mean"], tune=2))
    if broken:
        monkeypatch.setattr(MeanPooling, "__init__", lambda self, in_dim, classes, embed_dim=9: raise_error())
    else:  # validation slides of one class
        (split,) = plan.splits
        labels = dict(zip(plan.dataset.bags.slide_ids, plan.dataset.bags.labels, strict=True))
        val = tuple(slide for slide in split.val if labels[slide] == 1)
        train = (*split.train, *(slide for slide in split.val if slide not in val))
        plan = replace(plan, drawn=replace(plan.drawn, splits=[replace(split, train=train, val=val)]))
    (row,) = run_plan(plan, tmp_path).trials()
    assert row["status"] == "failed"
    assert f"none of 2 configurations could be judged: {reason}" in row["reason"]


def raise_error():
    raise ValueError("no such layer")


def test_processes_choose_the_same(tuned, tmp_path):
    plan, run = tuned
    plan = replace(plan, models=plan.models[:1])
    elsewhere = run_plan(plan, tmp_path, executor=Processes(1))
    (trial,) = plan.trials
    for name in ("predictions.csv", "weights.safetensors", "embeddings.npy"):
        assert run.read(trial.id, name) == elsewhere.read(trial.id, name), name
    pd.testing.assert_frame_equal(configurations(run, trial.id), configurations(elsewhere, trial.id))


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_proposals_depend_on_the_seed_and_what_was_judged_alone(sampler):
    def judge(number, settings):
        return Judged(settings=settings, score=-abs(np.log10(settings["learning_rate"]) + 3) + settings["width"] / 100)

    recipe = {"learning_rate": 1.0, "width": 8}  # outside of the space
    first, second, other = (search(SPACE, recipe, 25, sampler, seed, judge, True) for seed in (1, 1, 2))
    assert [(one.settings, one.score) for one in first] == [(one.settings, one.score) for one in second]
    assert [one.settings for one in first[1:]] != [one.settings for one in other[1:]]
    assert first[0].settings == recipe
    rates = [one.settings["learning_rate"] for one in first[1:]]
    assert min(rates) >= 1e-5
    assert max(rates) <= 1e-1
    best = first[ranking(first, True)[0]]
    assert abs(np.log10(best.settings["learning_rate"]) + 3) < 0.7


def test_a_finite_space_is_searched_without_repetition():
    space = (Dimension("a", choices=("x", "y", None)), Dimension("b", Range(1, 3, whole=True)))
    found = search(space, {"a": "x", "b": 2}, 9, "tpe", 0, lambda n, s: Judged(settings=s, score=1.0), True)
    expected = [{"a": a, "b": b} for a, b in itertools.product(("x", "y", None), (1, 2, 3))]
    assert sorted(map(str, (one.settings for one in found))) == sorted(map(str, expected))


def test_ties_go_to_the_lower_loss_and_then_to_the_earlier_one():
    judged = [
        Judged(settings={}, score=score, loss=loss)
        for score, loss in [(0.9, 0.5), (np.nan, 0.1), (1.0, 0.4), (1.0, 0.2), (1.0, 0.2), (0.9, np.nan)]
    ]
    assert ranking(judged, True) == [3, 4, 2, 0, 5, 1]
    assert ranking(judged, False) == [0, 5, 3, 4, 2, 1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tune": 1}, r"--tune 1 chooses among nothing: ask for 2 configurations or more, or leave it out"),
        ({"tune": 0}, r"--tune 0 chooses among nothing"),
        ({"tune": 9, "search": {"learning_rate": None, "weight_decay": None}}, r"--tune 9: mean has 3 configurations"),
        ({"grid": {"embed_dim": [4, 8]}}, r"--tune searches where --grid tries every value \(embed_dim\)"),
        ({"search": {"mean.embed_dims": [4, 8]}}, r"search mean.embed_dims: mean has no option.*embed_dim"),
        ({"search": {"widht": [4, 8]}}, r"search widht: no aggregator has an option 'widht'"),
        ({"search": {"abmil.gated": [True, False]}}, r"search abmil.gated: 'abmil' is not among the models"),
        ({"search": {"embed_dim": "wide"}}, r"search embed_dim: embed_dim: no shared range is called 'wide'"),
        ({"search": {"embed_dim": [4]}}, r"must be low and high, or a list of two or more different values, not \[4\]"),
        ({"search": {"embed_dim": [4, 4]}}, r"two or more different values"),
        ({"search": {"embed_dim": []}}, r"two or more different values, not \[\]"),
        ({"search": {"embed_dim": ["wide", 8]}}, r"search embed_dim: mean: embed_dim must be a whole number.*'wide'"),
        ({"search": {"embed_dim": {"low": 8, "high": 16}}}, r"whole number.*a range of whole numbers has whole: true"),
        ({"search": {"learning_rate": ["a", 0.1]}}, r"search learning_rate: .*learning_rate must be .*number, not 'a'"),
        ({"search": {"learning_rate": {"low": -1.0, "high": 0.1}}}, r"learning_rate must be positive"),
        ({"search": {"select": ["auc", "c_index"]}}, r"search select: .*c_index"),
        ({"search": {"learning_rate": {"low": 1.0, "high": 0.1}}}, r"learning_rate: low must be below high"),
        ({"search": {"learning_rate": {"low": 0.0, "high": 1.0, "log": True}}}, r"begins above 0, not at 0"),
        ({"search": {"learning_rate": {"lo": 0.0, "high": 1.0}}}, r"the key 'low' is missing"),
        ({"inner_folds": 1}, r"--inner-folds must be at least 2, not 1"),
        ({"tune": None, "inner_folds": 3}, r"--inner-folds judges configurations; add --tune N"),
        (
            {"search": dict.fromkeys(["learning_rate", "weight_decay", "embed_dim"])},
            r"nothing of mean is left to search",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_runs(bag_table, given, message):
    with pytest.raises(InputError, match=message):
        tuned_plan(bag_table, **{"models": ["mean"], "overrides": {}, "search": {}} | given)


def test_folds_that_the_training_part_cannot_fill_are_a_reason(bag_table, tmp_path):
    plan = first_fold(tuned_plan(bag_table, models=["mean"], inner_folds=30))
    (row,) = run_plan(plan, tmp_path).trials()
    assert row["status"] == "failed"
    assert "--inner-folds 30: in the training part there are" in row["reason"]


@pytest.mark.parametrize("name", [*list_aggregators(), *PROTOCOLS])
def test_every_aggregator_declares_a_space_of_its_options(name):
    (model,) = plan_models(name, Suite(datasets=["none"], models=[name], tune=4))
    names = [dimension.name for dimension in model.space]
    assert {"learning_rate", "weight_decay"} & settable(name) <= set(names)
    for dimension in model.space:
        outside = dimension.name == "weight_decay" and model.recipe["weight_decay"] == 0
        assert dimension.holds(model.recipe[dimension.name]) or outside, dimension.name
        if name != "gigassl" and dimension.name in ("learning_rate", "weight_decay"):
            (shared,) = (
                each
                for each in plan_models("mean", Suite(datasets=[""], tune=4))[0].space
                if each.name == dimension.name
            )
            assert dimension == shared
    for values in (
        [d.choices[0] if d.choices else d.range.low for d in model.space],
        [d.choices[-1] if d.choices else d.range.high for d in model.space],
    ):
        model.configured(dict(zip(names, values, strict=True)))
