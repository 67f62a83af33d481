import io
import math
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from rich.console import Console
from survival_runs import survival_run

from mil_zoo.report.figures.registry import FIGURES
from mil_zoo.report.figures.score_points import draw as draw_metrics
from mil_zoo.report.load import Results
from mil_zoo.report.tables import score_table, skew_table, terminal_scores, write_tables
from mil_zoo.report.tables.sentences import notes
from mil_zoo.report.tables.table import Cell, Table

FAILED = dict(status="failed", reason="ValueError: 100 % of <bag_1>\nis | empty")


def metrics(accuracy, auc=0.9):
    return {"accuracy": accuracy, "balanced_accuracy": accuracy - 0.1, "auc": auc, "f1": accuracy - 0.05}


def folds(write, aggregator, values, **changes):
    return [write.row(aggregator, fold, metrics=metrics(value), **changes) for fold, value in enumerate(values)]


def read(run, name):
    return (run.path / name).read_text(encoding="utf-8")


def test_numbers_by_hand(write):
    rows = folds(write, "abmil", [0.8, 0.9, 1.0], n_train=60, n_test=15)
    rows[0] |= {"seconds_per_epoch": 9.0, "peak_mem_mib": 500.0}
    row = score_table(Results.load(write.run(rows, ["abmil"]))).iloc[0]
    half_width = 4.302652729911275 * 0.1 * math.sqrt(1 / 3 + 15 / 60)
    assert row["accuracy_mean"] == pytest.approx(0.9)
    assert row["accuracy_sd"] == pytest.approx(0.1)
    assert row["accuracy_low"] == pytest.approx(0.9 - half_width)
    assert row["accuracy_high"] == pytest.approx(0.9 + half_width)
    assert row["balanced_accuracy_mean"] == pytest.approx(0.8)
    assert (row["trials_ok"], row["trials_failed"], row["parameters"]) == (3, 0, 1234567)
    assert row["seconds_per_epoch"] == 2.5
    assert row["peak_mem_mib"] == 500


def test_seeds_of_a_fold_are_averaged_before_the_interval(write):
    values = {(0, 0): 0.7, (0, 1): 0.9, (1, 0): 0.9, (1, 1): 1.0}
    rows = [write.row("abmil", fold, seed, metrics=metrics(value)) for (fold, seed), value in values.items()]
    run = write.run(rows, ["abmil"])
    row = score_table(Results.load(run)).iloc[0]
    assert row["accuracy_n"] == 2
    assert row["accuracy_mean"] == pytest.approx((0.8 + 0.95) / 2)
    assert row["accuracy_sd"] == pytest.approx(0.15 / math.sqrt(2))
    assert row["trials_ok"] == 4
    assert any("2 test folds, seeds averaged within a fold" in note for note in notes(Results.load(run)))


def test_seeds_of_a_single_split_are_the_values(write):
    rows = [write.row("abmil", 0, seed, metrics=metrics(value)) for seed, value in enumerate([0.8, 0.9, 1.0])]
    run = write.run(rows, ["abmil"])
    assert score_table(Results.load(run)).iloc[0]["accuracy_n"] == 3
    assert any("3 seeds of one split" in note for note in notes(Results.load(run)))


def test_one_trial_without_files_has_no_interval(write):
    run = write.run([write.row("abmil", metrics=metrics(0.9))], ["abmil"])
    write_tables(Results.load(run))
    assert "| abmil | 0.900 | 0.800 |" in read(run, "table.md")
    assert any("the interval is over the choice of test patients" in note for note in notes(Results.load(run)))


def test_an_undefined_metric_is_left_out_and_said(write):
    rows = folds(write, "abmil", [0.8, 0.9, 1.0])
    rows[1]["metrics"]["auc"] = None
    run = write.run(rows, ["abmil"])
    assert score_table(Results.load(run)).iloc[0]["auc_n"] == 2
    write_tables(Results.load(run))
    assert "0.900 ± 0.000 (no interval) (n = 2)" in read(run, "table.md")


