"""A dataset opened by name or path: its card, its bags, and what splitting needs to know about them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mil_zoo.data.annotations import InstanceLabeller, find_annotations
from mil_zoo.data.bag import Bag
from mil_zoo.data.card import DataCard, read_card
from mil_zoo.data.demo_cache import load_demo
from mil_zoo.data.labels import class_indices, class_names, find_labels, labels_as_indices, read_labels
from mil_zoo.data.readers.base import LAYOUTS, FeatureSet, TableLayout, find_features
from mil_zoo.data.readers.table import read_published_folds, read_table
from mil_zoo.data.slide_files import SlideFiles, heads, slide_files
from mil_zoo.data.split_files import published_split
from mil_zoo.data.splits import Split, from_masks
from mil_zoo.errors import InputError, did_you_mean

ROOT_VARIABLE = "MIL_ZOO_REAL_DATA"


@dataclass(frozen=True, eq=False)
class Dataset:
    """The labelled bags of one dataset.

    Attributes:
        card: what it is.
        bags: one a slide, in the dataset's order.
        published_splits: the splits that come with it, without validation parts where none are published; or empty.
        site_of: the site that each slide comes from; empty where unknown.
        features: the files that the bags are read from; None for bags in memory.
    """

    card: DataCard
    bags: Sequence[Bag]
    published_splits: Sequence[Split] = ()
    site_of: Mapping[str, str] = field(default_factory=dict)
    features: FeatureSet | None = None

    @property
    def in_dim(self) -> int:
        """Feature dimension D."""
        if isinstance(self.bags, SlideFiles):
            return self.bags.slides[0].shape()[1]
        return int(self.bags[0].features.shape[1])

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.card.classes)


@dataclass(frozen=True)
class DatasetSource:
    """The arguments of :func:`open_dataset`, to open a dataset again in another process."""

    name: str
    root: Path | None = None
    labels: Path | None = None
    features: str | None = None
    layout: str | None = None
    allow_pickle: bool = False

    def anywhere(self) -> DatasetSource:
        """The same, independent of the working directory and of the environment."""
        name, root = self.name, self.root
        if name.endswith(".npz") or Path(name).is_dir():
            name = str(Path(name).resolve())
        if root is None and os.environ.get(ROOT_VARIABLE):
            root = Path(os.environ[ROOT_VARIABLE])
        return replace(self, name=name, root=root and root.resolve(), labels=self.labels and self.labels.resolve())

    def open(self) -> Dataset:
        """See :func:`open_dataset`."""
        how = {"features": self.features, "layout": self.layout, "allow_pickle": self.allow_pickle}
        return open_dataset(self.name, self.root, self.labels, **how)  # type: ignore[arg-type]


def open_dataset(
    name: str,
    root: Path | None = None,
    labels: Path | None = None,
    *,
    features: str | None = None,
    layout: str | None = None,
    allow_pickle: bool = False,
) -> Dataset:
    """Opens a dataset by its card's name, or a bag table (``something.npz``), a folder of slides or a packed store.

    Slides stay on disk: their names are listed, and each is read when it is needed.

    Args:
        name: see ``mil-zoo datasets``, or a path.
        root: folder that holds the card's files; None for the folder in the variable ``MIL_ZOO_REAL_DATA``.
        labels: a csv that replaces the dataset's own labels: slide_id, label (class index or name) and, optionally,
            patient_id, site, and split (train, val or test of the published split; nothing for none of them). A folder
            of slides has its own in ``labels.csv``.
        features: which set of features, where the folder holds those of several encoders.
        layout: how the folder is laid out; None to tell it from what lies there.
        allow_pickle: run whatever code a pickle of features holds; only for files of one's own.

    Raises:
        InputError: unknown name, missing or damaged files, or counts that differ from the card's.
    """
    if name.endswith(".npz"):
        return _checked(_open_table(Path(name), labels))
    if _is_store(Path(name)):
        return _open_store(Path(name), labels)
    if Path(name).is_dir():
        card = DataCard(Path(name).resolve().name, str(name), "real", "slides", [])
        return _checked(_open_slides(card, Path(name), labels, features, layout, allow_pickle))
    card = read_card(name)
    if root is None and os.environ.get(ROOT_VARIABLE):
        root = Path(os.environ[ROOT_VARIABLE])
    if card.layout == "slides":
        return _checked(_open_slides(card, card.locate(root), labels, features, layout, allow_pickle))
    bags: list[Bag]
    if card.layout == "simulated":
        bags, folds = load_demo(), None
    else:
        path = card.locate(root)
        bags = read_table(path, card.positive_instance_class, card.single_label)
        folds = None if card.single_label else read_published_folds(path)
    if labels is not None:
        card = replace(card, bags_per_class=None, warnings=[*card.warnings, f"Labels were replaced by {labels}."])
        bags = _relabelled(bags, labels, class_indices(card.classes))
    return _checked(Dataset(card, bags, () if folds is None else from_masks(folds, bags)))


def _open_table(path: Path, labels: Path | None) -> Dataset:
    bags = read_table(path)
    if labels is not None:
        bags = _relabelled(bags, labels, None)
    num_classes = max(2, 1 + max(bag.label or 0 for bag in bags))
    card = DataCard(
        name=path.stem,
        title=path.name,
        kind="table",
        layout="table",
        classes=[f"class {label}" for label in range(num_classes)],
        standardise=True,
        graph="feature_knn:8" if bags[0].coords is None else "knn:8",
        instance_labels=None if bags[0].instance_labels is None else "inst_label of the table",
    )
    folds = read_published_folds(path)
    return Dataset(card, bags, () if folds is None else from_masks(folds, bags))


def _is_store(folder: Path) -> bool:
    return folder.is_dir() and any((folder / name).is_file() for name in ("store.json", ".store.json.partial"))


def _open_store(path: Path, labels: Path | None) -> Dataset:
    from mil_zoo.data.store import PackedStore  # which makes datasets

    dataset = PackedStore.open(path).dataset
    if labels is None:
        return dataset
    card = dataset.card
    note = f"Labels were replaced by {labels}."
    card = replace(card, bags=None, bags_per_class=None, warnings=[*card.warnings, note])
    slides: Any = _relabelled(list(heads(dataset.bags)), labels, class_indices(card.classes))  # type: ignore[arg-type]
    return _checked(replace(dataset, card=card, bags=SlideFiles(slides)))


def _open_slides(
    card: DataCard, folder: Path, given: Path | None, features: str | None, layout: str | None, allow_pickle: bool
) -> Dataset:
    chosen = choose_features(find_features(folder, layout), features, folder)
    found = LAYOUTS.get(chosen.layout)
    tables = dict.fromkeys(chosen.files.values()) if isinstance(found, TableLayout) else {}
    read = [bag for path in tables for bag in found.read_all(path, allow_pickle)]  # type: ignore[attr-defined]
    table, path = _labels_of_folder(folder, given, chosen, read)
    if not card.classes:
        card = replace(card, classes=class_names(table))
    table["label"] = labels_as_indices(table, class_indices(card.classes), path)
    if "patient_id" not in table and card.patient_prefix:
        table["patient_id"] = table["slide_id"].str[: card.patient_prefix]
    known = {bag.slide_id for bag in read} if tables else set(chosen.files)
    missing = sorted(set(table["slide_id"]) - known)
    if missing:
        raise InputError(
            f"{path} names slides without features below {folder}: {', '.join(missing[:5])} ({len(missing)} in all); "
            "extract them or drop their rows"
        )
    unlabelled = sorted(known - set(table["slide_id"]))
    if unlabelled:
        note = f"{len(unlabelled)} slides with features have no label and are left out: {', '.join(unlabelled[:3])}"
        card = replace(card, warnings=[*card.warnings, note + (", ..." if len(unlabelled) > 3 else ".")])
    labellers = _labellers(card, folder, table)
    if labellers:
        rule = f"more than {100 * card.annotation_threshold:g} % of the patch lies in annotated lesions"
        card = replace(card, instance_labels=card.instance_labels or rule)
    slides = slide_files(chosen, table, labellers)
    bags = _labelled(read, slides) if tables else slides
    site_of = {}
    if "site" not in table and card.site_prefix:
        table["site"] = table["slide_id"].str[: card.site_prefix]
    if "site" in table:
        stated = table.dropna(subset=["site"])
        site_of = dict(zip(stated["slide_id"], stated["site"], strict=True))
    return Dataset(card, bags, published_split(table, path), site_of, features=chosen)


def _labellers(card: DataCard, folder: Path, table: pd.DataFrame) -> dict[str, InstanceLabeller]:
    """For each slide whose lesions are known, how its patches are labelled; empty without an annotations folder."""
    files = find_annotations(folder / card.annotations)
    known: dict[str, Path | None] = {}
    if files and card.lesion_free_class is not None:
        free = table["label"] == card.classes.index(card.lesion_free_class)
        known = dict.fromkeys(table["slide_id"][free])
    known.update(files)
    return {
        slide_id: InstanceLabeller(path, card.annotation_threshold)
        for slide_id, path in known.items()
        if slide_id not in card.incomplete_annotations
    }


def _labelled(bags: list[Bag], slides: SlideFiles) -> list[Bag]:
    by_id = {bag.slide_id: bag for bag in bags}
    labelled = []
    for head in slides.slides:
        bag = replace(by_id[head.slide_id], label=head.label, patient_id=head.patient_id)
        labelled.append(replace(bag, instance_labels=head.labeller(bag)) if head.labeller else bag)
    return labelled


def _labels_of_folder(
    folder: Path, given: Path | None, features: FeatureSet, bags: list[Bag]
) -> tuple[pd.DataFrame, Path]:
    """The label table and where it lies: the one given, ``labels.csv``, the features' own, or the only csv."""
    if given is None and not (folder / "labels.csv").exists():
        own = LAYOUTS.get(features.layout).labels(features)
        if own is None and bags and all(bag.label is not None for bag in bags):
            rows = [(bag.slide_id, str(bag.label), bag.patient_id) for bag in bags]
            own = pd.DataFrame(rows, columns=["slide_id", "label", "patient_id"])
        if own is not None:
            return own, features.folder
    path = given or find_labels(folder)
    return read_labels(path), path


