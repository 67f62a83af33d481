"""Splits of slides into training, validation and test parts that never separate the slides of a patient."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold

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
    """

    repeat: int
    fold: int
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


def completed(
    published: Sequence[Split],
    bags: Sequence[Bag],
    validation_fraction: float = 0.15,
    seed: int = 0,
    allow_leaks: bool = False,
) -> list[Split]:
    """Published splits as they are, with a validation part drawn from the training patients where they have none.

    Args:
        published: splits whose ``val`` may be empty; a slide may be in no part.
        bags: labelled bags.
        validation_fraction: see :func:`kfold`.
        seed: of the validation parts that are drawn.
        allow_leaks: let patients be in both train and test, as published. The validation part keeps apart from both
            all the same: it is drawn from, or cut down to, patients of neither.

    Raises:
        InputError: see :func:`check_splits`.
    """
    labels, patients, ids = _columns(bags)
    place = {slide_id: i for i, slide_id in enumerate(ids.tolist())}
    _check_known(published, place)
    splits = []
    for split in published:
        train, val, test = (
            np.array([place[slide] for slide in part], dtype=int) for part in (split.train, split.val, split.test)
        )
        if len(val) == 0:
            tested = np.isin(patients[train], patients[test]) & allow_leaks
            repeat_seed = draw_seed(seed, split.repeat)
            rest = np.sort(train[~tested])
            kept, val = _hold_out(rest, labels, patients, validation_fraction, repeat_seed)
            train = np.concatenate([kept, train[tested]])
        elif allow_leaks:
            val = val[~np.isin(patients[val], patients[np.concatenate([train, test])])]
        parts = (tuple(ids[np.sort(part)].tolist()) for part in (train, val, test))
        splits.append(Split(split.repeat, split.fold, *parts))
    check_splits(splits, bags, allow_leaks)
    return splits


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


def kfold(
    bags: Sequence[Bag],
    folds: int,
    repeats: int = 1,
    validation_fraction: float = 0.15,
    seed: int = 0,
    site_of: Mapping[str, str] | None = None,
) -> list[Split]:
    """Repeated k-fold cross-validation, stratified by label and grouped by patient, or by site.

    Every slide is in one test part a repetition. The validation part is taken from the training patients. With sites,
    no site is on two sides: the test slides come from hospitals that the model has not seen.

    Args:
        bags: labelled bags; one without ``patient_id`` counts as a patient of its own.
        folds: number of test parts, at least 2.
        repeats: number of repetitions with other shuffles.
        validation_fraction: wanted share of the training slides, in (0, 0.5].
        seed: of the shuffles.
        site_of: site of each slide id; None to group by patient alone.

    Raises:
        InputError: fewer bags, or fewer patients or sites of a class, than the folds need, or a patient of two sites.

    Source:
        Preserved-site cross-validation: Howard et al., The impact of site-specific digital histology signatures on
        deep learning model accuracy and bias, Nature Communications 2021. They balance outcomes over folds by
        quadratic programming, here a greedy choice does (``StratifiedGroupKFold``).
    """
    check_sizes(folds, repeats, validation_fraction)
    labels, groups, ids = _columns(bags)
    if site_of is not None:
        groups = _site_column(groups, ids, site_of)
    for label in np.unique(labels):
        count = len(np.unique(groups[labels == label]))
        if count < folds:
            raise InputError(
                f"class {label} has {count} {'patients' if site_of is None else 'sites'}, fewer than the {folds} "
                f"folds; ask for at most {count} folds"
            )
    splits = []
    for repeat in range(repeats):
        repeat_seed = draw_seed(seed, repeat)
        outer = StratifiedGroupKFold(folds, shuffle=True, random_state=repeat_seed)
        for fold, (rest, test) in enumerate(outer.split(ids, labels, groups)):
            train, val = _hold_out(rest, labels, groups, validation_fraction, repeat_seed)
            parts = (tuple(ids[np.sort(part)].tolist()) for part in (train, val, test))
            splits.append(Split(repeat, fold, *parts))
    check_splits(splits, bags)
    return splits


def check_sizes(folds: int, repeats: int, validation_fraction: float) -> None:
    """Refuses numbers that no split can have."""
    if folds < 2 or repeats < 1 or not 0 < validation_fraction <= 0.5:
        raise InputError(
            f"a split needs folds >= 2, repeats >= 1 and 0 < validation_fraction <= 0.5, not {folds}, {repeats} and "
            f"{validation_fraction}"
        )


def draw_seed(seed: int, draw: int) -> int:
    """The seed of the ``draw``-th shuffle of those that ``seed`` stands for."""
    return int(np.random.SeedSequence([seed, draw]).generate_state(1)[0])


def _site_column(patients: npt.NDArray[Any], ids: npt.NDArray[Any], site_of: Mapping[str, str]) -> npt.NDArray[Any]:
    unknown = [slide_id for slide_id in ids.tolist() if slide_id not in site_of]
    if unknown:
        raise InputError(f"the site of slide {unknown[0]!r} is unknown ({len(unknown)} such); split by patient instead")
    sites = np.array([site_of[slide_id] for slide_id in ids.tolist()])
    pairs = sorted(set(zip(patients.tolist(), sites.tolist(), strict=True)))
    for (patient, site), (other, other_site) in pairwise(pairs):
        if patient == other:
            raise InputError(
                f"patient {patient!r} has slides of the sites {site} and {other_site}; correct one of them"
            )
    return sites


def _columns(bags: Sequence[Bag]) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    slides = as_bags(bags).slides
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


def check_splits(splits: Sequence[Split], bags: Sequence[Bag], allow_leaks: bool = False) -> None:
    """Refuses splits that cannot be trained on or trusted.

    Raises:
        InputError: a patient on two sides (all are named), unless leaks between train and test are allowed; a slide
            that the dataset lacks; or a part without a class.
    """
    label_of = {slide.slide_id: slide.label for slide in as_bags(bags).slides}
    classes = set(label_of.values())
    _check_known(splits, label_of)
    for split in splits:
        for part in ("train", "val", "test"):
            lacking = classes - {label_of[slide_id] for slide_id in getattr(split, part)}
            if lacking:
                label = min(lacking)  # type: ignore[type-var]
                raise InputError(
                    f"repeat {split.repeat}, fold {split.fold}: no {part} slide has label {label}; ask for fewer folds "
                    "or drop the class"
                )
    leaks = leaks_of(splits, {slide.slide_id: patient_key(slide) for slide in as_bags(bags).slides})
    if allow_leaks:
        leaks = {place: patients for place, patients in leaks.items() if place[2:] != ("train", "test")}
    for (repeat, fold, one, other), patients in leaks.items():
        raise InputError(
            f"repeat {repeat}, fold {fold}: patients in both {one} and {other}: {', '.join(patients)}; split by "
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


def _check_known(splits: Sequence[Split], known: Mapping[str, Any]) -> None:
    for split in splits:
        for part in ("train", "val", "test"):
            unknown = [slide_id for slide_id in getattr(split, part) if slide_id not in known]
            if unknown:
                raise InputError(
                    f"repeat {split.repeat}, fold {split.fold}: {part} slide {unknown[0]!r} is not in the dataset "
                    f"({len(unknown)} such); correct the split or the label table"
                )


def patient_key(bag: Bag | Slide) -> str:
    """The patient of a bag, or its slide id where the patient is unknown."""
    return bag.patient_id or bag.slide_id


def split_hash(splits: Sequence[Split]) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of the splits: equal hashes, equal splits."""
    text = json.dumps([asdict(split) for split in splits], separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
