"""What lies at a source: the one place that tells cards, tables, folders, stores and single files apart.

:func:`locate` says what is there, :func:`contents_of` lists its slides. Opening a dataset, checking one and predicting
slides all begin here, so that what one of them takes the others take too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import Bags, MemorySlide, Slide, SlideFile, as_bags
from mil_zoo.data.card import DataCard, read_card
from mil_zoo.data.demo.cache import load_demo
from mil_zoo.data.demo.outcomes import OUTCOMES
from mil_zoo.data.derived import side_by_side
from mil_zoo.data.formats.boundary import boundary
from mil_zoo.data.labels.annotations import InstanceLabeller, find_annotations
from mil_zoo.data.labels.names import match_names
from mil_zoo.data.layouts.base import LAYOUTS, FeatureSet, TableLayout
from mil_zoo.data.layouts.find import choose_features, find_features, layout_of
from mil_zoo.data.layouts.table import named_classes, read_published_folds, read_table
from mil_zoo.data.packed.store import PackedStore, is_store
from mil_zoo.data.source import DatasetSource
from mil_zoo.data.splits.split import Split, from_masks
from mil_zoo.errors import InputError
from mil_zoo.tasks import Task

Kind = Literal["simulated", "table", "slides", "store", "file"]


@dataclass(frozen=True)
class Place:
    """What lies at a source.

    Attributes:
        kind: slides that are "simulated", a bag "table", a folder of "slides", a packed "store", or one feature "file".
        card: the card that was named, or one that says no more than what is there.
        path: the file or folder; None for simulated slides.
    """

    kind: Kind
    card: DataCard
    path: Path | None

    @property
    def folder(self) -> Path:
        """The folder of the files; only of "slides" and "file"."""
        path = self.path or Path()
        return path.parent if self.kind == "file" else path


@dataclass(frozen=True, eq=False)
class Contents:
    """The slides at a place.

    Attributes:
        card: of the dataset.
        where: the file or folder they are read from; a word where they are simulated.
        layout: how they lie there.
        bags: one a slide, with the labels that lie with the features.
        features: the files; None but for a folder or a file of features.
        splits: the splits that come with them.
        site_of: the site of each slide, where known.
        covariates: a row a patient, where they come with the features.
        unreadable: files of several slides each that cannot be read, and why.
    """

    card: DataCard
    where: Path | str
    layout: str
    bags: Bags
    features: FeatureSet | None = None
    splits: Sequence[Split] = ()
    site_of: Mapping[str, str] = field(default_factory=dict)
    covariates: pd.DataFrame | None = None
    unreadable: Mapping[Path, str] = field(default_factory=dict)


def locate(source: DatasetSource) -> Place:
    """What lies at a source.

    Raises:
        InputError: nothing does, or the card's files are not there.
    """
    path = Path(source.name)
    if not source.names_card:
        if path.suffix.lower() == ".npz" and source.layout in (None, "arrays"):
            return Place("table", _bare_card(path.stem, path.name, "table"), path)
        if path.is_dir():
            kind: Kind = "store" if is_store(path) else "slides"
            return Place(kind, _bare_card(path.resolve().name, path.resolve().name, "slides"), path)
        if path.is_file():
            return Place("file", _bare_card(path.stem, path.name, "slides"), path)
        if {"/", "\\"} & set(source.name) or path.suffix.lower() in _suffixes():
            raise InputError(f"{path}: no such file or folder; pass a file or folder of features, or a card's name")
    try:
        card = read_card(source.name)
    except InputError as error:
        if source.names_card:
            raise
        raise InputError(f"{error} (nor is a file or folder here called so)") from None
    return Place(card.form, card, None if card.form == "simulated" else card.locate(source.data_root))


def feature_sets(place: Place, source: DatasetSource) -> list[FeatureSet]:
    """The sets of features at a place, or the one that the source names; empty where files of features are none.

    Raises:
        InputError: the source names a set, and there is none of that name or nothing to choose from.
    """
    if source.features is not None and place.kind != "slides":
        what = "the slides of this dataset are" if place.path is None else f"{place.path} is"
        raise InputError(
            f"--features {source.features} chooses among the sets in a folder, and {what} no such folder; leave "
            "--features out, or name the folder that holds the sets"
        )
    if place.kind == "file":
        path = place.folder / (place.path or Path()).name
        layout = layout_of(path, source.layout)
        return [FeatureSet(layout.name, "", path, {layout.slide_id(path): path})]
    if place.kind != "slides":
        return []
    found = find_features(place.folder, source.layout)
    return found if source.features is None else [choose_features(found, source.features, place.folder)]


def contents_of(place: Place, source: DatasetSource, features: FeatureSet | None = None) -> Contents:
    """The slides at a place. Names are listed; of tables, the bags are read.

    Args:
        place: from :func:`locate`.
        source: what it is the place of.
        features: one of :func:`feature_sets`; None for the only one.

    Raises:
        InputError: several sets of features and none was named, or files that are missing or damaged.
    """
    path = place.path or Path()
    sets: list[FeatureSet] = []
    if features is None and not _joins(place, source):
        sets = feature_sets(place, source)
    if place.kind == "simulated":
        name = place.card.name
        made = OUTCOMES.get(name, list)(load_demo(name="demo" if name in OUTCOMES else name))
        return Contents(place.card, "simulated", "simulated", as_bags(made))
    if place.kind == "table":
        return _table(place.card, path)
    if place.kind == "store":
        store = PackedStore.open(path)
        of_patients = all(slide.slide_id == slide.patient_id for slide in store.bags.slides)
        return Contents(
            store.card.counting_patients() if of_patients else store.card,
            path,
            "store",
            store.bags,
            splits=store.splits,
            site_of=store.site_of,
            covariates=store.covariates,
        )
    if features is None and not sets:
        return _joined(place, source)
    features = features or choose_features(sets, None, path)
    slides, unreadable = _slides(features, source.allow_pickle)
    card = place.card.beside(place.folder)
    return Contents(card, features.folder, features.layout, Bags(slides), features, unreadable=unreadable)


def _joins(place: Place, source: DatasetSource) -> bool:
    """Whether the source names several sets, to be read side by side; one set may have a + in its own name."""
    return (
        place.kind == "slides"
        and "+" in (source.features or "")
        and all(each.name != source.features for each in find_features(place.folder, source.layout))
    )


def _joined(place: Place, source: DatasetSource) -> Contents:
    """The slides with the features of several encoders side by side."""
    names = (source.features or "").split("+")
    if len(set(names)) < len(names):
        raise InputError(f"--features {source.features}: name each set of features once")
    parts = [contents_of(place, replace(source, features=name)) for name in names]
    first, unreadable = parts[0], {path: why for part in parts for path, why in part.unreadable.items()}
    features = first.features and replace(first.features, name=str(source.features))
    bags = side_by_side([part.bags for part in parts], names, source.allow_missing)
    if features is not None:
        files = {slide: features.files[slide] for slide in bags.slide_ids if slide in features.files}
        features = replace(features, files=files)
    return replace(first, bags=bags, features=features, unreadable=unreadable)


def labelled(
    contents: Contents, table: pd.DataFrame, task: Task, targets: npt.NDArray[np.float64], folder: Path | None
) -> tuple[Bags, bool]:
    """The bags of the slides in a table, in its order, with its targets and patients.

    Args:
        contents: whose bags.
        table: columns slide_id and, optionally, patient_id; every slide is among the bags.
        task: what is predicted; of classes the target is the label.
        targets: ``[n, T]``, of each row.
        folder: where annotations are looked for; None for nowhere.

    Returns:
        The bags, and whether any of them has its instance labels from annotations.
    """
    by_id = {slide.slide_id: slide for slide in contents.bags.slides}
    classes = task.target_columns == ("label",)
    labels = [int(target[0]) if classes else None for target in targets]
    labellers = {} if folder is None else _labellers(contents.card, folder, table["slide_id"].tolist(), labels)
    slides: list[Slide] = []
    for row, label, target in zip(table.to_dict("records"), labels, targets.tolist(), strict=True):
        slide = by_id[row["slide_id"]]
        patient = row.get("patient_id", slide.patient_id)
        slide = slide.changed(
            label=label,
            target=None if classes else tuple(target),
            patient_id=None if pd.isna(patient) else str(patient),
        )
        if row["slide_id"] in labellers:
            slide = slide.annotated(labellers[row["slide_id"]])
        slides.append(slide)
    return Bags(slides), bool(labellers)


def _bare_card(name: str, title: str, form: Literal["table", "slides"]) -> DataCard:
    return DataCard(name=name, title=title, kind="own", form=form, classes=[])


def _suffixes() -> set[str]:
    return {suffix for name in LAYOUTS for suffix in LAYOUTS.get(name).suffixes}


def _table(card: DataCard, path: Path) -> Contents:
    beside = card.beside(path.parent)
    with boundary(path, "a readable bag table"):
        classes = beside.classes or named_classes(path)
        bags = read_table(path, beside.positive_instance_class, beside.single_label, classes)
    if not card.classes:  # nothing but the table, and perhaps a card.yaml, says what it is
        card = replace(
            card,
            classes=classes,
            standardise=True,
            graph="feature_knn:8" if bags[0].coords is None else "knn:8",
            instance_labels=None if bags[0].instance_labels is None else "inst_label of the table",
        )
    card = card.beside(path.parent)
    folds = None if card.single_label else read_published_folds(path)
    return Contents(card, path, "arrays", as_bags(bags), splits=() if folds is None else from_masks(folds, bags))


def _slides(features: FeatureSet, allow_pickle: bool) -> tuple[list[Slide], dict[Path, str]]:
    layout = LAYOUTS.get(features.layout)
    if not isinstance(layout, TableLayout):
        return [SlideFile(slide, None, None, path, layout.name) for slide, path in features.files.items()], {}
    bags: list[Bag] = []
    unreadable = {}
    for path in dict.fromkeys(features.files.values()):
        try:
            with boundary(path):
                bags += layout.read_all(path, allow_pickle)
        except InputError as error:
            unreadable[path] = str(error)
    return [MemorySlide(bag) for bag in bags], unreadable


def annotation_files(card: DataCard, folder: Path, slide_ids: Sequence[str]) -> dict[str, Path]:
    """The annotation file of each slide that has one, by its id; a file that names none stays under its own name."""
    files = find_annotations(folder / card.annotations)
    meant = match_names(files, slide_ids, folder / card.annotations)
    found: dict[str, Path] = {}
    for name, path in files.items():
        slide_id = meant.get(name, name)
        if slide_id in found:
            raise InputError(f"{found[slide_id]} and {path.name} are both annotations of slide {slide_id!r}: keep one")
        found[slide_id] = path
    return found


def _labellers(
    card: DataCard, folder: Path, slide_ids: Sequence[str], labels: Sequence[int | None]
) -> dict[str, InstanceLabeller]:
    """For each slide whose lesions are known, how its patches are labelled; empty without an annotations folder."""
    files = annotation_files(card, folder, slide_ids)
    known: dict[str, Path | None] = {}
    if files and card.lesion_free_class is not None:
        free = card.classes.index(card.lesion_free_class)
        known = {slide_id: None for slide_id, label in zip(slide_ids, labels, strict=True) if label == free}
    known.update(files)
    return {
        slide_id: InstanceLabeller(path, card.annotation_threshold, card.annotation_scale)
        for slide_id, path in known.items()
        if slide_id not in card.incomplete_annotations
    }
