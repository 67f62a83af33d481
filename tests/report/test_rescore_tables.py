"""Prediction files as people save them: what means the same is read alike, what may mean two things is refused."""

import numpy as np
import pandas as pd
import pytest
from rescore_files import probabilities, risks

from mil_zoo.errors import InputError
from mil_zoo.report.rescore import Columns, rescore


def of_b(change, ids):
    """Ids of which those of model b are written otherwise."""
    table = risks()
    table["patient_id"] = [ids(f"{20 * fold + i % 20}") for i, fold in enumerate(table["fold"])]
    of_b = table["model"] == "b"
    table.loc[of_b, "patient_id"] = table["patient_id"][of_b].map(change)
    return table


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (lambda t: "\ufeff" + t.to_csv(index=False).replace(",", ";").replace(".", ","), risks()),
        (lambda t: t.to_csv(index=False).replace(",", ";").replace(".", ","), probabilities()),
        (lambda t: t.assign(event=t["event"].astype(bool)).to_csv(index=False), risks()),
        (lambda t: t.assign(label=t["label"].astype(bool)).to_csv(index=False), probabilities()),
        (lambda t: t.rename(columns={"score": "prob_1"}).to_csv(index=False), probabilities()),
    ],
    ids=["BOM, semicolons, decimal commas", "decimal commas", "true events", "true labels", "prob_1"],
)
def test_other_ways_to_write_the_same_table(again, tmp_path, text, right):
    (tmp_path / "t.csv").write_text(text(right), encoding="utf-8")
    found, _ = again(right)
    rescore([tmp_path / "t.csv"], tmp_path / "other", Columns({}))
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "other" / "rescore.csv"), found.assign(remark=np.nan))


def test_accents_of_ids_may_be_composed_or_not(again):
    found, _ = again(of_b(lambda name: name.replace("\u00e9", "e\u0301"), lambda n: "\u00e9" + n))
    assert (found["missing"] == 0).all()


@pytest.mark.parametrize(
    ("change", "ids", "words"),
    [
        (str.upper, lambda n: f"p{n}", "20 of them are there under another spelling ('P0' as 'p0')"),
        (lambda name: name + ".0", str, "20 of them are there under another spelling ('0.0' as '0')"),
        (lambda name: str(int(name)), lambda n: f"{int(n):05d}", "under another spelling ('0' as '00000')"),
    ],
)
def test_ids_that_are_spelled_otherwise_are_said_to_be(again, change, ids, words):
    found, _ = again(of_b(change, ids))
    assert words in found["remark"][0]


def test_folds_of_other_names_are_said_to_be_unpaired(again):
    table = risks()
    named = table["fold"].astype(str).where(table["model"] == "a", "fold_" + table["fold"].astype(str))
    found, _ = again(table.assign(fold=named))
    assert "folds are called 0, 1 here and fold_0, fold_1 of other models: nothing is paired" in found["remark"][0]


@pytest.mark.parametrize("unknown", ["NA", "n/a", "-", "nan", ""])
def test_what_is_unknown_is_left_out_and_counted(again, unknown):
    table = risks(["a"], folds=1).astype({"risk": object})
    table.loc[3, "risk"] = unknown
    found, _ = again(table)
    assert "1 row is without prediction or label (P0-03); left out" in found["remark"][0]
    table = probabilities(["a"], folds=1).astype({"label": object})
    table.loc[3, "label"] = unknown
    found, _ = again(table)
    assert "1 row is without prediction or label (s0-03); left out" in found["remark"][0]


def test_outcomes_that_teach_nothing_are_scored_all_the_same(again):
    table = risks()
    last = table["time_months"] == table["time_months"][table["fold"] == 1].max()
    found, _ = again(table.assign(event=table["event"].where(table["fold"] == 0, last.astype(int))))
    assert found["c_index"].notna().tolist() == [True, False, True, False]


def twice(table, name):
    table.insert(0, name, table[name] if name != "site" else "x", allow_duplicates=True)
    return table


