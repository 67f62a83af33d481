"""Where a probe's labels and splits come from: the authors' tables and split folders, bundles of them, or our own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mil_zoo.data.bags import Bags, MemorySlide
from mil_zoo.data.formats.npy import load_arrays
from mil_zoo.data.labels.dialects import labels_alike
from mil_zoo.data.labels.names import match_names
from mil_zoo.data.labels.tables import read_labels, unknown_among
from mil_zoo.data.layouts.base import slide_name
from mil_zoo.data.splits.draw import kfold
from mil_zoo.data.splits.few_labels import choose_labelled, parse_labelled
from mil_zoo.data.splits.formats import read_split_file
from mil_zoo.errors import InputError
from mil_zoo.ssl.probe import ProbeSplit

REGIMES = ("full", "25%", "100", "50")


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
        """From columns of equal length.

        Raises:
            InputError: a slide has two labels, or labels that are no classes of their own; the message names them.
        """
        classes = sorted(set(labels))
        said: dict[str, str] = {}
        for slide, label in zip(slides, labels, strict=True):
            if said.setdefault(slide, label) != label:
                raise InputError(f"slide {slide!r} has the labels {said[slide]!r} and {label!r}; keep one row")
        for alike in labels_alike(classes):
            raise InputError(f"labels {' and '.join(map(repr, alike))} differ in case or blanks only; write them alike")
        for label in unknown_among(classes):
            raise InputError(f"label {label!r} marks slides of which nothing is known; drop their rows")
        index = {name: i for i, name in enumerate(classes)}
        return cls(
            classes,
            {slide: index[label] for slide, label in zip(slides, labels, strict=True)},
            dict(zip(slides, patients, strict=True)),
        )

    def named_as(self, slide_ids: Sequence[str], where: object = "the table") -> ProbeTable:
        """The same with slides called as the embeddings' ``slide_ids`` are, see ``match_names``; others as they are."""
        means = match_names(self.labels, slide_ids, where)
        labels = {means.get(name, name): label for name, label in self.labels.items()}
        return ProbeTable(
            self.classes, labels, {means.get(name, name): self.patients.get(name) for name in self.labels}
        )


def splits_named_as(
    splits: Sequence[ProbeSplit], slide_ids: Sequence[str], where: object = "the splits"
) -> list[ProbeSplit]:
    """The same with slides called as the embeddings' ``slide_ids`` are, see ``match_names``; others as they are."""
    means = match_names({name for split in splits for name in (*split.train, *split.test)}, slide_ids, where)
    sides = [tuple(tuple(means.get(name, name) for name in side) for side in (one.train, one.test)) for one in splits]
    return [ProbeSplit(one.regime, one.number, *side) for one, side in zip(splits, sides, strict=True)]


def read_label_table(path: Path) -> ProbeTable:
    """A csv with the columns ID (or slide_id), label and, optionally, case_id (or patient_id); see ``read_labels``."""
    table = read_labels(path)
    patients = table.get("patient_id", pd.Series(index=table.index, dtype=object))
    known = [None if pd.isna(patient) else str(patient) for patient in patients]
    return ProbeTable.of(table["slide_id"].map(slide_name).tolist(), table["label"].tolist(), known)


def read_bundle_labels(path: Path) -> ProbeTable:
    """The labels that lie beside the splits of a bundle: arrays slide_id, label and, optionally, case_id of a ``.npz``.

    Raises:
        InputError: the file cannot be read, or an array is missing.
    """
    arrays = load_arrays(path)
    for name in ("slide_id", "label"):
        if name not in arrays:
            raise InputError(
                f"{path}: the array {name!r} is missing; pass --labels, or a bundle with slide_id and label"
            )
    slides = [slide_name(slide) for slide in arrays["slide_id"].astype(str).tolist()]
    patients = arrays.get("case_id", np.full(len(slides), "")).astype(str).tolist()
    return ProbeTable.of(slides, arrays["label"].astype(str).tolist(), [patient or None for patient in patients])


def read_probe_splits(path: Path) -> list[ProbeSplit]:
    """Published splits: a bundle ``.npz``, a folder of split files, or a folder with one such folder a regime.

    Raises:
        InputError: see ``read_split_file``.
    """
    folders = sorted(sub for sub in path.iterdir() if any(sub.glob("split*_0.csv"))) if path.is_dir() else []
    found = [read_split_file(place) for place in folders or [path]]
    return [
        ProbeSplit(name.removeprefix("split_"), split.fold, (*split.train, *split.val), split.test)
        for file in found
        for name, splits in file.splits.items()
        for split in splits
    ]


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
    if len(set(regimes)) < len(regimes):
        raise InputError(f"--regimes must name each regime once, not {','.join(regimes)}")
    heads = [_Head(slide, table.labels[slide], table.patients.get(slide)) for slide in slides]
    entries = Bags([MemorySlide(head) for head in heads])  # type: ignore[arg-type]  # no features: none are read
    splits = []
    for number, split in enumerate(kfold(entries, folds, repeats, seed=seed)):
        train = (*split.train, *split.val)  # a probe with a fixed C chooses nothing, so it needs no validation
        labels = [table.labels[slide] for slide in train]
        for regime in regimes:
            share = _share(regime)
            if share <= len(train):
                chosen = choose_labelled(labels, share, [seed, number])
                splits.append(ProbeSplit(regime, number, tuple(train[i] for i in chosen), split.test))
    if not splits:
        largest = max(len(split.train) + len(split.val) for split in kfold(entries, folds, repeats, seed=seed))
        raise InputError(
            f"--regimes {','.join(regimes)} asks for more than the {largest} training slides of a split; ask for fewer"
        )
    return sorted(splits, key=lambda split: (list(regimes).index(split.regime), split.number))


@dataclass(frozen=True)
class _Head:
    """What splitting needs to know of a slide."""

    slide_id: str
    label: int
    patient_id: str | None


def _share(regime: str) -> float:
    try:
        return 1.0 if regime == "full" else parse_labelled(regime)
    except ValueError:
        raise InputError(f"regime {regime!r} must be full, a share (25%) or a number of training slides (50)") from None
