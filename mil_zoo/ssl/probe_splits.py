"""Where a probe's labels and splits come from: the authors' tables and split folders, bundles of them, or our own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mil_zoo.data.few_labels import choose_labelled
from mil_zoo.data.readers.table import load_arrays
from mil_zoo.data.splits import kfold
from mil_zoo.errors import InputError
from mil_zoo.ssl.probe import ProbeSplit

REGIMES = ("full", "25%", "100", "50")
_TRAIN, _TEST = 1, 2  # codes of a bundle


@dataclass(frozen=True)
class ProbeTable:
    """Labelled slides.

    Attributes:
        classes: class names, sorted; a label is an index into them.
        labels: class index by slide.
        patients: patient by slide; a slide without one counts as a patient of its own.
    """

    classes: list[str]
    labels: dict[str, int]
    patients: dict[str, str | None]

    @classmethod
    def of(cls, slides: Sequence[str], labels: Sequence[str], patients: Sequence[str | None]) -> ProbeTable:
        """From columns of equal length."""
        classes = sorted(set(labels))
        index = {name: i for i, name in enumerate(classes)}
        return cls(
            classes,
            {slide: index[label] for slide, label in zip(slides, labels, strict=True)},
            dict(zip(slides, patients, strict=True)),
        )


def read_label_table(path: Path) -> ProbeTable:
    """A csv with the columns ID (or slide_id), label and, optionally, case_id (or patient_id).

    Raises:
        InputError: the file cannot be read, a column or label is missing, or a slide occurs twice.
    """
    try:
        table = pd.read_csv(path, dtype=str)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; a label table is a csv with the columns ID and label") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable csv ({error}); it needs the columns ID and label") from error
    table = table.rename(columns={"ID": "slide_id", "case_id": "patient_id"})
    for column in ("slide_id", "label"):
        if column not in table or table[column].isna().any():
            raise InputError(f"{path}: the column {column!r} is missing or has empty rows; it needs ID and label")
    if table["slide_id"].duplicated().any():
        repeated = table["slide_id"][table["slide_id"].duplicated()].iloc[0]
        raise InputError(f"{path} names slide {repeated!r} twice; keep one row")
    patients = table.get("patient_id", pd.Series(index=table.index, dtype=object))
    known = [None if pd.isna(patient) else str(patient) for patient in patients]
    return ProbeTable.of(table["slide_id"].tolist(), table["label"].tolist(), known)


def read_bundle(path: Path) -> tuple[ProbeTable, list[ProbeSplit]]:
    """Labels and splits in one ``.npz``: slide_id, label, case_id and ``split_<regime>`` int8 ``[splits, n]``.

    A split holds 1 for training and 2 for test slides, 0 for others.

    Raises:
        InputError: the file cannot be read, or an array is missing or of another shape.
    """
    arrays = load_arrays(path)
    for name in ("slide_id", "label"):
        if name not in arrays:
            raise InputError(
                f"{path}: the array {name!r} is missing; a bundle needs slide_id, label and split_<regime>"
            )
    slides = arrays["slide_id"].astype(str)
    patients = arrays.get("case_id", np.full(len(slides), "")).astype(str)
    splits = []
    for name, codes in arrays.items():
        if not name.startswith("split_"):
            continue
        if codes.ndim != 2 or codes.shape[1] != len(slides) or not np.isin(codes, (0, _TRAIN, _TEST)).all():
            raise InputError(f"{path}: {name} must hold 0, 1 (train) or 2 (test) for each of the {len(slides)} slides")
        splits += [
            ProbeSplit(
                name.removeprefix("split_"),
                number,
                tuple(slides[row == _TRAIN].tolist()),
                tuple(slides[row == _TEST].tolist()),
            )
            for number, row in enumerate(codes)
        ]
    if not splits:
        raise InputError(f"{path}: there is no split_<regime> in it")
    table = ProbeTable.of(slides.tolist(), arrays["label"].astype(str).tolist(), [p or None for p in patients.tolist()])
    return table, splits


def read_split_folder(folder: Path) -> list[ProbeSplit]:
    """The authors' split files: ``split_<k>.csv`` (columns train, test) in ``folder``, or in one folder a regime below.

    Raises:
        InputError: no split files, or one that cannot be read.
    """
    splits = []
    for path in sorted([*folder.glob("split_*.csv"), *folder.glob("*/split_*.csv")]):
        try:
            table = pd.read_csv(path, dtype=str)
            sides = [tuple(table[side].dropna()) for side in ("train", "test")]
            splits.append(ProbeSplit(path.parent.name, int(path.stem.removeprefix("split_")), *sides))
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path} is not a split file ({error}); it needs the columns train and test") from error
    if not splits:
        raise InputError(f"{folder}: no split_0.csv, split_1.csv, ... in it or in its folders")
    return splits


def own_splits(
    table: ProbeTable,
    slides: Sequence[str],
    folds: int = 5,
    repeats: int = 2,
    regimes: Sequence[str] = REGIMES,
    seed: int = 0,
) -> list[ProbeSplit]:
    """Repeated k-fold splits, stratified by label and grouped by patient; regimes use a part of each training side.

    Args:
        table: labels and patients.
        slides: those to split, all in the table.
        folds: test parts of a repeat.
        repeats: shuffles; folds x repeats splits a regime.
        regimes: "full", a share ("25%") or a number ("50") of training slides; numbers beyond the training sides are
            left out.
        seed: of the shuffles and of the choices of training slides.

    Raises:
        InputError: a regime of another form, or folds that the slides cannot fill.
    """
    entries = [_Head(slide, table.labels[slide], table.patients.get(slide)) for slide in slides]
    splits = []
    for number, split in enumerate(kfold(entries, folds, repeats, seed=seed)):  # type: ignore[arg-type]
        train = (*split.train, *split.val)  # a probe with a fixed C chooses nothing, so it needs no validation
        labels = [table.labels[slide] for slide in train]
        for regime in regimes:
            share = _share(regime)
            if share <= len(train):
                chosen = choose_labelled(labels, share, [seed, number])
                splits.append(ProbeSplit(regime, number, tuple(train[i] for i in chosen), split.test))
    return sorted(splits, key=lambda split: (list(regimes).index(split.regime), split.number))


@dataclass(frozen=True)
class _Head:
    """What splitting needs to know of a slide."""

    slide_id: str
    label: int
    patient_id: str | None


def _share(regime: str) -> float:
    try:
        share = 1.0 if regime == "full" else float(regime[:-1]) / 100 if regime.endswith("%") else float(int(regime))
    except ValueError:
        share = 0
    if not share > 0 or (regime.endswith("%") and share > 1):
        raise InputError(f"regime {regime!r} must be full, a share (25%) or a number of training slides (50)")
    return share
