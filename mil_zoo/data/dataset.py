"""Opening a dataset: what lies at its source, judged, labelled, and joined with the one it is tested on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mil_zoo.data.bags import Bags, Slide
from mil_zoo.data.card import DataCard
from mil_zoo.data.judge import judge_counts, judge_labels, raise_errors, with_warnings
from mil_zoo.data.judge_annotations import judge_annotation_names
from mil_zoo.data.labelled import Dataset, Standardiser
from mil_zoo.data.labelling import label_table, those_there, with_classes, with_task
from mil_zoo.data.labels.names import match_names
from mil_zoo.data.labels.tables import class_indices
from mil_zoo.data.open import annotation_files, contents_of, labelled, locate
from mil_zoo.data.patients import pack_patients, pack_splits, settle_rule
from mil_zoo.data.source import DatasetSource, PatientRule, as_source
from mil_zoo.data.splits.files import published_folds, published_split
from mil_zoo.data.splits.split import patient_key, restricted
from mil_zoo.data.transfer import joined
from mil_zoo.errors import InputError
from mil_zoo.tasks import Task

__all__ = ["Dataset", "Standardiser", "open_dataset", "open_slides"]


def open_dataset(source: DatasetSource | Path | str, **fields: Any) -> Dataset:
    """Opens a dataset by its card's name, or a bag table, a folder of slides, a packed store or a file of features.

    Slides stay on disk: their names are listed, and each is read when it is needed.

    Args:
        source: how to open it; a name or a path stands for the source that has nothing else.
        fields: other attributes of the :class:`DatasetSource`, for instance ``labels=Path("labels.csv")``.

    Raises:
        InputError: unknown name, missing or damaged files, labels that do not fit, or counts that differ from the
            card's.
    """
    source = as_source(source, **fields)
    dataset = _open(source)
    if source.test_on is not None:
        dataset = joined(dataset, _open(_same_task(source.test_on, dataset, source), tested=True))
    return by_patient(dataset, source.patients or dataset.card.patient_level)


def _same_task(other: DatasetSource, dataset: Dataset, source: DatasetSource) -> DatasetSource:
    """How to open what is tested on: with the task of what is trained on, unless it is a card, which names its own.

    Columns that nobody named (of a card, or found in the header) are found anew, as the other table may call them
    otherwise.
    """
    if other.task or other.names_card or dataset.card.of_classes:
        return other
    return replace(other, task=source.task or (("name", dataset.task.name),))


def by_patient(dataset: Dataset, wanted: PatientRule | None) -> Dataset:
    """The dataset with the rule by which patients are scored, their slides in one bag where that is the rule.

    Args:
        dataset: whose bags are slides.
        wanted: the rule asked for; None for "packed" of a task that scores patients, else what fits the labels.
    """
    wanted = wanted or ("packed" if dataset.task.of_patients else None)
    rule = settle_rule(dataset.bags, wanted)
    if rule != "packed":
        return replace(dataset, patient_rule=rule)
    place = {slide.slide_id: patient_key(slide) for slide in dataset.bags.slides}
    return replace(
        dataset,
        bags=pack_patients(dataset.bags),
        published_splits=pack_splits(dataset.published_splits, dataset.bags),
        site_of={place[slide]: site for slide, site in dataset.site_of.items()},
        test_ids=tuple(dict.fromkeys(place[slide] for slide in dataset.test_ids)),
        patient_rule=rule,
    )


def open_slides(source: DatasetSource | Path | str, **fields: Any) -> Dataset:
    """Opens all slides of a dataset for what needs no labels, but those that its card leaves out.

    Labels and patients are known where a label table beside the slides states them, and None elsewhere.

    Args:
        source: how to open it; a name or a path stands for the source that has nothing else.
        fields: other attributes of the :class:`DatasetSource`.

    Raises:
        InputError: unknown name, or missing or damaged files of features.
    """
    source = as_source(source, **fields)
    place = locate(source)
    contents = contents_of(place, source)
    if contents.unreadable:
        raise InputError(next(iter(contents.unreadable.values())))
    card, rows = contents.card, {}
    try:
        table, _ = label_table(contents, place, source)
    except InputError:
        if source.labels is not None:
            raise
    else:
        card = card.of_labels(table)
        rows = {row["slide_id"]: row for row in table.to_dict("records")}
    left_out = set(match_names(card.exclude, contents.bags.slide_ids).values())
    indices = class_indices(card.classes)
    slides: list[Slide] = []
    for slide in contents.bags.slides:
        row = rows.get(slide.slide_id, {})
        patient = row.get("patient_id", slide.patient_id)
        known = {"label": indices.get(row.get("label", "")), "patient_id": None if pd.isna(patient) else str(patient)}
        if slide.slide_id not in left_out:
            slides.append(slide.changed(**known))
    return Dataset(card, Bags(slides), features=contents.features)


def _open(source: DatasetSource, tested: bool = False) -> Dataset:
    place = locate(source)
    contents = contents_of(place, source)
    if contents.unreadable:
        raise InputError(next(iter(contents.unreadable.values())))
    contents = with_task(contents, place, source)
    if not contents.card.of_classes:
        contents.card.create_task()  # a wrong setting is told before labels are looked for
    table, where = label_table(contents, place, source, tested)
    contents = with_classes(contents, table, where, place, source)
    note = ""
    if source.allow_missing:
        table, note = those_there(table, contents.bags.slide_ids, where, source.features)
    card = contents.card.of_labels(table)
    if note:
        card = replace(card, counts="published", warnings=[*card.warnings, note])
    if source.labels is not None and contents.features is None:
        note = f"Labels were replaced by {source.labels}."
        card = replace(card, bags=None, bags_per_class=None, warnings=[*card.warnings, note])
    findings = judge_labels(table, contents.bags.slide_ids, contents.card, where)
    raise_errors([*findings, *judge_counts(table, card)])
    if card.of_classes:
        table["label"] = [card.classes[i] for i in table["label"].map(class_indices(card.classes))]
    header = table.columns.astype(str).tolist()
    task = card.create_task().settled(header)
    targets = task.targets(table, str(where))
    stated = task.stated(targets)
    excluded = _left_out(table[~stated], task)
    if not stated.any():
        raise InputError(f"{where}: no slide has all of {', '.join(card.columns_of(header))}; fill them in")
    table, targets = table[stated].reset_index(drop=True), targets[stated]
    of_patients = targets_of_patients(table, targets, task, where)
    task = of_cohort(task, of_patients, where)
    events = int(of_patients[:, -1].sum()) if task.target_columns[-1] == "event" else None
    counts = judge_counts(table, card, events)
    raise_errors(counts)
    findings += counts
    if not card.of_classes:
        card = replace(card, task={"name": task.name, **task.settings()})
    notes = [*task.facts(of_patients), *_said_of(excluded, table)]
    card = replace(card, warnings=list(dict.fromkeys([*card.warnings, *notes])))  # a store's card has them
    annotations = None if contents.features is None else place.folder
    if annotations is not None:
        files = annotation_files(card, annotations, contents.bags.slide_ids)
        findings += judge_annotation_names(files, contents.bags.slide_ids, annotations / card.annotations)
    bags, annotated = labelled(replace(contents, card=card), table, task, targets, annotations)
    if annotated:
        rule = f"more than {100 * card.annotation_threshold:g} % of the patch lies in annotated lesions"
        card = replace(card, instance_labels=card.instance_labels or rule)
    site_of = dict(contents.site_of)
    if "site" not in table and card.site_prefix:
        table["site"] = table["slide_id"].str[: card.site_prefix]
    if "site" in table:
        known = table.dropna(subset=["site"])
        site_of = dict(zip(known["slide_id"], known["site"], strict=True))
    splits = restricted(contents.splits, bags.slide_ids)
    if "split" in table or "fold" in table:
        splits = published_split(table, where) if "split" in table else published_folds(table, where)
    return Dataset(
        card=with_warnings(card, findings),
        bags=bags,
        published_splits=splits,
        site_of=site_of,
        features=contents.features,
        excluded=excluded,
        covariates=_covariates(table, card, contents.covariates),
        partial=source.allow_missing,
    )


def targets_of_patients(
    table: pd.DataFrame, targets: npt.NDArray[np.float64], task: Task, where: Path | str
) -> npt.NDArray[np.float64]:
    """The targets of the patients, in the order of their first slides; where slides are scored, those of all slides.

    Raises:
        InputError: patients are scored, and one has slides of different targets.
    """
    if not task.of_patients or "patient_id" not in table:
        return targets
    patients = table["patient_id"].fillna(table["slide_id"])
    first = ~patients.duplicated()
    place = dict(zip(patients[first], np.flatnonzero(first), strict=True))
    torn = (targets != targets[patients.map(place)]).any(1)
    if torn.any():
        row = int(torn.argmax())
        patient, other = patients[row], place[patients[row]]
        values = [
            ", ".join(f"{name} {value:g}" for name, value in zip(task.target_columns, targets[i], strict=True))
            for i in (other, row)
        ]
        raise InputError(
            f"{where}: patient {patient!r} has {values[0]} on slide {table['slide_id'][other]!r} and {values[1]} on "
            f"slide {table['slide_id'][row]!r} (patients of several: {patients[torn].nunique()}); a patient has one"
        )
    return np.asarray(targets[first.to_numpy()])


def of_cohort(task: Task, of_patients: npt.NDArray[np.float64], where: Path | str) -> Task:
    """The task as the targets of its patients settle it; an ``InputError`` names where they stand."""
    try:
        return task.of_cohort(of_patients)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _left_out(table: pd.DataFrame, task: Task) -> list[tuple[str, str, str]]:
    """The slide, patient and reason of each row that states no target."""
    columns = task.columns(task.settings(), table.columns.astype(str).tolist())
    rows = []
    for row in table.to_dict("records"):
        empty = [name for name in columns if name in row and pd.isna(row[name])]
        patient = row.get("patient_id")
        rows.append((str(row["slide_id"]), "" if pd.isna(patient) else str(patient), f"no {', no '.join(empty)}"))
    return rows


def _said_of(excluded: list[tuple[str, str, str]], table: pd.DataFrame) -> list[str]:
    """What tables say of the slides without a target."""
    if not excluded:
        return []
    patients = {patient or slide for slide, patient, _ in excluded}
    kept = set(table["patient_id"].dropna()) if "patient_id" in table else set()
    partly = patients & kept
    text = f"Left out, since they state no target: {len(excluded)} slides of {len(patients)} patients (excluded.csv)."
    if partly:
        text += f" Other slides of {len(partly)} of these patients stay: {', '.join(sorted(partly)[:3])}."
    return [text]


def _covariates(table: pd.DataFrame, card: DataCard, stored: pd.DataFrame | None) -> pd.DataFrame | None:
    """The covariates that the card names, a row a patient, as text; None where there are none.

    Args:
        table: of labels.
        card: names them.
        stored: those that came with the features, where the table lacks them.
    """
    if not card.covariates:
        return None
    if not set(card.covariates) <= set(table.columns):
        return stored
    patients = table["patient_id"].fillna(table["slide_id"]) if "patient_id" in table else table["slide_id"]
    rows: pd.DataFrame = table[card.covariates].assign(patient_id=patients).drop_duplicates("patient_id")
    ordered: pd.DataFrame = rows[["patient_id", *card.covariates]].reset_index(drop=True)
    return ordered
