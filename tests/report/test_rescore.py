"""Predictions that others published, scored again: numbers, and a small file for everything that cannot be right."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rescore_files import probabilities, risks

from mil_zoo.errors import InputError
from mil_zoo.report.load import Results
from mil_zoo.report.rescore import Columns, parse_columns, rescore
from mil_zoo.report.rescore.read import read_predictions
from mil_zoo.report.tables import comparisons
from mil_zoo.stats import concordance
from mil_zoo.stats.possible import half_unit, possible_positives, possible_sizes

# Numbers -------------------------------------------------------------------------------------------------------------


def test_published_concordances_come_out(real_data, tmp_path):
    golden = real_data / "survival" / "golden"
    folds = pd.read_csv(golden / "mcat_folds.csv")
    published = tmp_path / "published.csv"
    folds.rename(columns={"published_c": "value"})[["model", "cohort", "fold", "value"]].to_csv(published, index=False)
    rescore([golden / "mcat_risks.csv.gz"], tmp_path / "out", Columns({}, ("cohort",)), published=published)
    table = pd.read_csv(tmp_path / "out" / "rescore.csv")
    assert len(table) == len(folds) == 40
    assert table["difference"].abs().max() < 1e-6
    both = table.merge(folds, on=["model", "cohort", "fold"])
    assert (both["patients_x"] == both["patients_y"]).all()
    constant = table["remark"].fillna("").str.contains("constant predictions")
    assert set(zip(table["model"][constant], table["cohort"][constant], strict=True)) == {("deepsets", "ucec")}
    # The paired test of a bench, on the same folds.
    paired = pd.read_csv(golden / "mcat_paired.csv").query("metric == 'harrell_c' and cohort == 'blca'").iloc[0]
    ours = comparisons(Results.load(tmp_path / "out" / "blca")).query("metric == 'c_index'").iloc[0]
    assert (ours["a"], ours["b"]) == (paired["model_a"], paired["model_b"])
    for name, theirs in (("difference", "mean_difference"), ("p", "p"), ("low", "lower"), ("high", "upper")):
        assert ours[name] == pytest.approx(paired[theirs], abs=2e-3), name


def test_published_classification_tables_hold_nothing_impossible(real_data, tmp_path):
    made = rescore(
        [real_data / "published" / "hipt_per_fold.csv"], tmp_path, Columns({}, ("dataset", "train_fraction"))
    )
    table = pd.read_csv(tmp_path / "numbers.csv")
    assert len(table) == 3 * 2 * 10 * 2  # dataset, share of the training slides, fold, test and val
    assert table["remark"].isna().all()
    brca = table.query("dataset == 'TCGA-brca' and part == 'test' and train_fraction == 1").set_index("fold")
    assert brca["slides"].str.split().str[0].astype(int).tolist() == [81, 80, 77, 86, 79, 82, 82, 85, 84, 86]
    assert "None of 120 is impossible." in made.document.markdown()
    rescore([real_data / "published" / "published_results.csv"], tmp_path / "b", Columns({}, ("dataset",)))
    assert not len(pd.read_csv(tmp_path / "b" / "numbers.csv"))


def test_tables_of_a_bench_come_of_prediction_files(run_cli, tmp_path):
    probabilities(folds=5).to_csv(tmp_path / "p.csv", index=False)
    code, out, err = run_cli("rescore", tmp_path / "p.csv", "--out", tmp_path / "out")
    assert code == 0, err
    assert "predictions from files, scored again; nothing was trained here" in " ".join(out.split())
    for name in ("rescore.csv", "rescore.md", "rescore.html", "table.csv", "comparisons.csv", "report.html"):
        assert (tmp_path / "out" / name).exists(), name
    assert not (tmp_path / "out" / "cost.csv").exists()
    table = pd.read_csv(tmp_path / "out" / "table.csv").set_index("aggregator")
    rows = pd.read_csv(tmp_path / "out" / "rescore.csv")
    assert table.loc["a", "auc_mean"] == pytest.approx(rows[rows["model"] == "a"]["auc"].mean())
    assert table.loc["a", "splits"] == 5
    pair = pd.read_csv(tmp_path / "out" / "comparisons.csv").set_index("metric").loc["auc"]
    assert pair["test"] == "corrected t"
    assert 0 < pair["p"] <= 1


def test_npz_and_other_names(tmp_path):
    table = probabilities(models=["a"], folds=1)
    both = np.stack([1 - table["score"], table["score"]], axis=1)
    np.savez(tmp_path / "net.npz", prob=both, Y=table["label"].to_numpy(), slide=table["slide_id"].to_numpy(dtype=str))
    columns = Columns(parse_columns(["label=Y"]))
    rescore([tmp_path / "net.npz"], tmp_path / "out", columns)
    row = pd.read_csv(tmp_path / "out" / "rescore.csv").iloc[0]
    assert (row["model"], row["fold"], row["patients"]) == ("net", 0, 20)
    positive = table["score"][table["label"] == 1].to_numpy()[:, None]
    negative = table["score"][table["label"] == 0].to_numpy()
    assert row["auc"] == pytest.approx(((positive > negative) + 0.5 * (positive == negative)).mean())


# What cannot be right ------------------------------------------------------------------------------------------------


def test_nothing_is_said_of_files_that_are_right(again):
    table, made = again(risks())
    assert (table["remark"] == "").all()
    assert "Nothing that cannot be right was found." in made.document.markdown()
    first = risks().query("model == 'a' and fold == 0")
    assert table["c_index"][0] == pytest.approx(concordance(first["time_months"], first["event"], first["risk"]))


def test_rows_of_zeros_are_no_patients(again):
    table = risks()
    right, _ = again(table)
    zeros = table.index[(table["model"] == "a") & (table["fold"] == 0)][:3]
    table.loc[zeros, ["time_months", "risk"]] = 0.0
    table.loc[zeros, "event"] = 1
    part = table.query("model == 'a' and fold == 0")
    with_zeros = concordance(part["time_months"], part["event"], part["risk"])
    published = pd.DataFrame({"model": ["a"], "fold": [0], "value": [with_zeros]})
    found, _ = again(table, published=published)
    row = found.iloc[0]
    kept = part[part["time_months"] > 0]
    assert (row["patients"], row["missing"]) == (17, 3)
    assert row["c_index"] == pytest.approx(concordance(kept["time_months"], kept["event"], kept["risk"]))
    assert "3 rows are all zero (time, event and risk 0, as a death at time 0)" in row["remark"]
    assert f"with all rows as they are filed C would be {with_zeros:.6f}" in row["remark"]
    assert "which all rows as they are filed give" in row["remark"]
    assert found["c_index"][1:].tolist() == right["c_index"][1:].tolist()


def test_rows_of_zeros_without_a_name_or_of_probabilities(again):
    table = risks(folds=1)
    table.loc[:1, ["patient_id", "time_months", "event", "risk"]] = ["", 0, 0, 0]
    found, _ = again(table)
    assert "2 rows are all zero (time, event and risk 0)" in found["remark"][0]
    table = probabilities(folds=1).assign(prob_0=lambda t: 1 - t["score"], prob_1=lambda t: t["score"])
    table.loc[0, ["prob_0", "prob_1", "label"]] = 0
    found, _ = again(table.drop(columns="score"))
    assert "1 row is all zero (probabilities 0)" in found["remark"][0]


def test_constant_predictions(again):
    table = risks()
    table.loc[table["model"] == "a", "risk"] = 0.7
    found, _ = again(table)
    assert found["remark"].str.contains("constant predictions").tolist() == [True, True, False, False]
    assert found["c_index"][0] == 0.5


def test_ids_missing_in_one_file(again):
    a, b = risks(["a"]), risks(["b"])
    found, _ = again([a, b.drop(index=[3, 4])])
    of_b = found.set_index(["model", "fold"]).loc[("b", 0)]
    assert of_b["missing"] == 2
    assert "2 patients that other models predict are missing (P0-03, P0-04)" in of_b["remark"]
    assert found["missing"].sum() == 2


def test_ids_missing_of_the_cohort_and_ids_of_another(again):
    table = risks(["a"])
    cohort = table[["patient_id", "fold"]].copy()
    cohort.loc[len(cohort)] = ["P9", 1]
    found, _ = again(table.replace({"patient_id": {"P0-00": "X"}}), cohort=cohort)
    assert found["missing"].tolist() == [1, 1]
    assert "1 patients that the cohort names are missing (P0-00)" in found["remark"][0]
    assert "1 patients are not in this fold of the cohort (X)" in found["remark"][0]
    assert "(P9)" in found["remark"][1]


def test_patients_of_a_cohort_without_folds_that_no_fold_has(again):
    table = risks(["a"])
    cohort = pd.DataFrame({"patient_id": [*table["patient_id"], "Z1", "Z2"]})
    found, _ = again(table, cohort=cohort)
    assert (found["remark"] == "2 patients of the cohort are in no fold (Z1, Z2)").all()


@pytest.mark.parametrize("made", [risks, probabilities])
def test_files_with_other_ids_are_named_and_not_paired(again, made):
    one, other = made(["a"], folds=5), made(["b"], folds=5)
    ids = [name for name in ("slide_id", "patient_id") if name in other]
    found, files = again([one, other.assign(**{name: "Q" + other[name] for name in ids})])
    assert (found["missing"] == 20).all()
    assert found["remark"].str.contains("20 (?:patients|slides) that other models predict are missing").all()
    pairs = comparisons(Results.load(files.runs[0]))
    assert pairs["p"].isna().all()
    assert (pairs["reason"] == "The two predicted different patients, so that nothing can be paired.").all()


@pytest.mark.parametrize("made", [risks, probabilities])
def test_one_patient_that_differs_leaves_a_single_test_set_unpaired(again, made):
    _, files = again(made(folds=1).iloc[1:])
    pair = comparisons(Results.load(files.runs[0])).iloc[0]
    assert np.isnan(pair["p"])
    assert pair["reason"].startswith("Of the one test set the two did not predict the same patients")


def test_a_test_set_without_a_metric_says_why(again):
    found, _ = again(probabilities(["a"], folds=1).assign(label=0))
    assert found["remark"].tolist() == ["AUC is undefined: a class is absent"]


def test_predictions_that_are_empty(again):
    table = risks()
    table.loc[0, "risk"] = np.nan
    found, _ = again(table)
    assert found["missing"][0] == 1
    assert "1 row is without prediction or label (P0-00)" in found["remark"][0]


def test_duplicated_ids(again):
    table = risks(["a"], folds=1)
    right, _ = again(table)
    found, _ = again(pd.concat([table, table.iloc[:2]]))
    assert found["c_index"][0] == right["c_index"][0]
    assert "2 ids occur twice with the same numbers (P0-00, P0-01); counted once" in found["remark"][0]
    other = table.iloc[:1].assign(risk=99.0)
    found, _ = again(pd.concat([table, other]))
    assert "1 ids occur twice with different numbers (P0-00); left out" in found["remark"][0]
    assert found["patients"][0] == 19


def test_risk_that_is_turned_round(again):
    table = risks()
    table.loc[table["model"] == "b", "risk"] *= -1
    found, _ = again(table)
    turned = found["model"] == "b"
    assert (found["c_index"][turned] < 0.5).all()  # and stays there
    assert found["remark"][turned].str.contains("C is below 0.5 on every fold").all()
    assert "nothing was turned round" in found["remark"][turned].iloc[0]
    assert (found["remark"][~turned] == "").all()


@pytest.mark.parametrize("metric", [None, "accuracy"])
def test_swapped_classes(again, metric):
    table = probabilities().assign(score=lambda t: 1 - t["score"])
    found, _ = again(table, metric=metric)
    assert found["remark"].str.contains("classes may be swapped").all()


def test_labels_that_differ_between_files(again):
    table = risks(["a", "b", "c"], folds=1)
    table.loc[(table["model"] == "b") & (table["patient_id"] == "P0-05"), "event"] ^= 1
    found, _ = again(table)
    assert found["remark"].str.contains("labels of 1 patients differ from most files").tolist() == [False, True, False]
    assert "P0-05: time_months" in found["remark"][1]


def test_labels_that_differ_from_the_cohort(again):
    table = probabilities(["a"], folds=1)
    cohort = table[["slide_id", "label"]].copy()
    cohort.loc[0, "label"] = 1
    found, _ = again(table, cohort=cohort)
    assert "labels of 1 slides differ from the cohort (s0-00: label 0 here, label 1 there)" in found["remark"][0]


def test_patients_in_train_and_test(again):
    table = probabilities(["a"], folds=1)
    train = table.iloc[:2].assign(split="train", slide_id=["t0", "t1"])
    found, _ = again(pd.concat([table.assign(split="test"), train]))
    assert "2 patients are in train and test (P0-00, P0-01)" in found["remark"][0]
    assert found["patients"][0] == 20


def test_slides_of_a_patient_in_several_folds(again):
    table = probabilities(["a"])
    table.loc[table["slide_id"] == "s1-00", "patient_id"] = "P0-00"
    found, _ = again(table)
    assert found["remark"].str.contains("their slides lie in several folds \\(P0-00\\)").all()


def test_published_accuracies_that_cannot_be(again, tmp_path):
    table = probabilities(["a"], folds=1)
    table.to_csv(tmp_path / "p.csv", index=False)
    pd.DataFrame({"model": ["a"], "fold": [0], "accuracy": ["0.83"]}).to_csv(tmp_path / "n.csv", index=False)
    rescore([tmp_path / "p.csv"], tmp_path / "out", Columns({}), published=tmp_path / "n.csv", metric="accuracy")
    remark = pd.read_csv(tmp_path / "out" / "rescore.csv")["remark"][0]
    assert "the published accuracy cannot be: no share of 20 is 0.83 (near it: 16 / 20 = 0.8000 or 17 / 20" in remark
    percent = pd.DataFrame({"model": ["a"], "fold": [0], "accuracy": ["83"]})
    percent.to_csv(tmp_path / "n.csv", index=False)
    rescore([tmp_path / "p.csv"], tmp_path / "percent", Columns({}), published=tmp_path / "n.csv", metric="accuracy")
    row = pd.read_csv(tmp_path / "percent" / "rescore.csv").iloc[0]
    assert (row["published"], row["difference"]) == pytest.approx((0.83, row["accuracy"] - 0.83))
    assert "no share of 20 is 0.83" in row["remark"]
    numbers = pd.DataFrame({"method": ["x", "y", "z"], "fold": 0, "acc": ["0.8518518518518519", "0.9", "0.7777777"]})
    numbers.to_csv(tmp_path / "t.csv", index=False)
    made = rescore([tmp_path / "t.csv"], tmp_path / "of_numbers", Columns({}))
    assert "1 of 3 cannot be." in made.document.markdown()
    assert "no k / n with n up to 2000 is the row 0.7777777" not in made.document.markdown()
    assert "0.7777777" in made.document.markdown()
    odd = pd.DataFrame({"method": ["x", "y"], "metric": "acc", "value": [0.9, 1.4], "std": [0.5, 0.1], "n_runs": 5})
    odd.to_csv(tmp_path / "l.csv", index=False)
    text = rescore([tmp_path / "l.csv"], tmp_path / "long", Columns({})).document.markdown()
    assert "a spread of 0.5 is larger than values in [0, 1] of this mean can have" in text


def test_accuracies_of_different_slides_do_not_pass_as_one_fold(tmp_path):
    table = pd.DataFrame({"model": ["x", "y", "z"], "set": "s", "acc": [17 / 1999, 11 / 81, 40 / 81]})
    table.to_csv(tmp_path / "t.csv", index=False)
    text = rescore([tmp_path / "t.csv"], tmp_path / "out", Columns({}, ("set",))).document.markdown()
    assert "x 0.008504252126 does not fit the others" in text


def test_what_published_shares_tell_of_their_slides():
    assert half_unit("0.815") == pytest.approx(0.0005)
    assert half_unit("81.5e-2") == pytest.approx(0.0005)
    assert half_unit("0.8518518518518519") < 1e-11
    assert possible_sizes([22 / 27, 2 / 9], [1e-12] * 2, 100).tolist() == [27, 54, 81]
    labels, scores = np.array([1, 0, 0, 1, 0, 0, 0]), np.array([0.9, 0.2, 0.8, 0.7, 0.1, 0.4, 0.3])
    area = np.mean([scores[i] > scores[j] for i in np.flatnonzero(labels) for j in np.flatnonzero(1 - labels)])
    assert 2 in possible_positives([area], [1e-12], 7)


# Groups, published numbers, wrong input ------------------------------------------------------------------------------


def test_groups_of_the_cohort_are_scored_apart(again, tmp_path):
    table = risks(["a"], folds=1)
    cohort = table[["patient_id"]].assign(site=lambda t: ["x", "y"] * (len(t) // 2))
    found, made = again(table, cohort=cohort, by=["site"])
    assert found["site"].tolist() == ["x", "y"]
    assert found["patients"].tolist() == [10, 10]
    assert sorted(run.name for run in made.runs) == ["x", "y"]


def test_published_numbers_of_nobody_are_named(again):
    published = pd.DataFrame({"model": ["a", "a", "ghost"], "fold": [0, 7, 0], "value": [0.9999, 0.5, 0.5]})
    found, made = again(risks(), published=published)
    assert "published is 0.9999" in found["remark"][0]
    text = made.document.markdown()
    assert "Published models that no file has: ghost." in text
    assert "1 published numbers are of folds that no file has (a/7)." in text


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (lambda t: t.drop(columns="patient_id"), {}, "nothing says whose the rows are"),
        (lambda t: t.drop(columns="risk"), {}, "nothing is predicted there"),
        (lambda t: t.rename(columns={"time_months": "time"}), {}, "the unit of the times in 'time' is unknown"),
        (lambda t: t.assign(risk="high"), {}, "row 2 has risk 'high', which is no number"),
        (lambda t: t.assign(risk=np.inf), {}, "row 2 has risk 'inf'; write a finite number"),
        (lambda t: t.assign(event=2), {}, "takes 0 and 1"),
        (lambda t: t.assign(time_months=-1.0), {}, "before 0"),
        (lambda t: t.assign(split="holdout"), {}, "write train, val or test"),
        (lambda t: t.assign(split="train"), {}, "no row of a test set"),
        (lambda t: t, {"by": ["site"]}, "no column 'site' to group by"),
        (lambda t: t, {"columns": ["risk=hazard"]}, "--columns names 'hazard', which is missing"),
        (lambda t: t, {"columns": ["risky=risk"]}, "no column 'risky' is read; did you mean 'risk'"),
        (lambda t: t, {"columns": ["risk"]}, "write OURS=THEIRS"),
        (lambda t: t, {"columns": ["risk=risk", "risk=event"]}, "'risk' is named twice; map each column once"),
        (lambda t: t, {"columns": ["risk=event", "label=event"]}, "'event' is named twice"),
        (lambda t: t.assign(fold=t["fold"].astype(object).where(t.index != 3)), {}, "fold is empty in row 5"),
        (lambda t: t[:0], {}, "holds no row of predictions"),
        (lambda t: pd.concat([t.assign(g=i) for i in range(101)]), {"by": ["g"]}, "makes 101 groups, each of which"),
        (lambda t: t, {"censorship": "event"}, "by its name the column is 1 where the event happened"),
    ],
)
def test_wrong_input_is_one_sentence(again, change, options, words):
    with pytest.raises(InputError, match=words.replace("(", r"\(")) as error:
        again(change(risks(folds=1)), **options)
    assert "\n" not in str(error.value)


def test_a_column_that_is_named_stands_in_the_place_of_one_of_our_name(again):
    table = risks(["a"]).assign(f=lambda t: t["fold"], hazard=lambda t: t["risk"])
    right, _ = again(table)
    found, _ = again(table.assign(risk=0.5, fold=9), columns=["risk=hazard", "fold=f"])
    pd.testing.assert_frame_equal(found, right)


def test_scores_that_are_no_probabilities(again):
    with pytest.raises(
        InputError, match="which is no probability of class 1; divide percentages by 100, or pass --logits"
    ):
        again(probabilities(folds=1).assign(score=3.2))
    with pytest.raises(InputError, match=r"probabilities that sum to 1\.4"):
        again(probabilities(folds=1).assign(prob_0=0.7, prob_1=0.7))


def test_arrays_of_different_lengths(tmp_path):
    np.savez(tmp_path / "x.npz", patient_id=np.array(["a", "b"]), risk=np.zeros(3))
    with pytest.raises(InputError, match="different lengths"):
        rescore([tmp_path / "x.npz"], tmp_path / "out", Columns({}))


def test_objects_are_never_unpickled(tmp_path):
    path = Path(tmp_path / "x.npz")
    np.savez(path, patient_id=np.array(["a", {}], dtype=object), risk=np.zeros(2))
    with pytest.raises(InputError, match="Python objects"):
        rescore([path], tmp_path / "out", Columns({}))


def test_a_cohort_of_slides_says_which_patients_should_be_there(again):
    table = risks(["a"], folds=1)
    slides = table[["patient_id", "time_months", "event"]].assign(slide_id=lambda t: t["patient_id"] + "-DX1", fold=0)
    more = slides.iloc[:3].assign(slide_id="second of " + slides["patient_id"])
    found, _ = again(table.iloc[1:], cohort=pd.concat([slides, more]))
    assert (found["patients"][0], found["missing"][0]) == (19, 1)
    assert "1 patients that the cohort names are missing (P0-00)" in found["remark"][0]


def test_columns_are_known_however_they_are_spelled(tmp_path):
    (tmp_path / "t.csv").write_text("Method,Fold,Case ID,Label,score\na,0,p,1,0.8\na,0,q,0,0.1\n")
    rows = read_predictions([tmp_path / "t.csv"], Columns({})).rows
    assert rows[["model", "fold", "patient_id"]].to_numpy().tolist() == [["a", "0", "p"], ["a", "0", "q"]]
    assert rows["label"].tolist() == [1, 0]
