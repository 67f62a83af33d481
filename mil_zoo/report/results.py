"""What every table and figure of a run shares: its trials by aggregator, and the notes that belong under each."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mil_zoo.metrics import patient_predictions
from mil_zoo.stats import Summary, TestSet, summarise

if TYPE_CHECKING:
    from mil_zoo.bench.run_directory import RunDirectory

METRICS = {"accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy", "auc": "AUC", "f1": "F1"}
_KINDS = {
    "real": "real slides",
    "simulated": "SIMULATED slides, made by a program: the numbers say nothing about patients",
    "table": "bags from a feature table, not slides",
}
_PATIENTS = {
    "mean": "Rows (patients): a patient's prediction is the mean of its slides' probabilities ({patients} patients, "
    "{bags} slides).",
    "max": "Rows (patients): a patient's prediction is the largest of its slides' probabilities ({patients} patients, "
    "{bags} slides).",
    "packed": "All slides of a patient are one bag: every number is of patients ({patients}).",
}


def trials_by_aggregator(run: RunDirectory) -> dict[str, list[dict[str, Any]]]:
    """The trials of every ``aggregator[@grid]``, models and grid points in the order of the config.

    Grid points that the config does not list follow in numeric order. A model without a trial is there with an empty
    list. Trials are sorted by repeat, fold and seed, so that nothing depends on the order in which they finished.
    """
    planned = {label: i for i, label in enumerate(run.config["model_settings"])}

    def place(trial: dict[str, Any]) -> tuple[Any, ...]:
        # Numbers inside a grid name compare as numbers: dim=64 comes before dim=512.
        parts = re.split(r"(\d+(?:\.\d+)?)", trial["grid"] or "")
        grid = [float(part) if i % 2 else part for i, part in enumerate(parts)]
        return planned.get(label_of(trial), len(planned)), grid, trial["repeat"], trial["fold"], trial["seed"]

    of_model = defaultdict(list)
    for trial in sorted(run.trials(), key=place):
        of_model[trial["aggregator"]].append(trial)
    models = run.config["models"]
    groups: dict[str, list[dict[str, Any]]] = {}
    for model in [*models, *sorted(set(of_model) - set(models))]:
        for trial in of_model[model]:
            groups.setdefault(label_of(trial), []).append(trial)
        if not of_model[model]:
            groups[model] = []
    return groups


def label_of(trial: dict[str, Any]) -> str:
    """``aggregator[@grid]`` of a trial."""
    return f"{trial['aggregator']}@{trial['grid']}" if trial["grid"] else str(trial["aggregator"])


def finished(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trials that did not fail."""
    return [trial for trial in trials if trial["status"] == "ok"]


def values_by_split(ok: list[dict[str, Any]], metric: str) -> dict[tuple[int, int], float]:
    """A metric on the test slides by (repeat, fold), seeds averaged; splits where it is undefined are absent."""
    by_split = defaultdict(list)
    for trial in ok:
        if trial["metrics"][metric] is not None:
            by_split[trial["repeat"], trial["fold"]].append(trial["metrics"][metric])
    return {split: float(np.mean(by_split[split])) for split in sorted(by_split)}


def summaries(run: RunDirectory, metric: str) -> dict[str, Summary]:
    """Summary of a test metric over splits by ``aggregator[@grid]``, of those that have one.

    From the trials, or where a folder holds a run's tables only (as ``benchmarks/results`` does), from ``table.csv``.
    """
    if not (run.path / "trials.jsonl").exists() and (run.path / "table.csv").exists():
        table = pd.read_csv(run.path / "table.csv").set_index("aggregator")
        rows = table[[f"{metric}_{part}" for part in ("mean", "sd", "low", "high", "n")]].dropna(
            subset=f"{metric}_mean"
        )
        return {str(row[0]): Summary(*row[1:5], int(row[5])) for row in rows.itertuples()}
    found = {}
    for label, trials in trials_by_aggregator(run).items():
        ok = finished(trials)
        values = values_by_split(ok, metric)
        if values:
            n_train, n_test = (float(np.mean([trial[name] for trial in ok])) for name in ("n_train", "n_test"))
            found[label] = summarise(list(values.values()), n_train, n_test)
    return found


def test_sets(
    run: RunDirectory,
    ok: list[dict[str, Any]],
    patient_rule: str | None = None,  # noqa: PT028 (no test)
) -> dict[tuple[int, int], TestSet]:
    """Predictions of the test slides by (repeat, fold), seeds in order; slides in order of their ids.

    Where patients are unknown, each slide is one of its own. Trials without files are left out. With a patient rule the
    predictions are of patients, see :func:`mil_zoo.metrics.patient_predictions`.
    """
    by_split = defaultdict(list)
    for trial in sorted(ok, key=lambda trial: trial["seed"]):
        if (run.path / "trials" / trial["trial"]).is_dir():
            rows = run.predictions(trial["trial"])
            rows = rows[rows["split"] == "test"].sort_values("slide_id")
            if patient_rule is not None:
                rows = patient_predictions(rows, patient_rule)
            by_split[trial["repeat"], trial["fold"]].append(rows)
    sets = {}
    for split, tables in sorted(by_split.items()):
        first = tables[0]
        probabilities = [table.filter(regex=r"^prob_\d+$").to_numpy(dtype=float) for table in tables]
        patients = first["patient_id"].fillna("").where(lambda ids: ids != "", first["slide_id"])
        labels = first["label"].to_numpy(dtype=np.int64)
        sets[split] = TestSet(labels, np.stack(probabilities), patients.to_numpy(dtype=str))
    return sets


