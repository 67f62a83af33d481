"""The typed rows of a run: what is read and written again is the same to the byte, what is unknown is told."""

import json
import subprocess
import sys

import pytest
import yaml

from mil_zoo.bench.results import RunConfig, Trial
from mil_zoo.errors import InputError

CONFIG = """\
title: srmil, abmil on Demo
version: 0.1.0
dataset:
  name: demo
  title: Demo, ä
  kind: real
  simulated: false
  classes:
  - normal
  - tumour
  bags: 80
  instances: 36154
  in_dim: 64
  standardised: false
  instance_labels: null
  warnings: []
models:
- abmil
model_settings:
  abmil@labelled=0.5:
    options:
      gated: false
    graph: null
    training:
      epochs: 2
      betas:
      - 0.9
      - 0.999
      learning_rate: 1.0e-05
selection:
  abmil@labelled=0.5: best validation accuracy
split:
  kind: kfold
  folds: 3
  repeats: 2
  validation_fraction: 0.15
  seed: 0
  hash: a1b2c3
seeds:
- 0
- 1
permute_labels: false
threads: 1
grid:
  labelled:
  - 0.5
"""
ROW = {
    "trial": "abmil-r0-f1-s0",
    "aggregator": "abmil",
    "grid": "",
    "features": None,
    "repeat": 0,
    "fold": 1,
    "seed": 0,
    "status": "ok",
    "reason": None,
    "n_train": 45,
    "n_val": 0,
    "n_test": 28,
    "n_labelled": 45,
    "metrics": {"accuracy": 0.5, "auc": None, "npv": 1.0},
    "val_metrics": {"accuracy": 1.0},
    "epochs": 2,
    "selected_epoch": 2,
    "parameters": 262917,
    "seconds_per_epoch": 29.5,
    "peak_mem_mib": 1111.66796875,
}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"layout": "clam", "features": None},
        {"layout": "clam", "features": ["uni", "conch"]},
        {"patient_rule": "mean", "patients": 12, "mpp": 0.5},
    ],
)
def test_a_configuration_is_written_as_it_was_read(more):
    text, dataset = CONFIG, yaml.safe_load(CONFIG)["dataset"]
    if more:
        order = ["name", "title", "kind", "simulated", "classes", "bags", "instances", "in_dim", "layout", "features"]
        order += ["standardised", "instance_labels", "patient_rule", "patients", "mpp", "warnings"]
        known = dataset | more
        changed = yaml.safe_load(CONFIG) | {"dataset": {name: known[name] for name in order if name in known}}
        text = yaml.safe_dump(changed, sort_keys=False, allow_unicode=True)
    assert RunConfig.from_yaml(text).to_yaml() == text


def test_a_configuration_names_its_task_where_it_is_not_classification():
    config = RunConfig.from_yaml(CONFIG)
    assert config.task is None
    assert config.planned_trials == 12
    settings = yaml.safe_load(CONFIG)
    front = {name: settings[name] for name in ("title", "version")}
    text = yaml.safe_dump(
        front | {"task": {"name": "counting", "unit": "cells"}} | settings, sort_keys=False, allow_unicode=True
    )
    counting = RunConfig.from_yaml(text)
    assert counting.task == {"name": "counting", "unit": "cells"}
    assert counting.to_yaml() == text


@pytest.mark.parametrize(
    "row",
    [
        ROW,
        {**ROW, "features": "uni", "patient_metrics": {"accuracy": 0.25}},
        {name: ROW[name] for name in list(ROW)[:12]} | {"status": "failed", "reason": "ValueError: no"},
    ],
)
def test_a_row_is_written_as_it_was_read(row):
    trial = Trial.from_row(row)
    order = [name for name in Trial.__dataclass_fields__ if name in row]
    assert json.dumps(trial.to_row()) == json.dumps({name: row[name] for name in order})
    assert trial.ok == (row["status"] == "ok")


def test_a_trial_is_named_by_aggregator_and_grid():
    trial = Trial.from_row({**ROW, "grid": "mask_rate=0.5"})
    assert trial.label == "abmil@mask_rate=0.5"
    assert trial.split == (0, 1)


def test_what_another_version_wrote_is_one_sentence():
    settings = yaml.safe_load(CONFIG) | {"version": "9.0.0", "executor": "moon"}
    with pytest.raises(InputError, match=r"config\.yaml: unknown key 'executor'.*written by mil-zoo 9.0.0"):
        RunConfig.from_settings(settings)
    with pytest.raises(InputError, match=r"trials\.jsonl: the key 'fold' is missing"):
        Trial.from_row({name: value for name, value in ROW.items() if name != "fold"})
    with pytest.raises(InputError, match="n_train must be a whole number"):
        Trial.from_row({**ROW, "n_train": "many"})


def test_typed_rows_need_no_torch():
    code = "import sys, mil_zoo.bench.results; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
