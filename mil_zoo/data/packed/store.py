"""Packed store: the bags of a dataset in a few flat files, so that a bag is read without touching another.

A store is a folder:

- ``features.bin`` ``[ΣN, D]`` in fp16, bf16 or fp32, ``coords.bin`` float32 ``[ΣN, 2]``, ``instance_labels.bin`` int8
  ``[ΣN]``, and for each cached graph its ``indptr``, ``indices`` and ``edge`` (int32): plain little-endian arrays;
- ``index.jsonl``: one line a slide, where its rows lie, its label and a checksum of its bytes;
- ``store.json``: the dataset's card, splits, sites and covariates, and checksums of the index and of itself. It is
  written when everything else is there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from mil_zoo.config import from_mapping
from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import Bags, SlideFile
from mil_zoo.data.card import DataCard
from mil_zoo.data.formats.boundary import boundary
from mil_zoo.data.splits.split import Split
from mil_zoo.errors import InputError
from mil_zoo.kernels.csr import CSR, Transposed

FORMAT = 2
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
NUMPY: dict[str, np.dtype[Any]] = {
    "fp16": np.dtype("<f2"),
    "bf16": np.dtype("<u2"),
    "fp32": np.dtype("<f4"),
}  # numpy has no bf16: its bits
HEAD, PARTIAL, INDEX = "store.json", ".store.json.partial", "index.jsonl"
GRAPH = ("indptr", "indices", "edge")

Extent = tuple[np.dtype[Any], int, tuple[int, ...]]  # dtype, first row, shape
Chunks = dict[str, npt.NDArray[Any]]  # what is appended to each file for one slide


@dataclass(frozen=True)
class StoredSlide(SlideFile):
    """A slide of a store: ``path`` is the store's folder, ``entry`` its line of the index."""

    dtype: str = "fp16"
    dim: int = 0
    entry: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    def read(self) -> Bag:
        """The bag, features as float32, with the graphs that are cached. It maps its own rows only."""
        with boundary(self.path / "features.bin", "what the index says", "import the store again"):
            return self._read()

    def _read(self) -> Bag:
        entry, n = self.entry, int(self.entry["n"])
        features = _map(self.path / "features.bin", NUMPY[self.dtype], entry["row"], (n, self.dim))
        coords, labels = self._coords(), None
        if entry["instance_labels"] is not None:
            labels = _map(self.path / "instance_labels.bin", np.dtype("i1"), entry["instance_labels"], (n,))
        bag = Bag(
            features=features.view(DTYPES[self.dtype]).float(),
            coords=coords,
            instance_labels=labels,
            label=self.label,
            target=None if self.target is None else torch.tensor(self.target),
            patient_id=self.patient_id,
            slide_id=self.slide_id,
            layout="store",
            **{name: entry[name] for name in ("patch_size", "unit", "geometry")},
        )
        bag.graphs = {spec: self._graph(spec, place) for spec, place in entry["graphs"].items()}
        return bag

    def shape(self) -> tuple[int, int]:
        """``(N, D)``, from the index."""
        return int(self.entry["n"]), self.dim

    def coords(self) -> Tensor | None:
        """See :class:`mil_zoo.data.bags.Slide`."""
        with boundary(self.path / "coords.bin", "what the index says", "import the store again"):
            coords = self._coords()
            if coords is not None and not coords.isfinite().all():
                raise InputError(f"slide {self.slide_id!r}: coords hold NaN or infinite values; import the store again")
            return coords

    def _coords(self) -> Tensor | None:
        n, start = int(self.entry["n"]), self.entry["coords"]
        return None if start is None else _map(self.path / "coords.bin", np.dtype("<f4"), start, (n, 2))

    def rows(self, places: Sequence[int]) -> npt.NDArray[np.float32]:
        """See :class:`mil_zoo.data.bags.Slide`."""
        shape = (int(self.entry["n"]), self.dim)
        stored = _map(self.path / "features.bin", NUMPY[self.dtype], self.entry["row"], shape)
        rows: npt.NDArray[np.float32] = stored.view(DTYPES[self.dtype])[list(places)].float().numpy()
        return rows

    def _graph(self, spec: str, place: Mapping[str, int]) -> CSR:
        n, edges = int(self.entry["n"]), place["edges"]
        starts = {"indptr": (place["node"], n + 1), "indices": (place["edge"], edges), "edge": (place["edge"], edges)}
        indptr, indices, edge = (
            _map(graph_file(self.path, spec, name), np.dtype("<i4"), start, (length,))
            for name, (start, length) in starts.items()
        )
        return CSR(indptr, indices, n, stored=Transposed(indptr, indices, edge))  # of a symmetric graph: its own rows


