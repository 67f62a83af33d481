"""The reporting sheet: what reviewers ask of a prediction study, answered from what the run knows of itself."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from mil_zoo.bench.results import DatasetFacts, Trial
from mil_zoo.report.load import Results
from mil_zoo.report.subgroups import columns_of, sites_of
from mil_zoo.report.tables.explanations_table import explanations_table
from mil_zoo.report.tables.external import is_external
from mil_zoo.report.tables.pairs import ENOUGH, tested
from mil_zoo.report.tables.skew_table import skew_table
from mil_zoo.report.tables.table import Document, Table
from mil_zoo.report.tables.text import KINDS, count, detectable, sentence
from mil_zoo.report.tables.tuning_table import configuration_table
from mil_zoo.report.test_parts import mean_sizes

NOT_STATED = "not stated"


def reporting_sheet(results: Results) -> Document:
    """Every question with its answer; "not stated" where the run cannot know it, or was not told."""
    rows = [
        (section, question, answer or NOT_STATED)
        for section, answers in (
            ("Study", _study(results)),
            ("Data", _data(results)),
            ("Splits and leakage", _splits(results)),
            ("Models", _models(results)),
            ("Performance", _performance(results)),
            ("Groups and transfer", _groups(results)),
            ("Reproducibility", _provenance(results)),
        )
        for question, answer in answers
    ]
    missing = sum(answer == NOT_STATED for *_, answer in rows)
    note = (
        "What TRIPOD+AI (Collins et al., BMJ 2024) and CLAIM (Tejani et al., Radiology: AI 2024) ask of a prediction "
        f"study, filled from the files of this run alone. {missing} of {len(rows)} answers are not stated: they are "
        "the authors' to give, in the paper."
    )
    return Document("reporting", "Reporting sheet", [Table(["Section", "Asked", "This run"], rows, [note])])


def _study(results: Results) -> list[tuple[str, str]]:
    task = results.config.task or {"name": "classification"}
    told = {key: value for key, value in task.items() if key != "name" and value not in ("", None, [])}
    settings = ", ".join(f"{key}={value}" for key, value in told.items())
    return [
        ("What is predicted", f"{task['name']}{f' ({settings})' if settings else ''}: {results.dataset_title}"),
        ("Development, or evaluation on other data", _evaluation(results)),
        ("Intended use and users", ""),
        ("Protocol or registration before the study", ""),
        ("Ethics approval, consent", ""),
        ("Funding, conflicts of interest", ""),
    ]


def _evaluation(results: Results) -> str:
    if is_external(results):
        return f"development, tested on another dataset: {results.config.split.kind}"
    return "development, tested on slides of the same dataset that no training saw"


def _data(results: Results) -> list[tuple[str, str]]:
    dataset = results.config.dataset
    splits = _table(results, "splits.csv")
    patients = dataset.patients
    if patients is None and "patient_id" in splits and (splits["patient_id"] != "").all() and len(splits):
        patients = int(splits["patient_id"].nunique())
    packed = dataset.patient_rule == "packed"  # a bag is a patient
    sizes = [f"{dataset.bags:,} slides" if dataset.bags is not None and not packed else ""]
    sizes += [f"{patients:,} patients" if patients is not None else "patients unknown"]
    sizes += [f"{dataset.instances:,} instances" if dataset.instances is not None else ""]
    excluded = _table(results, "excluded.csv")
    reasons = Counter(excluded["reason"]) if "reason" in excluded else Counter()
    features = f"{dataset.features or 'one set'}, {dataset.in_dim} numbers an instance"
    if dataset.several_encoders:
        features = f"{', '.join(dataset.features)}, compared; {dataset.in_dim} numbers an instance in the first of them"
    return [
        ("Source of the data", f"{dataset.name}: {KINDS[dataset.kind]}"),
        ("Where and when patients were included", ""),
        ("Size", ", ".join(filter(None, sizes))),
        ("Outcome", _outcome(results, splits)),
        ("How the reference standard was set, by whom", ""),
        ("Left out, and why", "; ".join(f"{n} {why}" for why, n in reasons.items()) or "no slide that was found"),
        ("Missing values", ""),
        ("Image features", features if dataset.in_dim is not None else ""),
        ("Physical resolution", f"{dataset.mpp:g} micrometres a level-0 pixel" if dataset.mpp else ""),
        ("Scaling", _scaling(dataset)),
        ("Known faults of the data", " ".join(sentence(line) for line in dataset.warnings)),
    ]


def _scaling(dataset: DatasetFacts) -> str:
    if dataset.projected:
        first = "scaled and " if dataset.standardised else ""
        return f"{first}projected on {dataset.projected} principal axes of training instances alone"
    return "by means and spreads of training instances alone" if dataset.standardised else "none"


def _outcome(results: Results, splits: pd.DataFrame) -> str:
    classes = results.config.dataset.classes
    if "label" in splits and classes:
        counts = Counter(splits["label"])
        return ", ".join(f"{name}: {counts.get(str(i), counts.get(name, 0))}" for i, name in enumerate(classes))
    return ", ".join(results.task.target_columns)


def _splits(results: Results) -> list[tuple[str, str]]:
    split, splits = results.config.split, _table(results, "splits.csv")
    if "patient_id" in splits:
        splits = splits.assign(site_id=sites_of(results, splits))
    by_split = "none, by the split" if split.kind.startswith("site-preserved") else ""
    train, test = mean_sizes([trial for trial in results.trials if trial.ok])
    of = "patients" if results.config.dataset.patient_rule == "packed" else "slides"
    sizes = f"{train:.0f} training and {test:.0f} test {of} on average" if any(t.ok for t in results.trials) else ""
    validation = (
        "validation slides as the split names them"
        if split.validation_fraction is None
        else f"{split.validation_fraction:.0%} of the training slides"
    )
    return [
        ("How slides were divided", f"{split.kind}; {count(split.folds, 'fold')}, {count(split.repeats, 'repeat')}"),
        ("Sizes", sizes),
        ("Validation", validation),
        ("Patients on two sides", _on_two_sides(splits, "patient", "cannot be told: patients are unknown")),
        ("Sites on two sides", _on_two_sides(splits, "site", "") or by_split),
        ("Identity of the split", f"hash {split.hash}, seed {split.seed if split.seed is not None else '-'}"),
        ("Labels shuffled, to find leaks", "yes: scores must be at chance" if results.config.permute_labels else "no"),
    ]


def _on_two_sides(splits: pd.DataFrame, what: str, unknown: str) -> str:
    """How many patients or sites are on two sides, looked up in the split itself; ``unknown`` where none is known."""
    columns = [name for name in splits if str(name).startswith("r") and "-f" in str(name)]
    if not columns or f"{what}_id" not in splits:
        return ""
    known = splits[splits[f"{what}_id"] != ""]
    if not len(known):
        return unknown
    leaked = {
        one
        for column in columns
        for one, parts in known[known[column] != ""].groupby(f"{what}_id")[column].nunique().items()
        if parts > 1
    }
    left = len(splits) - len(known)
    tail = f"; of {left} slides the {what} is unknown" if left else ""
    if leaked:
        return f"{count(len(leaked), what)}, looked up in splits.csv{tail}"
    return f"none in {count(len(columns), 'split')}, looked up in splits.csv{tail}"


def _models(results: Results) -> list[tuple[str, str]]:
    config = results.config
    training = {label: model.training for label, model in config.model_settings.items()}
    first = "" if config.tuning is None else " at first, then as tuned"
    recipes = [
        f"{label}: {count(of['epochs'], 'epoch')}{', '.join(['', *_optimiser(of)])}{first}"
        for label, of in training.items()
        if "epochs" in of
    ]
    parameters = []
    for label, trials in results.finished.items():
        if sizes := [trial.parameters for trial in trials if trial.parameters]:
            several = f"{min(sizes):,} to " * (min(sizes) < max(sizes))
            parameters.append(f"{label} {several}{max(sizes):,}")
    chosen = "checkpoints are" if config.tuning is None else "checkpoints and configurations are"
    rules = [f"{label}: {rule}" for label, rule in config.selection.items()]
    return [
        ("Models compared", ", ".join(config.model_settings)),
        ("Trained numbers", ", ".join(parameters)),
        ("Training", "; ".join(recipes)),
        ("Tuning", _tuning(results)),
        ("Which checkpoint was kept", "; ".join(dict.fromkeys(rules))),
        ("Whether test slides chose anything", f"no: {chosen} chosen before test slides are predicted"),
        ("Seeds", ", ".join(map(str, config.seeds))),
        ("Class imbalance", _balance(training)),
    ]


def _optimiser(training: dict[str, Any]) -> list[str]:
    """Optimiser and learning rate, of a model that reads them."""
    rate = training.get("learning_rate")
    return [text for text in (training.get("optimizer"), rate and f"learning rate {rate}") if text]


def _tuning(results: Results) -> str:
    tuning = results.config.tuning
    if tuning is not None:
        inner = tuning.inner_folds
        judge = "validation slides" if inner is None else f"{inner} inner folds of each split's training part"
        return (
            f"{tuning.configurations} configurations of every aggregator, the recipe among them ({tuning.sampler}), "
            f"judged on {judge} and never on test slides: tuning.csv{_failed(configuration_table(results))}"
        )
    if results.config.grid:
        points = ", ".join(results.config.grid)
        return f"a grid of {points}: each point is a row of its own, and validation marks the chosen one"
    return "none: each model has the recipe in config.yaml, so that none had more attempts than another"


def _failed(table: pd.DataFrame) -> str:
    failed = int((table["reason"] != "").sum()) if len(table) else 0
    return f"; {failed} of {len(table)} trainings failed there" * (failed > 0)


def _balance(training: dict[str, dict[str, Any]]) -> str:
    if not training or not any(training.values()):
        return ""
    weighed = [label for label, of in training.items() if of.get("class_weights", "none") != "none"]
    drawn = [label for label, of in training.items() if of.get("sampling") == "balanced"]
    ways = (("losses weighted by class frequency", weighed), ("classes drawn equally often in training", drawn))
    said = [f"{how}: {', '.join(labels)}" for how, labels in ways if labels]
    return "; ".join(said) or "neither weights nor balanced draws"


def _performance(results: Results) -> list[tuple[str, str]]:
    finished = [label for label, trials in results.finished.items() if trials]
    methods = {results.estimate(label, results.lead.name).method for label in finished} - {""}
    names = {
        "corrected t": "corrected resampled t over test sets (Nadeau & Bengio 2003)",
        "patients": "over the choice of test patients, of the trained models as they are",
    }
    failed = sum(not trial.ok for trial in results.trials)
    pairs = tested(results)
    tests = sorted(set(pairs["test"]) - {""}) if len(pairs) else []
    of_lead = pairs[pairs["metric"] == results.lead.name]["detectable"].dropna()
    sets = {results.test_set_of(trial.split) for trial in results.trials}
    undefined = sum(trial.metrics.get(name) is None for trial in results.trials for name in trial.notes)
    few = f"; {len(sets)} test sets decide nothing" if 1 < len(sets) < ENOUGH else ""
    return [
        ("Metrics", ", ".join(metric.title for metric in results.metrics)),
        ("Intervals of 95 %", "; ".join(names[method] for method in sorted(methods))),
        ("Comparisons", f"{', '.join(tests)}, adjusted by Holm over all pairs{few}" if tests else ""),
        (
            "Size of a difference that the study can see",
            _seen(float(of_lead.median()), results.lead.title),
        ),
        ("Calibration", "reliability, Brier score, calibration error" if "calibration" in results.task.figures else ""),
        ("Failed trainings", f"{failed} of {len(results.trials)}, each with its reason" if failed else "none"),
        ("What is undefined", f"{undefined} numbers, with reasons in undefined.csv" if undefined else "none"),
        ("Use in practice (net benefit, workflow)", ""),
    ]


def _seen(least: float, of: str) -> str:
    return "" if np.isnan(least) else f"{detectable(least)} in {of}, four times in five"


def _groups(results: Results) -> list[tuple[str, str]]:
    columns = columns_of(results)
    return [
        ("Groups of patients (fairness)", f"{', '.join(columns)}: subgroups.csv" if columns else ""),
        ("Other data", _evaluation(results) if is_external(results) else "none"),
        ("Whether explanations were checked", "; ".join(_explanations(results))),
    ]


def _explanations(results: Results) -> list[str]:
    """What was done to check what models attend to, as far as there is a table of it."""
    said, labels = [], results.config.dataset.instance_labels
    if labels and len(skew_table(results)):
        said.append(f"attention against instance labels ({labels}): skew.csv")
    if len(explained := explanations_table(results)):
        said.append(f"{', '.join(dict.fromkeys(explained['explainer']))} by flipping patches: explanations.csv")
    return said


def _provenance(results: Results) -> list[tuple[str, str]]:
    config = results.config
    versions = ", ".join(f"{name} {version}" for name, version in (config.versions or {}).items())
    digests = ", ".join(f"{name} {digest[:12]}" for name, digest in (config.dataset.digests or {}).items())
    hours = sum(_seconds(trial) for trial in results.trials) / 3600
    memory = max((trial.peak_mem_mib or 0 for trial in results.trials), default=0)
    cost = f"{hours:.2g} hours of training, at most {memory:,.0f} MiB a trial, {count(config.threads, 'thread')}"
    return [
        ("Software", f"mil-zoo {config.version}" + (f"; {versions}" if versions else "")),
        ("Digests of the data", digests),
        ("Plugins", ", ".join(config.plugins) if config.plugins else "none"),
        ("Cost", cost if hours > 0 and np.isfinite(hours) else ""),
        ("Machine", " and ".join(dict.fromkeys(trial.machine for trial in results.trials if trial.machine))),
        ("Every setting", "config.yaml of the run"),
        ("Where code and data can be had", ""),
    ]


def _seconds(trial: Trial) -> float:
    """That its trainings took, of every configuration; of runs of before, those of the one."""
    if trial.training_seconds is not None:
        return trial.training_seconds
    return (trial.seconds_per_epoch or 0) * (trial.epochs or 0)


def _table(results: Results, name: str) -> pd.DataFrame:
    found = results.run.table(name)
    return pd.DataFrame() if found is None else found