def test_equal_values_in_all_folds_have_no_interval_anywhere_and_say_why(write):
    rows = [
        write.row(name, fold, metrics=metrics(0.8 + fold / 20, auc=1.0))
        for name in ("abmil", "mean")
        for fold in range(5)
    ]
    run = write.run(rows, ["abmil", "mean"])
    results = Results.load(run)
    write_tables(results)
    reason = "all test sets have the same value, so that there is no spread to take an interval from"
    table = pd.read_csv(run.path / "table.csv")
    assert (table["auc_mean"] == 1).all()
    assert table[["auc_low", "auc_high"]].isna().all(axis=None)
    assert table[["accuracy_low", "accuracy_high"]].notna().all(axis=None)
    told = pd.read_csv(run.path / "undefined.csv")
    assert told["note"].tolist() == [reason] * 2
    assert told["metric"].tolist() == ["auc_low, auc_high"] * 2
    for text in (read(run, "table.md"), read(run, "table.tex")):
        assert text.count("(no interval)") == 2
        assert "[1.00, 1.00]" not in text
    assert f"No interval: AUC of abmil, mean: {reason}." in read(run, "table.md")
    pairs = pd.read_csv(run.path / "comparisons.csv").set_index("metric")
    assert pairs.loc["auc", ["low", "high", "detectable"]].isna().all()
    assert "0 in every split" in pairs.loc["auc", "reason"]
    assert "0 in every split" in read(run, "comparisons.md")
    assert pd.read_csv(run.path / "equivalence.csv").set_index("metric").loc["auc", "p_equal"] != 1


def test_patients_without_an_interval_have_its_reason(write):
    rows = [
        write.row("mean", fold, metrics={"auc": 0.5 + fold / 20}, patient_metrics={"auc": 0.5}) for fold in range(5)
    ]
    run = write.run(rows, ["mean"], patient_rule="mean", patients=6, bags=12)
    write_tables(Results.load(run))
    assert "| mean (patients) | 0.500 ± 0.000 (no interval) |" in read(run, "table.md")
    reason = "all test sets have the same value, so that there is no spread to take an interval from"
    assert f"- No interval: AUC of mean (patients): {reason}." in read(run, "table.md")
    told = pd.read_csv(run.path / "undefined.csv")
    assert told[["trial", "metric", "note"]].to_numpy().tolist() == [["mean (patients)", "auc_low, auc_high", reason]]


def test_the_figure_of_scores_says_why_a_line_is_missing(make_run):
    results = Results.load(make_run(models=("abmil",), folds=2))
    for trial in results.trials:
        trial.metrics["auc"] = 1.0
    caption = draw_metrics(results)["metrics"].get_supxlabel().replace("\n", " ")
    assert "No line: all test sets have the same value" in caption


def test_the_figure_of_scores_leaves_out_what_is_undefined_everywhere(make_run):
    results = Results.load(make_run(models=("abmil", "mean")))
    for trial in results.trials:
        trial.metrics["auc"] = None
    figure = draw_metrics(results)["metrics"]
    titles = [axes.get_title().replace("\n", " ") for axes in figure.axes]
    assert titles == ["Accuracy", "Balanced accuracy", "F1"]
    caption = figure.get_supxlabel().replace("\n", " ")
    assert "Undefined in every trial, so not shown: AUC." in caption


def test_rows_follow_the_config_and_grids_their_numbers(write):
    rows = [write.row("srmil", grid=grid) for grid in ("hidden=512", "hidden=64", "hidden=128.5")]
    rows += [write.row("other"), write.row("abmil")]
    run = write.run(rows, ["srmil", "mean", "abmil"])
    expected = ["srmil@hidden=64", "srmil@hidden=128.5", "srmil@hidden=512", "mean", "abmil", "other"]
    assert list(Results.load(run).groups) == expected
    assert list(score_table(Results.load(run))["aggregator"]) == expected


