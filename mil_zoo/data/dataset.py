"""A dataset opened by name or path: its card, its bags, and what splitting needs to know about them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import Bags, as_bags, files_as_bags
from mil_zoo.data.card import DataCard, count_differences, per_class, read_card
from mil_zoo.data.demo.cache import load_demo
from mil_zoo.data.folder import choose_features, labels_of_bags, labels_of_folder, read_tables
from mil_zoo.data.labels.annotations import InstanceLabeller, find_annotations
from mil_zoo.data.labels.tables import (
    class_indices,
    class_names,
    labels_as_indices,
    patients_of_two_labels,
    read_labels,
)
from mil_zoo.data.layouts.base import FeatureSet, find_features
from mil_zoo.data.layouts.table import read_published_folds, read_table
from mil_zoo.data.packed.store import PackedStore
from mil_zoo.data.patients import PatientRule
from mil_zoo.data.splits.files import published_split
from mil_zoo.data.splits.split import Split, from_masks
from mil_zoo.errors import InputError

ROOT_VARIABLE = "MIL_ZOO_REAL_DATA"


@dataclass(frozen=True, eq=False)
class Dataset:
    """The labelled bags of one dataset.

    Attributes:
        card: what it is.
        bags: one a slide, in the dataset's order; a list of bags becomes :class:`Bags`.
        published_splits: the splits that come with it, without validation parts where none are published; or empty.
        site_of: the site that each slide comes from; empty where unknown.
        test_ids: slides of another dataset, on all of which training on the others is tested; or empty.
        patient_rule: how a patient of several slides is scored; None where patients are not.
        features: the files that the bags are read from; None for bags in memory.
    """

    card: DataCard
    bags: Bags
    published_splits: Sequence[Split] = ()
    site_of: Mapping[str, str] = field(default_factory=dict)
    test_ids: Sequence[str] = ()
    patient_rule: PatientRule | None = None
    features: FeatureSet | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "bags", as_bags(self.bags))

    @property
    def in_dim(self) -> int:
        """Feature dimension D."""
        return self.bags.dim

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.card.classes)


def data_root(root: Path | None) -> Path | None:
    """``root``, or the folder in the variable ``MIL_ZOO_REAL_DATA``; None where neither is given."""
    return root or (Path(os.environ[ROOT_VARIABLE]) if os.environ.get(ROOT_VARIABLE) else None)


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
    root = data_root(root)
    if card.layout == "slides":
        return _checked(_open_slides(card, card.locate(root), labels, features, layout, allow_pickle))
    bags: Sequence[Bag]
    if card.layout == "simulated":
        bags, folds = load_demo(), None
    else:
        path = card.locate(root)
        bags = read_table(path, card.positive_instance_class, card.single_label)
        folds = None if card.single_label else read_published_folds(path)
    if labels is not None:
        card = replace(card, bags_per_class=None, warnings=[*card.warnings, f"Labels were replaced by {labels}."])
        bags = _relabelled(as_bags(bags), labels, class_indices(card.classes))
    return _checked(Dataset(card, as_bags(bags), () if folds is None else from_masks(folds, bags)))


def _open_table(path: Path, labels: Path | None) -> Dataset:
    bags: Sequence[Bag] = read_table(path)
    if labels is not None:
        bags = _relabelled(as_bags(bags), labels, None)
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
    return Dataset(card, as_bags(bags), () if folds is None else from_masks(folds, bags))


def _is_store(folder: Path) -> bool:
    return folder.is_dir() and any((folder / name).is_file() for name in ("store.json", ".store.json.partial"))


def _open_store(path: Path, labels: Path | None) -> Dataset:
    store = PackedStore.open(path)
    dataset = Dataset(store.card, store.bags, store.splits, store.site_of)
    if labels is None:
        return dataset
    card = dataset.card
    note = f"Labels were replaced by {labels}."
    card = replace(card, bags=None, bags_per_class=None, warnings=[*card.warnings, note])
    return _checked(replace(dataset, card=card, bags=_relabelled(dataset.bags, labels, class_indices(card.classes))))


def _open_slides(
    card: DataCard, folder: Path, given: Path | None, features: str | None, layout: str | None, allow_pickle: bool
) -> Dataset:
    card = card.beside(folder)
    chosen = choose_features(find_features(folder, layout), features, folder)
    read = read_tables(chosen, allow_pickle)
    table, path = labels_of_folder(folder, given, chosen, labels_of_bags(read or ()), card)
    if not card.classes:
        card = replace(card, classes=class_names(table))
    table["label"] = labels_as_indices(table, class_indices(card.classes), path)
    known = set(chosen.files) if read is None else {bag.slide_id for bag in read}
    missing = sorted(set(table["slide_id"]) - known)
    if missing:
        raise InputError(
            f"{path} names slides without features below {folder}: {', '.join(missing[:5])} ({len(missing)} in all); "
            "extract them or drop their rows"
        )
    unlabelled = sorted(known - set(table["slide_id"]) - set(card.exclude))
    if unlabelled:
        note = f"{len(unlabelled)} slides with features have no label and are left out: {', '.join(unlabelled[:3])}"
        card = replace(card, warnings=[*card.warnings, note + (", ..." if len(unlabelled) > 3 else ".")])
    labellers = _labellers(card, folder, table)
    if labellers:
        rule = f"more than {100 * card.annotation_threshold:g} % of the patch lies in annotated lesions"
        card = replace(card, instance_labels=card.instance_labels or rule)
    slides = files_as_bags(chosen, table, labellers)
    bags = slides if read is None else as_bags(_labelled(read, slides))
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


def _labelled(bags: list[Bag], slides: Bags) -> list[Bag]:
    by_id = {bag.slide_id: bag for bag in bags}
    labelled = []
    for slide in slides.slides:
        bag = replace(by_id[slide.slide_id], label=slide.label, patient_id=slide.patient_id)
        found = slide.instance_labels(bag)
        labelled.append(bag if found is None else replace(bag, instance_labels=found))
    return labelled


def _relabelled(bags: Bags, path: Path, class_of: dict[str, int] | None) -> Bags:
    table = read_labels(path)
    known, given = set(bags.slide_ids), set(table["slide_id"])
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

    return replace(
        bags,
        slides=[
            slide.changed(
                label=label(slide.slide_id), patient_id=rows[slide.slide_id].get("patient_id", slide.patient_id)
            )
            for slide in bags.slides
        ],
    )


def _checked(dataset: Dataset) -> Dataset:
    card, name = dataset.card, dataset.card.name
    slides = dataset.bags.slides
    repeated = [slide_id for slide_id, n in Counter(slide.slide_id for slide in slides).items() if n > 1]
    if repeated:
        raise InputError(f"dataset {name!r}: slide {repeated[0]!r} occurs more than once; keep one of them")
    for bag in slides:
        if bag.label is None or not 0 <= bag.label < dataset.num_classes:
            raise InputError(
                f"dataset {name!r}: slide {bag.slide_id!r} has label {bag.label}, the classes are "
                f"0 to {dataset.num_classes - 1} ({', '.join(card.classes)})"
            )
    differences = count_differences(card, [slide.label for slide in slides], [slide.patient_id for slide in slides])
    for split in dataset.published_splits if card.split_counts else ():
        label_of = {slide.slide_id: slide.label for slide in slides}
        for part, counts in card.split_counts.items():
            here = per_class([label_of[slide] for slide in getattr(split, part)], card)
            if here != counts:
                differences.append(
                    f"{sum(here)} {part} bags ({here} by class), its card states {sum(counts)} ({counts})"
                )
    if differences and card.counts == "exact":
        raise InputError(
            f"dataset {name!r} holds {'; '.join(differences)}; the files are incomplete or of another version"
        )
    if card.label_of == "patient":
        labels = pd.DataFrame([(slide.patient_id, slide.label) for slide in slides], columns=["patient_id", "label"])
        both = patients_of_two_labels(labels)
        if both:
            raise InputError(
                f"dataset {name!r}: patients with slides of different labels: {', '.join(both[:5])} ({len(both)} in "
                "all), and a label here is the patient's; correct the label table"
            )
    note = [f"The dataset holds {difference}." for difference in differences]
    return replace(dataset, card=replace(card, warnings=[*card.warnings, *note]))


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
