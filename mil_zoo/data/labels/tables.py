"""Label tables: the csv files that say which slide is of which class, patient and published split."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd

from mil_zoo.data.labels import dialects
from mil_zoo.data.labels.columns import COLUMNS, check_once, column_of
from mil_zoo.data.labels.dialects import folded, words_for_unknown
from mil_zoo.data.layouts.base import slide_name
from mil_zoo.errors import InputError, did_you_mean

_NO_SPLIT = ("", "na", "n/a", "nan", "none", "null", "-", "unused")
_WHOLE = re.compile(r"[0-9]+")
_CLASS = re.compile(r"class ([0-9]+)")
_NUMBERED = re.compile(r"(class )?[0-9]")
_NUMBER = re.compile(r"([+-]?[0-9]{1,18})(\.0+)?")
_PADDED = r"\+?0*([0-9]+)"
_FULL = (99, 255, 999, 9999, 65535, 99999, 999999)  # numbers that stand for nothing far above the classes


def needs(target_columns: Sequence[str] = ("label",)) -> str:
    """What a label table must hold, in words."""
    *first, last = "slide_id", *target_columns
    return f"it needs the columns {', '.join(first)} and {last}, and may have patient_id (or case_id) and split"


def read_csv(path: Path) -> pd.DataFrame:
    """A csv as a table of text, see :func:`mil_zoo.data.labels.dialects.read_csv`."""
    return dialects.read_csv(path, needs())


def read_labels(
    path: Path,
    label_column: str = "label",
    columns_of: Callable[[Sequence[str]], Sequence[str]] = lambda header: ("label",),
    covariates: Sequence[str] = (),
    naming: str = "",
) -> pd.DataFrame:
    """Reads a csv (also ``.csv.gz``) of labels.

    Args:
        path: columns slide_id (see ``COLUMNS`` for its other names), the label, and optionally patient_id (or case_id,
            patient), split and fold.
        label_column: which column is the label; ``label`` where there is no such column.
        columns_of: which columns the task reads, of those that the table has: the label, or others.
        covariates: further columns to keep, each of which must be there.
        naming: what to do where the table calls a column of the target otherwise, for messages.

    Returns:
        Text columns ``slide_id``, those of the target, the covariates and, where the file has them, ``patient_id``,
        ``split``, ``fold`` and ``site``. Names are as they are written; ``1.0`` as a label is ``1``.

    Raises:
        InputError: the file is missing, not a csv, has no rows, lacks a column or a value, or has one twice.
    """
    table = read_csv(path)
    columns = {name: column_of(table, known) for name, known in COLUMNS.items()}
    try:
        target_columns = columns_of([str(column) for column in table.columns])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    columns |= {name: column_of(table, [name]) for name in (*target_columns, *covariates)}
    if "label" in target_columns:
        columns["label"] = column_of(table, [label_column, "label"])
    for name in ("slide_id", *target_columns, *covariates):
        column = columns[name]
        if column is None:
            wanted = label_column if name == "label" else name
            near = did_you_mean(wanted, map(str, table.columns))
            remedies = [naming] * (bool(naming) and name in target_columns)
            remedies += [needs(target_columns)] * (name == "label" or not remedies)
            raise InputError(f"{path}: the column {wanted!r} is missing{near}; {'; '.join(remedies)}")
        check_once(table, [column], path)
        if name in ("slide_id", "label") and table[column].isna().any():
            raise InputError(f"{path}: {column} is empty in row {int(table[column].isna().argmax()) + 2}; fill it in")
    if not len(table):
        raise InputError(f"{path} holds a header and no rows; {needs(target_columns)}")
    labels: pd.DataFrame = pd.DataFrame({name: table[column] for name, column in columns.items() if column is not None})
    for name in target_columns:
        labels[name] = dialects.decimal(labels[name], f"{path}: {name}")
    if "label" in target_columns:
        labels["label"] = labels["label"].str.replace(r"^(-?[0-9]+)\.0+$", r"\1", regex=True)
    for name in {"split", "fold"} & set(labels):
        labels[name] = labels[name].where(~labels[name].str.lower().isin(_NO_SPLIT), None)
    return labels


def find_labels(folder: Path, target_columns: Sequence[str] = ("label",), option: str = "--labels") -> Path:
    """The label table in a folder of slides: ``labels.csv``, or the only csv with the columns slide_id and label.

    Args:
        folder: where the slides lie.
        target_columns: what the task reads, for messages.
        option: by which another table is given, for messages.

    Raises:
        InputError: there is none, or several.
    """
    if (folder / "labels.csv").exists():
        return folder / "labels.csv"
    found = [path for path in sorted(folder.glob("*.csv")) if _is_label_table(path)]
    if len(found) != 1:
        what = f"several label tables ({', '.join(path.name for path in found)})" if found else "no labels.csv"
        raise InputError(f"{folder} holds {what}; pass {option} FILE.csv: {needs(target_columns)}")
    return found[0]


def _is_label_table(path: Path) -> bool:
    try:
        table = read_csv(path)
    except InputError:
        return False
    return column_of(table, ["label"]) is not None and column_of(table, COLUMNS["slide_id"]) is not None


def class_names(table: pd.DataFrame) -> list[str]:
    """Names of the classes of a table without a card: ``class 0``, ``class 1``, ... of labels that are numbers.

    Numbers that do not count from 0 name the classes that are there: 1 and 2 are two classes.
    """
    labels = set(table["label"])
    if not all(_WHOLE.fullmatch(label) for label in labels):
        return sorted(labels)
    numbers = sorted({int(label) for label in labels})
    return [f"class {number}" for number in ([0, 1] if set(numbers) <= {0, 1} else numbers)]


def class_indices(classes: Sequence[str]) -> dict[str, int]:
    """Every text that names a class, to its index: the name, and the index itself.

    Of classes that are numbers, the number is the name: with ``class 1`` and ``class 2``, "1" is the first one.
    """
    return {str(number): i for i, number in enumerate(class_numbers(classes))} | {
        name: i for i, name in enumerate(classes)
    }


def numbered(classes: Sequence[str]) -> bool:
    """Whether the names of classes begin with numbers, which say their order: ``class 0``, ``3`` or ``3+4``."""
    return all(_NUMBERED.match(name) for name in classes)


def class_numbers(classes: Sequence[str]) -> list[int]:
    """The number by which a table may call each class: that of its name (``class 2``), else its index."""
    numbers = [_CLASS.fullmatch(name) for name in classes]
    return [int(match[1]) if match and all(numbers) else i for i, match in enumerate(numbers)]


def unknown_among(labels: Iterable[str]) -> list[str]:
    """Labels that mark that nothing is known among others that number classes: "-1", "NA" or "255" beside 0 and 1.

    -1 beside 1 alone is a class, and so is 255 beside one other number.
    """
    texts = set(labels)
    numbers = {text: int(match[1]) for text in texts if (match := _NUMBER.fullmatch(text))}
    counted = sorted({number for number in numbers.values() if number >= 0})
    if len(counted) > 2 and counted[-1] in _FULL and counted[-2] < counted[-1] - 1:
        counted.pop()
    marks = {text for text, number in numbers.items() if number not in counted and (number >= 0 or counted != [1])}
    return sorted(marks | words_for_unknown(texts)) if counted else []


def spelled_as(labels: pd.Series[str], classes: Sequence[str]) -> pd.Series[str]:
    """Labels that name one of ``classes`` but for case and blanks, as it is written; the others as they are.

    Where there are no classes yet, whole numbers are written alike: "01" and "+1" are 1.
    """
    if not classes:
        labels = labels.str.replace(r"^\u2212(?=[0-9]+$)", "-", regex=True)  # the minus of typesetting
        padded = labels.str.fullmatch(_PADDED).all()
        return labels.str.replace(f"^{_PADDED}$", r"\1", regex=True) if padded else labels
    written = {folded(name): name for name in classes}
    known = set(class_indices(classes))
    return labels.map(lambda label: label if label in known else written.get(folded(label), label))


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
    columns = [column_of(table, COLUMNS[name]) for name in ("slide_id", "patient_id")]
    if None in columns:
        raise InputError(f"{path}: the column slide_id or patient_id (case_id) is missing")
    known = table[columns].dropna()
    return {slide_name(slide): patient for slide, patient in known.itertuples(index=False)}
