"""What is wrong with a dataset, as one list of findings: opening raises the errors, ``mil-zoo data check`` prints all.

Rules over label tables need names alone; rules over slides need the rows that reading each slide gives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from unicodedata import category

import pandas as pd

from mil_zoo.data.bags import Bags
from mil_zoo.data.card import DataCard, count_differences, per_class
from mil_zoo.data.digests import identical
from mil_zoo.data.labels.dialects import labels_alike, words_for_unknown
from mil_zoo.data.labels.names import alike, both_sides
from mil_zoo.data.labels.tables import (
    class_indices,
    class_names,
    patients_of_two_labels,
    unknown_among,
)
from mil_zoo.data.splits.split import find_leaks
from mil_zoo.errors import InputError

Level = Literal["error", "warning"]
_NAMED = 5  # slides named in a sentence


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or that should be known.

    Attributes:
        level: "error" where it must be mended, "warning" where it should be known.
        text: one sentence.
        slides: the slides or patients it concerns.
        carried: the sentence that every table of results carries; empty for none.
    """

    level: Level
    text: str
    slides: tuple[str, ...] = ()
    carried: str = ""

    @property
    def sentence(self) -> str:
        """The text with the first of its slides."""
        if not self.slides:
            return self.text
        return f"{self.text}: {', '.join(self.slides[:_NAMED])} ({len(self.slides)} in all)"


def raise_errors(findings: Sequence[Finding]) -> None:
    """Raises the first error as an ``InputError`` that counts the others."""
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more: see mil-zoo data check)" if len(errors) > 1 else ""
        raise InputError(errors[0].sentence + more)


def with_warnings(card: DataCard, findings: Sequence[Finding]) -> DataCard:
    """The card with what tables must say of the findings."""
    return replace(card, warnings=[*card.warnings, *(finding.carried for finding in findings if finding.carried)])


def judge_labels(table: pd.DataFrame, slide_ids: Sequence[str], card: DataCard, where: Path | str) -> list[Finding]:
    """What is wrong with a label table beside the slides that have features.

    Args:
        table: text columns slide_id, label and, optionally, patient_id.
        slide_ids: the slides that have features.
        card: classes, slides to leave out, and whether a label is the patient's.
        where: where the labels come from, for messages.
    """
    findings: list[Finding] = []

    def add(level: Level, text: str, slides: Iterable[str] = (), carried: str = "") -> None:
        findings.append(Finding(level, text, tuple(slides), carried))

    repeated = sorted(slide for slide, count in Counter(slide_ids).items() if count > 1)
    if repeated:
        add("error", f"dataset {card.name!r}: slides occur more than once; keep one of each", repeated)
    odd = [slide for slide in slide_ids if not slide.strip(" .\t") or not slide.replace("\t", " ").isprintable()]
    if odd:
        remedy = "names are printable text, and more than blanks and points"
        add("error", f"dataset {card.name!r}: slides cannot be called so; {remedy}", map(repr, odd))
    for group in alike(slide_ids):
        text = "slides whose names differ in case, blanks or accents only"
        add("warning", f"{text}; are they one slide?", group, f"The dataset holds {text}: {', '.join(group[:3])}.")
    for group in labels_alike(table["patient_id"].dropna().unique() if "patient_id" in table else ()):
        text = "patients whose names differ in case or blanks only"
        add("warning", f"{text}; are they one patient?", group, f"The dataset holds {text}: {', '.join(group[:3])}.")
    known, given = set(slide_ids), set(table["slide_id"])
    missing = sorted(given - known)
    if missing:
        remedy = "extract them, drop their rows, or use those there (--allow-missing)"
        spare_here = known - given - set(card.exclude)
        hint = f" ({both_sides(missing, spare_here)})" if spare_here else ""
        add("error", f"{where} names slides without features{hint}; {remedy}", missing)
    spare = sorted(known - given - set(card.exclude))
    if spare:
        text = "slides with features have no label and are left out"
        names = ", ".join(spare[:3]) + (", ..." if len(spare) > 3 else ".")
        add("warning", f"{text} (labels: {where})", spare, f"{len(spare)} {text}: {names}")
    for slide in sorted(known & set(card.exclude)):
        add("warning", f"left out by the card: {card.exclude[slide]}", [slide])
    if "label" not in table or not card.of_classes:
        return findings
    labels = table["label"].nunique()
    if not card.classes and len(table) > 4 and (labels == len(table) or labels > max(10, len(table) / 2)):
        remedy = "name the column that holds the class"
        add("error", f"{where}: {labels} different labels of {len(table)} slides are no classes; {remedy}")
    odd = table[table["label"].astype(str).str.fullmatch(r"[0-9]{7,}")]
    if not card.classes and len(odd):
        label, slides = odd["label"].iloc[0], odd["slide_id"]
        remedy = "write a class name or a small whole number, or drop the slide"
        add(
            "error", f"{where}: label {label} is a date, an id or a mark of what is missing, no class; {remedy}", slides
        )
        return findings
    here = [str(label) for label in table["label"].unique()]
    unknown = [] if card.classes else unknown_among(here)
    for label in unknown:
        remedy = "drop these slides' rows, or write a name in its place if it is a class"
        slides = table["slide_id"][table["label"] == label]
        text = f"{where}: label {label!r} beside numbers marks slides of which nothing is known"
        add("error", f"{text}; {remedy}", slides)
    for label in sorted(words_for_unknown(here) - {*unknown}) if len(here) > 2 and not card.classes else ():
        slides = table["slide_id"][table["label"] == label]
        text = f"{where}: {label!r} is taken as a class of its own"
        carried = f"The label {label!r} ({len(slides)} slides) is taken as a class of its own."
        add("warning", f"{text}; drop these slides' rows if it marks that nothing is known", slides, carried)
    torn = [label for label in (*card.classes, *here) if any(category(sign) == "Cc" for sign in label)]
    if torn:
        add("error", f"{where}: {torn[0]!r} is no name of a class; write it in one line, without control characters")
    for group in labels_alike(card.classes or table["label"]):
        add(
            "error",
            f"{where}: classes differ in case, blanks or accents only, {' and '.join(map(repr, group))}; write one",
        )
    called = card.classes or class_names(table)
    classes = class_indices(called)
    for label, group in table[~table["label"].isin(list(classes))].groupby("label"):
        remedy = "correct it, drop the slides, or take the table's classes by --labels and --task classification"
        add("error", f"{where}: label {label!r} is none of {', '.join(classes)}; {remedy}", group["slide_id"])
    torn = patients_of_two_labels(table)
    if torn:
        level: Level = "error" if card.label_of == "patient" else "warning"
        add(level, f"{where}: patients with slides of different labels", torn)
    return findings