def test_failed_trials_are_marked_and_explained(write):
    rows = [*folds(write, "abmil", [0.8, 0.9]), write.row("abmil", 2) | FAILED, write.row("clam_sb", 0) | FAILED]
    run = write.run(rows, ["abmil", "clam_sb"])
    table = score_table(Results.load(run)).set_index("aggregator")
    assert list(table["trials_ok"]) == [2, 0]
    assert list(table["trials_failed"]) == [1, 1]
    assert math.isnan(table.loc["clam_sb", "accuracy_mean"])
    write_tables(Results.load(run))
    markdown, latex = read(run, "table.md"), read(run, "table.tex")
    assert "| 2 (1 FAILED) |" in markdown
    assert "| clam_sb | - | - | - | - | 0 (1 FAILED) | - |" in markdown
    assert r"- Failed: abmil, 1 of 3 trials (abmil-r0-f2-s0): ValueError: 100 % of \<bag_1> is \| empty." in markdown
    assert r"ValueError: 100 \% of \textless{}bag\_1\textgreater{} is \textbar{} empty.\par" in latex


def test_latex_escapes_and_stays_a_table(write):
    run = write.run(
        folds(write, "clam_sb", [0.8, 0.9, 1.0]), ["clam_sb"], warnings=[r"50 % of {A} & B_1 # $x$ ~ ^ \end"]
    )
    write_tables(Results.load(run))
    latex = read(run, "table.tex")
    assert r"clam\_sb & 0.900 $\pm$ 0.100 & " in latex
    assert " & [0.55, 1.00] & " in latex  # where metrics lie; table.csv says 1.25
    assert "1.25" in read(run, "table.csv")
    assert r"Demo\_slides \& 100 \% noise" in latex
    warning = r"50 \% of \{A\} \& B\_1 \# \$x\$ \textasciitilde{} \textasciicircum{} \textbackslash{}end."
    assert warning + r"\par" in latex
    body = latex[latex.index(r"\toprule") : latex.index(r"\bottomrule")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body.splitlines() if line.endswith(r"\\")} == {6}
    assert not re.search(r"textbf|\*\*", latex + read(run, "table.md"))


@pytest.mark.parametrize("simulated", [True, False])
def test_simulated_slides_are_named_wherever_a_table_goes(write, simulated):
    rows = [row for name in ("abmil", "mean") for row in folds(write, name, [0.8, 0.9])]
    rows[0]["last_metrics"] = metrics(0.5)
    run = write.run(rows, ["abmil", "mean"], simulated=simulated)
    written = [path.name for path in write_tables(Results.load(run)) if path.suffix in (".md", ".tex")]
    assert {"table.md", "table.tex", "comparisons.md", "cost.md", "last_epoch.md", "reporting.md"} <= set(written)
    for name in written:
        assert read(run, name).count("SIMULATED slides, made by a program") == simulated, name
    assert ("(simulated slides)" in read(run, "table.tex")) == simulated
    assert ("SIMULATED slides" in printed(run)) == simulated


def test_folds_in_which_nothing_of_a_model_is_defined_are_counted(write):
    """Also where all metrics of a model lack the same fold, of which the model has a finished trial."""
    rows = [*folds(write, "abmil", [0.8, 0.9, 0.7]), *folds(write, "mean", [0.6, 0.7, 0.5])]
    rows[-1]["metrics"] = dict.fromkeys(rows[-1]["metrics"])
    run = write.run(rows, ["abmil", "mean"])
    write_tables(Results.load(run))
    (line,) = (line for line in read(run, "table.md").splitlines() if line.startswith("| mean |"))
    assert line.count("(n = 2)") == 4
    assert "(n = " not in next(line for line in read(run, "table.md").splitlines() if line.startswith("| abmil |"))


