"""Data cards: what a dataset is, where it comes from, what it must hold, and the traps in it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mil_zoo.config import from_mapping, read_shipped, read_shipped_text, read_yaml, shipped_names
from mil_zoo.errors import InputError, no_line

if TYPE_CHECKING:  # a list of the cards must not wait for pandas and torch
    import pandas as pd

    from mil_zoo.tasks import Task


@dataclass(frozen=True)
class DataCard:
    """One dataset, as ``data_cards/<name>.yaml`` states it.

    Attributes:
        name: registry key.
        title: one line for tables and figures.
        kind: "simulated" slides, "real" tissue, a "table" of bags from elsewhere, or the user's "own" features, of
            which nobody stated what they are.
        form: what it is as files: a "table" of bags, "slides" (a folder of feature files in any layout, and
            ``labels.csv``), or "simulated" for slides that are made on the fly.
        classes: class names by label; empty for a task without classes.
        task: what is predicted: the ``name`` of a task and its settings; empty for classification.
        covariates: columns of the label table that a clinical model of the patients is made of.
        path: file or folder below the data root.
        bags: number of bags it must hold; None where not stated.
        bags_per_class: number of bags of each class; None where not stated.
        patients: number of patients; None where not stated or not known.
        events: number of patients who had the event, of survival; None where not stated.
        split_counts: bags of each class in each published part.
        counts: "exact" where other counts are an error; "published" where the sets in use differ, and a difference from
            those published is a warning.
        exclude: slides that are left out, and why.
        label_of: whether a label is of the slide, or of the patient and so the same for all of a patient's slides.
        label_column: column of the label table that holds the label; ``label`` where there is no such column.
        label_rule: what makes a slide a member of its class, in words.
        split_protocol: how the dataset is divided, in words.
        known_leaks: patients that the published split has on two sides.
        graph: default graph spec where the grid graph of an aggregator does not fit; None for the aggregator's own.
        single_label: the table has several labels a bag (``bag_labels``); keep the bags that have exactly one, and the
            classes with at least this many of them.
        patient_prefix: how many first characters of a slide id name its patient; None where ids do not tell.
        patient_level: how a patient of several slides is scored: "mean" or "max" of their slides' probabilities, or
            "packed", all slides in one bag; None for the mean where every patient has one label.
        site_prefix: how many first characters of a slide id name its site (TCGA: 7); None where ids do not tell.
        standardise: scale every feature to mean 0 and standard deviation 1 on the training instances of a split.
        mpp: micrometres in a unit of the coordinates, for lesion sizes; None where unknown.
        positive_instance_class: in tables with instance classes, the one that makes a bag positive.
        instance_labels: what makes an instance positive, in words; None without instance labels.
        annotations: of slides: folder with an annotation file a slide (``<slide>.xml``, ``.geojson``, ``.csv``,
            ``.npz``) beside the label table; where it exists, it gives the instance labels.
        annotation_threshold: a patch is positive when more than this share of it lies in annotated lesions.
        annotation_scale: units of the coordinates in a unit of the annotations: 4 for those of a level of downsample 4,
            micrometres a pixel where coordinates are in micrometres; None where both are level-0 pixels.
        lesion_free_class: slides of this class hold no positive instance and need no annotations.
        incomplete_annotations: slides whose annotations miss lesions; they get no instance labels.
        source: who made it and where it is published.
        licence: its terms.
        citation: how to cite it.
        warnings: sentences that every table of results carries.
    """

    name: str
    title: str
    kind: Literal["simulated", "real", "table", "own"]
    form: Literal["simulated", "table", "slides"]
    classes: list[str]
    task: dict[str, Any] = field(default_factory=dict)
    covariates: list[str] = field(default_factory=list)
    path: str | None = None
    bags: int | None = None
    bags_per_class: list[int] | None = None
    patients: int | None = None
    events: int | None = None
    split_counts: dict[str, list[int]] = field(default_factory=dict)
    counts: Literal["exact", "published"] = "exact"
    exclude: dict[str, str] = field(default_factory=dict)
    label_of: Literal["slide", "patient"] = "slide"
    label_column: str = "label"
    label_rule: str = ""
    split_protocol: str = ""
    known_leaks: list[str] = field(default_factory=list)
    graph: str | None = None
    single_label: int | None = None
    patient_prefix: int | None = None
    patient_level: Literal["mean", "max", "packed"] | None = None
    site_prefix: int | None = None
    standardise: bool = False
    mpp: float | None = None
    positive_instance_class: int | None = None
    instance_labels: str | None = None
    annotations: str = "annotations"
    annotation_threshold: float = 0.2
    annotation_scale: float | None = None
    lesion_free_class: str | None = None
    incomplete_annotations: list[str] = field(default_factory=list)
    source: str = ""
    licence: str = ""
    citation: str = ""
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for wrong in self._faults():
            raise ValueError(wrong)

    def _faults(self) -> Iterator[str]:
        """What cannot be, as the end of a sentence that begins with the card's file."""
        if fault := no_line(self.title):
            yield f"title {fault}"
        if self.mpp is not None and not 0 < self.mpp < math.inf:
            yield f"mpp must be a positive number of micrometres, not {self.mpp}"
        if not 0 <= self.annotation_threshold < 1:
            yield f"annotation_threshold must be a share of a patch in [0, 1), not {self.annotation_threshold}"
        if self.annotation_scale is not None and not 0 < self.annotation_scale < math.inf:
            yield f"annotation_scale must be a positive number, not {self.annotation_scale}"
        if len({name.strip() for name in self.classes} - {""}) < len(self.classes):
            yield f"classes must be different names, not {', '.join(map(repr, self.classes))}"
        if self.classes and self.lesion_free_class not in (None, *self.classes):
            yield f"lesion_free_class must be one of {', '.join(self.classes)}, not {self.lesion_free_class!r}"
        for name in ("bags", "patients", "single_label", "patient_prefix", "site_prefix"):
            number = getattr(self, name)
            if number is not None and number < 1:
                yield f"{name} must be 1 or more, not {number}"
        counts = {} if self.bags_per_class is None else {"bags_per_class": self.bags_per_class}
        counts |= {f"split_counts {part}": number for part, number in self.split_counts.items()}
        for name, numbers in counts.items():
            if not self.classes:
                yield f"{name} counts bags by class, and the card names no classes; add classes, or leave it out"
            elif len(numbers) != len(self.classes) or min(numbers) < 0:
                yield f"{name} must be a number of bags for each of {len(self.classes)} classes, not {numbers}"

    @property
    def text(self) -> str:
        """The card's text (Markdown)."""
        return read_shipped_text("data_cards", f"{self.name}.md")

    def facts(self) -> dict[str, str]:
        """What the card states, as text by name, for people."""
        counts = f"{self.bags} bags" if self.bags else "not stated"
        if self.bags_per_class:
            counts += f" ({', '.join(f'{n} {c}' for n, c in zip(self.bags_per_class, self.classes, strict=True))})"
        counts += f", {self.patients} patients" if self.patients else ""
        counts += f", {self.events} events" if self.events else ""
        checked = "checked on loading" if self.counts == "exact" else "as published; sets in use differ"
        parts = "; ".join(f"{part} {' + '.join(map(str, n))}" for part, n in self.split_counts.items())
        facts = {
            "kind": self.kind,
            "classes": ", ".join(self.classes),
            "task": ", ".join(f"{key} {_plain(value)}" for key, value in self.task.items()),
            "covariates": ", ".join(self.covariates),
            "counts": f"{counts}; {checked}" if self.bags else counts,
            "label rule": self.label_rule,
            "label of": f"the {self.label_of}",
            "split": self.split_protocol + (f" ({parts} by class)" if parts else ""),
            "on two sides": ", ".join(f"patient {patient}" for patient in self.known_leaks),
            "left out": "; ".join(f"{slide}: {reason}" for slide, reason in self.exclude.items()),
            "patients": f"the first {self.patient_prefix} characters of a slide id" if self.patient_prefix else "",
            "instance labels": self.instance_labels or "",
            "files": f"{self.path} below --root" if self.path else "none needed",
            "source": self.source,
            "licence": self.licence,
            "citation": self.citation,
        }
        facts |= {f"warning {i + 1}": warning for i, warning in enumerate(self.warnings)}
        return {name: value for name, value in facts.items() if value}

    def beside(self, folder: Path) -> DataCard:
        """This card with what a ``card.yaml`` in the dataset's own folder says differently: its title, for instance."""
        path = folder / "card.yaml"
        if not path.is_file():
            return self
        return from_mapping(DataCard, {**vars(self), **read_yaml(path), "name": self.name}, str(path))

    def create_task(self) -> Task:
        """What is predicted: the task that the card names, of its classes."""
        from mil_zoo.tasks import task_of_config

        return task_of_config({"task": self.task, "classes": self.classes})

    def with_task(self, task: dict[str, Any]) -> DataCard:
        """This card for another task, or with other settings of its own; counts by class are of classes alone.

        What the card says of the same kind of task (which columns hold times and events, say) holds where ``task`` says
        nothing.
        """
        card = replace(self, task=_merged(self.task, task))
        return card if card.of_classes else card.without_classes()

    def without_classes(self) -> DataCard:
        """This card without its classes, and what it says of them."""
        return replace(self, classes=[], bags_per_class=None, split_counts={}, lesion_free_class=None)

    def counting_patients(self) -> DataCard:
        """This card for bags that are patients, of whom counts of slides say nothing."""
        return self if self.patients == self.bags else replace(self, bags=None, bags_per_class=None, split_counts={})

    @property
    def task_class(self) -> type[Task]:
        """The class of the task."""
        from mil_zoo.tasks.registry import DEFAULT, TASKS

        return TASKS.get(self.task.get("name", DEFAULT))

    @property
    def of_classes(self) -> bool:
        """Whether the target is one class a slide, which the column of the label names."""
        return self.task_class.target_columns == ("label",)

    def columns_of(self, header: Sequence[str]) -> Sequence[str]:
        """The columns that state the target, of those that a label table has."""
        settings = {key: value for key, value in self.task.items() if key != "name"}
        return self.task_class.columns(settings, header)

    def of_labels(self, table: pd.DataFrame) -> DataCard:
        """This card with the classes that a label table holds, where it is a task of classes and states none."""
        if self.classes or "label" not in table or not self.of_classes:
            return self
        from mil_zoo.data.labels.tables import class_names

        return replace(self, classes=class_names(table))

    def locate(self, root: Path | None) -> Path:
        """The dataset's file or folder below ``root``.

        Raises:
            InputError: no root was given, or the path is not there.
        """
        if root is None:
            raise InputError(
                f"dataset {self.name!r} needs its files: pass --root DIR (or set MIL_ZOO_REAL_DATA) "
                f"with DIR/{self.path} in it"
            )
        path = root / (self.path or "")
        if not path.exists():
            raise InputError(
                f"dataset {self.name!r}: {path} does not exist; --root must be the folder that holds {self.path}"
            )
        return path


