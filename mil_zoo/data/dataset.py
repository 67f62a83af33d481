"""Opening a dataset: what lies at its source, judged, labelled, and joined with the one it is tested on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mil_zoo.data.bags import Bags, Slide
from mil_zoo.data.judge import judge_counts, judge_labels, raise_errors, with_warnings
from mil_zoo.data.judge_annotations import judge_annotation_names
from mil_zoo.data.labelled import Dataset, Standardiser
from mil_zoo.data.labels.names import match_names
from mil_zoo.data.labels.tables import class_indices
from mil_zoo.data.open import annotation_files, contents_of, label_table, labelled, locate, those_there
from mil_zoo.data.patients import pack_patients, pack_splits, settle_rule
from mil_zoo.data.source import DatasetSource, as_source
from mil_zoo.data.splits.files import published_split
from mil_zoo.data.splits.split import patient_key, restricted
from mil_zoo.data.transfer import joined
from mil_zoo.errors import InputError

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
        dataset = joined(dataset, _open(source.test_on))
    rule = settle_rule(dataset.bags, source.patients or dataset.card.patient_level)
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


def _open(source: DatasetSource) -> Dataset:
    place = locate(source)
    contents = contents_of(place, source)
    if contents.unreadable:
        raise InputError(next(iter(contents.unreadable.values())))
    if source.task:
        contents = replace(contents, card=contents.card.with_task(dict(source.task)))
    table, where = label_table(contents, place, source)
    note = ""
    if source.allow_missing:
        table, note = those_there(table, contents.bags.slide_ids, where)
    card = contents.card.of_labels(table)
    if note:
        card = replace(card, counts="published", warnings=[*card.warnings, note])
    if source.labels is not None and contents.features is None:
        note = f"Labels were replaced by {source.labels}."
        card = replace(card, bags=None, bags_per_class=None, warnings=[*card.warnings, note])
    findings = judge_labels(table, contents.bags.slide_ids, contents.card, where)
    findings += judge_counts(table, card)
    raise_errors(findings)
    if "label" in table:
        table["label"] = table["label"].map(class_indices(card.classes)).astype(str)
    task = card.create_task()
    targets = task.targets(table, str(where))
    stated = np.flatnonzero(~np.isnan(targets).any(1))
    table, targets = table.iloc[stated].reset_index(drop=True), targets[stated]
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
    splits = published_split(table, where) if "split" in table else restricted(contents.splits, bags.slide_ids)
    return Dataset(
        card=with_warnings(card, findings),
        bags=bags,
        published_splits=splits,
        site_of=site_of,
        features=contents.features,
        partial=source.allow_missing,
    )
