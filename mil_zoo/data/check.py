"""Checks a dataset as it lies on disk: every slide, its labels, splits and counts; all that is wrong in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from mil_zoo.data.card import DataCard, count_differences, per_class, read_card
from mil_zoo.data.dataset import data_root
from mil_zoo.data.demo.cache import load_demo
from mil_zoo.data.folder import choose_features, labels_of_folder
from mil_zoo.data.labels.tables import class_indices, class_names, patients_of_two_labels
from mil_zoo.data.layouts.base import FeatureSet, find_features, layout_of
from mil_zoo.data.layouts.table import read_table
from mil_zoo.data.slide_checks import OnSlide, Report, check_bags, check_features
from mil_zoo.data.splits.split import find_leaks
from mil_zoo.errors import InputError


def check_dataset(
    name: str,
    root: Path | None = None,
    labels: Path | None = None,
    *,
    features: Sequence[str] | None = None,
    layout: str | None = None,
    allow_pickle: bool = False,
    on_slide: OnSlide | None = None,
) -> list[Report]:
    """Reads every slide of a dataset once and says what is wrong with it.

    Memory stays that of the largest slide (of the largest file, where a layout keeps several slides in one).

    Args:
        name: a card, a folder of features in any layout, or one feature file.
        root: folder of a card's files; None for the folder in the variable ``MIL_ZOO_REAL_DATA``.
        labels: a csv of labels; None for the folder's own.
        features: which sets of features; None for all that are found.
        layout: how the files are laid out; None to tell it.
        allow_pickle: run whatever code a pickle holds.
        on_slide: called after each slide with the number done and the number in all.

    Returns:
        A report for each set of features.

    Raises:
        InputError: the dataset is unknown, or nothing is there to be checked.
    """
    path = Path(name)
    if path.exists():
        card = DataCard(path.resolve().name, path.name, "real", "slides", [])
        if path.is_file():
            found = layout_of(path, layout)
            sets = [FeatureSet(found.name, "", path, {found.slide_id(path): path})]
            return [_check_set(sets[0], card, path.parent, labels, allow_pickle, on_slide, labels is not None)]
        return _check_folder(path, card, labels, features, layout, allow_pickle, on_slide)
    card = read_card(name)
    if card.layout == "slides":
        return _check_folder(card.locate(data_root(root)), card, labels, features, layout, allow_pickle, on_slide)
    if card.layout == "simulated":
        report = check_bags(load_demo(), card.title, "simulated", on_slide)
    else:
        where = card.locate(data_root(root))
        bags = read_table(where, card.positive_instance_class, card.single_label)
        report = check_bags(bags, card.title, where, on_slide)
    check_counts(report, report.slides, card)
    return [report]


def _check_folder(
    folder: Path,
    card: DataCard,
    labels: Path | None,
    names: Sequence[str] | None,
    layout: str | None,
    allow_pickle: bool,
    on_slide: OnSlide | None,
) -> list[Report]:
    card = card.beside(folder)
    found = find_features(folder, layout)
    chosen = found if names is None else [choose_features(found, name, folder) for name in names]
    return [_check_set(features, card, folder, labels, allow_pickle, on_slide) for features in chosen]


def _check_set(
    features: FeatureSet,
    card: DataCard,
    folder: Path,
    given: Path | None,
    allow_pickle: bool,
    on_slide: OnSlide | None,
    labels_wanted: bool = True,
) -> Report:
    report = check_features(features, card.title, allow_pickle, on_slide)
    if not labels_wanted:
        return report
    try:
        table, path = labels_of_folder(folder, given, features, _own_labels(report.slides), card)
    except InputError as error:
        # A folder of features without labels can be checked all the same; a card or a given table must be right.
        report.add("warning" if given is None and not card.classes else "error", f"labels were not checked: {error}")
        return report
    check_labels(report, table, card, path)
    if card.classes:
        check_counts(report, table, card)
    return report


def _own_labels(slides: pd.DataFrame) -> pd.DataFrame | None:
    if "label" not in slides or slides["label"].isna().any():
        return None
    own: pd.DataFrame = slides[["slide_id", "label", "patient_id"]]
    return own


def check_labels(report: Report, labels: pd.DataFrame, card: DataCard, path: Path | str) -> None:
    """Adds what is wrong with the labels and splits of the slides in a report.

    Args:
        report: of the slides.
        labels: text columns slide_id, label and, optionally, patient_id and split.
        card: classes, and whether a label is the patient's.
        path: where the labels come from, for messages.
    """
    known = set(report.slides["slide_id"])
    missing = sorted(set(labels["slide_id"]) - known)
    if missing:
        report.add("error", f"{path} names slides without features; extract them or drop their rows", missing)
    spare = sorted(known - set(labels["slide_id"]) - set(card.exclude))
    if spare:
        report.add("warning", f"slides with features have no label in {path} and are left out", spare)
    for slide in sorted(known & set(card.exclude)):
        report.add("warning", f"left out by the card: {card.exclude[slide]}", [slide])
    classes = class_indices(card.classes or class_names(labels))
    unknown = labels[~labels["label"].isin(list(classes))]
    for label, group in unknown.groupby("label"):
        report.add("error", f"{path}: label {label!r} is none of {', '.join(classes)}", group["slide_id"])
    both = patients_of_two_labels(labels)
    if both:
        level: Literal["error", "warning"] = "error" if card.label_of == "patient" else "warning"
        report.add(level, f"{path}: patients with slides of different labels", both)
    report.slides = report.slides.drop(columns=["label", "patient_id", "split"], errors="ignore").merge(
        labels, on="slide_id", how="outer"
    )
    absent = report.slides["problem"].isna()
    report.slides.loc[absent, "problem"] = "no features"
    _judge_splits(report, labels, card, path)


def _judge_splits(report: Report, labels: pd.DataFrame, card: DataCard, path: Path | str) -> None:
    if "split" not in labels:
        return
    parts = {str(part): set(group["slide_id"]) for part, group in labels.groupby("split")}
    patient_of = dict(zip(labels["slide_id"], labels["patient_id"], strict=True)) if "patient_id" in labels else {}
    patient_of = {slide: None if pd.isna(patient) else patient for slide, patient in patient_of.items()}
    names = sorted(parts)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            leaks = find_leaks(parts[one], parts[other], patient_of)
            if leaks:
                known = set(leaks) <= set(card.known_leaks)
                text = f"{path}: patients in both {one} and {other}; {'published so' if known else 'split by patient'}"
                report.add("warning" if known else "error", text, leaks)
    for name, slides in parts.items():
        lacking = set(labels["label"]) - set(labels["label"][labels["slide_id"].isin(slides)])
        if lacking:
            report.add("error", f"{path}: no {name} slide is of class {', '.join(sorted(lacking))}")


def check_counts(report: Report, labels: pd.DataFrame, card: DataCard) -> None:
    """Adds where the counts of labelled slides differ from what the card states."""
    classes = class_indices(card.classes)
    labels = labels.assign(label=labels["label"].map(lambda text: classes.get(str(text), -1)))
    level: Literal["error", "warning"] = "error" if card.counts == "exact" else "warning"
    patients = labels["patient_id"] if "patient_id" in labels else pd.Series([None] * len(labels))
    for difference in count_differences(card, labels["label"].tolist(), patients.dropna().tolist()):
        report.add(level, difference)
    for part, counts in card.split_counts.items() if "split" in labels else ():
        here = per_class(labels["label"][labels["split"] == part], card)
        if here != counts:
            report.add(level, f"{sum(here)} {part} slides ({here} by class), the card states {sum(counts)} ({counts})")
