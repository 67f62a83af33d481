"""Checks a dataset as it lies on disk: every slide, its labels, splits and counts; all that is wrong in one pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import Slide
from mil_zoo.data.card import DataCard
from mil_zoo.data.dataset import of_cohort, targets_of_patients
from mil_zoo.data.judge import Finding, judge_counts, judge_labels, judge_rows, judge_splits
from mil_zoo.data.judge_annotations import (
    Looked,
    annotations_in_words,
    judge_annotation_names,
    judge_annotations,
    look_at,
)
from mil_zoo.data.labelling import label_table, those_there, with_classes, with_task
from mil_zoo.data.labels.annotations import InstanceLabeller
from mil_zoo.data.labels.tables import class_indices
from mil_zoo.data.layouts.base import FeatureSet
from mil_zoo.data.open import Contents, Place, annotation_files, contents_of, feature_sets, locate
from mil_zoo.data.slide_rows import COLUMNS, NUMBERS, slide_row, unreadable_row
from mil_zoo.data.source import DatasetSource, as_source
from mil_zoo.errors import InputError

OnSlide = Callable[[int, int], None]  # slides done, slides in all
NO_FEATURES = "no features"  # the problem of a slide that only the labels name


@dataclass
class Report:
    """What a check found.

    Attributes:
        title: of the dataset.
        kind: of data, as the card states it: "real", "simulated", "table" or "own".
        where: the file or folder that was read.
        layout: how it is laid out.
        features: name of the set of features; empty where there is one without a name.
        slides: one row a slide: slide_id, label, patient_id, maybe split, patches, dimensions, patch_size, unit,
            geometry, isolated (patches without another one within the window), repeated (patches at the place of
            another), digest (of the features), problem.
        findings: errors first.
        annotations: what lies beside the slides, in words; empty for nothing.
        outcome: what the labels of a task without classes state, in words; empty for nothing.
    """

    title: str
    kind: str
    where: Path | str
    layout: str
    features: str = ""
    slides: pd.DataFrame = field(default_factory=pd.DataFrame)
    findings: list[Finding] = field(default_factory=list)
    annotations: str = ""
    outcome: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing has to be mended."""
        return not any(finding.level == "error" for finding in self.findings)

    def summary(self) -> dict[str, str]:
        """The facts of the report as text, by name."""
        table = self.slides
        good, lacking = table[table["problem"] == ""], int((table["problem"] == NO_FEATURES).sum())
        placed = table.dropna(subset=["patch_size"])
        steps = Counter(zip(placed["patch_size"].round(3), placed["unit"], strict=True))
        facts = {
            "kind": self.kind,
            "where": str(self.where),
            "layout": self.layout,
            "features": self.features,
            "slides": f"{len(table) - lacking}, {len(good)} without a problem"
            + f"; {lacking} more in the labels, without features" * bool(lacking),
        }
        if "label" in table:
            labels = Counter(table["label"].dropna().astype(str))
            facts["labels"] = ", ".join(f"{name}: {count}" for name, count in sorted(labels.items())) or "none"
        if self.outcome:
            facts["outcome"] = self.outcome
        if "patient_id" in table and table["patient_id"].notna().any():
            facts["patients"] = str(table["patient_id"].nunique())
        if "split" in table:
            parts = Counter(table["split"].dropna().astype(str))
            facts["split"] = ", ".join(f"{name}: {count}" for name, count in sorted(parts.items()))
        patches = table["patches"].dropna()
        if len(patches):
            low, middle, high = patches.min(), patches.median(), patches.max()
            facts["patches"] = f"{int(patches.sum()):,} ({low:,.0f} to {high:,.0f} a slide, median {middle:,.0f})"
        facts["dimensions"] = ", ".join(str(int(width)) for width in sorted(good["dimensions"].dropna().unique()))
        facts["patch size"] = ", ".join(
            f"{step:g} {unit} ({n} slide{'s' * (n != 1)})" for (step, unit), n in steps.most_common(4)
        )
        facts["patch size from"] = "; ".join(sorted(set(placed["geometry"]) - {""})[:2])
        if self.annotations:
            facts["annotations"] = self.annotations
        if len(placed):
            lonely, among = placed["isolated"].sum(), placed["patches"].sum()
            facts["isolated patches"] = f"{int(lonely):,} ({lonely / among:.2%})"
        return {name: value for name, value in facts.items() if value}

    def add(self, findings: Iterable[Finding]) -> None:
        """Adds findings, errors first."""
        self.findings = sorted([*self.findings, *findings], key=lambda finding: finding.level)


def check_dataset(
    source: DatasetSource | Path | str,
    *,
    features: Sequence[str] | None = None,
    on_slide: OnSlide | None = None,
    **fields: Any,
) -> list[Report]:
    """Reads every slide of a dataset once and says what is wrong with it.

    Memory stays that of the largest slide (of the largest file, where a layout keeps several slides in one).

    Args:
        source: how to open it; a name or a path stands for the source that has nothing else.
        features: which sets of features; None for all that are found.
        on_slide: called after each slide with the number done and the number in all.
        fields: other attributes of the :class:`DatasetSource`, for instance ``labels=Path("labels.csv")``.

    Returns:
        A report for each set of features.

    Raises:
        InputError: the dataset is unknown, or nothing is there to be checked.
    """
    source = as_source(source, **fields)
    place = locate(source)
    chosen: Sequence[FeatureSet | None] = feature_sets(place, source) or [None]
    if features is None:
        opened = (contents_of(place, source, each) for each in chosen)
    else:
        opened = (contents_of(place, replace(source, features=name)) for name in features)
    reports = []
    for contents in opened:
        report, looked = _read(contents, on_slide, place.folder if place.kind == "slides" else None)
        if place.kind != "file" or source.labels is not None:
            _judge_labels(report, contents, place, source, looked)
        reports.append(report)
    return reports


