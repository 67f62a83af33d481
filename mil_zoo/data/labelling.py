"""Which labels the slides at a place have, as text: those of a table, or those that lie with the features."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from mil_zoo.data.bags import Bags
from mil_zoo.data.card import DataCard
from mil_zoo.data.labels.columns import column_of
from mil_zoo.data.labels.groups import sites_of_barcodes
from mil_zoo.data.labels.names import both_sides, match_names
from mil_zoo.data.labels.tables import (
    class_indices,
    class_names,
    find_labels,
    numbered,
    read_csv,
    read_labels,
    spelled_as,
)
from mil_zoo.data.layouts.base import LAYOUTS
from mil_zoo.data.open import Contents, Place
from mil_zoo.data.source import DatasetSource
from mil_zoo.errors import InputError
from mil_zoo.tasks import Survival

_TCGA = r"^(TCGA-\w\w-\w{4})"  # a barcode up to the patient


def label_table(
    contents: Contents, place: Place, source: DatasetSource, tested: bool = False
) -> tuple[pd.DataFrame, Path | str]:
    """The labels of the slides, as text, without the slides that the card leaves out; and where they lie.

    The first of these: the table that the source names, ``labels.csv``, what lies with the features, the only csv of
    labels. Patients and sites are the first characters of slide ids where the table names none and the card says so,
    and those of TCGA barcodes where nothing else does.

    Args:
        contents: the slides, and their card.
        place: where they lie.
        source: how they are opened.
        tested: whether another dataset is tested on these, for messages.

    Raises:
        InputError: there are no labels, or see :func:`mil_zoo.data.labels.tables.read_labels`.
    """
    card, own, where = contents.card, None, contents.where
    if source.labels is None and not (contents.features and (place.folder / "labels.csv").exists()):
        own = _own_labels(contents.bags, card)
        if own is None and contents.features is not None:
            own = LAYOUTS.get(contents.features.layout).labels(contents.features)
    if own is None:
        option = "--test-labels" if tested else "--labels"
        where = source.labels or find_labels(place.folder, card.columns_of(()), option)
        own = read_labels(where, card.label_column, card.columns_of, card.covariates, _naming(card, source, tested))
    own = own.assign(slide_id=_known_names(own["slide_id"].tolist(), contents.bags.slide_ids, where))
    if "label" in own:
        own["label"] = spelled_as(own["label"], card.classes)
    left_out = set(match_names(card.exclude, own["slide_id"].tolist(), where).values())
    table = own[~own["slide_id"].isin(list(left_out))].reset_index(drop=True)
    if contents.features is None:  # in the order of the bags
        place_of = {slide_id: i for i, slide_id in enumerate(contents.bags.slide_ids)}
        order = table["slide_id"].map(lambda slide_id: place_of.get(slide_id, len(place_of)))
        table = table.iloc[order.argsort(kind="stable")].reset_index(drop=True)
    if "patient_id" not in table and card.patient_prefix:
        table["patient_id"] = table["slide_id"].str[: card.patient_prefix]
    if ("patient_id" not in table or table["patient_id"].isna().all()) and len(table):
        patients = table["slide_id"].str.extract(_TCGA, flags=re.IGNORECASE, expand=False).str.upper()
        if patients.notna().any():  # barcodes name the patient, whoever forgets the column
            table["patient_id"] = patients
    if "site" not in table and not card.site_prefix and not contents.site_of:
        sites = sites_of_barcodes(table["slide_id"])
        if sites.notna().any():
            table["site"] = sites
    return table, where


def with_task(contents: Contents, place: Place, source: DatasetSource) -> Contents:
    """The slides, whose card states the task that the source names, or that the columns of the label table tell."""
    card = contents.card.with_task(dict(source.task)) if source.task else contents.card
    return replace(contents, card=_told_by_columns(replace(contents, card=card), place, source))


def with_classes(
    contents: Contents, table: pd.DataFrame, where: Path | str, place: Place, source: DatasetSource
) -> Contents:
    """The slides with the classes that their task states, else those of a label table that has others than the card.

    Raises:
        InputError: a label is none of the classes that are stated, or their order matters and nobody stated it.
    """
    card = contents.card
    if not card.of_classes or "label" not in table:
        return contents
    stated = [str(name) for name in card.task.get("classes", ())]
    if stated:
        unknown = sorted(set(table["label"]) - set(class_indices(stated)))
        if unknown:
            raise InputError(f"{where}: label {unknown[0]!r} is none of the task's classes {', '.join(stated)}")
        same = stated == card.classes
        return contents if same else replace(contents, card=replace(card.without_classes(), classes=stated))
    known = set(table["label"]) <= set(class_indices(card.classes))
    if source.labels is not None and source.task and card.classes and not known:
        found = class_names(table)
        note = (
            f"Classes are those of {source.labels.name} ({', '.join(found)}), not the card's "
            f"({', '.join(card.classes)})."
        )
        card = replace(card.without_classes(), warnings=[*card.warnings, note])
    elif card.classes and (source.names_card or place.kind != "table"):  # a card says so, not the names in a table
        return contents
    found = card.classes or class_names(table)
    if card.task_class.ordered and not numbered(found):
        option = f"--task {card.task_class.name}:classes=[LOWEST,...,HIGHEST]"
        raise InputError(
            f"{where}: nothing says which of the classes {', '.join(found)} is above which; state them, the lowest "
            f"first, by {option} or in a card.yaml beside the features"
        )
    return replace(contents, card=card)


def those_there(
    table: pd.DataFrame, slide_ids: Sequence[str], where: Path | str, features: str | None = None
) -> tuple[pd.DataFrame, str]:
    """The rows of slides that have features, and a sentence on the others; "" where there are none.

    Args:
        table: of labels.
        slide_ids: the slides that have features.
        where: where the labels come from.
        features: the set that was asked for; None for the only one.
    """
    there = table["slide_id"].isin(list(slide_ids))
    if not there.any():
        names = both_sides(table["slide_id"], slide_ids)
        raise InputError(f"{where}: none of its {len(table)} slides has features ({names}); correct the names")
    absent = int((~there).sum())
    of = f" of {features}" if features else ""
    note = f"{absent} of the {len(table)} slides in {Path(where).name} have no features{of} and are left out, as asked."
    return table[there].reset_index(drop=True), note if absent else ""


def _told_by_columns(contents: Contents, place: Place, source: DatasetSource) -> DataCard:
    """The card, for survival where nothing says what is predicted and the label table holds times and events alone."""
    card = contents.card
    table = place.folder / "labels.csv" if source.labels is None else source.labels
    if card.task or card.classes or (source.labels is None and (contents.features is None or not table.exists())):
        return card
    header = [str(column) for column in read_csv(table).columns]
    if column_of(pd.DataFrame(columns=header), [card.label_column, "label"]) or not Survival.recognises(header):
        return card
    return card.with_task({"name": "survival"})


def _naming(card: DataCard, source: DatasetSource, tested: bool) -> str:
    """What to do where a label table calls a column of the target otherwise; "" where the task names none."""
    if card.task_class.target_columns == ("label",):
        return "rename the table's own, or write label_column: NAME into a card.yaml beside the features"
    naming = card.task_class.naming
    if naming and (tested or source.test_on is not None):
        return "rename this table's, since --test-on reads columns of the same names from both label tables"
    return naming and f"name the table's own: {naming}"


def _known_names(names: Sequence[str], known: Sequence[str], where: Path | str) -> list[str]:
    """The slides that names in a table mean; a name that means none stays as it is."""
    found = match_names(names, known, where)
    meant = [found.get(name, name) for name in names]
    repeated = [slide for slide, count in Counter(meant).items() if count > 1]
    if repeated:
        raise InputError(f"{where} names slides twice: {', '.join(repeated[:5])} ({len(repeated)} in all); correct it")
    return meant


def _own_labels(bags: Bags, card: DataCard) -> pd.DataFrame | None:
    """The labels that lie with the features, as a label table; None unless every slide has one.

    Classes are called by their names, as a class may be called by the number of another.
    """
    rows: list[list[str | None]]
    if card.of_classes:
        names = dict(enumerate(card.classes))
        columns = ["label"]
        rows = [[names.get(slide.label, str(slide.label))] for slide in bags.slides if slide.label is not None]
    else:
        columns = list(card.columns_of(()))
        targets = [slide.target for slide in bags.slides if slide.target is not None and None not in slide.target]
        rows = [[None if value != value else str(value) for value in target] for target in targets]
    if not rows or len(rows) < len(bags) or any(len(row) != len(columns) for row in rows):
        return None
    table: pd.DataFrame = pd.DataFrame(rows, columns=columns, dtype=object)
    table.insert(0, "slide_id", bags.slide_ids)
    table["patient_id"] = [slide.patient_id for slide in bags.slides]
    return table