def choose_features(found: Sequence[FeatureSet], name: str | None, folder: Path) -> FeatureSet:
    """The set of features called ``name``, or the only one.

    Raises:
        InputError: there is none of that name, or several and none was named.
    """
    names = [features.name for features in found]
    if name is None and len(found) > 1:
        raise InputError(f"{folder} holds {len(found)} sets of features; choose with --features: {', '.join(names)}")
    if name is not None and name not in names:
        raise InputError(f"{folder} holds no features called {name!r}{did_you_mean(name, names)}")
    return found[0 if name is None else names.index(name)]


def _relabelled(bags: list[Bag], path: Path, class_of: dict[str, int] | None) -> list[Bag]:
    table = read_labels(path)
    known, given = {bag.slide_id for bag in bags}, set(table["slide_id"])
    for problem, slides in {
        "names slides that the dataset lacks": sorted(given - known),
        "has no row for slides of the dataset": sorted(known - given),
    }.items():
        if slides:
            raise InputError(f"{path} {problem}: {', '.join(slides[:5])} ({len(slides)} in all); correct it")
    rows = {row["slide_id"]: row for row in table.to_dict("records")}

    def label(slide_id: str) -> int:
        text = str(rows[slide_id]["label"])
        if class_of is None and text.isdigit():
            return int(text)
        if class_of is None or text not in class_of:
            expected = "a class index (0, 1, ...)" if class_of is None else f"one of {', '.join(class_of)}"
            raise InputError(f"{path}: the label of slide {slide_id!r} must be {expected}, not {text!r}")
        return class_of[text]

    return [
        replace(bag, label=label(bag.slide_id), patient_id=rows[bag.slide_id].get("patient_id", bag.patient_id))
        for bag in bags
    ]


def _checked(dataset: Dataset) -> Dataset:
    card, name = dataset.card, dataset.card.name
    slides = heads(dataset.bags)
    repeated = [slide_id for slide_id, n in Counter(slide.slide_id for slide in slides).items() if n > 1]
    if repeated:
        raise InputError(f"dataset {name!r}: slide {repeated[0]!r} occurs more than once; keep one of them")
    for bag in slides:
        if bag.label is None or not 0 <= bag.label < dataset.num_classes:
            raise InputError(
                f"dataset {name!r}: slide {bag.slide_id!r} has label {bag.label}, the classes are "
                f"0 to {dataset.num_classes - 1} ({', '.join(card.classes)})"
            )
    per_class = [sum(slide.label == label for slide in slides) for label in range(dataset.num_classes)]
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