def skew_of_test_slides(skew: pd.DataFrame) -> pd.DataFrame:
    """The test rows of a ``skew.csv``, one row a slide and one column a number.

    Two columns are added: ``heads``, how many there are, and ``head_max``, the mean of their maxima. A model that
    records no heads has one, whose maximum is the attention's.
    """
    rows = skew[skew["split"] == "test"]
    wide = rows.pivot(index="slide_id", columns="name", values="value")
    heads = [name for name in wide if name.startswith("head_max_")]
    if len(wide):
        wide["heads"] = max(len(heads), 1)
        wide["head_max"] = wide[heads or ["max_attention"]].mean(axis=1)
    return wide


def notes(run: RunDirectory) -> list[str]:
    """The sentences that belong under every table of the run: data, split, selection, trials, warnings, failures."""
    config = run.config
    dataset, split = config["dataset"], config["split"]
    groups = trials_by_aggregator(run)
    trials = [trial for group in groups.values() for trial in group]
    simulated = is_simulated(run)
    lines = [f"Data: {dataset['title']}: {_KINDS['simulated' if simulated else dataset['kind']]}."]
    lines += [_sentence(warning) for warning in dataset["warnings"]]
    if dataset["instance_labels"]:
        lines.append(f"Instance labels: {_sentence(dataset['instance_labels'])}")
    if rule := dataset.get("patient_rule"):
        lines.append(_PATIENTS[rule].format(patients=f"{dataset['patients']:,}", bags=f"{dataset['bags']:,}"))
    lines.append(
        f"Split: {split['kind']}, {_count(split['folds'], 'fold')}, {_count(split['repeats'], 'repeat')}, "
        f"validation fraction {split['validation_fraction']}, hash {split['hash']}; seeds "
        f"{', '.join(map(str, config['seeds']))}."
    )
    training = {label: model["training"] for label, model in config["model_settings"].items()}
    budgets = _by_model({label: of["epochs"] for label, of in training.items()})
    lines.append(f"Epochs: {', '.join(f'{model} {epochs}' for model, epochs in budgets.items())}.")
    lowered = _by_model({label: of.get("precision", "float32") for label, of in training.items()})
    if low := [model for model, precision in lowered.items() if precision != "float32"]:
        lines.append(f"Matrix products in bfloat16: {', '.join(low)}.")
    weighted = _by_model({label: of.get("class_weights", "none") for label, of in training.items()})
    if weighed := [model for model, weights in weighted.items() if weights == "balanced"]:
        lines.append(f"Losses weighted by class frequency: {', '.join(weighed)}.")
    limits = _by_model({label: of.get("max_instances") for label, of in training.items()})
    if few := [f"{model} {limit}" for model, limit in limits.items() if limit is not None]:
        lines.append(f"Random instances of a bag in a training step, at most: {', '.join(few)}.")
    models_of = defaultdict(list)
    for model, rule in _by_model(config["selection"]).items():
        models_of[_sentence(rule)].append(model)
    if len(models_of) == 1:
        lines += [f"Selection: {rule}" for rule in models_of]
    else:
        lines += [f"Selection ({', '.join(models)}): {rule}" for rule, models in models_of.items()]
    lines.append(_interval_note(trials))
    planned = len(config["model_settings"]) * split["folds"] * split["repeats"] * len(config["seeds"])
    unfinished = f" (the run is not at its end: {planned} are planned)" * (len(trials) < planned)
    lines.append(f"Trials: {len(finished(trials))} of {len(trials)} finished{unfinished}; mil-zoo {config['version']}.")
    for label, group in groups.items():
        reasons = defaultdict(list)
        for trial in group:
            if trial["status"] != "ok":
                reasons[_sentence(trial["reason"] or "no reason was recorded")].append(trial["trial"])
        lines += [
            f"Failed: {label}, {len(names)} of {_count(len(group), 'trial')} ({', '.join(names)}): {reason}"
            for reason, names in reasons.items()
        ]
    return lines


def _by_model(of_label: dict[str, Any]) -> dict[str, Any]:
    """One entry a model instead of one for each of its variants, where these agree."""
    values = defaultdict(set)
    for label, value in of_label.items():
        values[label.partition("@")[0]].add(value)
    return {
        (model if len(values[model := label.partition("@")[0]]) == 1 else label): value
        for label, value in of_label.items()
    }


def is_simulated(run: RunDirectory) -> bool:
    """Whether the slides were made by a program; every table and figure then says so."""
    return bool(run.config["dataset"]["simulated"]) or run.config["dataset"]["kind"] == "simulated"


def dataset_title(run: RunDirectory) -> str:
    """The title of the dataset, which says so where slides are simulated."""
    name = str(run.config["dataset"]["title"])
    return name + " (simulated slides)" if is_simulated(run) and "simulated" not in name.lower() else name


def _interval_note(trials: list[dict[str, Any]]) -> str:
    splits = {(trial["repeat"], trial["fold"]) for trial in trials}
    seeds = {trial["seed"] for trial in trials}
    boot = " Bootstrap (patients drawn again within classes, percentiles): the training is taken as it was."
    start = "Mean ± standard deviation [95 % interval] of test metrics over "
    end = (
        " Corrected resampled t interval (Nadeau & Bengio 2003), shown within [0, 1], where metrics lie; table.csv "
        "holds it uncut."
    )
    if len(splits) > 1:
        return f"{start}{len(splits)} test folds{', seeds averaged within a fold' * (len(seeds) > 1)}.{end}"
    if len(seeds) > 1:
        return f"{start}{len(seeds)} seeds of one split; the interval is over the choice of test patients.{boot}"
    return f"Test metrics of one trial a model; the interval is over the choice of test patients.{boot}"


def _sentence(text: str) -> str:
    """``text`` on one line, ending as a sentence does."""
    text = " ".join(str(text).split())
    return text if text.endswith((".", "!", "?")) else text + "."


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)
