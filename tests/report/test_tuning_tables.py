"""Tuning, budgets, costs and embeddings as a report shows them."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml

from mil_zoo.metrics import find_metric
from mil_zoo.report.figures.embeddings import colours_of, components, draw
from mil_zoo.report.figures.pareto import draw as draw_pareto
from mil_zoo.report.figures.pareto import frontier
from mil_zoo.report.figures.registry import draw_figures
from mil_zoo.report.load import Results
from mil_zoo.report.subgroups import site_of
from mil_zoo.report.tables import documents, numbers, write_tables
from mil_zoo.report.tables.tuning_table import budget_table, configuration_table, expected_choice, order_changes

# Of each aggregator the validation and test scores of four configurations, the recipe first.
SCORES = {
    "abmil": ([0.90, 0.80, 0.85, 0.88], [0.80, 0.70, 0.75, 0.78]),
    "srmil": ([0.70, 0.60, 0.99, 0.65], [0.60, 0.5, 0.9, 0.55]),
}


@pytest.fixture
def tuned(write):
    rows = [
        write.row(name, fold, settings={"learning_rate": 0.1}, training_seconds=40.0, inference_ms=3.0, epochs=30)
        for name in SCORES
        for fold in range(2)
    ]

    def files(row, folder):
        validation, test = SCORES[row["aggregator"]]
        table = {
            "configuration": range(4),
            "settings": [json.dumps({"learning_rate": 10.0**-i}) for i in range(4)],
            "metric": "auc",
            "validation": validation,
            "validation_loss": np.nan,
            "test": test,
            "chosen": [int(value == max(validation)) for value in validation],
            "epochs": 7,
            "seconds": 10.0,
            "reason": "",
        }
        pd.DataFrame(table).to_csv(folder / "tuning.csv", index=False)
        folder.joinpath("predictions.csv").write_text(_predictions(row["fold"]))
        rng = np.random.default_rng(row["fold"])
        np.save(folder / "embeddings.npy", rng.normal(size=(4, 5)).astype(np.float16))

    run = write.run(rows, list(SCORES), files)
    settings = run.config
    settings["tuning"] = {"configurations": 4, "sampler": "tpe", "inner_folds": None, "optuna": "5.0.0"}
    for model in settings["model_settings"].values():
        model["training"]["patience"] = 5
    (run.path / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return type(run)(run.path)


def _predictions(fold):
    lines = ["slide_id,patient_id,split,label,prob_0,prob_1"]
    for i in range(4):
        name = f"TCGA-{'AB' if i < 2 else 'CD'}-{fold}{i}"
        lines += [f"{name},{name},test,{i % 2},0.{4 + i},0.{6 - i}", f"v{name},v{name},val,{i % 2},0.{4 + i},0.{6 - i}"]
    return "\n".join(lines) + "\n"


def test_the_expected_choice_is_that_of_all_draws():
    rng = np.random.default_rng(0)
    validation, test = rng.normal(size=(2, 6))
    order = np.argsort(-validation, kind="stable")
    for values in (validation, test):
        for n, found in enumerate(expected_choice(order, values), start=1):
            draws = [values[max(draw, key=lambda i: validation[i])] for draw in itertools.combinations(range(6), n)]
            assert found == pytest.approx(np.mean(draws))
    failed = np.array([0.5, 0.7, np.nan])
    np.testing.assert_allclose(expected_choice(np.array([1, 0, 2]), failed), [np.nan, 0.7 * 2 / 3 + 0.5 / 3, 0.7])


def test_configurations_budgets_and_the_order_that_flips(tuned):
    results = Results.load(tuned)
    table = configuration_table(results)
    assert len(table) == 2 * 2 * 4
    assert table["chosen"].sum() == 4
    budget = budget_table(results).set_index(["aggregator", "configurations"])
    assert budget.loc[("srmil", 1), "test"] == pytest.approx(np.mean(SCORES["srmil"][1]))
    assert budget.loc[("srmil", 4), "test"] == 0.9
    assert budget.loc[("abmil", 4), "validation"] == 0.9
    (document,) = (each for each in documents(results) if each.name == "tuning")
    text = document.markdown()
    assert "tuned, N = 4" in text
    assert "1 of 1 pairs" in text
    assert "abmil is ahead of srmil up to a budget of 2, srmil from 3 on (AUC 0.75" in text
    assert "| 2 of 2 |" in text  # abmil kept its recipe
    assert "would have begun with the recipe and have proposed the others from fewer scores" in text
    comparison = documents(results)[0].markdown()
    assert "every aggregator tuned, N = 4 configurations, its recipe first" in comparison
    assert "Training ended early" in comparison
    assert "abmil after 30 (30 to 30) of 40" in comparison
    names = {path.name for path in write_tables(results)}
    assert {"tuning.csv", "tuning.md", "budget.csv", "cost.csv"} <= names
    cost = pd.read_csv(results.path / "cost.csv").set_index("aggregator").loc["abmil"]
    assert (cost["epochs"], cost["budget"], cost["configurations"]) == (30, 40, 4)
    assert (cost["training_seconds"], cost["inference_ms"]) == (40, 3)


def test_failed_configurations_are_counted(tuned, change_table):
    table = tuned.tuning("srmil-r0-f0-s0")
    table.loc[[1, 3], ["validation", "test"]] = np.nan
    change_table(tuned, "srmil-r0-f0-s0", "tuning.csv", table.assign(reason=["", "ValueError: no"] * 2))
    (document,) = (each for each in documents(Results.load(tuned)) if each.name == "tuning")
    assert "Failed, and so not judged: srmil 2 of 8 (tuning.csv says why)." in document.tables[0].notes


def test_rounding_is_no_change_of_order(monkeypatch):
    """Equal scores of two aggregators, added in another order, are those of a tie."""
    test = {"a": [0.1 + 0.2, 0.5, 0.7], "b": [0.3, 0.5, 0.7 + 1e-16]}
    rows = [
        {"aggregator": name, "configurations": n, "test": value}
        for name, values in test.items()
        for n, value in enumerate(values, start=1)
    ]
    monkeypatch.setattr("mil_zoo.report.tables.tuning_table.budget_table", lambda results: pd.DataFrame(rows))
    results = SimpleNamespace(selecting=find_metric("auc"))
    assert order_changes(results) == [
        "No two aggregators change their order in expected test AUC with the number of configurations."
    ]
    rows[0]["test"] += 0.1
    rows[-1]["test"] += 0.1
    assert "a is ahead of b up to a budget of 1, b from 3 on" in order_changes(results)[1]


def test_the_figures_of_a_tuned_run(tuned):
    drawn = draw_figures(Results.load(tuned), ["budget", "pareto", "embeddings"])
    assert [drawing.name for drawing in drawn] == ["budget", "embeddings", "embeddings-site", "pareto"]
    assert all(drawing.png.startswith(b"\x89PNG") for drawing in drawn)
    captions = {drawing.name: drawing.caption for drawing in drawn}
    assert "site" not in captions["embeddings"]
    assert captions["embeddings-site"] == captions["embeddings"] + (
        " Slides that lie by site and not by label show that a model can tell hospitals apart."
    )
    (legend,) = draw_pareto(Results.load(tuned))["pareto"].legends
    assert {(line.get_marker(), line.get_linestyle()) for line in legend.get_lines()} == {("o", "None")}, "dots"


def test_many_sites_are_a_few_colours_and_grey(tuned):
    rows = pd.concat(pd.read_csv(path) for path in sorted((tuned.path / "trials").glob("*/predictions.csv")))
    rows = rows[["slide_id", "patient_id"]].drop_duplicates()
    rows.assign(site=[f"H{i}" for i in range(len(rows))]).to_csv(tuned.path / "groups.csv", index=False)
    (legend,) = draw(Results.load(tuned))["embeddings-site"].figure.legends
    assert {text.get_text()[0] for text in legend.get_texts()} == {"H"}, "the sites of --by and no barcodes"
    colours = colours_of([f"H{i}" for i in range(9)] * 2 + list("abcd"))
    assert list(colours) == [*(f"H{i}" for i in range(9)), "4 others"]
    assert list(colours_of(list("babc"))) == ["a", "b", "c"]


def test_an_untuned_run_has_recipes_and_no_budget(make_run):
    results = Results.load(make_run())
    assert "Settings: authors' recipe" in documents(results)[0].markdown()
    assert not {"tuning", "budget"} & set(numbers(results))
    assert draw_figures(results, ["budget", "embeddings", "pareto"]) == []


@pytest.mark.parametrize(("column", "groups"), [("event", " by event"), ("value", "")])
def test_embeddings_are_coloured_by_what_there_is(column, groups, tuned, monkeypatch):
    results = Results.load(tuned)
    read = type(results).predictions

    def of_another_task(self, trial):
        rows = read(self, trial).drop(columns="label")
        return rows.assign(**{column: [i % 2 for i in range(len(rows))]})

    monkeypatch.setattr(type(results), "predictions", of_another_task)
    figure = draw(results)["embeddings"]
    assert figure.get_suptitle().replace("\n", " ").startswith(f"Embeddings of test slides{groups}, principal")


def test_the_frontier_is_what_none_other_beats():
    table = pd.DataFrame({"cost": [1.0, 2.0, 2.0, 3.0, 4.0], "score": [0.5, 0.7, 0.6, 0.7, 0.9]})
    assert list(frontier(table, "cost", True).index) == [0, 1, 4]
    assert list(frontier(table, "cost", False).index) == [0]


def test_principal_components_and_sites():
    rng = np.random.default_rng(0)
    line = np.outer(np.arange(9.0), rng.normal(size=4)) + 3
    places, shares = components(line)
    assert shares == pytest.approx([1, 0], abs=1e-9)
    np.testing.assert_allclose(np.abs(np.diff(places[:, 0])), np.linalg.norm(line[1] - line[0]))
    assert components(np.ones((3, 2)))[1].tolist() == [0, 0]
    assert site_of(["", "TCGA-a7-1234-01Z"]) == "A7"
    assert site_of(["slide_3"]) == ""
