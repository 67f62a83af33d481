"""Split files: those of CLAM, torchmil and Giga-SSL, tables with a column a split, and our own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import as_bags
from mil_zoo.data.formats.npy import load_arrays
from mil_zoo.data.labels.tables import COLUMNS, read_csv
from mil_zoo.data.layouts.base import slide_name
from mil_zoo.data.splits.split import Split
from mil_zoo.errors import InputError, did_you_mean

PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_CODES = {1: "train", 2: "test"}  # of Giga-SSL bundles; 0 is unused
_OWN = re.compile(r"r(\d+)-f(\d+)")


@dataclass(frozen=True)
class SplitFile:
    """What a split file holds.

    Attributes:
        splits: by name; several where the file has several columns or arrays of splits.
        patient_of: patient of each slide id, where the file tells.
    """

    splits: dict[str, list[Split]]
    patient_of: dict[str, str]


def is_split_file(text: str) -> bool:
    """Whether ``text`` names a file or folder of splits rather than a way to draw them."""
    path = text.partition(":")[0]
    return path.endswith((".csv", ".csv.gz", ".npz")) or "/" in path or Path(path).is_dir()


def read_splits(text: str) -> list[Split]:
    """The splits that ``FILE``, ``FILE:NAME`` or a folder stands for; a part without slides is empty.

    Args:
        text: a path, and after a colon which of a file's several splits is meant; see :func:`read_split_file`.

    Raises:
        InputError: nothing is there, the file is none of those, or it holds several splits and none was named.
    """
    path, _, name = text.partition(":")
    found = read_split_file(Path(path)).splits
    if name and name not in found:
        raise InputError(f"{path} holds no split {name!r}{did_you_mean(name, found)}")
    if not name and len(found) > 1:
        raise InputError(f"{path} holds several splits; choose one, {path}:NAME, of {', '.join(found)}")
    return found[name] if name else next(iter(found.values()))


def read_split_file(path: Path) -> SplitFile:
    """Reads a split file or a folder of them.

    Args:
        path: one of

            - a folder with ``splits_0.csv``, ``splits_1.csv``, ... (CLAM) or ``split_0.csv``, ... (Giga-SSL), a fold
              each;
            - a csv with the columns train and test, and val where there is one, each a list of slide ids (CLAM,
              Giga-SSL), or true and false for each slide (CLAM's ``_bool`` files);
            - a csv with slide_id (or bag_name), and split: train, val, test or empty (torchmil, label tables);
            - a csv with slide_id and a column a split (``splits.csv`` of a run: r0-f0, r0-f1, ...);
            - a ``.npz`` with slide_id and ``split_<name>`` int8 ``[splits, slides]``: 0 unused, 1 train, 2 test.

    Raises:
        InputError: nothing is there, or it is none of those.
    """
    if path.is_dir():
        numbers = {file: re.fullmatch(r"splits?_(\d+)\.csv", file.name) for file in path.iterdir()}
        files = sorted((int(match[1]), file) for file, match in numbers.items() if match)
        if not files:
            raise InputError(f"{path}: no splits_0.csv, splits_1.csv, ... in it")
        folds = [replace(_only(read_split_file(file), file), fold=fold) for fold, (_, file) in enumerate(files)]
        return SplitFile({path.name: folds}, {})
    if path.suffix == ".npz":
        return _from_npz(path)
    table = read_csv(path)
    if {"train", "test"} <= set(table.columns):
        return SplitFile({path.name: [_from_columns(path, table)]}, {})
    return _from_rows(path, table)


def published_split(labels: pd.DataFrame, path: Path | str) -> list[Split]:
    """The split in the column ``split`` of a label table; none where it lacks the column, train or test slides.

    Raises:
        InputError: the column holds something other than train, val, test or nothing.
    """
    if "split" not in labels:
        return []
    text = labels["split"].str.strip().str.lower()
    unknown = text.notna() & ~text.isin(list(PARTS))
    if unknown.any():
        row = labels[unknown].iloc[0]
        raise InputError(
            f"{path}: slide {row['slide_id']!r} has split {row['split']!r}, not train, val, test or nothing"
        )
    part = text.map(PARTS)
    split = _of_parts(labels["slide_id"], part)
    return [split] if split.train and split.test else []


def splits_csv(splits: Sequence[Split], bags: Sequence[Bag]) -> str:
    """``splits.csv``: slide_id, patient_id, label, and a column a split with train, val, test or nothing."""
    slides = as_bags(bags).slides
    table = pd.DataFrame(
        {
            "slide_id": [slide.slide_id for slide in slides],
            "patient_id": [slide.patient_id or "" for slide in slides],
            "label": [slide.label for slide in slides],
        }
    )
    columns = {}
    for split in splits:
        part_of = {slide: part for part in ("train", "val", "test") for slide in getattr(split, part)}
        columns[f"r{split.repeat}-f{split.fold}"] = table["slide_id"].map(part_of)
    text: str = pd.concat([table, pd.DataFrame(columns)], axis=1).to_csv(index=False, lineterminator="\n")
    return text


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
        parts[part] = tuple(slide_name(slide.strip()) for slide in ids)
    return _checked(path, Split(0, 0, **parts))


def _from_rows(path: Path, table: pd.DataFrame) -> SplitFile:
    column = next((name for name in COLUMNS["slide_id"] if name in table), None)
    if column is None:
        raise InputError(
            f"{path} is no split file: it has neither the columns train and test nor slide_id; see mil-zoo bench --help"
        )
    ids = table[column].astype(str).str.strip().map(slide_name)
    names = [name for name in table.columns if name != column and _is_split(table[name])]
    if not names:
        raise InputError(f"{path}: no column of train, val and test beside {column}")
    splits = {}
    for name in names:
        part = table[name].str.strip().str.lower().map(PARTS)
        splits[name] = [_checked(path, _of_parts(ids, part))]
    if all(_OWN.fullmatch(name) for name in names):
        places = {name: [int(number) for number in name[1:].split("-f")] for name in names}
        splits = {path.name: [replace(splits[name][0], repeat=r, fold=f) for name, (r, f) in places.items()]}
    patients = next((table[name] for name in COLUMNS["patient_id"] if name in table), None)
    known = {} if patients is None else dict(zip(ids[patients.notna()], patients.dropna(), strict=True))
    return SplitFile(splits, known)


def _of_parts(ids: pd.Series[str], part: pd.Series[str]) -> Split:
    return Split(0, 0, *(tuple(ids[part == side].tolist()) for side in ("train", "val", "test")))


def _is_split(values: pd.Series[str]) -> bool:
    found = set(values.dropna().str.strip().str.lower())
    return bool(found) and found <= set(PARTS)


def _from_npz(path: Path) -> SplitFile:
    arrays = load_arrays(path)
    names = [name for name in arrays if name.startswith("split_")]
    if "slide_id" not in arrays or not names:
        raise InputError(f"{path}: the array slide_id or split_<name> is missing")
    ids = np.array([slide_name(slide) for slide in arrays["slide_id"].tolist()])
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
    ids = [*split.train, *split.val, *split.test]
    if len(set(ids)) < len(ids):
        repeated = next(slide for slide in ids if ids.count(slide) > 1)
        raise InputError(f"{path}: slide {repeated!r} is in the split twice; keep it on one side")
    if not split.train or not split.test:
        raise InputError(f"{path}: no {'train' if not split.train else 'test'} slides in a split; correct the file")
    return split
