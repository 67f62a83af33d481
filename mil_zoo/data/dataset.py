"""A dataset opened by name or path: its card, its bags, and what splitting needs to know about them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from mil_zoo.data.bag import Bag
from mil_zoo.data.card import DataCard, read_card
from mil_zoo.data.demo_cache import load_demo
from mil_zoo.data.readers.table import read_published_folds, read_table
from mil_zoo.errors import InputError

ROOT_VARIABLE = "MIL_ZOO_REAL_DATA"


@dataclass(frozen=True, eq=False)
class Dataset:
    """The labelled bags of one dataset.

    Attributes:
        card: what it is.
        bags: one a slide, in the dataset's order.
        published_folds: bool ``[repeats, folds, bags]``, the test bags of published splits, or None.
    """

    card: DataCard
    bags: Sequence[Bag]
    published_folds: npt.NDArray[np.bool_] | None = None

    @property
    def in_dim(self) -> int:
        """Feature dimension D."""
        return int(self.bags[0].features.shape[1])

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.card.classes)

    def pick(self, slide_ids: Iterable[str]) -> list[Bag]:
        """The bags called ``slide_ids``, in that order."""
        by_id = {bag.slide_id: bag for bag in self.bags}
        return [by_id[slide_id] for slide_id in slide_ids]


def open_dataset(name: str, root: Path | None = None, labels: Path | None = None) -> Dataset:
    """Opens a dataset by its card's name, or a bag table by its path (``something.npz``).

    Args:
        name: see ``mil-zoo datasets``, or a path.
        root: folder that holds the card's files; None for the folder in the variable ``MIL_ZOO_REAL_DATA``.
        labels: a csv with the columns slide_id and label (class index) and, optionally, patient_id, that replaces the
            dataset's own labels.

    Raises:
        InputError: unknown name, missing or damaged files, or counts that differ from the card's.
    """
    if name.endswith(".npz"):
        bags = _relabelled(read_table(Path(name)), labels)
        num_classes = max(2, 1 + max(bag.label or 0 for bag in bags))
        card = DataCard(
            name=Path(name).stem,
            title=Path(name).name,
            kind="table",
            layout="table",
            classes=[f"class {label}" for label in range(num_classes)],
            standardise=True,
            graph="feature_knn:8" if bags[0].coords is None else "knn:8",
            instance_labels=None if bags[0].instance_labels is None else "inst_label of the table",
        )
        return _checked(Dataset(card, bags, read_published_folds(Path(name))))
    card = read_card(name)
    if labels is not None:
        card = replace(card, bags_per_class=None, warnings=[*card.warnings, f"Labels were replaced by {labels}."])
    if card.layout == "simulated":
        return _checked(Dataset(card, _relabelled(load_demo(), labels)))
    if root is None and os.environ.get(ROOT_VARIABLE):
        root = Path(os.environ[ROOT_VARIABLE])
    path = card.locate(root)
    bags = read_table(path, card.positive_instance_class, card.single_label)
    folds = None if card.single_label else read_published_folds(path)
    return _checked(Dataset(card, _relabelled(bags, labels), folds))


def _relabelled(bags: list[Bag], path: Path | None) -> list[Bag]:
    if path is None:
        return bags
    try:
        table = pd.read_csv(path, dtype={"slide_id": str, "patient_id": str})
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable csv ({error}); it needs the columns slide_id and label") from error
    for column in ("slide_id", "label"):
        if column not in table:
            raise InputError(f"{path}: the column {column!r} is missing; it needs slide_id and label")
    known, given = {bag.slide_id for bag in bags}, list(table["slide_id"])
    for problem, slides in {
        "names slides that the dataset lacks": [slide for slide in given if slide not in known],
        "names slides twice": [slide for slide, count in Counter(given).items() if count > 1],
        "has no row for slides of the dataset": sorted(known - set(given)),
    }.items():
        if slides:
            raise InputError(f"{path} {problem}: {', '.join(map(str, slides[:5]))} ({len(slides)} in all); correct it")
    rows = table.set_index("slide_id")
    if not pd.api.types.is_integer_dtype(rows["label"]):
        raise InputError(f"{path}: label must be a class index (0, 1, ...) in every row")
    patients = rows.get("patient_id")
    return [
        replace(
            bag,
            label=int(rows["label"][bag.slide_id]),
            patient_id=bag.patient_id if patients is None else str(patients[bag.slide_id]),
        )
        for bag in bags
    ]


def _checked(dataset: Dataset) -> Dataset:
    card, name = dataset.card, dataset.card.name
    repeated = [slide_id for slide_id, n in Counter(bag.slide_id for bag in dataset.bags).items() if n > 1]
    if repeated:
        raise InputError(f"dataset {name!r}: slide {repeated[0]!r} occurs more than once; keep one of them")
    for bag in dataset.bags:
        if bag.label is None or not 0 <= bag.label < dataset.num_classes:
            raise InputError(
                f"dataset {name!r}: slide {bag.slide_id!r} has label {bag.label}, the classes are "
                f"0 to {dataset.num_classes - 1} ({', '.join(card.classes)})"
            )
    per_class = [sum(bag.label == label for bag in dataset.bags) for label in range(dataset.num_classes)]
    if card.bags not in (None, len(dataset.bags)) or card.bags_per_class not in (None, per_class):
        raise InputError(
            f"dataset {name!r} holds {len(dataset.bags)} bags ({per_class} by class), its card states {card.bags} "
            f"({card.bags_per_class}); the files are incomplete or of another version"
        )
    return dataset


@dataclass(frozen=True, eq=False)
class Standardiser:
    """Scales features to mean 0 and standard deviation 1, both taken from training instances only.

    Attributes:
        mean: ``[D]``.
        scale: ``[D]``; 1 where a feature is constant.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, bags: Sequence[Bag]) -> Standardiser:
        """Mean and standard deviation over all instances of ``bags``."""
        features = torch.cat([bag.features for bag in bags]).double()
        scale = features.std(0, correction=0)
        return cls(features.mean(0), torch.where(scale > 1e-8 * features.abs().amax(0), scale, 1.0))

    def __call__(self, bag: Bag) -> Bag:
        """The bag with scaled features."""
        return bag.with_features(((bag.features - self.mean) / self.scale).float())
