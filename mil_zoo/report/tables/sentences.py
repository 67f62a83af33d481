"""The sentences that belong under every table of a run: data, split, selection, trials, warnings, failures."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from mil_zoo.noted import note_of
from mil_zoo.report.load import Results
from mil_zoo.report.tables.encoders import levels
from mil_zoo.report.tables.recipes import by_model, settings_sentence, short_budgets, unequal_budgets
from mil_zoo.report.tables.text import KINDS, count, sentence
from mil_zoo.stats import ALL_EQUAL

_KINDS = KINDS | {"simulated": "SIMULATED slides, made by a program: the numbers say nothing about patients"}
_PATIENTS = {
    "mean": "Rows (patients): a patient's prediction is the mean of its slides' {what} ({patients} patients, "
    "{bags} slides).",
    "max": "Rows (patients): a patient's prediction is the largest of its slides' {what} ({patients} patients, "
    "{bags} slides).",
    "mean of_patients": "Every number is of patients ({patients}): hazards are the mean of their "
    "slides' ({bags} slides).",
    "max of_patients": "Every number is of patients ({patients}): each as the slide of highest risk ({bags} slides).",
    "packed": "All slides of a patient are one bag: every number is of patients ({patients}).",
}


def notes(results: Results) -> list[str]:
    """The sentences, in their order."""
    return [*results.once(_data), *results.once(_protocol), *results.once(_outcome)]


def data_note(results: Results) -> str:
    """What the numbers are of."""
    kind = "simulated" if results.simulated else results.config.dataset.kind
    return f"Data: {results.dataset_name}: {_KINDS[kind]}."


def _data(results: Results) -> list[str]:
    dataset = results.config.dataset
    lines = [data_note(results)]
    lines += [sentence(warning) for warning in dataset.warnings]
    if dataset.instance_labels:
        lines.append(f"Instance labels: {sentence(dataset.instance_labels)}")
    if dataset.patient_rule:
        what = "probabilities" if results.config.dataset.classes else "predictions"
        counts = {"patients": f"{dataset.patients:,}", "bags": f"{dataset.bags:,}"}
        scored = " of_patients" * (results.task.of_patients and dataset.patient_rule != "packed")
        lines.append(_PATIENTS[dataset.patient_rule + scored].format(what=what, **counts))
    return lines


def _protocol(results: Results) -> list[str]:
    config = results.config
    split = config.split
    if config.dataset.kind == "predictions":
        counts = f"{count(split.folds, 'fold')}, {count(split.repeats, 'repeat')}, {count(len(config.seeds), 'seed')}"
        return [f"Test sets: {split.kind}, {counts}. How models were trained and chosen, the files do not say."]
    validation = f"validation fraction {split.validation_fraction}"
    if split.validation_fraction is None:
        validation = "validation slides as the split names them (no fraction is used)"
    lines = [
        f"Split: {split.kind}, {count(split.folds, 'fold')}, {count(split.repeats, 'repeat')}, {validation}, "
        f"hash {split.hash}; seeds {', '.join(map(str, config.seeds))}."
    ]
    if config.dataset.projected:
        lines.append(
            f"Features: each split's are their coordinates on {config.dataset.projected} principal axes of its "
            "training instances (--project)."
        )
    training = {label: model.training for label, model in config.model_settings.items()}
    budgets = by_model({label: of["epochs"] for label, of in training.items() if "epochs" in of})
    if budgets:
        lines.append(f"Epochs: {', '.join(f'{model} {epochs}' for model, epochs in budgets.items())}.")
    lines += unequal_budgets(results)
    if short := [f"{model} {epochs} of {whole}" for model, epochs, whole in short_budgets(budgets)]:
        lines.append(
            f"Short budget, in epochs of the model's own recipe: {', '.join(short)}. Scores are of this budget, not of "
            "what the models can do."
        )
    lowered = by_model({label: of.get("precision", "float32") for label, of in training.items()})
    if low := [model for model, precision in lowered.items() if precision != "float32"]:
        lines.append(f"Matrix products in bfloat16: {', '.join(low)}.")
    weighted = by_model({label: of.get("class_weights", "none") for label, of in training.items()})
    if weighed := [model for model, weights in weighted.items() if weights == "balanced"]:
        lines.append(f"Losses weighted by class frequency: {', '.join(weighed)}.")
    limits = by_model({label: of.get("max_instances") for label, of in training.items()})
    if few := [f"{model} {limit}" for model, limit in limits.items() if limit is not None]:
        lines.append(f"Random instances of a bag in a training step, at most: {', '.join(few)}.")
    lines.append(settings_sentence(results))
    models_of = defaultdict(list)
    for model, rule in by_model(config.selection).items():
        models_of[sentence(rule)].append(model)
    if len(models_of) == 1:
        lines += [f"Selection: {rule}" for rule in models_of]
    else:
        lines += [f"Selection ({', '.join(models)}): {rule}" for rule, models in models_of.items()]
    if training and all(of.get("select") == "last" for of in training.values()):
        lines.append("The validation slides choose nothing: they are neither trained on nor tested.")
    return lines


def _outcome(results: Results) -> list[str]:
    trials, planned = results.trials, results.config.planned_trials
    unfinished = f" (the run is not at its end: {planned} are planned)" * (len(trials) < planned)
    ok = sum(trial.ok for trial in trials)
    lines = [
        _interval_note(results),
        f"Trials: {ok} of {len(trials)} finished{unfinished}; mil-zoo {results.config.version}.",
    ]
    lines += [*_ended_early(results), *_positive_class(results), *collapsed(results)]
    for label, group in results.groups.items():
        reasons = defaultdict(list)
        for trial in group:
            if not trial.ok:
                reasons[sentence(trial.reason or "no reason was recorded")].append(trial.trial)
        lines += [
            f"Failed: {label}, {len(names)} of {count(len(group), 'trial')} ({', '.join(names)}): {reason}"
            for reason, names in reasons.items()
        ]
    lines += [*_undefined(results), *_without_interval(results)]
    if results.unknown_metrics:
        lines.append(
            f"Not shown, since nothing registers it now: {', '.join(results.unknown_metrics)} (pass --plugin the file "
            "that does)."
        )
    return lines


def _ended_early(results: Results) -> list[str]:
    """Whose training ended before its budget, by its recipe's patience, and after how many epochs."""
    found = []
    for label, trials in results.finished.items():
        settings = results.config.model_settings.get(label)
        epochs = [trial.epochs for trial in trials if trial.epochs is not None]
        if settings is None or settings.training.get("patience") is None or not epochs:
            continue
        budget = settings.training["epochs"]
        if min(epochs) < budget:
            found.append(f"{label} after {np.mean(epochs):.0f} ({min(epochs)} to {max(epochs)}) of {budget}")
    return [f"Training ended early, in epochs (mean over trials, range): {', '.join(found)}."] if found else []


