"""The bags of a dataset as one sequence, wherever they lie: in memory, on disk, or several slides of a patient as one.

A :class:`Slide` stands for a bag that need not be in memory: it tells its name, label and shape, and reads the bag when
that is asked for. :class:`Bags` is a sequence of bags over slides of any kind; what splitting, relabelling and counting
need is asked of the slides, so that nothing is read for it.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections import ChainMap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mil_zoo.data.bag import Bag
from mil_zoo.data.formats.boundary import boundary
from mil_zoo.data.graph_cache import GraphCache
from mil_zoo.data.labels.annotations import InstanceLabeller
from mil_zoo.data.layouts.base import LAYOUTS, make_bag
from mil_zoo.errors import InputError

if TYPE_CHECKING:
    from mil_zoo.tasks import Task


class Slide(ABC):
    """A bag that need not be in memory.

    Attributes:
        slide_id: its name.
        label: class index, or None where unknown.
        patient_id: the patient, or None where unknown.
        target: what the task reads, T numbers; None where it is the label alone.
        on_disk: whether :meth:`read` reads files, so that reading ahead pays.
    """

    slide_id: str
    label: int | None
    patient_id: str | None
    target: tuple[float, ...] | None
    on_disk: ClassVar[bool] = True

    @abstractmethod
    def read(self) -> Bag:
        """The bag, with the label and the patient that stand here."""

    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """``(N, D)`` without reading the features."""

    @abstractmethod
    def rows(self, places: Sequence[int]) -> npt.NDArray[np.float32]:
        """Feature rows at ``places`` (ascending), float32 ``[len(places), D]``, without reading the others."""

    def coords(self) -> Tensor | None:
        """Where the patches lie, ``[N, 2]``, without reading the features; None where that is not known apart.

        Raises:
            InputError: they cannot be read, or are not of these patches.
        """
        return None

    def names(self) -> tuple[str, ...]:
        """The ids of the slides that are in the bag: its own, or those of a patient."""
        return (self.slide_id,)

    def instance_labels(self, bag: Bag) -> Tensor | None:
        """Labels of the patches that do not lie with the features: int64 ``[N]``, or None."""
        return None

    def changed(self, **fields: Any) -> Slide:
        """The same slide with another ``label``, ``target`` or ``patient_id``."""
        return dataclasses.replace(self, **fields)  # type: ignore[type-var]

    def annotated(self, labeller: InstanceLabeller) -> Slide:
        """The same slide with the instance labels that a labeller gives it."""
        return dataclasses.replace(self, labeller=labeller)  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class MemorySlide(Slide):
    """A bag that is in memory already; of a patient, ``packed`` are the ids of the slides in it."""

    bag: Bag
    packed: tuple[str, ...] = ()
    on_disk: ClassVar[bool] = False

    @property
    def slide_id(self) -> str:  # type: ignore[override]
        """See :class:`Slide`."""
        return self.bag.slide_id

    @property
    def label(self) -> int | None:  # type: ignore[override]
        """See :class:`Slide`."""
        return self.bag.label

    @property
    def patient_id(self) -> str | None:  # type: ignore[override]
        """See :class:`Slide`."""
        return self.bag.patient_id

    @property
    def target(self) -> tuple[float, ...] | None:  # type: ignore[override]
        """See :class:`Slide`."""
        return None if self.bag.target is None else tuple(self.bag.target.tolist())

    def read(self) -> Bag:
        """The bag itself."""
        return self.bag

    def names(self) -> tuple[str, ...]:
        """See :class:`Slide`."""
        return self.packed or super().names()

    def shape(self) -> tuple[int, int]:
        """``(N, D)``."""
        return len(self.bag), int(self.bag.features.shape[1])

    def coords(self) -> Tensor | None:
        """Those of the bag."""
        return self.bag.coords

    def rows(self, places: Sequence[int]) -> npt.NDArray[np.float32]:
        """See :class:`Slide`."""
        rows: npt.NDArray[np.float32] = self.bag.features[list(places)].detach().cpu().float().numpy()
        return rows

    def changed(self, **fields: Any) -> MemorySlide:
        """The same slide with another ``label``, ``target`` or ``patient_id``; its graphs are kept."""
        if all(getattr(self, name) == value for name, value in fields.items()):
            return self
        return replace(self, bag=self.bag.changed(**fields))

    def annotated(self, labeller: InstanceLabeller) -> MemorySlide:
        """The same slide with the instance labels that a labeller gives it, now."""
        labels = labeller(self.bag)
        return self if labels is None else replace(self, bag=self.bag.changed(instance_labels=labels))


@dataclass(frozen=True)
class SlideFile(Slide):
    """A slide and where its features lie.

    Attributes:
        path: the feature file.
        layout: how its file is laid out.
        labeller: gives the bag its instance labels; None where there are none.
    """

    slide_id: str
    label: int | None
    patient_id: str | None
    path: Path
    layout: str
    labeller: InstanceLabeller | None = None
    target: tuple[float, ...] | None = None

    def read(self) -> Bag:
        """The bag of the slide, with the label and patient that the dataset gives it."""
        with boundary(self.path):
            bag = LAYOUTS.get(self.layout).read(self.path)
        return bag.changed(slide_id=self.slide_id, label=self.label, target=self.target, patient_id=self.patient_id)

    def shape(self) -> tuple[int, int]:
        """``(N, D)`` from the file's header."""
        with boundary(self.path):
            return LAYOUTS.get(self.layout).shape(self.path)

    def rows(self, places: Sequence[int]) -> npt.NDArray[np.float32]:
        """See :class:`Slide`."""
        with boundary(self.path):
            return LAYOUTS.get(self.layout).rows(self.path, places)

    def coords(self) -> Tensor | None:
        """See :class:`Slide`."""
        layout = LAYOUTS.get(self.layout)
        with boundary(self.path):
            places, count = layout.coordinates(self.path), layout.shape(self.path)[0]
            if places is None:
                return None
            if places.coords.shape != (count, 2):
                layout.read(self.path)  # which says what does not fit
            nothing = np.zeros((count, 1), dtype=np.float32)
            return make_bag(self.path, self.slide_id, self.layout, nothing, *places).coords

    def instance_labels(self, bag: Bag) -> Tensor | None:
        """Those of the annotations."""
        return None if self.labeller is None else self.labeller(bag)


