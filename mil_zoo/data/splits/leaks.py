"""Which published splits share patients between their sides."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mil_zoo.data.labels.tables import patients_in
from mil_zoo.data.splits.formats import read_split_file
from mil_zoo.data.splits.split import leaks_of

_TCGA = re.compile(r"TCGA-\w\w-\w{4}")


@dataclass(frozen=True)
class LeakReport:
    """What one named group of splits in a file shares.

    Attributes:
        name: ``FILE:NAME`` or ``FILE``.
        splits: how many splits there are.
        sizes: slides of train, val and test in the first one.
        known: how patients were told: "case_id", "barcode", or "" where each slide counts as one.
        counts: patients in both train and test of each split that has any.
        shared: patients in both train and test of any split, sorted.
        with_val: patients in val and another part of any split, sorted.
    """

    name: str
    splits: int
    sizes: tuple[int, int, int]
    known: str
    counts: list[int]
    shared: list[str]
    with_val: list[str]

    @property
    def leaky(self) -> int:
        """Number of splits with a patient in both train and test."""
        return len(self.counts)


def report_leaks(path: Path, patients: Path | None = None) -> list[LeakReport]:
    """Looks for patients on two sides in every split of a file.

    Args:
        path: see :func:`mil_zoo.data.splits.formats.read_split_file`.
        patients: a csv with slide_id and patient_id (or case_id); None for what the file says, else the first 12
            characters of TCGA barcodes, else every slide is a patient of its own.

    Raises:
        InputError: a file cannot be read.
    """
    file = read_split_file(path)
    ids = {s for splits in file.splits.values() for split in splits for s in (*split.train, *split.val, *split.test)}
    patient_of, known = dict(file.patient_of), "case_id"
    if patients is not None:
        patient_of = patients_in(patients)
    if not patient_of:
        patient_of = {slide: match[0] for slide in ids if (match := _TCGA.match(slide))}
        known = "barcode" if patient_of else ""
    reports = []
    for name, splits in file.splits.items():
        leaks = leaks_of(splits, patient_of)
        both = {key: found for key, found in leaks.items() if key[2:] == ("train", "test")}
        shared = {patient for found in both.values() for patient in found}
        with_val = {patient for key, found in leaks.items() if "val" in key for patient in found}
        first = splits[0]
        reports.append(
            LeakReport(
                path.name if name == path.name else f"{path.name}:{name}",
                len(splits),
                (len(first.train), len(first.val), len(first.test)),
                known,
                [len(found) for found in both.values()],
                sorted(shared),
                sorted(with_val),
            )
        )
    return reports