@pytest.mark.parametrize(
    ("table", "options", "words"),
    [
        (lambda: twice(risks(), "risk"), {}, "the column 'risk' occurs twice"),
        (lambda: twice(risks(), "time_months"), {}, "the column 'time_months' occurs twice"),
        (lambda: twice(risks(), "event"), {}, "the column 'event' occurs twice"),
        (lambda: twice(probabilities(), "label"), {}, "the column 'label' occurs twice"),
        (lambda: twice(risks().assign(site="y"), "site"), {"by": ["site"]}, "the column 'site' occurs twice"),
        (lambda: risks().assign(time_days=1), {}, "'time_months' and 'time_days' may both be the time"),
        (lambda: risks().assign(time_months="1,021"), {}, "time_months '1,021' may be thousands or a decimal comma"),
        (lambda: risks().assign(time_months="12 months"), {}, "time_months '12 months', which is no number"),
        (lambda: risks().rename(columns={"time_months": "event", "event": "time_months"}), {}, "they look like times"),
        (lambda: probabilities().assign(score=lambda t: 100 * t["score"]), {}, "divide percentages by 100"),
        (lambda: probabilities().assign(label="tumour"), {}, "has the label 'tumour'; write the number of its class"),
        (lambda: probabilities().assign(label=2), {}, "has the label '2'; write the number of its class, 0 to 1"),
        (lambda: probabilities().assign(prob_1=0.5, prob_2=0.5), {}, "the column 'prob_0' is missing"),
        (lambda: probabilities().assign(score="0_1"), {}, "row 2 has score '0_1', which is no number"),
        (lambda: probabilities().assign(prob_0="1", prob_1="1"), {}, "probabilities that sum to 2"),
        (
            lambda: probabilities().assign(site=lambda t: ["Mayo", "mayo"] * (len(t) // 2)),
            {"by": ["site"]},
            "--by site: 'Mayo' and 'mayo' differ in case, blanks or accents only; write them alike",
        ),
    ],
)
def test_tables_that_may_mean_two_things(again, table, options, words):
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        again(table(), **options)


def of_three_classes():
    return probabilities(["c"]).drop(columns="score").assign(prob_0=0.5, prob_1=0.25, prob_2=0.25)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ([probabilities(), risks(["c"])], "predictions of 2 classes and .*file_1.csv of survival; rescore them apart"),
        ([risks(), probabilities(["c"])], "predictions of survival and .*file_1.csv of 2 classes"),
        ([of_three_classes(), probabilities()], "predictions of 3 classes and .*file_1.csv of 2 classes"),
    ],
)
def test_files_of_different_tasks_are_not_joined(again, tables, words):
    with pytest.raises(InputError, match=words):
        again(tables)


def test_inputs_are_not_written_over(tmp_path):
    probabilities().to_csv(tmp_path / "rescore.csv", index=False)
    (tmp_path / "link").symlink_to(tmp_path)
    for out in (tmp_path, tmp_path / "link", tmp_path / "x" / ".."):
        with pytest.raises(InputError, match=r"rescore.csv lies in --out .*; choose another --out"):
            rescore([tmp_path / "rescore.csv"], out, Columns({}))


def test_log_odds_of_any_size_are_probabilities(run_cli, tmp_path, recwarn):
    probabilities(["a"]).assign(score=lambda t: 1e4 * (2 * t["label"] - 1)).to_csv(tmp_path / "t.csv", index=False)
    assert run_cli("rescore", tmp_path / "t.csv", "--logits", "--out", tmp_path / "o")[0] == 0
    assert pd.read_csv(tmp_path / "o" / "rescore.csv")["auc"].tolist() == [1, 1]
    assert not [each for each in recwarn if "overflow" in str(each.message)]
    of_three_classes().to_csv(tmp_path / "t.csv", index=False)
    _, _, err = run_cli("rescore", tmp_path / "t.csv", "--logits", "--out", tmp_path / "o")
    assert "--logits is of a column score, and prob_0 ... are probabilities; leave it out" in err


def test_times_that_nobody_knows_are_counted(again):
    found, _ = again(risks(["a"]).assign(time_months=np.nan))
    assert found["patients"].tolist() == [0, 0]
    assert "20 rows are without prediction or label" in found["remark"][0]


def test_probabilities_sum_to_one_but_for_their_rounding(again):
    table = probabilities().assign(label=lambda t: t.index % 3, prob_0=0.33, prob_1=0.33, prob_2=0.33)
    assert len(again(table.drop(columns="score"))[0]) == 4
    with pytest.raises(InputError, match=r"probabilities that sum to 0\.9[,;]"):
        again(table.drop(columns="score").assign(prob_2=0.24))


def test_a_grouping_column_is_found_however_it_is_spelled(again):
    found, _ = again(risks().assign(Site="x"), by=["site"])
    assert found["site"].tolist() == ["x"] * 4


def test_words_of_events_are_told_on_the_command_line(run_cli, tmp_path):
    risks().assign(event=lambda t: t["event"].map({0: "alive", 1: "dead"})).to_csv(tmp_path / "t.csv", index=False)
    code, _, err = run_cli("rescore", tmp_path / "t.csv", "--out", tmp_path / "o")
    assert (code, "--event-values" in err) == (2, True)
    assert run_cli("rescore", tmp_path / "t.csv", "--event-values", "dead=1,alive=0", "--out", tmp_path / "o")[0] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"split": "holdout"}, "row 2 has the split 'holdout'; write train, val or test"),
        ({"site": ""}, "'P0-00' has no site in the cohort; fill it in"),
    ],
)
def test_a_cohort_that_says_too_little(again, change, words):
    cohort = risks(["a"])[["patient_id", "fold"]].assign(**{"site": "x"} | change)
    with pytest.raises(InputError, match=words):
        again(risks(), cohort=cohort, by=["site"])
    with pytest.raises(InputError, match=r"cohort.csv holds no row; leave --cohort out"):
        again(risks(), cohort=cohort[:0])


