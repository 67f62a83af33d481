"""What of a suite can be refused before any data are read."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import fields

from mil_zoo.bench.models import settable
from mil_zoo.bench.suite import Suite
from mil_zoo.diagnostics.explanations import EXPLAINERS
from mil_zoo.errors import InputError, did_you_mean, no_line
from mil_zoo.train.config import TrainingConfig
from mil_zoo.train.protocols import model_options


def check_suite(suite: Suite) -> None:
    """Raises an ``InputError`` that names the option and what it may be."""
    if not suite.models or len(set(suite.models)) < len(suite.models):
        raise InputError(f"--models must name each aggregator once, not {','.join(suite.models) or 'none'}")
    if not suite.seeds or len(set(suite.seeds)) < len(suite.seeds):
        raise InputError("--seeds must name each seed once")
    if max(suite.seeds) >= 2**32:
        raise InputError(f"--seeds must be below 2^32, not {max(suite.seeds)}")
    if any(seed < 0 for seed in (*suite.seeds, suite.split_seed)):
        raise InputError(f"seeds must be 0 or more, not {min(*suite.seeds, suite.split_seed)}")
    if suite.split_seed >= 2**32:
        raise InputError(f"split_seed must be below 2^32, not {suite.split_seed}")
    if not suite.split.strip():
        raise InputError("--split must name a scheme or a file, see mil-zoo bench --help; leave it out for kfold")
    if suite.repeats < 1:
        raise InputError(f"--repeats must be at least 1, not {suite.repeats}")
    if not 0 < suite.validation_fraction < 1:
        raise InputError(f"validation_fraction must be above 0 and below 1, not {suite.validation_fraction}")
    if any(k < 1 for k in suite.faithfulness):
        raise InputError(f"--faithfulness takes numbers of instances, 1 or more, not {suite.faithfulness}")
    if len(set(suite.explain)) < len(suite.explain):
        raise InputError(f"--explain must name each explainer once, not {','.join(suite.explain)}")
    for name in suite.explain:
        EXPLAINERS.get(name)
    if suite.project is not None and suite.project < 1:
        raise InputError(f"--project must be at least 1, not {suite.project}")
    if suite.threads < 1:
        raise InputError(f"--threads must be at least 1, not {suite.threads}")
    if suite.title is not None and (fault := no_line(suite.title)):
        raise InputError(f"--title {fault}")
    if suite.title is not None and len(suite.datasets) > 1:
        raise InputError("--title names one dataset; leave it out, or run the datasets one by one")
    for name in suite.models:
        model_options(name)  # an unknown name is told
    _check_tuning(suite)
    _check_targets(suite)


def _check_tuning(suite: Suite) -> None:
    if suite.tune is None:
        if suite.inner_folds is not None:
            raise InputError("--inner-folds judges configurations; add --tune N, or leave it out")
        return
    if suite.tune < 2:
        raise InputError(
            f"--tune {suite.tune} chooses among nothing: ask for 2 configurations or more, or leave it out for the "
            "authors' recipe"
        )
    if suite.grid:
        raise InputError(
            f"--tune searches where --grid tries every value ({', '.join(suite.grid)}): leave one of them out"
        )
    if suite.inner_folds is not None and suite.inner_folds < 2:
        raise InputError(f"--inner-folds must be at least 2, not {suite.inner_folds}")
    if importlib.util.find_spec("optuna") is None:
        raise InputError("--tune needs Optuna: pip install 'mil-zoo[tune]'")


def _check_targets(suite: Suite) -> None:
    for flag, keys in (("--set", suite.overrides), ("--grid", suite.grid), ("search", suite.search)):
        for key in keys:
            model, _, option = key.rpartition(".")
            if model and model not in suite.models:
                raise InputError(f"{flag} {key}: {model!r} is not among the models{did_you_mean(model, suite.models)}")
            known = {"graph", *(setting.name for setting in fields(TrainingConfig))}.union(*map(settable, suite.models))
            if not model and option not in known and (flag == "search" or not isinstance(keys[key], Mapping)):
                raise InputError(
                    f"{flag} {key}: no aggregator has an option {option!r}{did_you_mean(option, sorted(known))}"
                )