@dataclass(frozen=True, eq=False)
class Bags(Sequence[Bag]):
    """A sequence of bags. Those on disk are read at each access; their instance labels and latest graphs are kept.

    Attributes:
        slides: one a bag.
    """

    slides: Sequence[Slide]
    _graphs: GraphCache = field(default_factory=GraphCache, repr=False)
    _instance_labels: dict[str, Tensor | None] = field(default_factory=dict, repr=False)

    @property
    def labels(self) -> list[int | None]:
        """The label of each bag."""
        return [slide.label for slide in self.slides]

    @property
    def targets(self) -> npt.NDArray[np.float64]:
        """The targets ``[n, T]``; of bags that state none, their labels.

        Raises:
            InputError: a bag has neither, or states other numbers than the first.
        """
        rows = []
        for slide in self.slides:
            if slide.target is None and slide.label is None:
                raise InputError(f"slide {slide.slide_id!r} has no label and no target; leave it out")
            rows.append(slide.target or (slide.label,))
        odd = next((slide for slide, row in zip(self.slides, rows, strict=True) if len(row) != len(rows[0])), None)
        if odd is not None:
            raise InputError(f"slide {odd.slide_id!r} has a target of other numbers than the first; give all alike")
        return np.array(rows, dtype=np.float64)

    @property
    def slide_ids(self) -> list[str]:
        """The name of each bag."""
        return [slide.slide_id for slide in self.slides]

    @property
    def sizes(self) -> list[int]:
        """Instances of each bag."""
        return [slide.shape()[0] for slide in self.slides]

    @property
    def num_instances(self) -> int:
        """Instances of all bags together."""
        return sum(self.sizes)

    @property
    def dim(self) -> int:
        """Feature dimension D, of the first bag."""
        return self.slides[0].shape()[1]

    @property
    def on_disk(self) -> bool:
        """Whether reading a bag reads files."""
        return any(slide.on_disk for slide in self.slides)

    def select(self, slide_ids: Sequence[str]) -> Bags:
        """The bags called ``slide_ids``, in that order."""
        place = {slide.slide_id: i for i, slide in enumerate(self.slides)}
        return replace(self, slides=[self.slides[place[slide_id]] for slide_id in slide_ids])

    def relabelled(self, labels: Sequence[int | None]) -> Bags:
        """The same bags with other labels."""
        slides = [slide.changed(label=label) for slide, label in zip(self.slides, labels, strict=True)]
        return replace(self, slides=slides)

    def with_targets_of(self, order: Sequence[int]) -> Bags:
        """The same bags, each with the label and the target of the bag at its place in ``order``."""
        givers = [self.slides[i] for i in order]
        pairs = zip(self.slides, givers, strict=True)
        return replace(self, slides=[slide.changed(label=giver.label, target=giver.target) for slide, giver in pairs])

    def __add__(self, other: Bags) -> Bags:
        return Bags([*self.slides, *other.slides])

    def __len__(self) -> int:
        return len(self.slides)

    @overload
    def __getitem__(self, index: int) -> Bag: ...
    @overload
    def __getitem__(self, index: slice) -> Bags: ...
    def __getitem__(self, index: int | slice) -> Bag | Bags:
        if isinstance(index, slice):
            return replace(self, slides=self.slides[index])
        slide = self.slides[index]
        bag = slide.read()
        if not slide.on_disk:
            return bag
        if slide.slide_id not in self._instance_labels:
            labels = slide.instance_labels(bag)
            self._instance_labels[slide.slide_id] = None if labels is None else labels.to(torch.int8)
        if self._instance_labels[slide.slide_id] is not None:
            bag = bag.changed(instance_labels=self._instance_labels[slide.slide_id])
        # Graphs that are built are kept; those that came with the slide are read again, and need no memory.
        bag.graphs = ChainMap(self._graphs.of(slide.slide_id), bag.graphs)
        return bag

    def __iter__(self) -> Iterator[Bag]:
        return (self[i] for i in range(len(self)))