def test_a_cohort_that_says_two_things(again):
    cohort = probabilities(["a"])[["slide_id", "label"]]
    twofold = pd.concat([cohort, cohort[:1].assign(label=1)])
    with pytest.raises(InputError, match=r"cohort.csv: 's0-00' has two values of label; keep one"):
        again(probabilities(), cohort=twofold)


def test_training_patients_of_the_cohort_are_those_of_any_word_for_it(again):
    cohort = risks(["a"])[["patient_id", "fold"]].assign(split="Training")
    assert "20 patients are in train and test" in again(risks(), cohort=cohort)[0]["remark"][0]


def published_of(**changed):
    rows = {"model": ["a", "a"], "fold": [0, 1], "value": ["0.73", "0.86"]} | changed
    return pd.DataFrame(rows)


def test_published_numbers_as_tables_write_them(again):
    right = again(risks(["a"]), published=published_of())[0]
    spreads = [["0.73 ± 0.02", "0.86±0.1"], ["73 +/- 2%", "86% +- 10%"], ["$0.73 \\pm 0.02$", "0,86 ± 0,10"]]
    for values in (["73%", "86 %"], ["73", "86"], ["0,73", "0,86"], *spreads):
        pd.testing.assert_frame_equal(again(risks(["a"]), published=published_of(value=values))[0], right)
    found, _ = again(risks(["a"]), published=published_of(value=["-", "0.86"]))
    assert found["published"].isna().tolist() == [True, False]
    found, _ = again(risks(["a"]), published=published_of(value=["-0.5", "187.3"]))
    assert "the published C cannot be: -0.5 lies outside [0, 1]" in found["remark"][0]
    assert "187.3 lies outside [0, 1]" in found["remark"][1]


@pytest.mark.parametrize(
    ("published", "words"),
    [
        (published_of(metric="c of our own"), r"no row is of C \(metric: c of our own\); pass --metric"),
        (published_of(value=np.nan), "holds no published number"),
        (
            published_of(value=["0.73", "0.86 (0.02)"]),
            r"row 3 has value '0.86 \(0.02\)', .*; write the mean, or mean ± spread",
        ),
    ],
)
def test_published_numbers_of_which_none_is_meant(again, published, words):
    with pytest.raises(InputError, match=words):
        again(risks(["a"]), published=published)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model,metric,value,n\na,accuracy,0.87,0\n", "row 2 has n 0; write a whole number from 1 to 1e9"),
        ("model,metric,value,n\na,accuracy,0.87,10.5\n", r"row 2 has n 10\.5"),
        ("model,metric,value,std,n_runs\na,accuracy,0.87,0.1,0\n", "row 2 has n_runs 0"),
        ("model,metric,value,n,n_runs\na,accuracy,0.87,1e300,1e300\n", "row 2 has n_runs 1e"),
        ("model,metric,value\n", "holds no row of numbers"),
        ("model,metric,value,std\na,acc,0.8,0.1\nb,acc,0.8 ± 0.2,0.1\n", "row 3 has a spread in value and one in std"),
        ("model,metric,value\na,acc,0.8 ±\n", "row 2 has std '', which is no number"),
        ("model,acc\na,0.8\nb,0.87 ± 0.02\n", "acc is '0.87 ± 0.02', a mean over runs, .*metric, value, n and n_runs"),
    ],
)
def test_numbers_alone_that_are_no_numbers_of_slides(tmp_path, text, words):
    (tmp_path / "n.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        rescore([tmp_path / "n.csv"], tmp_path / "out", Columns({}))


def test_a_mean_with_its_spread_is_judged_as_the_two(tmp_path):
    def judged(row):
        (tmp_path / "n.csv").write_text(f"model,metric,value,n,n_runs\na,acc,{row}\n", encoding="utf-8")
        return rescore([tmp_path / "n.csv"], tmp_path / "out", Columns({})).document.markdown()

    assert "a spread of 0.6 is larger than values in [0, 1] of this mean can have (0.4472)" in judged("80 ± 60%,20,5")
    assert "no share of 100 is 0.873" in judged("0.873 ± 0.02,20,5")
    assert "None of 1 is impossible" in judged("0.87 ± 0.02,20,5")
    assert "None of 1 is impossible" in judged("0.873 ± 0.02,20,")  # of how many runs it is the mean nobody says


def test_shares_above_one_hundred_percent_are_none(tmp_path):
    (tmp_path / "n.csv").write_text("model,accuracy\na,187.3\nb,87.3%\n")
    made = rescore([tmp_path / "n.csv"], tmp_path / "out", Columns({}))
    assert "a 187.3: outside [0, 1]" in made.document.markdown()
    assert "1 of 2 cannot be." in made.document.markdown()
