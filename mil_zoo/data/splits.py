"""Splits of slides into training, validation and test parts that never separate the slides of a patient."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold

from mil_zoo.data.bag import Bag
from mil_zoo.data.slide_files import SlideFile, heads
from mil_zoo.errors import InputError


@dataclass(frozen=True)
class Split:
    """One division of the slides, by slide id.

    Attributes:
        repeat: number of the repetition, from 0.
        fold: number of the fold within it, from 0.
        train: slides that the weights are fitted on.
        val: slides that the checkpoint is chosen on; their patients are in neither other part.
        test: slides that are scored.
    """

    repeat: int
    fold: int
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


def published(
    bags: Sequence[Bag], test: npt.NDArray[np.bool_], repeats: int, validation_fraction: float = 0.15, seed: int = 0
) -> list[Split]:
    """Published test parts, with a validation part taken from each one's training patients.

    Args:
        bags: labelled bags.
        test: bool ``[repeats, folds, bags]``, the test bags of each fold; one fold is an official test set.
        repeats: how many of the published repetitions to use, from the first.
        validation_fraction: see :func:`kfold`.
        seed: of the validation parts.

    Raises:
        InputError: more repetitions than were published, or see :func:`check_splits`.
    """
    if test.shape[2] != len(bags):
        raise InputError(f"the published folds are of {test.shape[2]} bags, the dataset holds {len(bags)}")
    if not 1 <= repeats <= len(test):
        raise InputError(f"{len(test)} repetitions of the folds are published; ask for --repeats 1 to {len(test)}")
    labels, patients, ids = _columns(bags)
    splits = []
    for repeat in range(repeats):
        repeat_seed = int(np.random.SeedSequence([seed, repeat]).generate_state(1)[0])
        for fold, mask in enumerate(test[repeat]):
            train, val = _hold_out(np.flatnonzero(~mask), labels, patients, validation_fraction, repeat_seed)
            parts = (tuple(ids[np.sort(part)].tolist()) for part in (train, val, np.flatnonzero(mask)))
            splits.append(Split(repeat, fold, *parts))
    check_splits(splits, bags)
    return splits


def kfold(
    bags: Sequence[Bag], folds: int, repeats: int = 1, validation_fraction: float = 0.15, seed: int = 0
) -> list[Split]:
    """Repeated k-fold cross-validation, stratified by label and grouped by patient.

    Every slide is in one test part a repetition. The validation part is taken from the training patients.

    Args:
        bags: labelled bags; one without ``patient_id`` counts as a patient of its own.
        folds: number of test parts, at least 2.
        repeats: number of repetitions with other shuffles.
        validation_fraction: wanted share of the training slides, in (0, 0.5].
        seed: of the shuffles.

    Raises:
        InputError: fewer bags, or fewer patients of a class, than the folds need.
    """
    if folds < 2 or repeats < 1 or not 0 < validation_fraction <= 0.5:
        raise InputError(
            f"a split needs folds >= 2, repeats >= 1 and 0 < validation_fraction <= 0.5, not {folds}, {repeats} and "
            f"{validation_fraction}"
        )
    labels, patients, ids = _columns(bags)
    for label in np.unique(labels):
        count = len(np.unique(patients[labels == label]))
        if count < folds:
            raise InputError(
                f"class {label} has {count} patients, fewer than the {folds} folds; ask for at most {count} folds"
            )
    splits = []
    for repeat in range(repeats):
        repeat_seed = int(np.random.SeedSequence([seed, repeat]).generate_state(1)[0])
        outer = StratifiedGroupKFold(folds, shuffle=True, random_state=repeat_seed)
        for fold, (rest, test) in enumerate(outer.split(ids, labels, patients)):
            train, val = _hold_out(rest, labels, patients, validation_fraction, repeat_seed)
            parts = (tuple(ids[np.sort(part)].tolist()) for part in (train, val, test))
            splits.append(Split(repeat, fold, *parts))
    check_splits(splits, bags)
    return splits


def _columns(bags: Sequence[Bag]) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    slides = heads(bags)
    labels = np.array([slide.label for slide in slides])
    return labels, np.array([patient_key(slide) for slide in slides]), np.array([slide.slide_id for slide in slides])


def _hold_out(
    rest: npt.NDArray[Any], labels: npt.NDArray[Any], patients: npt.NDArray[Any], fraction: float, seed: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Divides ``rest`` into training and validation rows, each with every class of ``rest`` in it."""
    classes = np.unique(labels[rest])
    fewest = min(len(np.unique(patients[rest][labels[rest] == label])) for label in classes)
    if fewest < 2:
        raise InputError("a class has one patient left for training and validation; ask for fewer folds or more slides")
    inner = StratifiedGroupKFold(min(round(1 / fraction), fewest), shuffle=True, random_state=seed)
    for train, val in inner.split(rest, labels[rest], patients[rest]):
        if all(set(labels[rest][part]) == set(classes) for part in (train, val)):
            return rest[train], rest[val]
    raise InputError("no validation part holds every class; ask for a larger validation_fraction or fewer folds")


def check_splits(splits: Iterable[Split], bags: Sequence[Bag]) -> None:
    """Refuses splits that cannot be trained on or trusted.

    Raises:
        InputError: a patient on two sides (all are named), a slide that the dataset lacks, or a part without a class.
    """
    label_of = {slide.slide_id: slide.label for slide in heads(bags)}
    patient_of = {slide.slide_id: patient_key(slide) for slide in heads(bags)}
    classes = set(label_of.values())
    for split in splits:
        where = f"repeat {split.repeat}, fold {split.fold}"
        for part in ("train", "val", "test"):
            ids = getattr(split, part)
            unknown = [slide_id for slide_id in ids if slide_id not in label_of]
            if unknown:
                raise InputError(f"{where}: {part} slide {unknown[0]!r} is not in the dataset ({len(unknown)} such)")
            lacking = classes - {label_of[slide_id] for slide_id in ids}
            if lacking:
                label = min(lacking)  # type: ignore[type-var]
                raise InputError(f"{where}: no {part} slide has label {label}; ask for fewer folds or drop the class")
        for one, other in (("train", "test"), ("val", "test"), ("train", "val")):
            leaks = find_leaks(getattr(split, one), getattr(split, other), patient_of)
            if leaks:
                raise InputError(f"{where}: patients in both {one} and {other}: {', '.join(leaks)}; split by patient")


def find_leaks(train_ids: Iterable[str], test_ids: Iterable[str], patient_of: Mapping[str, str | None]) -> list[str]:
    """Patients with slides on both sides, sorted. A slide without a patient counts as a patient of its own name."""
    sides = [{patient_of.get(slide_id) or slide_id for slide_id in ids} for ids in (train_ids, test_ids)]
    return sorted(sides[0] & sides[1])


def patient_key(bag: Bag | SlideFile) -> str:
    """The patient of a bag, or its slide id where the patient is unknown."""
    return bag.patient_id or bag.slide_id


def split_hash(splits: Sequence[Split]) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of the splits: equal hashes, equal splits."""
    text = json.dumps([asdict(split) for split in splits], separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
