"""Slides that stay on disk: a sequence of bags that reads each one when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import overload

import h5py
import pandas as pd

from mil_zoo.data.bag import Bag
from mil_zoo.data.readers.h5 import FEATURES, read_h5, shape_of
from mil_zoo.errors import InputError
from mil_zoo.kernels.csr import CSR


@dataclass(frozen=True)
class SlideFile:
    """A labelled slide and where its features lie. It has the attributes of a bag that splits are made from."""

    slide_id: str
    label: int
    patient_id: str | None
    path: Path


@dataclass(frozen=True, eq=False)
class SlideFiles(Sequence[Bag]):
    """Bags read from disk at each access; only their graphs are kept.

    Attributes:
        slides: one a bag.
    """

    slides: Sequence[SlideFile]
    _graphs: dict[str, dict[str, CSR]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.slides)

    @overload
    def __getitem__(self, index: int) -> Bag: ...
    @overload
    def __getitem__(self, index: slice) -> SlideFiles: ...
    def __getitem__(self, index: int | slice) -> Bag | SlideFiles:
        if isinstance(index, slice):
            return replace(self, slides=self.slides[index])
        slide = self.slides[index]
        graphs = self._graphs.setdefault(slide.slide_id, {})
        return replace(read_h5(slide.path), label=slide.label, patient_id=slide.patient_id, _graphs=graphs)

    def __iter__(self) -> Iterator[Bag]:
        return (self[i] for i in range(len(self)))


def labels_of(bags: Sequence[Bag]) -> list[int | None]:
    """The labels of bags, without reading those that lie on disk."""
    return [slide.label for slide in heads(bags)]


def heads(bags: Sequence[Bag]) -> Sequence[Bag | SlideFile]:
    """For each bag an object with its ``slide_id``, ``label`` and ``patient_id``; nothing is read from disk."""
    return bags.slides if isinstance(bags, SlideFiles) else bags


def pick(bags: Sequence[Bag], slide_ids: Sequence[str]) -> Sequence[Bag]:
    """The bags called ``slide_ids``, in that order."""
    place = {slide.slide_id: i for i, slide in enumerate(heads(bags))}
    rows = [place[slide_id] for slide_id in slide_ids]
    if isinstance(bags, SlideFiles):
        return replace(bags, slides=[bags.slides[i] for i in rows])
    return [bags[i] for i in rows]


def relabel(bags: Sequence[Bag], labels: Sequence[int | None]) -> Sequence[Bag]:
    """The same bags with other labels."""
    if isinstance(bags, SlideFiles):
        changed = [replace(slide, label=label) for slide, label in zip(bags.slides, labels, strict=True)]  # type: ignore[arg-type]
        return replace(bags, slides=changed)
    return [replace(bag, label=label) for bag, label in zip(bags, labels, strict=True)]


def count_instances(bags: Sequence[Bag]) -> int:
    """Instances of all bags together."""
    if isinstance(bags, SlideFiles):
        return sum(shape_of(slide.path)[0] for slide in bags.slides)
    return sum(len(bag) for bag in bags)


def find_slide_files(folder: Path, labels: pd.DataFrame, class_of: Mapping[str, int], where: Path) -> SlideFiles:
    """The labelled slides of a folder of feature files.

    Args:
        folder: searched with its sub-folders; the features of all slides must lie in one of them.
        labels: columns slide_id, label (class name or index) and, optionally, patient_id.
        class_of: class name or index, as text, to class index.
        where: the file that the labels come from, for messages.

    Raises:
        InputError: no feature files or several folders of them, a slide without features, an unknown label.
    """
    files = _feature_files(folder)
    missing = [slide_id for slide_id in labels["slide_id"] if slide_id not in files]
    if missing:
        raise InputError(
            f"{where} names slides without a feature file below {folder}: {', '.join(missing[:5])} ({len(missing)} in "
            "all); extract them or drop their rows"
        )
    slides = []
    for row in labels.to_dict("records"):
        if str(row["label"]) not in class_of:
            raise InputError(
                f"{where}: slide {row['slide_id']!r} has label {row['label']!r}, not {', '.join(class_of)}"
            )
        patient = row.get("patient_id")
        patient = None if pd.isna(patient) else str(patient)
        slides.append(SlideFile(row["slide_id"], class_of[str(row["label"])], patient, files[row["slide_id"]]))
    return SlideFiles(slides)


def _feature_files(folder: Path) -> dict[str, Path]:
    folders: dict[Path, dict[str, Path]] = {}
    for path in sorted(folder.rglob("*.h5")):
        folders.setdefault(path.parent, {})[path.stem] = path
    # CLAM keeps coordinates without features beside them: one file tells for its folder.
    holding = [parent for parent, files in folders.items() if _holds_features(next(iter(files.values())))]
    if not holding:
        raise InputError(f"{folder}: no .h5 files with features below it; pass --root the folder that holds them")
    if len(holding) > 1:
        names = ", ".join(str(parent.relative_to(folder)) for parent in holding[:5])
        raise InputError(f"{folder} holds features in several folders ({names}); pass --root one of them, and --labels")
    return folders[holding[0]]


def _holds_features(path: Path) -> bool:
    try:
        with h5py.File(path, "r") as file:
            return any(name in file for name in FEATURES)
    except OSError:
        return True  # a damaged feature file is reported by name when it is read