@dataclass(frozen=True, eq=False)
class PackedStore:
    """A complete store.

    Attributes:
        path: its folder.
        head: what ``store.json`` holds.
        entries: the lines of the index.
    """

    path: Path
    head: Mapping[str, Any]
    entries: Sequence[Mapping[str, Any]]

    @classmethod
    def open(cls, path: Path | str) -> PackedStore:
        """A store that was imported completely.

        Raises:
            InputError: there is none, its import was interrupted, or it is of another format.
        """
        path = Path(path)
        if not (path / HEAD).is_file():
            if (path / PARTIAL).is_file():
                raise InputError(
                    f"{path}: the import of this store was interrupted; repeat the same mil-zoo data import"
                )
            raise InputError(f"{path} is not a packed store (it has no {HEAD})")
        head = read_head(path / HEAD)
        with boundary(path / INDEX, "a readable index", "import the store again"):
            index = hashlib.sha256((path / INDEX).read_bytes()).hexdigest()
        if index != head["index_sha256"]:
            raise InputError(
                f"{path / INDEX} was changed after it was written (its checksum differs); import the store again"
            )
        entries = list(read_index(path / INDEX))
        if len(entries) != head["slides"]:
            raise InputError(f"{path}: {INDEX} has {len(entries)} lines for {head['slides']} slides; import it again")
        store = cls(path.resolve(), head, entries)
        with boundary(path / INDEX, "the index of a store", "import the store again"):  # another program may write one
            for name, size in file_sizes(entries, head).items():
                file = path / name
                if not file.is_file() or file.stat().st_size != size:
                    raise InputError(f"{file} is missing or not of {size} bytes; import the store again")
            ends = ends_after(entries, head)
            for slide, entry in zip(store.bags.slides, entries, strict=True):
                if not isinstance(slide.slide_id, str) or not isinstance(entry["sha256"], str):
                    raise ValueError(f"the slide {slide.slide_id!r:.60} has no name or no checksum")
                for name, (_, start, shape) in places_of(entry, head).items():
                    if start < 0 or min(shape) < 0 or start + shape[0] > ends[name]:
                        raise ValueError(f"the rows of {slide.slide_id} lie outside {name}")
        with boundary(path / HEAD, "the head of a store", "import the store again"):
            _ = store.card, store.splits, dict(store.site_of), store.covariates
        return store

    @cached_property
    def card(self) -> DataCard:
        """The card of the dataset that was imported."""
        return from_mapping(DataCard, self.head["card"], str(self.path / HEAD))

    @cached_property
    def bags(self) -> Bags:
        """Its bags, which stay on disk."""
        slides = [
            StoredSlide(
                slide_id=entry["slide_id"],
                label=entry["label"],
                patient_id=entry["patient_id"],
                path=self.path,
                layout="store",
                target=tuple(entry["target"]) if "target" in entry else None,
                dtype=self.head["dtype"],
                dim=self.head["dim"],
                entry=entry,
            )
            for entry in self.entries
        ]
        return Bags(slides)

    @property
    def splits(self) -> list[Split]:
        """The splits that were published with it."""
        return [
            Split(split["repeat"], split["fold"], *(tuple(split[part]) for part in ("train", "val", "test")))
            for split in self.head["published_splits"]
        ]

    @property
    def site_of(self) -> Mapping[str, str]:
        """The site of each slide, where known."""
        sites: Mapping[str, str] = self.head["site_of"]
        return sites

    @property
    def covariates(self) -> pd.DataFrame | None:
        """The clinical covariates of each patient, as text; None where the card names none."""
        kept = self.head.get("covariates")
        return None if kept is None else pd.DataFrame(kept["data"], columns=kept["columns"], dtype=object)

    def damaged(self, on_slide: Callable[[str], None] = lambda slide: None) -> list[str]:
        """The slides whose bytes are not those that were written."""
        found = []
        for entry in self.entries:
            chunks = {}
            with boundary(self.path / INDEX, "the index of a store", "import the store again"):
                for name, (dtype, start, shape) in places_of(entry, self.head).items():
                    chunks[name] = _map(self.path / name, dtype, start, shape).numpy()
            if digest_of(chunks) != entry["sha256"]:
                found.append(entry["slide_id"])
            on_slide(entry["slide_id"])
        return found