def test_notes_tell_split_selection_and_warnings(write):
    run = write.run(folds(write, "abmil", [0.8, 0.9]), ["abmil"], instance_labels="drawn by a pathologist")
    write_tables(Results.load(run))
    for text in (read(run, "table.md"), " ".join(printed(run).split())):
        assert "Split: kfold, 5 folds, 1 repeat, validation fraction 0.15, hash a1b2c3; seeds 0." in text
        assert "Selection: best validation accuracy." in text
        assert "Labels of 3 slides are disputed." in text
        assert "Instance labels: drawn by a pathologist." in text
        assert "Trials: 2 of 2 finished" in text
        assert "real slides" in text


def test_the_terminal_table_fits_80_columns(write):
    rows = [*folds(write, "srmil", [0.8, 0.9], grid="mask_rate=0.5"), write.row("abmil", 0) | FAILED]
    text = printed(write.run(rows, ["srmil", "abmil"]))
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())
    assert "0.850±0.071" in text
    assert "1 FAILED" in text
    assert "1,234,567" in text
    assert "…" not in text


def test_columns_that_do_not_fit_the_terminal_stand_below(write):
    """Of survival there are six metrics: no number is cut, nor a letter of a note."""
    names = ("c_index", "c_uno", "auc_mean", "ibs", "ibs_km", "nll")
    rows = [write.row("abmil", fold, metrics=dict.fromkeys(names, 0.8 + fold / 10)) for fold in (0, 1)]
    run = write.run(rows, ["abmil"], task={"name": "survival"})
    text = printed(run)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert text.count("0.850±0.071") == len(names)
    assert "…" not in text
    assert text.count("Aggregator ") == 2
    assert "validation fraction 0.15, hash a1b2c3" in " ".join(text.split())
    wide = printed(run, 160)
    assert wide.count("Aggregator ") == 1
    assert wide.count("0.850±0.071") == len(names)


@pytest.mark.parametrize("width", [40, 60, 80, 81, 100, 200])
def test_no_width_of_a_terminal_cuts_a_number(width):
    cell = Cell("10.663", "2.374", ("[-12.00, 11.51]", "(no interval)"))
    table = Table(["Aggregator", *"abcdef"], [[name, *[cell] * 6] for name in ("abmil@features=uni+conch", "mean")])
    console = Console(width=width, file=io.StringIO())
    console.print(table.terminal())
    text = console.file.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    assert text.count("10.663±2.374") == text.count("[-12.00, 11.51]") == 12
    assert "…" not in text


def test_a_name_that_does_not_fit_breaks_between_its_words():
    cell = Cell("0.525", "0.043", ("[0.35, 0.70]",))
    names = ("linear_probe", "srmil@mask_rate=0.5", "a" * 12, "mean")
    table = Table(["Aggregator", *"abc"], [[name, *[cell] * 3] for name in names])
    console = Console(width=49, file=io.StringIO())
    console.print(table.terminal())
    lines = [line[:10].rstrip() for line in console.file.getvalue().splitlines()]
    assert lines[2:] == ["linear_", "probe", "srmil@", "mask_rate=", "0.5", "a" * 10, "aa", "mean", "", "", ""]
    console = Console(width=80, file=io.StringIO())
    console.print(table.terminal())
    assert "\nsrmil@mask_rate=0.5 " in console.file.getvalue(), "where there is room, a name is whole"


def test_a_count_stays_with_what_is_counted():
    cell = Cell("-", below=("[-12.00, 11.51]",))
    table = Table(["Aggregator", "a", "Trials"], [["always_fails", cell, "0\n3 FAILED"]])
    console = Console(width=34, file=io.StringIO())  # a letter too few for three columns
    console.print(table.terminal())
    assert "3 FAILED" in console.file.getvalue()


def test_of_a_table_without_rows_the_notes_alone_are_printed():
    console = Console(width=34, file=io.StringIO())
    console.print(Table(["Model", "Fault"], [], ["None was found."]).terminal())
    assert console.file.getvalue() == "None was found.\n"