def _merged(own: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """A task's settings with others on top; those of another kind of task are dropped."""
    from mil_zoo.tasks.registry import DEFAULT, TASKS

    name = given.get("name", own.get("name", DEFAULT))
    kinds = [TASKS.get(each) for each in (name, own.get("name", DEFAULT))]
    if len({kind.family or kind.name for kind in kinds}) > 1:
        return given
    kept = {key: value for key, value in own.items() if key not in kinds[0].excludes(given)}
    return {**kept, **given}


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def per_class(labels: Iterable[int | None], card: DataCard) -> list[int]:
    """How many labels are of each class."""
    count = Counter(labels)
    return [count[label] for label in range(len(card.classes))]


def count_differences(card: DataCard, labels: Sequence[int | None], patients: Sequence[str | None]) -> list[str]:
    """Where the numbers of bags and patients differ from what a card states, as parts of a sentence.

    Args:
        card: what it states.
        labels: class index of each bag; None of a task without classes.
        patients: patient of each bag.
    """
    differences, found, known = [], per_class(labels, card), {patient for patient in patients if patient}
    if not card.of_classes:
        if card.bags not in (None, len(labels)):
            differences.append(f"{len(labels)} bags, its card states {card.bags}")
    elif card.bags not in (None, len(labels)) or card.bags_per_class not in (None, found):
        by_class = "" if card.bags_per_class is None else f" ({card.bags_per_class})"
        stated = sum(card.bags_per_class or []) if card.bags is None else card.bags
        differences.append(f"{len(labels)} bags ({found} by class), its card states {stated}{by_class}")
    if known and card.patients not in (None, len(known)):
        differences.append(f"{len(known)} patients, its card states {card.patients}")
    return differences


def list_cards() -> list[str]:
    """Names of the shipped data cards."""
    return shipped_names("data_cards")


def read_card(name: str) -> DataCard:
    """The shipped data card called ``name``; an ``InputError`` offers the near names where there is none."""
    mapping = read_shipped("data_cards", name)
    return from_mapping(DataCard, {"name": name, **mapping}, f"data_cards/{name}.yaml")