def as_bags(bags: Iterable[Bag]) -> Bags:
    """``bags`` as they are, or a list of bags in memory as :class:`Bags`; errors as :func:`each_bag`."""
    return bags if isinstance(bags, Bags) else Bags([MemorySlide(bag) for bag in each_bag(bags)])


def each_bag(bags: Iterable[Bag]) -> Iterator[Bag]:
    """The bags one after the other.

    Raises:
        InputError: something else was given than a list of bags, or whatever yields bags.
    """
    if isinstance(bags, Bag):
        raise InputError(f"a list of bags is needed, not the bag {bags.slide_id!r} alone; write [bag]")
    if isinstance(bags, str) or not isinstance(bags, Iterable):
        raise InputError(f"a list of bags is needed, not {bags!r:.60}; mil_zoo.data.read_bag reads one from a file")
    for number, bag in enumerate(bags):
        if not isinstance(bag, Bag):
            raise InputError(
                f"a list of bags is needed, and number {number} is of the type {type(bag).__name__}; make each "
                "mil_zoo.Bag(features=..., label=..., slide_id=...)"
            )
        yield bag


def targets_for(bags: Bags, task: Task) -> npt.NDArray[np.float64]:
    """The targets ``[n, T]`` of bags in memory, once they are what the task reads.

    Raises:
        InputError: there are no bags, or one states no target, or what is none of this task.
    """
    if not len(bags):
        raise InputError("there are no bags; give some")
    targets, names = bags.targets, task.target_columns
    if targets.shape[1] != len(names):
        raise InputError(
            f"slide {bags.slide_ids[0]!r} states {targets.shape[1]} numbers and the task {task.name} reads "
            f"{len(names)}; give each bag target=[{', '.join(names)}]"
        )
    task.check(targets, bags.slide_ids, "the bags")
    bad = ~task.stated(targets) | np.isinf(targets).any(1)
    if bad.any():
        row = int(bad.argmax())
        raise InputError(f"slide {bags.slide_ids[row]!r} has the target {targets[row].tolist()}; leave it out")
    return targets