def judge_counts(table: pd.DataFrame, card: DataCard, events: int | None = None) -> list[Finding]:
    """Where the counts of labelled slides differ from what the card states.

    Args:
        table: text columns slide_id, label and, optionally, patient_id and split.
        card: what it states.
        events: patients who had the event, where that is what is predicted and it is known.
    """
    if card.of_classes and "label" not in table:
        return []
    classes = class_indices(card.classes)
    none: pd.Series[int] = pd.Series([-1] * len(table))
    labels = table["label"].map(lambda text: classes.get(str(text), -1)) if card.of_classes else none
    patients = table["patient_id"].dropna().tolist() if "patient_id" in table else []
    differences = count_differences(card, labels.tolist(), patients)
    for part, counts in card.split_counts.items() if "split" in table else ():
        here = per_class(labels[table["split"] == part], card)
        if here != counts:
            differences.append(f"{sum(here)} {part} bags ({here} by class), its card states {sum(counts)} ({counts})")
    if events is not None and card.events not in (None, events):
        differences.append(f"{events} events, its card states {card.events}")
    if card.counts == "exact":
        remedy = "the files are incomplete or of another version"
        return [Finding("error", f"dataset {card.name!r} holds {difference}; {remedy}") for difference in differences]
    holds = [f"The dataset holds {difference}." for difference in differences]
    return [Finding("warning", text, carried=text) for text in holds]


