"""Tables of text as people save them: separators, encodings and line ends are told from the file."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from mil_zoo.data.formats.boundary import LFS, boundary, pointer
from mil_zoo.data.formats.gz import unpacked
from mil_zoo.errors import InputError

_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
MOST_MIB = 64  # that a packed table may hold: read, it takes ten times as much
_SEPARATORS = ",;\t|"
# What tables write where nothing is known, in any case and within any brackets.
_UNKNOWN = {
    *(
        "na",
        "n/a",
        "n.a.",
        "nan",
        "nil",
        "null",
        "none",
        "unknown",
        "unk",
        "undefined",
        "missing",
        "?",
        "??",
        "-",
        "--",
    ),
    *("not available", "not applicable", "not reported", "not evaluated", "not determined", "nd", "n.d.", "tbd"),
}
_COMMA = r"\s*([+-]?\d*),(\d+)\s*"
_THOUSANDS = r"\s*[+-]?[1-9]\d{0,2},\d{3}\s*"
_EXCEL = r"sep=[,;\t|]"  # a line by which Excel says what separates fields
_NOT_TEXT = {b"PK\x03\x04": "an Excel workbook", b"\xd0\xcf\x11\xe0": "an Excel workbook", b"\x89HDF": "an HDF5 file"}


def read_csv(path: Path, needs: str = "it needs a header and a row a slide") -> pd.DataFrame:
    """A csv as a table of text; what is empty is NaN, and nothing else is: "NA" and "None" are text.

    Fields are separated by commas, semicolons, tabs or bars, whichever the header has; the text is UTF-8, or UTF-16
    with its mark; a path that ends in ``.gz`` is unpacked. Blanks around names and values are dropped, so are empty
    lines, and lines before the header that begin with ``#`` or are Excel's ``sep=;``.

    Args:
        path: the file.
        needs: what the table should hold, for messages.

    Raises:
        InputError: the file is missing, no text, or a row has more fields than the header.
    """
    with boundary(path, "a readable csv", needs):
        if not path.exists() and not path.is_symlink():
            raise InputError(f"{path}: no such file; {needs}")
        if path.is_dir():
            raise InputError(f"{path} is a folder; name a csv file: {needs}")
        text = _text(path, unpacked(path, MOST_MIB, "a row of 64 bytes for a million slides"))
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        while lines and (not lines[0].strip() or lines[0].startswith("#") or re.fullmatch(_EXCEL, lines[0])):
            lines.pop(0)
        if not lines:
            raise InputError(f"{path} is empty; {needs}")
        separator = max(_SEPARATORS, key=lambda mark: (lines[0].count(mark), -_SEPARATORS.index(mark)))
        rows = [
            [field.strip() for field in row] for row in csv.reader(io.StringIO("\n".join(lines)), delimiter=separator)
        ]
    header, *rows = [row for row in rows if any(row)]
    table = []
    for number, row in enumerate(rows, 2):
        if len(row) > len(header) and any(row[len(header) :]):
            raise InputError(
                f"{path}: row {number} has {len(row)} fields and the header {len(header)}; put names that hold a "
                f"{separator!r} in quotes ({separator.join(row)[:80]})"
            )
        table.append([field or None for field in row[: len(header)]] + [None] * (len(header) - len(row)))
    made: pd.DataFrame = pd.DataFrame(table, columns=_named(header), dtype=object)
    return made


def decimal(values: pd.Series[str], where: str) -> pd.Series[str]:
    """Numbers written with a decimal comma, with a point.

    Raises:
        InputError: every comma may as well part thousands ("1,021"); the message begins with ``where``.
    """
    commas = values.str.fullmatch(_COMMA).fillna(False).astype(bool)
    if commas.any() and values[commas].str.fullmatch(_THOUSANDS).all():
        raise InputError(
            f"{where} {values[commas].iloc[0]!r} may be thousands or a decimal comma; write numbers without commas"
        )
    return values.str.replace(f"^{_COMMA}$", r"\1.\2", regex=True)


def words_for_unknown(labels: Iterable[str]) -> set[str]:
    """The labels that are words for what is not known, in any case and within any brackets."""
    return {text for text in labels if folded(text.strip("[](){}<>#'\"")) in _UNKNOWN}


def folded(label: str) -> str:
    """As it is told from others: in any case, blanks and way to write accents, without signs that have no width."""
    text = "".join(sign for sign in unicodedata.normalize("NFKC", label) if unicodedata.category(sign) != "Cf")
    return " ".join(text.casefold().split())


def labels_alike(labels: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of labels that differ in case and blanks only."""
    groups = defaultdict(list)
    for label in sorted(set(labels)):
        groups[folded(label)].append(label)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _text(path: Path, content: bytes) -> str:
    if content.startswith(LFS):
        raise pointer(path)
    for start, kind in _NOT_TEXT.items():
        if content.startswith(start):
            raise InputError(f"{path} is {kind}, not a csv; save the table as csv (UTF-8)")
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        wrong = f"byte 0x{error.object[error.start]:02x}"
        raise InputError(f"{path} is not UTF-8 text ({wrong}); save it again as UTF-8") from error
    if "\0" in text:
        raise InputError(f"{path} is no text (it holds zero bytes); save the table as csv (UTF-8)")
    return text


def _named(header: list[str]) -> list[str]:
    """Names of the columns; of several alike the later ones get a number, as pandas does it."""
    seen: dict[str, int] = {}
    names = []
    for number, name in enumerate(header):
        name = name or f"Unnamed: {number}"
        names.append(f"{name}.{seen[name]}" if name in seen else name)
        seen[name] = seen.get(name, 0) + 1
    return names