def test_nothing_is_minus_nothing(write):
    run = write.run([write.row("abmil", fold, metrics={"auc": -1e-17}) for fold in (0, 1)], ["abmil"])
    assert "-0.000" not in printed(run)


def printed(run, width=80):
    console = Console(width=width, file=io.StringIO())
    console.print(terminal_scores(Results.load(run)).terminal())
    return console.file.getvalue()


def test_the_same_results_give_the_same_bytes(make_run):
    run = make_run(models=("abmil", "srmil", "mean"))
    first = {path.name: path.read_bytes() for path in write_tables(Results.load(run))}
    tables = {"table.csv", "cost.csv", "cost.md", "table.md", "table.tex", "comparisons.csv", "comparisons.md"}
    tables |= {"equivalence.csv", "baseline.csv", "reporting.md"}
    assert set(first) == tables | {"diagnostics.csv", "skew.csv", "skew.md"}
    rows = (run.path / "trials.jsonl").read_text().splitlines()
    (run.path / "trials.jsonl").write_text("".join(row + "\n" for row in reversed(rows)))
    assert {path.name: path.read_bytes() for path in write_tables(Results.load(run))} == first


def test_the_guide_names_every_file_of_a_run(make_run, write):
    guide = (Path(__file__).parents[2] / "docs" / "guide" / "report.md").read_text(encoding="utf-8")
    run = make_run(models=("abmil", "srmil", "mean"))
    other = survival_run(write, write.path / "other", {"good": 0.3, "poor": 8.0})
    written = {path.name for each in (run, other) for path in write_tables(Results.load(each))}
    assert {"survival.csv", "skew.csv"} <= written
    assert {name for name in written if f"`{name}`" not in guide} == set()
    assert {name for name in FIGURES.names() if not re.search(f"[`/]{name.replace('_', '[_-]')}[-*.]", guide)} == set()


def test_csv_holds_the_numbers(make_run):
    run = make_run(models=("abmil", "mean"))
    write_tables(Results.load(run))
    table, measured = score_table(Results.load(run)), ["seconds_per_epoch", "peak_mem_mib"]
    scores, cost = (pd.read_csv(run.path / name) for name in ("table.csv", "cost.csv"))
    pd.testing.assert_frame_equal(scores, table.drop(columns=measured), check_dtype=False)
    shared = ["aggregator", "parameters", *measured]
    pd.testing.assert_frame_equal(cost[shared], table[shared], check_dtype=False)
    pd.testing.assert_frame_equal(pd.read_csv(run.path / "skew.csv"), skew_table(Results.load(run)), check_dtype=False)


def test_skew_table_by_hand(write):
    run = write.run([write.row("srmil", fold) for fold in (0, 1)] + [write.row("mean")], ["srmil", "mean"])
    lines = ["epoch,slide_id,split,name,value", "1,007,train,max_attention,0.9"]
    for slide, maximum, heads, ratio in (("007", 0.1, (0.2, 0.4), 3.0), ("8", 0.3, (0.4, 0.6), None)):
        numbers = {"max_attention": maximum, "n_x_max": 10 * maximum, "n_instances": 10, "entropy": 0.5}
        numbers |= {"effective_instances": 4, "head_max_0": heads[0], "head_max_1": heads[1]}
        numbers |= {} if ratio is None else {"mass_ratio": ratio, "attention_auroc": 0.75}
        lines += [f"2,{slide},test,{name},{value}" for name, value in numbers.items()]
    for fold in (0, 1):
        folder = run.path / "trials" / f"srmil-r0-f{fold}-s0"
        folder.mkdir(parents=True)
        (folder / "skew.csv").write_text("\n".join(lines) + "\n")
        slides = "slide_id,patient_id,split,label,prob_0,prob_1\n007,,test,1,0.2,0.8\n8,,test,0,0.7,0.3\n"
        (folder / "predictions.csv").write_text(slides)
    (row,) = skew_table(Results.load(run)).to_dict("records")
    assert (row["aggregator"], row["slides"], row["heads"], row["positive_slides"]) == ("srmil", 4, 2, 2)
    assert row["max_attention_median"] == pytest.approx(0.2)
    assert (row["max_attention_q1"], row["max_attention_q3"]) == pytest.approx((0.1, 0.3))
    assert row["head_max_median"] == pytest.approx((0.3 + 0.5) / 2)
    assert row["n_x_max_q3"] == pytest.approx(3)
    assert row["mass_ratio_median"] == 3
    write_tables(Results.load(run))
    assert "| srmil | 4 | 2 | 10 [10, 10] | 0.2 [0.1, 0.3] | 2 [1, 3] | 0.4 [0.3, 0.5] |" in read(run, "skew.md")
    assert "| srmil | 2 | 3 [3, 3] | 0.75 [0.75, 0.75] |" in read(run, "skew.md")
    tidy = pd.read_csv(run.path / "diagnostics.csv", dtype={"slide_id": str})
    assert list(tidy) == ["aggregator", "repeat", "fold", "seed", "epoch", "slide_id", "name", "value"]
    row = tidy[(tidy["fold"] == 1) & (tidy["slide_id"] == "007") & (tidy["name"] == "head_max_1")]
    assert row.to_dict("records") == [
        dict(aggregator="srmil", repeat=0, fold=1, seed=0, epoch=2, slide_id="007", name="head_max_1", value=0.4)
    ]