def _undefined(results: Results) -> list[str]:
    """What is undefined in how many trials, and why; and what must be known of values, as constant predictions."""
    trials: dict[str, set[str]] = defaultdict(set)
    metrics: dict[str, dict[str, None]] = defaultdict(dict)
    titles = {metric.name: metric.title for metric in results.metrics}
    for trial in results.trials:
        for name, note in trial.notes.items():
            what = "Undefined" if trial.metrics.get(name) is None else f"Note, {trial.label}"
            trials[f"{what}: {note}"].add(trial.trial)
            metrics[f"{what}: {note}"][titles.get(name, name)] = None
    return [
        f"{text} ({', '.join(metrics[text])}; {len(found)} of {count(len(results.trials), 'trial')}; undefined.csv)."
        for text, found in trials.items()
    ]


def _without_interval(results: Results) -> list[str]:
    """Whose test sets all have the same value of a metric, so that there is no interval."""
    of_metrics: dict[tuple[str, ...], list[str]] = {}
    for metric in results.metrics:
        labels = tuple(
            label + level
            for label in results.finished
            for level, rule in levels(results).items()
            if note_of(results.estimate(label, metric.name, rule).low) == ALL_EQUAL
        )
        if labels:
            of_metrics.setdefault(labels, []).append(metric.title)
    return [
        f"No interval: {', '.join(titles)} of {', '.join(labels)}: {ALL_EQUAL}."
        for labels, titles in of_metrics.items()
    ]


