"""What the columns of tables are called, and how they are found however they are spelled."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import pandas as pd

from mil_zoo.errors import InputError

# What the tools in use call these columns (CLAM and TRIDENT: case_id; Giga-SSL: ID; torchmil: bag_name; STAMP: FILENAME
# and PATIENT; MIL_BASELINE: slide_path; Prov-GigaPath: pat_id; the sample sheets of the GDC: "File Name", "Case ID"),
# however they are spelled, see column_of.
COLUMNS = {
    "slide_id": (
        *("slide_id", "slide", "ID", "bag_name", "filename", "file_name", "slide_path", "slide_name", "image_id"),
        "path",
    ),
    "patient_id": ("patient_id", "case_id", "patient", "case", "pat_id", "case_submitter_id", "bcr_patient_barcode"),
    "split": ("split", "official_split"),
    "fold": ("fold",),
    "site": ("site", "tissue_source_site", "centre", "center"),
}


def column_of(table: pd.DataFrame, names: Sequence[str]) -> str | None:
    """The first of some columns that a table has, however they are spelled; None where it has none.

    ``case_id`` is also ``Case ID``, ``case.id``, ``Case-ID`` and ``CaseID``; a name in upper or lower case goes first.
    """
    columns = [str(column) for column in reversed(list(table.columns))]
    here = {_worded(column): column for column in columns} | {column.lower(): column for column in columns}
    found = (here.get(name.lower()) or here.get(_worded(name)) for name in names)
    return next((column for column in found if column is not None), None)


def check_once(table: pd.DataFrame, columns: Iterable[str | None], where: object) -> None:
    """Raises an ``InputError`` that names a column of ``columns`` that the table has twice."""
    for column in columns:
        if f"{column}.1" in table:
            raise InputError(f"{where}: the column {column!r} occurs twice; rename or drop one of them")


def _worded(name: str) -> str:
    """A name in lower case, its words joined by underscores."""
    return re.sub(r"(?<=\w)[\s.-]+(?=\w)|(?<=[a-z])(?=[A-Z])", "_", name.strip()).lower()
