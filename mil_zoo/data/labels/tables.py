"""Label tables: the csv files that say which slide is of which class, patient and published split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from mil_zoo.data.layouts.base import slide_name
from mil_zoo.errors import InputError, did_you_mean

# What the tools in use call these columns (CLAM and TRIDENT: case_id; Giga-SSL: ID; torchmil: bag_name).
COLUMNS = {
    "slide_id": ("slide_id", "slide", "ID", "bag_name"),
    "patient_id": ("patient_id", "case_id", "patient", "case"),
    "split": ("split", "official_split"),
    "site": ("site", "tissue_source_site", "centre", "center"),
}
NEEDS = "it needs the columns slide_id and label, and may have patient_id (or case_id) and split"


def read_labels(path: Path, label_column: str = "label", target_columns: Sequence[str] = ("label",)) -> pd.DataFrame:
    """Reads a csv (also ``.csv.gz``) of labels.

    Args:
        path: columns slide_id (or slide, ID, bag_name), the label, and optionally patient_id (or case_id, patient) and
            split. A slide id may carry the suffix of its image, ``.svs`` for instance.
        label_column: which column is the label; ``label`` where there is no such column.
        target_columns: what the task reads: the label, or columns of these names.

    Returns:
        Text columns ``slide_id``, those of the target and, where the file has them, ``patient_id``, ``split`` and
        ``site``.

    Raises:
        InputError: the file is missing, not a csv in UTF-8, lacks a column or a value, or names a slide twice.
    """
    table = read_csv(path)
    columns = {name: next((c for c in known if c in table), None) for name, known in COLUMNS.items()}
    columns |= {name: name if name in table else None for name in target_columns}
    if "label" in target_columns:
        columns["label"] = next((c for c in (label_column, "label") if c in table), None)
    for name in ("slide_id", *target_columns):
        column = columns[name]
        if column is None:
            wanted = label_column if name == "label" else name
            near = did_you_mean(wanted, table.columns)
            raise InputError(f"{path}: the column {wanted!r} is missing{near}; {NEEDS}")
        if name in ("slide_id", "label") and table[column].isna().any():
            raise InputError(f"{path}: {column} is empty in row {int(table[column].isna().argmax()) + 2}; fill it in")
    found = {name: table[column].str.strip() for name, column in columns.items() if column is not None}
    labels: pd.DataFrame = pd.DataFrame(found)
    labels["slide_id"] = labels["slide_id"].map(slide_name)
    repeated = [slide for slide, count in Counter(labels["slide_id"]).items() if count > 1]
    if repeated:
        raise InputError(f"{path} names slides twice: {', '.join(repeated[:5])} ({len(repeated)} in all); correct it")
    return labels


def read_csv(path: Path) -> pd.DataFrame:
    """A csv as a table of text; every fault is one sentence."""
    try:
        table: pd.DataFrame = pd.read_csv(path, dtype=str, encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {NEEDS}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte 0x{error.object[error.start]:02x}); save it again as UTF-8"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable csv ({error}); {NEEDS}") from error
    else:
        return table


def find_labels(folder: Path) -> Path:
    """The label table in a folder of slides: ``labels.csv``, or the only csv with the columns slide_id and label.

    Raises:
        InputError: there is none, or several.
    """
    if (folder / "labels.csv").exists():
        return folder / "labels.csv"
    found = [path for path in sorted(folder.glob("*.csv")) if _is_label_table(path)]
    if len(found) != 1:
        what = f"several label tables ({', '.join(path.name for path in found)})" if found else "no labels.csv"
        raise InputError(f"{folder} holds {what}; pass --labels FILE.csv: {NEEDS}")
    return found[0]


def _is_label_table(path: Path) -> bool:
    try:
        header = set(pd.read_csv(path, nrows=0, encoding="utf-8-sig").columns)
    except (OSError, ValueError):
        return False
    return "label" in header and bool(header.intersection(COLUMNS["slide_id"]))


def class_names(table: pd.DataFrame) -> list[str]:
    """Names of the classes of a table without a card: ``class 0``, ... where labels are numbers, else the labels."""
    labels = set(table["label"])
    if all(label.isdigit() for label in labels):
        return [f"class {label}" for label in range(max(2, 1 + max(map(int, labels))))]
    return sorted(labels)


def class_indices(classes: list[str]) -> dict[str, int]:
    """Every text that names a class, to its index: the name, and the index itself."""
    return {str(i): i for i in range(len(classes))} | {name: i for i, name in enumerate(classes)}


def labels_as_indices(table: pd.DataFrame, classes: Mapping[str, int], path: Path) -> pd.Series[int]:
    """The class index of each row; an ``InputError`` names a label that is none."""
    unknown = ~table["label"].isin(list(classes))
    if unknown.any():
        row = table[unknown].iloc[0]
        raise InputError(f"{path}: slide {row['slide_id']!r} has label {row['label']!r}, not {', '.join(classes)}")
    return table["label"].map(classes).astype(int)


def patients_of_two_labels(table: pd.DataFrame) -> list[str]:
    """Patients whose slides have different labels, sorted."""
    if "patient_id" not in table:
        return []
    known = table.dropna(subset=["patient_id"])
    labels = known.groupby("patient_id")["label"].nunique()
    return sorted(labels.index[labels > 1])


def patients_in(path: Path) -> dict[str, str]:
    """The patient of each slide that a csv names one for; an ``InputError`` where it lacks slide_id or patient_id."""
    table = read_csv(path)
    columns = [next((c for c in COLUMNS[name] if c in table), None) for name in ("slide_id", "patient_id")]
    if None in columns:
        raise InputError(f"{path}: the column slide_id or patient_id (case_id) is missing")
    known = table[columns].dropna()
    return {slide_name(slide): patient for slide, patient in known.itertuples(index=False)}