def places_of(
    entry: Mapping[str, Any], head: Mapping[str, Any]
) -> dict[str, tuple[np.dtype[Any], int, tuple[int, ...]]]:
    """Where a slide lies in each file: dtype, first row, shape."""
    n, i4 = entry["n"], np.dtype("<i4")
    places: dict[str, Extent] = {"features.bin": (NUMPY[head["dtype"]], entry["row"], (n, head["dim"]))}
    if entry["coords"] is not None:
        places["coords.bin"] = np.dtype("<f4"), entry["coords"], (n, 2)
    if entry["instance_labels"] is not None:
        places["instance_labels.bin"] = np.dtype("i1"), entry["instance_labels"], (n,)
    for spec, place in entry["graphs"].items():
        for name in GRAPH:
            start, length = (place["node"], n + 1) if name == "indptr" else (place["edge"], place["edges"])
            places[graph_file(Path(), spec, name).name] = i4, start, (length,)
    return places


def ends_after(entries: Iterable[Mapping[str, Any]], head: Mapping[str, Any]) -> dict[str, int]:
    """The next free row of each file."""
    names = [graph_file(Path(), spec, name).name for spec in head["graphs"] for name in GRAPH]
    ends = dict.fromkeys(["features.bin", "coords.bin", "instance_labels.bin", *names], 0)
    for entry in entries:
        ends |= ends_of(entry, head)
    return ends


def ends_of(entry: Mapping[str, Any], head: Mapping[str, Any]) -> dict[str, int]:
    """The next free row of each file that a slide has a part in."""
    return {name: start + shape[0] for name, (_, start, shape) in places_of(entry, head).items()}


def file_sizes(entries: Iterable[Mapping[str, Any]], head: Mapping[str, Any]) -> dict[str, int]:
    """How many bytes each file holds."""
    row = {"features.bin": NUMPY[head["dtype"]].itemsize * head["dim"], "coords.bin": 8, "instance_labels.bin": 1}
    return {name: rows * row.get(name, 4) for name, rows in ends_after(entries, head).items()}


def _map(path: Path, dtype: np.dtype[Any], start: int, shape: tuple[int, ...]) -> Tensor:
    """Rows ``start`` and on of a flat file as a tensor that reads them when they are used (copied on write)."""
    if 0 in shape:
        return torch.from_numpy(np.zeros(shape, dtype))
    row = dtype.itemsize * int(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(np.memmap(path, dtype, mode="c", offset=start * row, shape=shape)))


def graph_file(folder: Path, spec: str, name: str) -> Path:
    """The file of one array (see ``GRAPH``) of the cached graphs of a spec."""
    return folder / f"graph-{quote(spec, safe='')}.{name}.bin"


def digest_of(chunks: Chunks) -> str:
    """Checksum of a slide: 16 hexadecimal digits of the SHA-256 of its bytes, files in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(chunks):
        digest.update(chunks[name].data)
    return digest.hexdigest()[:16]


def read_head(path: Path) -> dict[str, Any]:
    """What ``store.json`` (or, while the store is written, its partial form) holds.

    Raises:
        InputError: it is damaged, was changed, or is of another format.
    """
    with boundary(path, "a readable head of a store", "import the store again"):
        head = dict(json.loads(path.read_text(encoding="utf-8")))
        found = head["format"]
    if found != FORMAT:
        raise InputError(f"{path}: a store of format {found!r}, this is mil-zoo for {FORMAT}; import it again")
    if path.name == HEAD and head.pop("sha256", None) != checksum(head):
        raise InputError(f"{path} was changed after it was written (its checksum differs); import the store again")
    return head


def checksum(head: Mapping[str, Any]) -> str:
    """SHA-256 of what ``store.json`` holds besides it."""
    return hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()


def read_index(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of ``index.jsonl``."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number} is damaged; import the store again") from error


def is_store(folder: Path) -> bool:
    """Whether a folder is a store, complete or not."""
    return any((folder / name).is_file() for name in (HEAD, PARTIAL))


def is_complete(path: Path) -> bool:
    """Whether ``path`` is a store whose import was finished."""
    return (path / HEAD).is_file()
