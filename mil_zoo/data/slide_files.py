"""Slides that stay on disk: a sequence of bags that reads each one when it is asked for."""

from __future__ import annotations

import threading
from collections import ChainMap
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from mil_zoo.data.bag import Bag
from mil_zoo.data.labels.annotations import InstanceLabeller
from mil_zoo.data.layouts.base import LAYOUTS, FeatureSet
from mil_zoo.errors import InputError
from mil_zoo.kernels.csr import CSR

GRAPH_EDGES = 2**31 // 12  # kept in memory: 2 GiB, as an edge and its transposed one take 12 bytes


class GraphCache:
    """Graphs built of the slides used last, together at most ``GRAPH_EDGES`` edges (or those of one slide)."""

    def __init__(self) -> None:
        self._slides: dict[str, _SlideGraphs] = {}  # the slide used last comes last
        self._edges = 0
        self._lock = threading.Lock()  # slides are read ahead in another thread

    def of(self, slide_id: str) -> MutableMapping[str, CSR]:
        """The graphs of a slide by spec; what is put in is kept."""
        with self._lock:
            graphs = self._slides.pop(slide_id, None)
            graphs = _SlideGraphs(self) if graphs is None else graphs
            self._slides[slide_id] = graphs
            return graphs

    def add(self, edges: int) -> None:
        """Counts a graph that was put in, and makes room."""
        with self._lock:
            self._edges += edges
            while self._edges > GRAPH_EDGES and len(self._slides) > 1:
                oldest = self._slides.pop(next(iter(self._slides)))
                oldest.cache = None
                self._edges -= sum(csr.num_edges for csr in oldest.values())


class _SlideGraphs(dict[str, CSR]):
    """Graphs of one slide, counted by their cache until that drops them."""

    def __init__(self, cache: GraphCache) -> None:
        super().__init__()
        self.cache: GraphCache | None = cache

    def __setitem__(self, spec: str, graph: CSR) -> None:
        super().__setitem__(spec, graph)
        if self.cache is not None:
            self.cache.add(graph.num_edges)


@dataclass(frozen=True)
class SlideFile:
    """A labelled slide and where its features lie. It has the attributes of a bag that splits are made from.

    Attributes:
        layout: how its file is laid out.
        labeller: gives the bag its instance labels; None where there are none.
    """

    slide_id: str
    label: int
    patient_id: str | None
    path: Path
    layout: str
    labeller: InstanceLabeller | None = None

    def read(self) -> Bag:
        """The bag of the slide, with the label and patient that the dataset gives it."""
        bag = LAYOUTS.get(self.layout).read(self.path)
        return replace(bag, slide_id=self.slide_id, label=self.label, patient_id=self.patient_id)

    def shape(self) -> tuple[int, int]:
        """``(N, D)`` without reading the features."""
        return LAYOUTS.get(self.layout).shape(self.path)


@dataclass(frozen=True, eq=False)
class SlideFiles(Sequence[Bag]):
    """Bags read from disk at each access; only their instance labels and the graphs used last are kept.

    Attributes:
        slides: one a bag.
    """

    slides: Sequence[SlideFile]
    _graphs: GraphCache = field(default_factory=lambda: GraphCache())
    _instance_labels: dict[str, Tensor | None] = field(default_factory=dict)

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
        bag = slide.read()
        # Graphs that are built are kept; those that came with the slide are read again, and need no memory.
        bag = replace(bag, _graphs=ChainMap(self._graphs.of(slide.slide_id), bag._graphs))
        if slide.labeller is not None:
            if slide.slide_id not in self._instance_labels:
                labels = slide.labeller(bag)
                self._instance_labels[slide.slide_id] = None if labels is None else labels.to(torch.int8)
            bag = replace(bag, instance_labels=self._instance_labels[slide.slide_id])
        return bag

    def __iter__(self) -> Iterator[Bag]:
        return (self[i] for i in range(len(self)))


def labels_of(bags: Sequence[Bag]) -> list[int | None]:
    """The labels of bags, without reading those that lie on disk."""
    return [slide.label for slide in heads(bags)]


def targets_of(bags: Sequence[Bag]) -> npt.NDArray[np.float64]:
    """The targets ``[n, T]`` of bags, of those that state none their labels; nothing is read from disk.

    Raises:
        InputError: a bag has neither.
    """
    rows = []
    for slide in heads(bags):
        target = getattr(slide, "target", None)
        if target is None and slide.label is None:
            raise InputError(f"slide {slide.slide_id!r} has no label and no target; leave it out")
        rows.append([float(slide.label)] if target is None else [float(value) for value in target])  # type: ignore[arg-type]
    return np.array(rows, dtype=np.float64)


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


def sizes_of(bags: Sequence[Bag]) -> list[int]:
    """Instances of each bag, without reading features."""
    if isinstance(bags, SlideFiles):
        return [slide.shape()[0] for slide in bags.slides]
    return [len(bag) for bag in bags]


def count_instances(bags: Sequence[Bag]) -> int:
    """Instances of all bags together."""
    return sum(sizes_of(bags))


def slide_files(features: FeatureSet, labels: pd.DataFrame, labellers: Mapping[str, InstanceLabeller]) -> SlideFiles:
    """The labelled slides of a set of features.

    Args:
        features: the files.
        labels: columns slide_id, label (class index) and, optionally, patient_id; every slide has features.
        labellers: for the slides that have instance labels, how to get them.
    """
    slides = []
    for row in labels.to_dict("records"):
        patient = row.get("patient_id")
        path = features.files.get(row["slide_id"], features.folder)
        patient_id = None if pd.isna(patient) else str(patient)
        slides.append(
            SlideFile(
                row["slide_id"], int(row["label"]), patient_id, path, features.layout, labellers.get(row["slide_id"])
            )
        )
    return SlideFiles(slides)
