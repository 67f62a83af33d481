"""Scores of groups of patients, the worst group, sites told apart."""

import numpy as np
import pandas as pd
import pytest

from mil_zoo.data.labels.groups import read_groups
from mil_zoo.errors import InputError
from mil_zoo.metrics.classification import roc_area
from mil_zoo.report.figures.subgroup_forest import draw
from mil_zoo.report.load import Results
from mil_zoo.report.rescore import Columns, rescore
from mil_zoo.report.subgroups import group_scores, sites_of
from mil_zoo.report.tables.subgroup_table import shown_subgroups, subgroup_table

N = 120  # patients of two folds


def predictions(biased=False):
    """Two folds of simulated patients at three sites; of a biased model the third site's are shifted."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, N)
    site = np.array(["a", "b", "c"])[np.arange(N) % 3]
    score = np.clip(0.5 + 0.2 * (2 * label - 1) + rng.normal(0, 0.15, N) + 0.3 * biased * (site == "c"), 0.01, 0.99)
    ids = [f"P{i:03d}" for i in range(N)]
    table = pd.DataFrame({"model": "m", "fold": np.arange(N) // (N // 2), "patient_id": ids})
    return table.assign(label=label, score=score, site=site)


@pytest.fixture
def run(tmp_path):
    """``run(table, groups)``: results of these predictions with a ``groups.csv``."""

    def make(table, groups):
        path = tmp_path / "p.csv"
        table.drop(columns="site").to_csv(path, index=False)
        rescore([path], tmp_path / "run", Columns({}))
        groups.to_csv(tmp_path / "run" / "groups.csv", index=False)
        return Results.load(tmp_path / "run")

    return make


def members(table, **columns):
    return pd.DataFrame({"slide_id": table["patient_id"], "patient_id": table["patient_id"], **columns})


def test_a_slide_of_an_unknown_patient_has_the_site_of_its_own_row(run):
    table = predictions()
    groups = members(table, site=table["site"]).assign(patient_id="")
    rows = table.rename(columns={"patient_id": "slide_id"}).assign(patient_id=None)
    assert sites_of(run(table, groups), rows) == table["site"].tolist()
    barcodes = rows.assign(slide_id=[f"TCGA-{i % 7:02d}-{i:04d}-01Z" for i in range(N)])
    assert sites_of(run(table, groups.drop(columns="site")), barcodes) == [f"{i % 7:02d}" for i in range(N)]


def test_scores_of_groups_are_those_of_their_patients(run):
    table = predictions()
    found = subgroup_table(run(table, members(table, site=table["site"]))).set_index(["group", "metric"])
    assert [group for group, metric in found.index if metric == "auc"] == ["a", "b", "c"]
    own = table[table["site"] == "b"]
    row = found.loc[("b", "accuracy")]
    assert row["value"] == pytest.approx(((own["score"] > 0.5) == own["label"]).mean())
    assert (row["patients"], row["positives"]) == (len(own), own["label"].sum())
    assert row["low"] < row["value"] < row["high"]
    # The area compares patients of one fold only.
    pairs = [(roc_area(part["label"].to_numpy() == 1, part["score"].to_numpy(), np.ones(len(part))),
              part["label"].sum() * (1 - part["label"]).sum()) for _, part in own.groupby("fold")]  # fmt: skip
    assert found.loc[("b", "auc")]["value"] == pytest.approx(sum(a * n for a, n in pairs) / sum(n for _, n in pairs))


def test_small_groups_and_groups_of_one_class_are_shown_and_not_scored(run):
    table = predictions()
    group = np.where(np.arange(N) < 5, "few", np.where(table["label"] == 1, "positives", "rest"))
    group[5:30] = "both"
    group[30:34] = ""
    results = run(table, members(table, arm=group))
    found = subgroup_table(results).query("metric == 'auc'").set_index("group")
    assert found["reason"].to_dict() == {
        "rest": "one class only",
        "positives": "one class only",
        "both": "",
        "few": "fewer than 10 patients",
        "(unknown)": "their arm is unknown",
    }
    assert found["value"].isna().tolist() == (found["reason"] != "").tolist()
    text = shown_subgroups(results).markdown()
    assert "| few | 5 |" in text
    assert "(fewer than 10 patients)" in text
    assert draw(results) == {}  # one group: nothing to set beside it


def test_a_group_whose_folds_hold_one_class_each_has_no_area(run):
    table = predictions()
    odd = np.arange(N) % 4 == 0
    table.loc[odd, "label"] = table["fold"][odd]
    found = subgroup_table(run(table, members(table, arm=np.where(odd, "odd", "rest")))).set_index(["group", "metric"])
    assert found.loc[("odd", "auc")]["reason"] == "one class only in every fold"
    assert found.loc[("odd", "accuracy")]["reason"] == ""


def test_the_area_of_a_group_tells_sure_predictions_apart_as_that_of_all_does(run):
    """Probabilities that are 1 to the last digit are ranked by what is left for the other class."""
    table = predictions().drop(columns="score")
    left = np.where(table["label"] == 1, 1e-20, 1e-18) * (1 + np.arange(N) / N)
    results = run(table.assign(prob_0=left, prob_1=1.0), members(table, site="all"))
    (found,) = (one for one in group_scores(results) if one.metric == "auc")
    assert found.drawn.value == results.estimate("m", "auc").mean == 1


def test_of_three_classes_no_one_is_positive_and_a_group_may_lack_one(run):
    table = predictions()
    third = (np.arange(N) % 5 == 0) & (table["site"] != "b")
    table = table.assign(label=np.where(third, 2, table["label"]), prob_0=1 - table["score"], prob_1=table["score"])
    table[["prob_0", "prob_1"]] *= 0.8
    results = run(table.assign(prob_2=0.2).drop(columns="score"), members(table, site=table["site"]))
    found = subgroup_table(results)
    assert found["positives"].isna().all()
    assert found.set_index(["group", "metric"]).loc[("b", "auc")]["reason"] == "a class is absent"
    assert found[found["group"] != "b"]["value"].notna().all()
    assert "| Group | Patients | m: Accuracy |" in shown_subgroups(results).markdown()


def test_the_worst_group_and_the_spread(run):
    table = predictions(biased=True)
    results = run(table, members(table, site=table["site"]))
    text = shown_subgroups(results).markdown()
    values = subgroup_table(results).query("metric == 'accuracy'").set_index("group")["value"]
    assert values.idxmin() == "c"
    assert f"| site | Accuracy | m | c | 40 | {values.min():.3f} [" in text
    assert f"| {values.max() - values.min():.3f} |" in text
    assert set(draw(results)) == {"subgroups-site"}


def test_a_plot_of_groups_has_room_whatever_they_are_called(run):
    table = predictions()
    long = {"a": "a" * 300 + "1", "b": "a" * 300 + "2", "c": "c"}
    groups = members(
        table,
        **{"gr\u00f6\u00dfe": table["site"], "gr\u00fc\u00dfe": table["site"], "w" * 200: table["site"].map(long)},
    )
    found = draw(run(table, groups))
    assert len(found) == 3  # and none in the place of another
    *_, figure = found.values()
    shown = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert len(set(shown)) == 3
    assert max(map(len, shown)) < 50
    figure.canvas.draw()
    assert figure.axes[0].get_position().width > 0.4


def test_a_column_of_300_values_is_said_so(run):
    table = predictions()
    many = members(table, batch=[f"b{i}" for i in range(N)])
    results = run(table, many)
    assert len({one.group for one in group_scores(results)}) == N
    text = shown_subgroups(results).markdown()
    assert "batch has 120 values, of which 0 can be scored and 0 are listed" in text
    assert "| b7 |" not in text


# The groups themselves ----------------------------------------------------------------------------------------------

SLIDES = [("s1.a", "P1"), ("s2.a", "P1"), ("s3.a", "P2"), ("TCGA-05-4244-01Z-00-DX1", "TCGA-05-4244")]


@pytest.fixture
def table_of(tmp_path):
    def make(text):
        (tmp_path / "groups.csv").write_text(text)
        return tmp_path / "groups.csv"

    return make


def test_groups_of_patients_and_of_slides(table_of):
    path = table_of("case_id,Sex\nP1,F\nP2,M\n")
    assert read_groups(["sex"], SLIDES, path)["sex"].tolist() == ["F", "F", "M", ""]
    path = table_of("slide_id,scanner\ns1.a,x\n")  # one slide tells for the patient
    assert read_groups(["scanner"], SLIDES, path)["scanner"].tolist() == ["x", "x", "", ""]


def test_patients_of_a_table_are_met_as_slides_are(table_of):
    slides = [("s1", "p1"), ("s2", "17"), ("s3", "\u00e9")]
    path = table_of("patient_id;site\nP1;x\n17.0;NA\ne\u0301;z\n")
    assert read_groups(["site"], slides, path)["site"].tolist() == ["x", "NA", "z"]


def test_sites_of_barcodes():
    assert read_groups(["site"], SLIDES)["site"].tolist() == ["", "", "", "05"]


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("patient_id,sex\nP1,F\nP1,M\n", "sex", "patient 'P1' has 2 values"),
        ("slide_id,scanner\ns1.a,x\ns2.a,y\n", "scanner", r"patient 'P1' has 2 values \('x', 'y'"),
        ("patient_id,sex\nP1,F\n", "sexx", "has no such column; did you mean 'sex'"),
        ("patient_id,sex\nQ,F\n", "sex", "no id there is of this run's slides"),
        ("patient_id,sex,sex\nP1,F,M\n", "sex", "the column 'sex' occurs twice"),
        ("patient_id,sex\nP1,F\nP2,f\n", "sex", "'F' and 'f' differ in case, blanks or accents only"),
        ("patient_id,sex\nP1,F\n", "patient_id", "each would be a group of its own"),
        ("name,sex\nP1,F\n", "sex", "names neither slides nor patients"),
        (None, "sex", "nothing says the sex of a slide; pass --groups"),
    ],
)
def test_groups_that_cannot_be(table_of, text, column, words):
    with pytest.raises(InputError, match=words):
        read_groups([column], SLIDES, None if text is None else table_of(text))


def test_a_bench_by_groups(run_cli, bag_table, tmp_path):
    groups = tmp_path / "g.csv"
    rows = "".join(f"p{i},{'AB'[i % 2]}\n" for i in range(17))
    groups.write_text("patient_id,ward\n" + rows)
    options = ["--dataset", bag_table, "--models", "mean", "--folds", 2, "--epochs", 1, "--out", tmp_path / "run"]
    assert run_cli("bench", *options, "--by", "wardd", "--groups", groups)[0] == 2
    assert not (tmp_path / "run" / "trials").exists()  # found before any training
    code, _, err = run_cli("bench", *options, "--by", "ward", "--groups", groups)
    assert code == 0, err
    table = pd.read_csv(tmp_path / "run" / "subgroups.csv")
    assert set(table["group"]) == {"A", "B"}
    assert "By ward" in (tmp_path / "run" / "report.html").read_text()
    assert run_cli("report", tmp_path / "run", "--groups", groups)[0] == 2
    groups.write_text("patient_id,ward\n" + rows.replace("B", "C"))
    (tmp_path / "run" / "figures").mkdir(exist_ok=True)
    (tmp_path / "run" / "figures" / "subgroups-earlier.png").touch()
    assert run_cli("report", tmp_path / "run", "--by", "ward", "--groups", groups)[0] == 0
    assert not list((tmp_path / "run" / "figures").glob("subgroups-earlier*"))
    assert set(pd.read_csv(tmp_path / "run" / "subgroups.csv")["group"]) == {"A", "C"}
