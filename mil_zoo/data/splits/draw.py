"""Divisions of a cohort drawn by a seed: k-fold, Monte-Carlo, and validation parts for published splits."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import as_bags
from mil_zoo.data.splits.balance import arrange, hold_out
from mil_zoo.data.splits.split import Split, Words, check_known, check_seed, check_sizes, check_splits, patient_key
from mil_zoo.errors import InputError

Strata: TypeAlias = "Sequence[Hashable] | npt.NDArray[np.int64]"


@dataclass(frozen=True)
class Cohort:
    """What splitting needs to know of the slides, in the order of their ids.

    Attributes:
        ids: ``[n]`` slide ids, ascending.
        patients: ``[n]``.
        groups: ``[n]`` what no part divides: patients, or sites.
        shares: ``[n, S]`` 0 or 1: what every part holds its share of, in the order in which it first appears.
        classes: whether the strata are classes, of which every part needs some.
    """

    ids: npt.NDArray[Any]
    patients: npt.NDArray[Any]
    groups: npt.NDArray[Any]
    shares: npt.NDArray[np.int64]
    classes: bool

    @classmethod
    def of(cls, bags: Sequence[Bag], strata: Strata | None = None, site_of: Mapping[str, str] | None = None) -> Cohort:
        """The cohort of labelled bags.

        Args:
            bags: labelled bags.
            strata: one a bag, or of each bag what it has of several, 0 or 1 ``[n, S]``; None for the labels.
            site_of: site of each slide id, where parts must not divide sites.

        Raises:
            InputError: strata of another number of bags, an unknown site, or a patient of two sites.
        """
        slides = as_bags(bags).slides
        if strata is not None and len(strata) != len(slides):
            raise InputError(f"{len(strata)} strata are given for {len(slides)} slides; give each slide one")
        ids = np.array([slide.slide_id for slide in slides], dtype=str)
        order = np.argsort(ids, kind="stable")
        patients = np.array([patient_key(slide) for slide in slides], dtype=str)
        groups = patients if site_of is None else _site_column(patients, ids, site_of)
        if isinstance(strata, np.ndarray) and strata.ndim == 2:
            return cls(ids[order], patients[order], groups[order], strata[order].astype(np.int64), False)
        given = [slide.label for slide in slides] if strata is None else list(strata)
        number: dict[Hashable, int] = {}
        for i in order.tolist():
            number.setdefault(given[i], len(number))
        codes = np.array([number[value] for value in given], dtype=np.int64)
        shares = (codes[order][:, None] == np.arange(len(number))).astype(np.int64)
        return cls(ids[order], patients[order], groups[order], shares, strata is None)

    def counts(self, rows: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Slides of each group and stratum among ``rows``, ``[G, S]``, and the group of each row, ``[rows]``."""
        groups, group_of = np.unique(self.groups[rows], return_inverse=True)
        here = self.shares[rows]
        here = here[:, here.any(0)]
        counts = np.zeros((len(groups), here.shape[1]), dtype=np.int64)
        np.add.at(counts, group_of, here)
        return counts, group_of

    def divide(self, rows: npt.NDArray[Any], fraction: float, *seed: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """The rows outside and inside a part drawn by :func:`mil_zoo.data.splits.balance.hold_out`."""
        counts, group_of = self.counts(rows)
        if self.classes and ((counts > 0).sum(0) < 2).any():
            unit = "patient" if (self.groups == self.patients).all() else "site"
            raise InputError(
                f"a class has one {unit} left for training and validation; ask for more folds, which test fewer at a "
                f"time, or add {unit}s of it"
            )
        inside = hold_out(counts, fraction, *seed, every=self.classes)[group_of]
        return rows[~inside], rows[inside]

    def split(self, repeat: int, fold: int, *parts: npt.NDArray[Any]) -> Split:
        """The split with the rows ``train, val, test`` (and ``withheld``)."""
        return Split(repeat, fold, *(tuple(self.ids[np.sort(part)].tolist()) for part in parts))


def kfold(
    bags: Sequence[Bag],
    folds: int,
    repeats: int = 1,
    validation_fraction: float = 0.15,
    seed: int = 0,
    site_of: Mapping[str, str] | None = None,
    strata: Strata | None = None,
) -> list[Split]:
    """Repeated k-fold cross-validation, stratified by label and grouped by patient, or by site.

    Every slide is in one test part a repetition. The validation part is drawn from the training patients, each with the
    same chance whatever the number of its slides. With sites, no site is on two sides: the test slides come from
    hospitals that the model has not seen. As many folds as patients is leave-one-out: a test part then lacks classes.

    The splits depend on the seed, the slide ids, and which slides share a patient (site) and stratum; not on the order
    of ``bags`` nor on how patients, sites and strata are called beyond the order of their names.

    Args:
        bags: labelled bags; one without ``patient_id`` counts as a patient of its own.
        folds: number of test parts, at least 2.
        repeats: number of repetitions with other shuffles.
        validation_fraction: wanted share of the training slides, in (0, 0.5].
        seed: of the shuffles, 0 or more.
        site_of: site of each slide id; None to group by patient alone.
        strata: what every part holds its share of, one a bag (bins of survival time and event, for instance), or 0 and
            1 ``[n, S]`` where a bag is of several; None for the classes, of which every part then needs some.

    Raises:
        InputError: fewer bags, or fewer patients or sites of a class, than the folds need, or a patient of two sites.

    Source:
        Preserved-site cross-validation: Howard et al., The impact of site-specific digital histology signatures on
        deep learning model accuracy and bias, Nature Communications 2021. They balance outcomes over folds by
        quadratic programming, here :func:`mil_zoo.data.splits.balance.arrange` does.
    """
    check_sizes(folds, repeats, validation_fraction)
    check_seed(seed)
    cohort = Cohort.of(bags, strata, site_of)
    rows = np.arange(len(cohort.ids))
    counts, group_of = cohort.counts(rows)
    what = "patients" if site_of is None else "sites"
    if folds > len(counts):
        raise InputError(f"there are {len(counts)} {what}, fewer than the {folds} folds; ask for fewer folds")
    alone = folds == len(counts)
    fewest = int((counts > 0).sum(0).min())
    if cohort.classes and not alone and fewest < folds:
        label_of = {slide.slide_id: slide.label for slide in as_bags(bags).slides}
        labels = np.array([label_of[slide_id] for slide_id in cohort.ids.tolist()])
        numbers = {label: len(np.unique(cohort.groups[labels == label])) for label in np.unique(labels).tolist()}
        label = min(label for label, number in numbers.items() if number < folds)
        count = numbers[label]
        remedy = f"ask for at most {fewest} folds" if fewest > 1 else "add slides of it, or drop the class"
        raise InputError(f"class {label} has {count} {what}, fewer than the {folds} folds; {remedy}")
    splits = []
    for repeat in range(repeats):
        fold_of = arrange(counts, folds, 1, seed, repeat)[group_of]
        for fold in range(folds):
            train, val = cohort.divide(rows[fold_of != fold], validation_fraction, seed, repeat, fold, 1)
            splits.append(cohort.split(repeat, fold, train, val, rows[fold_of == fold]))
    check_splits(splits, bags, classes=cohort.classes, test_classes=not alone)
    return splits


def monte_carlo(
    bags: Sequence[Bag],
    draws: int,
    test_fraction: float = 0.2,
    validation_fraction: float = 0.15,
    seed: int = 0,
    strata: Strata | None = None,
) -> list[Split]:
    """Independent random divisions, stratified by label and grouped by patient; test parts of two draws overlap.

    Every patient's chance of a test part is ``test_fraction``, however many slides there are of the patient.

    Args:
        bags: see :func:`mil_zoo.data.splits.draw.kfold`.
        draws: number of divisions; each is a fold of repeat 0.
        test_fraction: wanted share of the slides in a test part, in (0, 0.5].
        validation_fraction: wanted share of the training slides, in (0, 0.5].
        seed: of the draws.
        strata: see ``kfold``.

    Raises:
        InputError: as ``kfold`` does; a class needs three patients, one for each part.
    """
    if draws < 1 or not 0 < test_fraction <= 0.5:
        raise InputError(
            f"Monte-Carlo splits need draws >= 1 and 0 < test_fraction <= 0.5, not {draws}, {test_fraction}"
        )
    check_sizes(2, 1, validation_fraction)
    check_seed(seed)
    cohort = Cohort.of(bags, strata)
    splits = []
    for draw in range(draws):
        rest, test = cohort.divide(np.arange(len(cohort.ids)), test_fraction, seed, draw, 0)
        train, val = cohort.divide(rest, validation_fraction, seed, draw, 1)
        splits.append(cohort.split(0, draw, train, val, test))
    check_splits(splits, bags, classes=cohort.classes)
    return splits


def train_elsewhere(
    bags: Sequence[Bag],
    test_ids: Sequence[str],
    repeats: int = 1,
    validation_fraction: float = 0.15,
    seed: int = 0,
    strata: Strata | None = None,
) -> list[Split]:
    """Trains and validates on the slides outside ``test_ids``, and tests on all of these.

    Args:
        bags: labelled bags of both sides.
        test_ids: slides of the other dataset.
        repeats: number of divisions of the others into train and val.
        validation_fraction: wanted share of the training slides, in (0, 0.5].
        seed: of these divisions.
        strata: see :func:`mil_zoo.data.splits.draw.kfold`.

    Raises:
        InputError: see ``check_splits``; patients of both sides are named.
    """
    check_sizes(2, repeats, validation_fraction)
    tested = set(test_ids)
    rest = tuple(slide.slide_id for slide in as_bags(bags).slides if slide.slide_id not in tested)
    published = [Split(repeat, 0, rest, (), tuple(test_ids)) for repeat in range(repeats)]
    return completed(published, bags, validation_fraction, seed, strata=strata)


def completed(
    published: Sequence[Split],
    bags: Sequence[Bag],
    validation_fraction: float = 0.15,
    seed: int = 0,
    allow_leaks: bool = False,
    strata: Strata | None = None,
    words: Words | None = None,
) -> list[Split]:
    """Published splits as they are, with a validation part drawn from the training patients where they have none.

    Args:
        published: splits whose ``val`` may be empty; a slide may be in no part.
        bags: labelled bags.
        validation_fraction: see :func:`kfold`.
        seed: of the validation parts that are drawn.
        allow_leaks: let patients be in both train and test, as published. The validation part keeps apart from both
            all the same: it is drawn from, or cut down to, patients of neither.
        strata: see :func:`kfold`.
        words: how errors name the splits and the classes.

    Raises:
        InputError: see :func:`check_splits`.
    """
    check_seed(seed)
    cohort = Cohort.of(bags, strata)
    place = {slide_id: i for i, slide_id in enumerate(cohort.ids.tolist())}
    words = words or Words()
    check_known(published, place, words)
    splits = []
    for split in published:
        train, val, test, withheld = (
            np.array([place[slide] for slide in part], dtype=int)
            for part in (split.train, split.val, split.test, split.withheld)
        )
        if len(val) == 0:
            tested = np.isin(cohort.patients[train], cohort.patients[test]) & allow_leaks
            rest = np.sort(train[~tested])
            kept, val = cohort.divide(rest, validation_fraction, seed, split.repeat, split.fold, 1)
            train = np.concatenate([kept, train[tested]])
        elif allow_leaks:
            val = val[~np.isin(cohort.patients[val], cohort.patients[np.concatenate([train, test])])]
        splits.append(cohort.split(split.repeat, split.fold, train, val, test, withheld))
    check_splits(splits, bags, allow_leaks, classes=cohort.classes, words=words)
    return splits


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