def _read(contents: Contents, on_slide: OnSlide | None, folder: Path | None) -> tuple[Report, list[Looked]]:
    """The report on what can be read, and what annotations hold; what is unreadable is a finding, the others go on."""
    features = contents.features
    report = Report(
        contents.card.title, contents.card.kind, contents.where, contents.layout, features.name if features else ""
    )
    slides = sorted(contents.bags.slides, key=lambda slide: slide.slide_id) if features else contents.bags.slides
    rows = [{"slide_id": path.stem, "problem": problem} for path, problem in contents.unreadable.items()]
    card, looked = contents.card, []
    labellers: dict[str, InstanceLabeller] = {}
    try:
        files = {} if folder is None else annotation_files(card, folder, contents.bags.slide_ids)
        for name, file in files.items():
            labellers[name] = InstanceLabeller(file, card.annotation_threshold, card.annotation_scale)
        report.add(judge_annotation_names(files, contents.bags.slide_ids, (folder or Path()) / card.annotations))
    except InputError as error:
        report.add([Finding("error", str(error))])
    for number, slide in enumerate(slides):
        bag, row = _row(slide)
        rows.append(row)
        if slide.slide_id in labellers:
            looked.append(look_at(slide.slide_id, labellers[slide.slide_id], bag))
        if on_slide is not None:
            on_slide(number + 1, len(slides))
    report.annotations = annotations_in_words(looked) if looked else ""
    table = pd.DataFrame(rows, columns=COLUMNS)
    for column in NUMBERS:
        table[column] = pd.to_numeric(table[column])
    for column in ("unit", "geometry"):
        table[column] = table[column].astype(object).fillna("")
    report.slides = table
    report.add(judge_rows(table))
    return report, looked


def _row(slide: Slide) -> tuple[Bag | None, dict[str, Any]]:
    try:
        bag = slide.read()
        return bag, slide_row(bag)
    except InputError as error:
        return None, unreadable_row(slide, str(error))


def _judge_labels(
    report: Report, contents: Contents, place: Place, source: DatasetSource, looked: Sequence[Looked]
) -> None:
    try:
        contents = with_task(contents, place, source)
        table, where = label_table(contents, place, source)
        contents = with_classes(contents, table, where, place, source)
    except InputError as error:
        # A folder of features without labels can be checked all the same; a table that is there must be right.
        table_there = source.labels is not None or (contents.features and (place.folder / "labels.csv").exists())
        asked = table_there or source.task or contents.card.classes
        told = Finding("warning", f"only the features were checked, there are no labels: {error}")
        if asked or len(report.slides) > 1:  # one slide alone is looked at, and no cohort that wants labels
            report.add([Finding("error", str(error)) if asked else told])
        report.add(judge_annotations(looked, [each.slide_id for each in looked]))
        return
    card = contents.card
    if source.allow_missing:
        table, note = those_there(table, report.slides["slide_id"].tolist(), where, report.features)
        report.add([Finding("warning", note)] if note else [])
    report.add(judge_labels(table, report.slides["slide_id"].tolist(), card, where))
    report.add(judge_splits(table, card, where))
    if card.classes or not card.of_classes:
        report.add(judge_counts(table, card))
    if not card.of_classes:
        report.outcome, found = _judge_targets(table, card, where)
        report.add(found)
    classes = class_indices(card.of_labels(table).classes)
    free = classes.get(card.lesion_free_class or "", 0)
    bare = table[table["label"].map(classes) == free] if "label" in table else table
    report.add(judge_annotations(looked, bare["slide_id"]))
    report.slides = report.slides.drop(columns=["label", "patient_id"]).merge(table, on="slide_id", how="outer")
    report.slides["problem"] = report.slides["problem"].fillna(NO_FEATURES)


def _judge_targets(table: pd.DataFrame, card: DataCard, where: Path | str) -> tuple[str, list[Finding]]:
    """What the columns say that state the targets of a task without classes, and what is wrong with them."""
    try:
        task = card.create_task().settled(table.columns.astype(str).tolist())
        targets = task.targets(table, str(where))
        stated = task.stated(targets)
        if not stated.any():
            return "", [Finding("error", f"{where}: no slide states a target; fill the columns in")]
        of_patients = targets_of_patients(table[stated].reset_index(drop=True), targets[stated], task, where)
        facts = " ".join(of_cohort(task, of_patients, where).facts(of_patients))
    except InputError as error:
        return "", [Finding("error", str(error))]
    slides = tuple(table["slide_id"][~stated])
    return facts, [Finding("warning", f"{where}: slides state no target and are left out", slides)] if slides else []