def judge_splits(table: pd.DataFrame, card: DataCard, where: Path | str) -> list[Finding]:
    """What is wrong with the published split in the column ``split`` of a label table."""
    findings: list[Finding] = []
    if "split" not in table:
        return findings
    parts = {str(part): set(group["slide_id"]) for part, group in table.groupby("split")}
    patients = table["patient_id"] if "patient_id" in table else pd.Series([None] * len(table))
    patient_of = {
        slide: None if pd.isna(patient) else str(patient)
        for slide, patient in zip(table["slide_id"], patients, strict=True)
    }
    names = sorted(parts)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            leaks = find_leaks(parts[one], parts[other], patient_of)
            if leaks:
                published = set(leaks) <= set(card.known_leaks)
                remedy = "published so" if published else "split by patient"
                text = f"{where}: patients in both {one} and {other}; {remedy}"
                findings.append(Finding("warning" if published else "error", text, tuple(leaks)))
    for name, slides in parts.items() if "label" in table else ():
        lacking = set(table["label"]) - set(table["label"][table["slide_id"].isin(slides)])
        if lacking:
            findings.append(Finding("error", f"{where}: no {name} slide is of class {', '.join(sorted(lacking))}"))
    return findings


def judge_shapes(bags: Bags) -> list[Finding]:
    """What heads and coordinates of all files tell before anything is trained: unreadable, empty, of another dimension.

    Features are not read.
    """
    findings, dims = [], {}
    for slide in bags.slides:
        try:
            count, dim = slide.shape()
            if count:
                slide.coords()
        except InputError as error:
            findings.append(Finding("error", str(error)))
            continue
        if count == 0:
            remedy = "drop the slide or check its tissue segmentation"
            findings.append(Finding("error", f"slide {slide.slide_id!r}: the bag is empty; {remedy}"))
        else:
            dims[slide.slide_id] = dim
    usual = Counter(dims.values()).most_common(1)[0][0] if dims else 0
    odd = [slide_id for slide_id, dim in dims.items() if dim != usual]
    if odd:
        text = f"features have {usual} dimensions in most slides and others ({dims[odd[0]]}) here; use one encoder"
        findings.append(Finding("error", text, tuple(odd)))
    return findings


def judge_identical(bags: Bags, samples: Mapping[str, str]) -> list[Finding]:
    """Slides that occur under several names, in one cohort or in two; ``samples`` are their digests by id."""
    text = "slides have identical features under several names; keep one of them in the label table"
    return [Finding("error", text, group) for group in identical(bags, samples)]


def judge_rows(rows: pd.DataFrame) -> list[Finding]:
    """What is wrong with slides that were read.

    Args:
        rows: one a slide, see :class:`mil_zoo.data.check.Report`.
    """
    findings: list[Finding] = []

    def add(level: Level, text: str, slides: Iterable[str] = ()) -> None:
        findings.append(Finding(level, text, tuple(slides)))

    bad = rows[rows["problem"] != ""]
    for slide_id, problem in zip(bad["slide_id"], bad["problem"], strict=True):
        add("error", problem, [slide_id])
    good = rows[rows["problem"] == ""]
    widths = Counter(good["dimensions"].dropna().astype(int))
    if len(widths) > 1:
        usual = widths.most_common(1)[0][0]
        text = f"features have {usual} dimensions in most slides and others here; use one encoder"
        add("error", text, good[good["dimensions"] != usual]["slide_id"])
    if good["unit"].nunique() > 1:
        add("error", f"coordinates are in several units: {', '.join(sorted(good['unit'].unique()))}")
    for column, text in (("digest", "identical features under several ids"), ("slide_id", "an id occurs twice")):
        repeated = good[good.duplicated(column, keep=False)]
        for _, group in repeated.groupby(column):
            add("error", f"{text}; keep one", group["slide_id"])
    steps = Counter(good["patch_size"].dropna().round(3))
    if len(steps) > 1:
        text = ", ".join(f"{step:g} ({count})" for step, count in steps.most_common(4))
        add("warning", f"patch sizes differ between slides: {text}; right where magnifications do")
    twins = good[good["repeated"] > 0]
    if len(twins):
        add("warning", f"{int(twins['repeated'].sum())} patches lie at the place of another one", twins["slide_id"])
    beside = good[good["geometry"].astype(str).str.contains(" of ../", regex=False)]
    if len(beside):
        text = f"the patch size lies in a folder beside that of the features: {beside['geometry'].iloc[0]}"
        add("warning", text, beside["slide_id"])
    measured = good[good["geometry"].astype(str).str.startswith("the coordinates' own step")]
    if len(measured):
        text = f"the patch size is measured, not stated: {measured['geometry'].iloc[0]}"
        add("warning", text, measured["slide_id"])
    return findings
