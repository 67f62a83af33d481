"""Groups of patients (site, scanner, sex, stage ...) that scores are told apart by."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from mil_zoo.data.labels.columns import COLUMNS, check_once, column_of
from mil_zoo.data.labels.dialects import labels_alike, read_csv
from mil_zoo.data.labels.names import match_names
from mil_zoo.errors import InputError, did_you_mean

_BARCODE = re.compile(r"^TCGA-(\w\w)-\w{4}", re.IGNORECASE)


def read_groups(
    columns: Sequence[str],
    slides: Sequence[tuple[str, str]],
    table: Path | None = None,
    known: Mapping[str, Mapping[str, str]] | None = None,
) -> pd.DataFrame:
    """The group of every slide in each of some columns.

    Args:
        columns: their names; "site" is told by TCGA barcodes too.
        slides: slide and patient ids; "" where the patient is unknown.
        table: csv with slide_id or patient_id and the columns; None for what is ``known``.
        known: column -> slide or patient id -> group.

    Returns:
        ``slide_id``, ``patient_id`` and the columns, "" where a slide has no group.

    Raises:
        InputError: a column is nowhere, or a patient has several values in one; the message names them.
    """
    made = pd.DataFrame([*slides], columns=["slide_id", "patient_id"])
    owner = made["patient_id"].where(made["patient_id"] != "", made["slide_id"])
    read = None if table is None else read_csv(table, "it needs slide_id or patient_id, and a column a group")
    for column in dict.fromkeys(columns):
        if column in ("slide_id", "patient_id"):
            raise InputError(f"--by {column}: each would be a group of its own; name a column of groups, as site")
        name = None if read is None else column_of(read, [column])
        if read is not None and name is not None:
            values = _of_table(read, name, made, owner, Path(str(table)))
        elif known and column in known:
            values = made["slide_id"].map(known[column].get).fillna(owner.map(known[column].get)).fillna("")
        elif column == "site" and (sites := sites_of_barcodes(made["slide_id"])).notna().any():
            values = sites.fillna("")
        else:
            where = "--groups TABLE" if table is None else str(table)
            near = did_you_mean(column, map(str, read.columns)) if read is not None else ""
            raise InputError(
                f"--by {column}: {where} has no such column{near}"
                if table is not None
                else f"--by {column}: nothing says the {column} of a slide; pass --groups TABLE.csv with slide_id or "
                f"patient_id and {column}"
            )
        for alike in labels_alike(values[values != ""]):
            raise InputError(
                f"--by {column}: {' and '.join(map(repr, alike))} differ in case, blanks or accents only; write them "
                "alike"
            )
        several = values[values != ""].groupby(owner).unique()
        several = several[several.map(len) > 1]
        if len(several):
            found = ", ".join(map(repr, several.iloc[0]))
            raise InputError(
                f"--by {column}: patient {several.index[0]!r} has {len(several.iloc[0])} values ({found}; "
                f"{len(several)} such patients); a group is of patients, so correct the table or name another column"
            )
        own = values[values != ""].groupby(owner).first()
        made[column] = owner.map(own).fillna("")
    return made


def sites_of_barcodes(slides: pd.Series[str]) -> pd.Series[str]:
    """The tissue source site of each slide whose id begins with a TCGA barcode; NaN for others."""
    return slides.str.extract(_BARCODE, expand=False).str.upper()


def _of_table(read: pd.DataFrame, name: str, made: pd.DataFrame, owner: pd.Series[str], table: Path) -> pd.Series[str]:
    of_slide, of_patient = (column_of(read, COLUMNS[key]) for key in ("slide_id", "patient_id"))
    if of_slide is None and of_patient is None:
        raise InputError(f"{table}: it names neither slides nor patients; add a column slide_id or patient_id")
    check_once(read, [name, of_slide, of_patient], table)
    given = read[read[name].notna()]  # "NA" and "ND" are sites of TCGA
    values = pd.Series("", index=made.index, dtype=object)
    if of_slide is not None:
        means = match_names(given[of_slide].dropna().tolist(), made["slide_id"].tolist(), table)
        known = {
            means[slide]: value for slide, value in zip(given[of_slide], given[name], strict=True) if slide in means
        }
        values = made["slide_id"].map(lambda slide: known.get(slide, ""))
    if of_patient is not None and (values == "").any():
        means = match_names(given[of_patient].dropna().tolist(), [who for who in owner.unique() if who], table)
        several = given.groupby(given[of_patient].map(means.get))[name].unique()
        for patient in several[several.map(len) > 1].index:
            found = ", ".join(map(repr, several[patient]))
            raise InputError(
                f"--by {name}: patient {patient!r} has {len(several[patient])} values ({found}) in {table}; a "
                "group is of patients, so correct the table or name another column"
            )
        first = {patient: found[0] for patient, found in several.items()}
        values = values.where(values != "", owner.map(lambda who: first.get(who, "")))
    if (values == "").all():
        raise InputError(
            f"{table}: no id there is of this run's slides or patients; is it the table of another dataset?"
        )
    return values