def _positive_class(results: Results) -> list[str]:
    """Of which class the metrics are that are of one."""
    classes = results.config.dataset.classes
    if "f1" not in {metric.name for metric in results.metrics} or len(classes) < 2:
        return []
    if len(classes) == 2:
        return [f"F1 is of class {classes[1]!r} (label 1); a slide is called so above a probability of 0.5."]
    return ["AUC and F1 are means over the classes, each against the rest."]


def collapsed(results: Results) -> list[str]:
    """A sentence on each model that says one class of every test slide of a trial, where these are of several."""
    return results.once(_collapsed)


def _collapsed(results: Results) -> list[str]:
    classes, lines = results.config.dataset.classes, []
    for label, trials in results.finished.items():
        said: list[int] = []
        number = 0
        for part in (results.test_sets(label) if trials else {}).values():
            if len(np.unique(part.labels)) > 1:
                number += len(part.probabilities)
                called = [_called(seed, results.task.family == "ordinal") for seed in part.probabilities]
                said += [int(one[0]) for one in called if np.ptp(one) == 0]
        if said:
            names = " or ".join(repr(classes[c]) if c < len(classes) else str(c) for c in sorted(set(said)))
            lines.append(
                f"Collapsed: {label} says {names} of every test slide in {len(said)} of {count(number, 'trial')}; "
                "its accuracy there is that class's share."
            )
    return lines


def _called(probabilities: NDArray[np.float64], ordered: bool) -> NDArray[np.int64]:
    """The class that is said of each slide: the most probable one; of ordered ones the number of P(y > k) above 0.5."""
    if not ordered:
        return np.asarray(probabilities.argmax(1))
    return np.asarray((1 - probabilities.cumsum(1)[:, :-1] > 0.5).sum(1))


def bounds(results: Results) -> str:
    """Where the metrics of the run lie: "[0, 1]", or words where they differ."""
    found = {metric.bounds for metric in results.metrics}
    return "[{:g}, {:g}]".format(*next(iter(found))) if len(found) == 1 and found != {_UNBOUNDED} else "their bounds"


_UNBOUNDED = (-np.inf, np.inf)


def _interval_note(results: Results) -> str:
    trials = results.trials
    sets, seeds = {results.test_set_of(trial.split) for trial in trials}, {trial.seed for trial in trials}
    trainings = len({(trial.split, trial.seed) for trial in trials})
    start = "Mean ± standard deviation [95 % interval] of test metrics over "
    if len(sets) > 1:
        shared = len({trial.split for trial in trials}) > len(sets)
        averaged = ", splits of one test set averaged first" if shared else ""
        averaged += ", seeds averaged within a fold" if len(seeds) > 1 else ""
        return (
            f"{start}{len(sets)} test folds{averaged}. Corrected resampled t interval (Nadeau & Bengio 2003), shown "
            f"within {bounds(results)}, where metrics lie; table.csv holds it uncut."
        )
    how = "Wilson's, with the number of patients that the variance by patient stands for"
    if any(results.scored_sets(label) for label, known in results.finished.items() if known):
        how = "of 2000 draws of them"
    by_patient = f"the interval is over the choice of test patients ({how}); the training is taken as it was."
    if trainings > 1:
        what = (
            f"{trainings} trainings tested on one set" if len(seeds) < trainings else f"{trainings} seeds of one split"
        )
        return f"{start}{what}, which says nothing of other test sets: {by_patient}"
    return f"Test metrics of one trial a model; {by_patient}"
