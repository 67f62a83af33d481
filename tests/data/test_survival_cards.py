"""The survival cards state what the published tables hold, and their folds are read as they are."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mil_zoo.data.card import read_card
from mil_zoo.data.dataset import targets_of_patients
from mil_zoo.data.judge import judge_counts
from mil_zoo.data.labels.tables import read_labels
from mil_zoo.data.splits.files import published_folds

ROOT = Path(os.environ.get("MIL_ZOO_REAL_DATA", "")) / "survival"
TABLES = {
    "blca": "tcga_blca",
    "brca": "tcga_brca",
    "gbmlgg": "tcga_gbmlgg",
    "luad": "tcga_luad",
    "ucec": "tcga_ucec",
    "kirc": "panther_kirc",
    "stad": "survpath_stad",
    "coadread": "survpath_coadread",
    "hnsc": "survpath_hnsc",
}


@pytest.mark.skipif("MIL_ZOO_REAL_DATA" not in os.environ, reason="needs the tables of MIL_ZOO_REAL_DATA")
@pytest.mark.parametrize("name", TABLES)
def test_a_card_states_what_its_table_holds(name):
    card = read_card(f"tcga_{name}_survival")
    path = ROOT / f"{TABLES[name]}.csv.gz"
    table = read_labels(path, card.label_column, card.columns_of, card.covariates)
    task = card.create_task().settled(list(table))
    targets = task.targets(table, str(path))
    assert task.stated(targets).all()
    patients = targets_of_patients(table, targets, task, path)
    assert judge_counts(table, card, int(patients[:, 1].sum())) == []
    assert f"{card.events} of {card.patients} patients had the event" in task.of_cohort(patients).facts(patients)[0]
    splits = published_folds(table, path)
    assert len(splits) == 5
    patient_of = dict(zip(table["slide_id"], table["patient_id"], strict=True))
    tested = []
    for split in splits:
        sides = [{patient_of[slide] for slide in part} for part in (split.train, split.test)]
        assert not sides[0] & sides[1]
        tested += sorted(sides[1])
    assert len(tested) == len(set(tested)) == table.dropna(subset=["fold"])["patient_id"].nunique()
    place = dict(zip(table["slide_id"], targets, strict=True))
    notes = task.fold_facts([np.array([place[slide] for slide in split.test]) for split in splits])
    assert "log-rank p between folds" in notes[0]
    if "stage" in card.covariates:  # of the AJCC (FIGO): what SurvPath calls stage is the T category
        assert table["stage"].dropna().str.fullmatch(r"(I{1,3}|IV)[ABC]?[12]?|X").all()
    else:
        assert pd.read_csv(path, dtype=str)["stage"].isna().all()
    assert "t_category_called_stage" not in card.covariates
