"""Split files of CLAM, torchmil, Giga-SSL, PANTHER, Prov-GigaPath, PseMix and MIL_BASELINE, and our own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from mil_zoo.data.formats.npy import load_arrays
from mil_zoo.data.labels.columns import COLUMNS, column_of
from mil_zoo.data.labels.dialects import read_csv
from mil_zoo.data.layouts.base import slide_name
from mil_zoo.data.splits.split import Split
from mil_zoo.errors import InputError

PARTS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "withheld": "withheld",  # our own: training slides whose labels are not used
}
_CODES = {1: "train", 2: "test"}  # of Giga-SSL bundles; 0 is unused
_OWN = re.compile(r"r(\d+)-f(\d+)")
_ID_COLUMNS = (*COLUMNS["slide_id"], "pathology_id")
# A file a fold: CLAM's splits_0.csv, Giga-SSL's split_0.csv, PseMix's TCGA_BRCA-fold0.npz, MIL_BASELINE's ..._1fold.csv
_FOLD_FILES = (
    re.compile(r"splits?_(\d+)\.csv"),
    re.compile(r".*[-_]fold[-_]?(\d+)\.(?:csv|npz)"),
    re.compile(r".*[-_](\d+)[-_]?fold\.csv"),
)
_PART_FILE = re.compile(r"(train|valid|validation|val|test)(?:_(.+))?\.csv")  # PANTHER, Prov-GigaPath (train_0.csv)
_FOLD_FOLDER = re.compile(r".*(?:k=|fold[-_]?)(\d+)")  # PANTHER: TCGA_BLCA_overall_survival_k=0/train.csv
_FEATURES = re.compile(r"\.(pt|pth|h5|hdf5|npy|npz|pkl|feather|zarr)$", re.IGNORECASE)


@dataclass(frozen=True)
class SplitFile:
    """What a split file holds.

    Attributes:
        splits: by name; several where the file has several columns or arrays of splits, or a folder several test files.
        patient_of: patient of each slide id, where the file tells.
        of_patients: whether the ids in the splits are those of patients (PseMix).
    """

    splits: dict[str, list[Split]]
    patient_of: dict[str, str]
    of_patients: bool = False


_NEEDS = "a split file lists slides in columns train, val and test, or has the columns slide_id and split"


def read_split_file(path: Path) -> SplitFile:
    """Reads a split file or a folder of them.

    Args:
        path: one of

            - a folder with ``splits_0.csv``, ``splits_1.csv``, ... (CLAM), ``split_0.csv``, ... (Giga-SSL),
              ``NAME-fold0.npz``, ... (PseMix) or ``NAME_1fold.csv``, ... (MIL_BASELINE), a fold each;
            - a folder with ``train.csv``, ``val.csv`` (or none) and ``test.csv``, each a table with slide_id (PANTHER;
              ``test_<name>.csv`` are further test sets, ``FOLDER:test_<name>``), or with ``train_0.csv``, ...
              (Prov-GigaPath), or a folder with a folder of those a fold (PANTHER: ``..._k=0``);
            - a csv with the columns train and test, and val where there is one, each a list of slide ids (CLAM,
              Giga-SSL), or true and false for each slide (CLAM's ``_bool`` files);
            - a csv with the columns train_slide_path and test_slide_path (MIL_BASELINE): file names are the ids;
            - a csv with slide_id (or bag_name), and split: train, val, test or empty (torchmil, label tables);
            - a csv with slide_id and a column a split (``splits.csv`` of a run: r0-f0, r0-f1, ...);
            - a ``.npz`` with slide_id and ``split_<name>`` int8 ``[splits, slides]``: 0 unused, 1 train, 2 test;
            - a ``.npz`` with train_patients, test_patients and perhaps val_patients (PseMix).

    Raises:
        InputError: nothing is there, or it is none of those.
    """
    if path.is_dir():
        return _from_folder(path)
    if path.suffix == ".npz":
        return _from_npz(path)
    table = read_csv(path, _NEEDS)
    table = table.rename(columns={f"{part}_slide_path": part for part in ("train", "val", "test")})
    parts = {name: PARTS[name.lower()] for name in map(str, table.columns) if name.lower() in PARTS}
    if len(set(parts.values())) == len(parts):  # "Train" and "Validation"; two columns of one part are told below
        table = table.rename(columns=parts)
    if {"train", "test"} <= set(table.columns):
        return SplitFile({path.name: [_from_columns(path, table)]}, {})
    return _from_rows(path, table)


def _from_folder(path: Path) -> SplitFile:
    inside = sorted(path.iterdir())
    for pattern in _FOLD_FILES:
        numbered = sorted((int(match[1]), file) for file in inside if (match := pattern.fullmatch(file.name)))
        if numbered:
            read = [(read_split_file(file), file) for _, file in numbered]
            folds = [replace(_only(one, file), fold=fold) for fold, (one, file) in enumerate(read)]
            patients = {slide: patient for one, _ in read for slide, patient in one.patient_of.items()}
            return SplitFile({path.name: folds}, patients, read[0][0].of_patients)
    folders = sorted((int(match[1]), sub) for sub in inside if (match := _FOLD_FOLDER.fullmatch(sub.name)))
    folders = [(number, sub) for number, sub in folders if sub.is_dir() and any(sub.glob("train*.csv"))]
    if folders:
        read = [(_from_parts(sub), sub) for _, sub in folders]
        found = [one.splits if len(one.splits) > 1 else {"test": next(iter(one.splits.values()))} for one, _ in read]
        names = [name for name in found[0] if all(name in one for one in found)]
        together = {name: [replace(one[name][0], fold=i) for i, one in enumerate(found)] for name in names}
        if not together:
            raise InputError(f"{path}: its folders have no test set in common; name one folder")
        return SplitFile(together, {slide: p for one, _ in read for slide, p in one.patient_of.items()})
    if any(_PART_FILE.fullmatch(file.name) for file in inside):
        return _from_parts(path)
    raise InputError(
        f"{path}: no splits_0.csv, splits_1.csv, ... in it, nor train.csv and test.csv; see mil-zoo bench --help"
    )


def _from_parts(path: Path) -> SplitFile:
    """A table a part: train.csv, val.csv, test.csv; train_0.csv, ...; further test sets are test_<name>.csv."""
    tables: dict[str, dict[str, list[str]]] = {"train": {}, "val": {}, "test": {}}
    patient_of: dict[str, str] = {}
    for file in sorted(path.iterdir()):
        if match := _PART_FILE.fullmatch(file.name):
            table = read_csv(file, _NEEDS)
            column = _column(file, table)
            ids = [_slide(text) for text in table[column].dropna()]
            tables[PARTS[match[1]]][match[2] or ""] = ids
            of_patients = column_of(table, COLUMNS["patient_id"])
            if of_patients is not None:
                patients = table[of_patients][table[column].notna()].fillna("").astype(str)
                patient_of.update(zip(ids, patients, strict=True))
    known = {slide: patient for slide, patient in patient_of.items() if patient}
    if not tables["train"] or not tables["test"]:
        raise InputError(f"{path}: no {'train' if not tables['train'] else 'test'}.csv beside the others; add it")
    folds = [name for name in tables["train"] if name.isdigit()]
    if folds:
        splits = [
            _checked(
                path / f"train_{name}.csv",
                Split(0, fold, *(tuple(tables[part].get(name, ())) for part in ("train", "val", "test"))),
            )
            for fold, name in enumerate(sorted(folds, key=int))
        ]
        return SplitFile({path.name: splits}, known)
    train, val = tables["train"].get("", []), tables["val"].get("", [])
    found = {
        f"test_{name}" if name else "test": [
            _checked(path / f"test{'_' * bool(name)}{name}.csv", Split(0, 0, tuple(train), tuple(val), tuple(ids)))
        ]
        for name, ids in tables["test"].items()
    }
    return SplitFile(found if len(found) > 1 else {path.name: next(iter(found.values()))}, known)


def _column(path: Path, table: pd.DataFrame) -> str:
    column = column_of(table, _ID_COLUMNS)
    if column is None:
        raise InputError(
            f"{path} is no split file: it has neither the columns train and test nor slide_id; see mil-zoo bench --help"
        )
    return column


def _slide(text: str) -> str:
    """A slide's id from an id, a file name or a path of its image or features."""
    return slide_name(_FEATURES.sub("", re.split(r"[/\\]", text.strip())[-1]))


def _only(file: SplitFile, path: Path) -> Split:
    (splits,) = file.splits.values() if len(file.splits) == 1 else ([],)
    if len(splits) != 1:
        raise InputError(f"{path} must hold one split, in the columns train, val and test")
    return splits[0]


def _from_columns(path: Path, table: pd.DataFrame) -> Split:
    parts = {}
    for part in ("train", "val", "test"):
        ids = table[part].dropna() if part in table else pd.Series(dtype=str)
        if len(ids) and ids.str.lower().isin(["true", "false"]).all():
            ids = table.loc[table[part].str.lower() == "true", table.columns[0]]
        parts[part] = tuple(map(_slide, ids))
    return _checked(path, Split(0, 0, **parts))


def _from_rows(path: Path, table: pd.DataFrame) -> SplitFile:
    column = _column(path, table)
    ids = table[column].astype(str).map(_slide)
    names = [name for name in table.columns if name != column and _is_split(table[name])]
    if not names:
        raise InputError(f"{path}: no column of train, val and test beside {column}{_odd_part(table)}")
    splits = {}
    for name in names:
        part = table[name].str.strip().str.lower().map(PARTS)
        splits[name] = [_checked(path, of_parts(ids, part))]
    if all(_OWN.fullmatch(name) for name in names):
        places = {name: [int(number) for number in name[1:].split("-f")] for name in names}
        splits = {path.name: [replace(splits[name][0], repeat=r, fold=f) for name, (r, f) in places.items()]}
    of_patients = column_of(table, COLUMNS["patient_id"])
    patients = pd.Series(dtype=str) if of_patients is None else table[of_patients].dropna()
    return SplitFile(splits, dict(zip(ids[patients.index], patients, strict=True)))


def of_parts(ids: pd.Series[str], part: pd.Series[str]) -> Split:
    """The split of slides ``ids`` whose parts are train, val, test or missing."""
    return Split(0, 0, *(tuple(ids[part == side].tolist()) for side in ("train", "val", "test", "withheld")))


def _is_split(values: pd.Series[str]) -> bool:
    found = set(values.dropna().str.strip().str.lower())
    return bool(found) and found <= set(PARTS)


def _odd_part(table: pd.DataFrame) -> str:
    """What keeps a column from being one of parts, as the end of a sentence; "" where none comes near."""
    if table.empty:
        return ": it holds a header and no rows"
    for name in table.columns:
        words = table[name].dropna().str.strip().str.lower()
        if name.lower() == "fold":
            return "; a column fold belongs into the label table, for --folds published"
        if words.isin(list(PARTS)).any() or name.lower() in ("split", "part", "subset"):
            odd = next(word for word in [*words, "nothing"] if word not in PARTS)
            return f": the column {name} holds {odd!r}, which is none of them"
    return ""


def _from_npz(path: Path) -> SplitFile:
    arrays = load_arrays(path)
    if {"train_patients", "test_patients"} <= set(arrays):
        parts = (arrays.get(f"{part}_patients", np.array([])).astype(str).tolist() for part in ("train", "val", "test"))
        return SplitFile({path.name: [_checked(path, Split(0, 0, *map(tuple, parts)))]}, {}, of_patients=True)
    names = [name for name in arrays if name.startswith("split_")]
    if "slide_id" not in arrays or not names:
        raise InputError(f"{path}: the array slide_id or split_<name> is missing, or train_patients and test_patients")
    ids = np.array([_slide(str(slide)) for slide in arrays["slide_id"].tolist()])
    splits = {}
    for name in names:
        codes = np.atleast_2d(arrays[name])
        if codes.shape[1] != len(ids) or not np.isin(codes, [0, *_CODES]).all():
            raise InputError(f"{path}: {name} must be 0, 1 (train) or 2 (test) for each of the {len(ids)} slides")
        sides = ({side: tuple(ids[row == code].tolist()) for code, side in _CODES.items()} for row in codes)
        splits[name] = [_checked(path, Split(0, fold, val=(), **side)) for fold, side in enumerate(sides)]
    patients = arrays.get("case_id")
    return SplitFile(splits, {} if patients is None else dict(zip(ids.tolist(), patients.tolist(), strict=True)))


def _checked(path: Path, split: Split) -> Split:
    sides = {part: getattr(split, part) for part in ("train", "val", "test")}
    repeated = [slide for slide, count in Counter(_all(sides.values())).items() if count > 1]
    if repeated:
        slide = repeated[0]
        places = [part for part, ids in sides.items() for _ in range(ids.count(slide))]
        raise InputError(
            f"{path}: slide {slide!r} is in the split twice, in {' and '.join(places)} ({len(repeated)} such); keep it "
            "on one side"
        )
    for part in ("train", "test"):
        if not sides[part]:
            raise InputError(f"{path}: no {part} slides in a split; correct the file")
    return split


def _all(parts: Iterable[Sequence[str]]) -> list[str]:
    return [slide for part in parts for slide in part]
