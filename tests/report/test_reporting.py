"""The reporting sheet: answers from the run's own files, and nothing else."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from mil_zoo.bench.results import TuningFacts
from mil_zoo.report.load import Results
from mil_zoo.report.page import write_page
from mil_zoo.report.tables import write_tables
from mil_zoo.report.tables.reporting import NOT_STATED, reporting_sheet
from mil_zoo.report.tables.text import detectable

SPLITS = "slide_id,patient_id,label,r0-f0,r0-f1\ns1,p1,0,train,test\ns2,p2,1,test,train\ns3,p3,1,val,val\n"


@pytest.fixture
def sheet(make_run):
    def make(splits=SPLITS, **options):
        run = make_run(models=("abmil", "mean"), folds=2, **options)
        if splits:
            (run.path / "splits.csv").write_text(splits)
        results = Results.load(run)
        (table,) = reporting_sheet(results).tables
        return {question: answer for _, question, answer in table.rows}, results

    return make


def test_answers_come_of_the_run(sheet):
    answers, results = sheet()
    assert answers["Models compared"] == "abmil, mean"
    assert answers["Outcome"] == "normal: 1, tumour: 2"
    assert answers["Patients on two sides"] == "none in 2 splits, looked up in splits.csv"
    assert answers["Known faults of the data"] == "Labels of 3 slides are disputed."
    assert answers["Comparisons"].endswith("adjusted by Holm over all pairs; 2 test sets decide nothing")
    assert answers["Tuning"].startswith("none: each model has the recipe")
    assert answers["Software"].startswith("mil-zoo 0.1.0")
    write_tables(results)
    text = (results.path / "reporting.md").read_text()
    stated = sum(answer == NOT_STATED for answer in answers.values())
    assert f"{stated} of {len(answers)} answers are not stated" in text


def test_bags_of_patients_are_called_so(sheet):
    answers, results = sheet(patient_rule="packed", patients=3, bags=3, instances=99)
    assert answers["Size"] == "3 patients, 99 instances"
    assert answers["Sizes"] == "60 training and 20 test patients on average"
    page = write_page(results).read_text(encoding="utf-8")
    assert "<dt>Patients</dt><dd>3</dd>" in page
    assert "<dt>Slides</dt>" not in page


def test_compared_sets_of_features_are_named(sheet):
    answers, _ = sheet(features=["uni", "uni+conch"], in_dim=16)
    assert answers["Image features"] == "uni, uni+conch, compared; 16 numbers an instance in the first of them"


def test_what_no_run_can_know_is_not_stated(sheet):
    answers, _ = sheet(splits=None)
    for question in ("Ethics approval, consent", "Funding, conflicts of interest", "Missing values", "Machine"):
        assert answers[question] == NOT_STATED, question
    assert answers["Patients on two sides"] == NOT_STATED  # without splits.csv nobody can look it up
    assert answers["Groups of patients (fairness)"] == NOT_STATED


def test_a_patient_on_two_sides_is_found_in_the_split_itself(sheet):
    answers, _ = sheet(splits=SPLITS.replace("s2,p2", "s2,p1"))
    assert answers["Patients on two sides"] == "1 patient, looked up in splits.csv"


def test_a_site_on_two_sides_is_found_in_barcodes(sheet):
    answers, _ = sheet()
    assert answers["Sites on two sides"] == NOT_STATED
    barcodes = SPLITS.replace("p1", "TCGA-05-1").replace("p2", "TCGA-05-2").replace("p3", "TCGA-NJ-3")
    answers, _ = sheet(splits=barcodes)
    assert answers["Patients on two sides"].startswith("none")
    assert answers["Sites on two sides"] == "1 site, looked up in splits.csv"


def test_unknown_patients_are_said_so(sheet):
    answers, _ = sheet(splits=SPLITS.replace(",p1", ",").replace(",p2", ",").replace(",p3", ","))
    assert answers["Patients on two sides"] == "cannot be told: patients are unknown"


def answers_of(results, **changes):
    """Those of a run whose config differs in some fields."""
    (table,) = reporting_sheet(
        dataclasses.replace(results, config=dataclasses.replace(results.config, **changes))
    ).tables
    return {question: answer for _, question, answer in table.rows}


def test_a_tuned_run_says_how(sheet):
    _, results = sheet()
    answers = answers_of(results, tuning=TuningFacts(configurations=16, sampler="tpe", optuna="4"))
    told = "16 configurations of every aggregator, the recipe among them (tpe), judged on validation"
    assert answers["Tuning"].startswith(told)
    assert "abmil: 40 epochs at first, then as tuned" in answers["Training"]
    assert answers["Whether test slides chose anything"].startswith(
        "no: checkpoints and configurations are chosen before"
    )


def test_costs_and_sizes_are_those_of_all_configurations(write):
    rows = [
        write.row("abmil", fold, parameters=parameters, training_seconds=1800.0)
        for fold, parameters in enumerate((1000, 3000))
    ]
    (table,) = reporting_sheet(Results.load(write.run(rows, ["abmil"]))).tables
    answers = {question: answer for _, question, answer in table.rows}
    assert answers["Trained numbers"] == "abmil 1,000 to 3,000"
    assert answers["Cost"].startswith("1 hours of training")
    assert answers["Machine"] == NOT_STATED


def test_the_machines_of_a_run_are_named_once_each(write):
    rows = [
        write.row("abmil", fold, machine=name)
        for fold, name in enumerate(("A, 2 cores", "B, 1 core; GPU", "A, 2 cores"))
    ]
    (table,) = reporting_sheet(Results.load(write.run(rows, ["abmil"]))).tables
    assert [answer for _, question, answer in table.rows if question == "Machine"] == ["A, 2 cores and B, 1 core; GPU"]


def test_what_balances_classes_is_said(sheet):
    _, results = sheet()
    assert answers_of(results)["Class imbalance"] == "neither weights nor balanced draws"
    known = results.config.model_settings
    training = {"abmil": {"sampling": "balanced"}, "mean": {"class_weights": "balanced"}}
    settings = {name: dataclasses.replace(known[name], training=training[name]) for name in known}
    assert answers_of(results, model_settings=settings)["Class imbalance"] == (
        "losses weighted by class frequency: mean; classes drawn equally often in training: abmil"
    )


def test_sites_are_apart_by_the_split_that_keeps_them_so(sheet):
    _, results = sheet()
    kinds = {"site-preserved k-fold (9 sites)": "none, by the split", "read from sites.csv": NOT_STATED}
    for kind, answer in kinds.items():
        split = dataclasses.replace(results.config.split, kind=kind)
        assert answers_of(results, split=split)["Sites on two sides"] == answer


def test_attention_is_checked_where_there_is_some(write):
    rows = [write.row("mean", fold) for fold in range(2)]
    (table,) = reporting_sheet(Results.load(write.run(rows, ["mean"], instance_labels="nuclei"))).tables
    assert ("Groups and transfer", "Whether explanations were checked", NOT_STATED) in [*map(tuple, table.rows)]


def test_no_difference_is_larger_than_a_metric_has_room_for():
    assert [detectable(value) for value in (0.1234, 1.2, np.inf, np.nan)] == ["0.123", "1.200", "none", "-"]


def test_groups_and_exclusions(sheet):
    answers, results = sheet()
    pd.DataFrame({"slide_id": ["a"], "patient_id": ["p"], "reason": ["no label"]}).to_csv(results.path / "excluded.csv")
    pd.DataFrame({"slide_id": ["s1"], "patient_id": ["p1"], "site": ["x"]}).to_csv(
        results.path / "groups.csv", index=False
    )
    (table,) = reporting_sheet(Results.load(results.path)).tables
    again = {question: answer for _, question, answer in table.rows}
    assert again["Groups of patients (fairness)"] == "site: subgroups.csv"
    assert again["Left out, and why"] == "1 no label"
    assert answers["Left out, and why"] == "no slide that was found"
