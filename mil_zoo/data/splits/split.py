"""Splits of slides into training, validation and test parts that never separate the slides of a patient."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import Slide, as_bags
from mil_zoo.errors import InputError

PatientOf: TypeAlias = Mapping[str, str | None] | Callable[[str], str | None]


@dataclass(frozen=True)
class Split:
    """One division of the slides, by slide id.

    Attributes:
        repeat: number of the repetition, from 0.
        fold: number of the fold within it, from 0.
        train: slides that the weights are fitted on.
        val: slides that the checkpoint is chosen on; their patients are in neither other part.
        test: slides that are scored.
        withheld: slides of the training side whose labels are not used; they count where it matters how much the
            training sides of two splits overlap.
    """

    repeat: int
    fold: int
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    withheld: tuple[str, ...] = ()

    def mapped(self, change: Callable[[tuple[str, ...]], tuple[str, ...]]) -> Split:
        """The same division with every part changed."""
        parts = (change(part) for part in (self.train, self.val, self.test, self.withheld))
        return Split(self.repeat, self.fold, *parts)


def from_masks(test: npt.NDArray[np.bool_], bags: Sequence[Bag]) -> list[Split]:
    """Published test parts as splits without validation parts.

    Args:
        test: bool ``[repeats, folds, bags]``, the test bags of each fold.
        bags: in the order of the masks.

    Raises:
        InputError: masks of another number of bags.
    """
    if test.shape[2] != len(bags):
        raise InputError(f"the published folds are of {test.shape[2]} bags, the dataset holds {len(bags)}")
    ids = np.array([slide.slide_id for slide in as_bags(bags).slides])
    return [
        Split(repeat, fold, tuple(ids[~mask].tolist()), (), tuple(ids[mask].tolist()))
        for repeat, folds in enumerate(test)
        for fold, mask in enumerate(folds)
    ]


def restricted(splits: Sequence[Split], slide_ids: Iterable[str]) -> list[Split]:
    """The splits without slides that are not among ``slide_ids``."""
    known = set(slide_ids)
    return [split.mapped(lambda part: tuple(slide for slide in part if slide in known)) for split in splits]


def check_sizes(folds: int, repeats: int, validation_fraction: float) -> None:
    """Refuses numbers that no split can have."""
    if folds < 2 or repeats < 1 or not 0 < validation_fraction <= 0.5:
        raise InputError(
            f"a split needs folds >= 2, repeats >= 1 and 0 < validation_fraction <= 0.5, not {folds}, {repeats} and "
            f"{validation_fraction}"
        )


def check_seed(seed: int) -> None:
    """Refuses a seed that stands for no shuffle."""
    if seed < 0:
        raise InputError(f"the seed of splits must be 0 or more, not {seed}")


@dataclass(frozen=True)
class Words:
    """How errors speak of splits.

    Attributes:
        source: the file, or whatever else they come from; "" where they are drawn here.
        classes: name of each label; empty for the label itself.
        advice: what to do where a part lacks a class.
    """

    source: str = ""
    classes: Sequence[str] = ()
    advice: str = "ask for fewer folds or drop the class"

    def place(self, split: Split) -> str:
        """Which split, in words."""
        return f"{self.source}{', ' * bool(self.source)}repeat {split.repeat}, fold {split.fold}"

    def name(self, label: Any) -> str:
        """Which class, in words."""
        named = isinstance(label, int) and 0 <= label < len(self.classes)
        return f"is of class {self.classes[label]!r}" if named else f"has label {label}"


def check_splits(
    splits: Sequence[Split],
    bags: Sequence[Bag],
    allow_leaks: bool = False,
    *,
    classes: bool = True,
    test_classes: bool = True,
    words: Words | None = None,
) -> None:
    """Refuses splits that cannot be trained on or trusted.

    Args:
        splits: those to check.
        bags: labelled bags.
        allow_leaks: let patients be in both train and test.
        classes: whether labels are classes, of which every part needs some.
        test_classes: whether a test part needs all of them too.
        words: how errors name splits and classes.

    Raises:
        InputError: a patient on two sides (all are named), unless leaks between train and test are allowed; a slide
            that the dataset lacks; or a part without a class.
    """
    words = words or Words()
    label_of = {slide.slide_id: slide.label for slide in as_bags(bags).slides}
    check_known(splits, label_of, words)
    present = set(label_of.values())
    parts = ("train", "val", "test") if test_classes else ("train", "val")
    for split in splits if classes else ():
        for part in parts:
            lacking = present - {label_of[slide_id] for slide_id in getattr(split, part)}
            if lacking:
                label = min(lacking)  # type: ignore[type-var]
                raise InputError(f"{words.place(split)}: no {part} slide {words.name(label)}; {words.advice}")
    leaks = leaks_of(splits, {slide.slide_id: patient_key(slide) for slide in as_bags(bags).slides})
    if allow_leaks:
        leaks = {place: patients for place, patients in leaks.items() if place[2:] != ("train", "test")}
    for (repeat, fold, one, other), patients in leaks.items():
        shown = ", ".join(patients[:10]) + (f" and {len(patients) - 10} more" if len(patients) > 10 else "")
        raise InputError(
            f"{words.place(Split(repeat, fold, (), (), ()))}: patients in both {one} and {other}: {shown}; split by "
            "patient, or run it as published with --allow-leaky-splits"
        )


def leaks_of(splits: Sequence[Split], patient_of: PatientOf) -> dict[tuple[int, int, str, str], list[str]]:
    """``(repeat, fold, part, other part)`` to the patients in both parts, where there are any."""
    return {
        (split.repeat, split.fold, one, other): leaks
        for split in splits
        for one, other in (("train", "test"), ("val", "test"), ("train", "val"))
        if (leaks := find_leaks(getattr(split, one), getattr(split, other), patient_of))
    }


def find_leaks(train_ids: Iterable[str], test_ids: Iterable[str], patient_of: PatientOf) -> list[str]:
    """Patients with slides on both sides, sorted. A slide without a patient counts as a patient of its own name.

    Args:
        train_ids: slide ids of one side.
        test_ids: slide ids of the other.
        patient_of: patient of a slide id: a mapping or a function; None or absent where unknown.
    """
    look_up = patient_of.get if isinstance(patient_of, Mapping) else patient_of
    sides = [{look_up(slide_id) or slide_id for slide_id in ids} for ids in (train_ids, test_ids)]
    return sorted(sides[0] & sides[1])


def check_known(splits: Sequence[Split], known: Mapping[str, Any], words: Words) -> None:
    for split in splits:
        for part in ("train", "val", "test"):
            unknown = [slide_id for slide_id in getattr(split, part) if slide_id not in known]
            if unknown:
                raise InputError(
                    f"{words.place(split)}: {part} slide {unknown[0]!r} is not in the dataset ({len(unknown)} such, of "
                    f"{len(getattr(split, part))}; the dataset has {next(iter(known), 'none')!r}, for instance); "
                    "correct the split or the label table"
                )


def patient_key(bag: Bag | Slide) -> str:
    """The patient of a bag, or its slide id where the patient is unknown."""
    return bag.patient_id or bag.slide_id


def split_hash(splits: Sequence[Split]) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of the splits: equal hashes, equal splits."""
    fields = [{name: ids for name, ids in asdict(split).items() if name != "withheld" or ids} for split in splits]
    text = json.dumps(fields, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