def test_the_skew_table_says_who_is_absent(make_run):
    run = make_run(models=("abmil", "mean"), folds=1)
    write_tables(Results.load(run))
    assert "- Not here, since they have no attention: mean.\n" in read(run, "skew.md")


def test_without_attention_there_is_no_skew_table(make_run):
    run = make_run(models=("mean",))
    assert [path.name for path in write_tables(Results.load(run))] == [
        "table.csv",
        "table.md",
        "table.tex",
        "cost.csv",
        "cost.md",
        "reporting.md",
    ]


def test_without_instance_labels_there_is_no_alignment(make_run):
    run = make_run(models=("abmil",), labels=False)
    write_tables(Results.load(run))
    assert "Entropy" in read(run, "skew.md")
    assert "Mass ratio |" not in read(run, "skew.md")
    assert skew_table(Results.load(run))["mass_ratio_median"].isna().all()


def test_notes_say_which_models_are_computed_in_bfloat16(write):
    run = write.run([write.row("abmil"), write.row("srmil")], ["abmil", "srmil"])
    config = run.config
    assert not any("bfloat16" in line for line in notes(Results.load(run)))
    config["model_settings"]["srmil"]["training"]["precision"] = "bfloat16"
    run.path.joinpath("config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert "Matrix products in bfloat16: srmil." in notes(Results.load(run))


def test_notes_say_that_a_run_is_not_at_its_end(write):
    run = write.run([write.row("abmil"), write.row("srmil")], ["abmil", "srmil"])
    config = run.config

    def noted(folds):
        config["split"] |= {"folds": folds, "repeats": 1}
        run.path.joinpath("config.yaml").write_text(yaml.safe_dump(config | {"seeds": [0]}, sort_keys=False))
        return next(line for line in notes(Results.load(run)) if line.startswith("Trials:"))

    assert noted(1).startswith("Trials: 2 of 2 finished; ")
    assert noted(5).startswith("Trials: 2 of 2 finished (the run is not at its end: 10 are planned); ")


def test_notes_say_what_training_saw_and_weighed(write):
    run = write.run([write.row("abmil"), write.row("srmil")], ["abmil", "srmil"])
    config = run.config
    assert not any("Random instances" in line or "weighted" in line for line in notes(Results.load(run)))
    config["model_settings"]["srmil"]["training"] |= {"max_instances": 2048, "class_weights": "balanced"}
    run.path.joinpath("config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert "Random instances of a bag in a training step, at most: srmil 2048." in notes(Results.load(run))
    assert "Losses weighted by class frequency: srmil." in notes(Results.load(run))


def test_notes_name_a_model_once_where_its_variants_agree(write):
    run = write.run([write.row("abmil"), write.row("srmil")], ["abmil", "srmil"])
    config = run.config
    config["selection"] = {"srmil@mask_rate=0": "best loss", "srmil@mask_rate=1": "best loss", "abmil": "best auc"}
    config["model_settings"] = {
        label: {"training": {"epochs": epochs}}
        for label, epochs in {"srmil@epochs=1": 1, "srmil@epochs=2": 2, "abmil": 2}.items()
    }
    run.path.joinpath("config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    lines = notes(Results.load(run))
    assert "Epochs: srmil@epochs=1 1, srmil@epochs=2 2, abmil 2." in lines
    assert "Selection (srmil): best loss." in lines


def test_costs_stand_in_a_table_of_their_own(write):
    rows = folds(write, "abmil", [0.8, 0.9, 1.0])
    first, second = (write.run_at(write.path / name, rows, ["abmil"]) for name in ("first", "second"))
    again = [row | {"seconds_per_epoch": 99.0, "peak_mem_mib": 999.0} for row in rows]
    second = write.run_at(write.path / "third", again, ["abmil"])
    for run in (first, second):
        write_tables(Results.load(run))
    for name in ("table.csv", "table.md", "table.tex", "comparisons.md"):
        if (first.path / name).exists():
            assert read(first, name) == read(second, name)
    assert "| abmil | 1,234,567 | 5 of 40 | 99 | 1 | - | - | 999 |" in read(second, "cost.md")


def test_a_grid_shows_validation_beside_test_and_marks_its_choice(write):
    rows = []
    for value, (validation, test) in {"0.1": (0.7, 0.95), "0.5": (0.9, 0.8)}.items():
        rows += folds(write, "srmil", [test] * 3, grid=f"mask_rate={value}", val_metrics=metrics(0.5, validation))
    run = write.run(rows, ["srmil"])
    config = run.config | {"grid": {"srmil.mask_rate": [0.1, 0.5]}}
    (run.path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    write_tables(Results.load(run))
    table = read(run, "table.md")
    assert "| Aggregator | Validation AUC | Accuracy |" in table
    assert "| srmil@mask_rate=0.1 | 0.700 | 0.950 " in table
    assert "| srmil@mask_rate=0.5 | 0.900 (chosen) | 0.800 " in table
    assert "the one whose validation AUC is best" in table
    assert list(pd.read_csv(run.path / "table.csv")["chosen"]) == [False, True]


def test_titles_are_the_dataset_s_name_and_can_be_given(write):
    run = write.run(folds(write, "abmil", [0.8, 0.9]), ["abmil"], name="x", title="/home/me/secret/slides_of_a")
    write_tables(Results.load(run))
    for name in ("table.md", "table.tex"):
        assert "/home/me" not in read(run, name)
    assert r"Test metrics on slides\_of\_a" in read(run, "table.tex")
    write_tables(Results.load(run, title="Hospital A"))
    assert "Test metrics on Hospital A" in read(run, "table.tex")
    assert "Data: Hospital A: real slides." in read(run, "table.md")


def test_a_wide_table_is_scaled_to_the_text(write):
    write_tables(Results.load(run := write.run(folds(write, "abmil", [0.8, 0.9]), ["abmil"])))
    assert r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\box0}\else\box0\fi" in read(run, "table.tex")


def test_notes_say_a_short_budget_and_what_f1_is_of(write):
    run = write.run([write.row("abmil"), write.row("mine")], ["abmil", "mine"])
    config = run.config
    config["model_settings"] = {model: {"training": {"epochs": 4}} for model in ("abmil", "mine")}
    run.path.joinpath("config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    lines = notes(Results.load(run))
    assert any(line.startswith("Short budget, in epochs of the model's own recipe: abmil 4 of 100. ") for line in lines)
    assert any(line.startswith("F1 is of class 'tumour' (label 1); ") for line in lines)
    assert "The validation slides choose nothing: they are neither trained on nor tested." not in lines
    for model in config["model_settings"].values():
        model["training"]["select"] = "last"
    config["split"]["validation_fraction"] = None
    run.path.joinpath("config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    lines = notes(Results.load(run))
    assert "The validation slides choose nothing: they are neither trained on nor tested." in lines
    assert any("validation slides as the split names them (no fraction is used), hash" in line for line in lines)


def test_notes_say_whose_recipe_it_is_and_on_what_features_were_projected(write):
    run = write.run([write.row("abmil"), write.row("mine")], ["abmil", "mine"], projected=3)
    config = run.config

    def of(*models):
        config["model_settings"] = {model: {"training": {"epochs": 40}} for model in models}
        run.path.joinpath("config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        return notes(Results.load(run))

    last = ", with what the suite or the command line changes; none was tuned."
    assert f"Settings: authors' recipe (configs/aggregators){last}" in of("abmil")
    mixed = "authors' recipe (configs/aggregators); mine without a recipe, by the defaults of model and trainer"
    assert f"Settings: {mixed}{last}" in of("abmil", "mine", "mine@width=3")
    assert f"Settings: the defaults of model and trainer{last}" in of("mine")
    config["model_settings"] = {
        "abmil": {"training": {"epochs": 7, "learning_rate": 4e-4}, "replaced": {"epochs": 100, "learning_rate": 1e-4}},
        "srmil": {"graph": "knn:3", "training": {"epochs": 7}, "replaced": {"graph": "window:2", "epochs": 100}},
    }
    run.path.joinpath("config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (line,) = [line for line in notes(Results.load(run)) if line.startswith("Settings: ")]
    assert line == (
        "Settings: authors' recipe (configs/aggregators), but for what the suite or the command line changes: epochs 7 "
        "instead of 100 (abmil, srmil), learning_rate 0.0004 instead of 0.0001 (abmil), graph knn:3 instead of "
        "window:2 (srmil); none was tuned."
    )
    line = "Features: each split's are their coordinates on 3 principal axes of its training instances (--project)."
    assert line in of("abmil")


def test_a_model_that_says_one_class_of_every_slide_is_called_collapsed(write):
    def predictions(row, folder):
        positive = [0.6, 0.9, 0.7] if row["fold"] else [0.2, 0.9, 0.7]
        table = {"slide_id": ["a", "b", "c"], "patient_id": "", "split": "test", "label": [0, 1, 1]}
        table |= {"prob_0": [1 - p for p in positive], "prob_1": positive}
        pd.DataFrame(table).to_csv(folder / "predictions.csv", index=False)

    run = write.run([write.row("abmil", fold) for fold in range(3)], ["abmil"], predictions)
    said = (
        "Collapsed: abmil says 'tumour' of every test slide in 2 of 3 trials; its accuracy there is that class's share."
    )
    assert said in notes(Results.load(run))


def test_the_last_epoch_stands_beside_the_chosen_one(write):
    rows = folds(write, "abmil", [0.8, 0.9]) + folds(write, "mean", [0.6, 0.7])
    rows[0] |= {"last_metrics": metrics(0.5, 0.4)}  # of epochs 5 the third was chosen
    for row in rows[1:]:
        row["selected_epoch"] = row["epochs"]
    run = write.run(rows, ["abmil", "mean"])
    write_tables(Results.load(run))
    table = pd.read_csv(run.path / "last_epoch.csv").set_index("aggregator")
    assert table.loc["abmil", ["chosen", "earliest", "latest"]].tolist() == [4, 3, 5]
    assert table.loc["abmil", ["auc_chosen", "auc_last"]].tolist() == pytest.approx([0.9, (0.4 + 0.9) / 2])
    assert table.loc["mean", "auc_chosen"] == table.loc["mean", "auc_last"]
    assert "| abmil | 5 | 4 (3 to 5) |" in read(run, "last_epoch.md")
