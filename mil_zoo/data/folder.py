"""A folder of slides: which set of features is meant, and where its labels come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from mil_zoo.data.bag import Bag
from mil_zoo.data.card import DataCard
from mil_zoo.data.labels.tables import find_labels, read_labels
from mil_zoo.data.layouts.base import LAYOUTS, FeatureSet, TableLayout
from mil_zoo.errors import InputError, did_you_mean


def choose_features(found: Sequence[FeatureSet], name: str | None, folder: Path) -> FeatureSet:
    """The set of features called ``name``, or the only one.

    Raises:
        InputError: there is none of that name, or several and none was named.
    """
    names = [features.name for features in found]
    if name is None and len(found) > 1:
        raise InputError(f"{folder} holds {len(found)} sets of features; choose with --features: {', '.join(names)}")
    if name is not None and name not in names:
        raise InputError(f"{folder} holds no features called {name!r}{did_you_mean(name, names)}")
    return found[0 if name is None else names.index(name)]


def read_tables(features: FeatureSet, allow_pickle: bool = False) -> list[Bag] | None:
    """Every bag of a layout that keeps several slides in a file; None for layouts whose slides stay on disk."""
    layout = LAYOUTS.get(features.layout)
    if not isinstance(layout, TableLayout):
        return None
    return [bag for path in dict.fromkeys(features.files.values()) for bag in layout.read_all(path, allow_pickle)]


def labels_of_bags(bags: Iterable[Bag]) -> pd.DataFrame | None:
    """The labels that bags hold themselves, as a label table; None unless every one has a label."""
    rows = [(bag.slide_id, bag.label, bag.patient_id) for bag in bags]
    if not rows or any(label is None for _, label, _ in rows):
        return None
    table: pd.DataFrame = pd.DataFrame(rows, columns=["slide_id", "label", "patient_id"])
    table["label"] = table["label"].astype(str)
    return table


def labels_of_folder(
    folder: Path, given: Path | None, features: FeatureSet, own: pd.DataFrame | None, card: DataCard
) -> tuple[pd.DataFrame, Path]:
    """The label table of a folder, as text, without the slides that the card leaves out; and where it lies.

    The first of these: the one given, ``labels.csv``, what lies with the features, the only csv of labels.

    Args:
        folder: of the dataset.
        given: a csv of labels, or None.
        features: whose layout may keep labels.
        own: labels that the bags hold.
        card: names the column of the label and the slides to leave out; its patients are the first characters of slide
            ids where the table names none.

    Raises:
        InputError: there are no labels, or see :func:`read_labels`.
    """
    if given is None and not (folder / "labels.csv").exists():
        own = own if own is not None else LAYOUTS.get(features.layout).labels(features)
    else:
        own = None
    path = features.folder if own is not None else given or find_labels(folder)
    table = own if own is not None else read_labels(path, card.label_column)
    table = table[~table["slide_id"].isin(list(card.exclude))].reset_index(drop=True)
    if "patient_id" not in table and card.patient_prefix:
        table["patient_id"] = table["slide_id"].str[: card.patient_prefix]
    return table, path
