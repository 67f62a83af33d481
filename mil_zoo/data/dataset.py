"""Opening a dataset: what lies at its source, judged, labelled, and joined with the one it is tested on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mil_zoo.data.card import DataCard
from mil_zoo.data.judge import Finding, judge_counts, judge_labels, raise_errors
from mil_zoo.data.labelled import Dataset, Standardiser
from mil_zoo.data.labels.tables import class_indices
from mil_zoo.data.open import contents_of, label_table, labelled, locate
from mil_zoo.data.patients import pack_patients, pack_splits, settle_rule
from mil_zoo.data.source import DatasetSource, as_source
from mil_zoo.data.splits.files import published_split
from mil_zoo.data.splits.split import Split, patient_key
from mil_zoo.data.transfer import joined
from mil_zoo.errors import InputError

__all__ = ["Dataset", "Standardiser", "open_dataset"]


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


def _open(source: DatasetSource) -> Dataset:
    place = locate(source)
    contents = contents_of(place, source)
    if contents.unreadable:
        raise InputError(next(iter(contents.unreadable.values())))
    if source.task:
        contents = replace(contents, card=contents.card.with_task(dict(source.task)))
    table, where = label_table(contents, place, source)
    card = contents.card.of_labels(table)
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
    splits = published_split(table, where) if "split" in table else _restricted(contents.splits, bags.slide_ids)
    return Dataset(
        card=_with_warnings(card, findings),
        bags=bags,
        published_splits=splits,
        site_of=site_of,
        features=contents.features,
    )


def _restricted(splits: Any, slide_ids: list[str]) -> list[Split]:
    """The splits without the slides that have no label."""
    known = set(slide_ids)

    def kept(part: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(slide for slide in part if slide in known)

    return [replace(split, train=kept(split.train), val=kept(split.val), test=kept(split.test)) for split in splits]


def _with_warnings(card: DataCard, findings: list[Finding]) -> DataCard:
    """The card with what tables must say."""
    return replace(card, warnings=[*card.warnings, *(finding.carried for finding in findings if finding.carried)])
