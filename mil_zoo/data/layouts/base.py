"""Layouts: how the tools in use leave features on disk. One file a layout; a path tells which one it is."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from mil_zoo.data.bag import Bag
from mil_zoo.data.formats.h5 import head
from mil_zoo.errors import InputError, did_you_mean
from mil_zoo.registry import Registry

# Suffixes of slide images, which some tools keep in a slide's name and others drop.
SLIDE_SUFFIXES = re.compile(
    r"\.(svs|tiff?|ndpi|mrxs|scn|vms|vmu|bif|czi|isyntax|sdpc|kfb|dcm|qptiff|svslide)$", re.IGNORECASE
)
_ASKED = 5  # files of a folder that are looked at to tell its layout
_UNTOLD = "clam"  # takes .h5 files that nothing recognises: its reader says what is wrong with them


class Layout(ABC):
    """One way in which features lie on disk: telling it, listing its slides, reading one of them.

    A subclass is registered with ``@register_layout(name)``, which also makes its ``name``.
    """

    name: ClassVar[str]
    about: ClassVar[str]  # what lies where, one line
    suffixes: ClassVar[tuple[str, ...]]  # of its feature files
    uniform: ClassVar[bool] = True  # every file of a folder with these suffixes is one of them

    @abstractmethod
    def matches(self, path: Path) -> bool:
        """Whether this feature file is in this layout, by its name, its neighbours or its head."""

    @abstractmethod
    def read(self, path: Path) -> Bag:
        """The bag of the slide in a feature file, without label unless the layout holds it."""

    @abstractmethod
    def shape(self, path: Path) -> tuple[int, int]:
        """Number of patches N and feature dimension D, without reading the features."""

    def slide_id(self, path: Path) -> str:
        """The slide that a feature file belongs to."""
        return slide_name(path.stem)

    def group(self, path: Path) -> Path:
        """The folder that a feature file shares with those of other slides of the same encoder."""
        return path.parent

    def encoder(self, folder: Path) -> str:
        """A name for the features in a folder that ``group`` gave."""
        return folder.name

    def coordinates(self, path: Path) -> tuple[npt.NDArray[Any], float | None, str] | None:
        """Coordinates, patch size and where it comes from, of a file whose features cannot be read; None if unknown."""
        return None

    def labels(self, features: FeatureSet) -> pd.DataFrame | None:
        """The labels that lie with the features: text columns slide_id, label and maybe split; None without any."""
        return None


class TableLayout(Layout):
    """A layout that keeps the bags of several slides in one file, which is read as a whole."""

    uniform = False

    @abstractmethod
    def read_all(self, path: Path, allow_pickle: bool = False) -> list[Bag]:
        """Every bag of the file.

        Args:
            path: the file.
            allow_pickle: the file is trusted to run code, where the layout is a pickle.
        """

    def read(self, path: Path) -> Bag:
        """The only bag of the file."""
        return only(self.read_all(path), path)

    def shape(self, path: Path) -> tuple[int, int]:
        """Instances of all slides, and feature dimension."""
        bags = self.read_all(path)
        return sum(map(len, bags)), bags[0].features.shape[1]


def only(bags: Sequence[Bag], path: Path, slide: str | None = None) -> Bag:
    """The bag called ``slide``, or the only one.

    Raises:
        InputError: there is none of that name, or several and none was named.
    """
    names = [bag.slide_id for bag in bags]
    if slide is None and len(bags) != 1:
        raise InputError(f"{path} holds {len(bags)} slides; name one of them, for instance slide={names[0]!r}")
    if slide is not None and slide not in names:
        raise InputError(f"{path} holds no slide {slide!r}{did_you_mean(slide, names)}")
    return bags[0 if slide is None else names.index(slide)]


LAYOUTS: Registry[Layout] = Registry("layout", package="mil_zoo.data.layouts")


def register_layout(name: str) -> Any:
    """Class decorator that registers a :class:`Layout` under ``name``."""

    def decorate(cls: type[Layout]) -> type[Layout]:
        cls.name = name
        LAYOUTS.register(name)(cls())
        return cls

    return decorate


@dataclass(frozen=True)
class FeatureSet:
    """The features of one encoder, as found below a folder.

    Attributes:
        layout: name of the layout.
        name: the encoder, or the folder's name where the layout does not tell.
        folder: where they lie.
        files: feature file of each slide.
    """

    layout: str
    name: str
    folder: Path
    files: Mapping[str, Path]


def slide_name(text: str) -> str:
    """A slide's id without the suffix of its image: ``normal_001.tif`` is ``normal_001``."""
    return SLIDE_SUFFIXES.sub("", text)


def read_bag(
    path: Path | str, layout: str | None = None, *, slide: str | None = None, allow_pickle: bool = False
) -> Bag:
    """Reads the bag of one slide, in any known layout.

    Args:
        path: a feature file, or a folder that holds those of exactly one slide.
        layout: name of the layout (``mil-zoo data --help`` lists them); None to tell it from the path.
        slide: which slide, where a file holds several (bag tables, pickles, slide embeddings).
        allow_pickle: run whatever code a pickle holds; only for files of one's own.

    Returns:
        The bag, whose ``layout`` and ``geometry`` say how it was read; features float32 ``[N, D]``, coordinates and
        patch size in level-0 pixels unless ``unit`` says otherwise.

    Raises:
        InputError: nothing is there, the layout is unknown or does not fit, or the file is damaged.
    """
    path = Path(path)
    if path.is_dir():
        files = [file for found in find_features(path, layout) for file in found.files.values()]
        if len(files) != 1:
            raise InputError(f"{path} holds {len(files)} feature files; name one of them, for instance {files[0]}")
        path = files[0]
    elif not path.exists():
        raise InputError(f"{path}: no such file")
    found = layout_of(path, layout)
    if isinstance(found, TableLayout):
        return only(found.read_all(path, allow_pickle), path, slide)
    return found.read(path)


def layout_of(path: Path, layout: str | None = None) -> Layout:
    """The layout of a feature file: the one called ``layout``, or the one that recognises it."""
    if layout is not None:
        return LAYOUTS.get(layout)
    found = _recognise([path]) or (LAYOUTS.get(_UNTOLD) if path.suffix == ".h5" else None)
    if found is None:
        raise InputError(
            f"{path} is in no known layout ({', '.join(LAYOUTS)}); pass --layout NAME, or write it as one of them"
        )
    return found


def find_features(root: Path, layout: str | None = None) -> list[FeatureSet]:
    """Every set of features below a folder. Names are listed and a few heads read, no features.

    Args:
        root: searched with its sub-folders.
        layout: look for this layout only; None for all.

    Raises:
        InputError: there is none, or one of two files for the same slide would have to be guessed.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; pass the folder that holds the feature files")
    groups: dict[tuple[str, Path], dict[str, Path]] = {}
    for files in _folders(root):
        found = LAYOUTS.get(layout) if layout else _recognise(files)
        if found is None:
            continue
        for path in files:
            if path.suffix.lower() in found.suffixes and (found.uniform or found.matches(path)):
                slides = groups.setdefault((found.name, found.group(path)), {})
                _add(slides, found.slide_id(path), path)
    if not groups:
        raise InputError(
            f"{root}: no feature files below it (layouts: {', '.join(LAYOUTS)}); pass the folder that holds them"
        )
    return _named(root, groups)


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


def _add(slides: dict[str, Path], slide_id: str, path: Path) -> None:
    previous = slides.setdefault(slide_id, path)
    if previous.parent == path.parent and previous != path:
        raise InputError(f"slide {slide_id!r} has two feature files, {previous} and {path.name}; keep one of them")


def _named(root: Path, groups: Mapping[tuple[str, Path], Mapping[str, Path]]) -> list[FeatureSet]:
    names = {key: LAYOUTS.get(key[0]).encoder(key[1]) or "features" for key in groups}
    repeated = [name for name in names.values() if list(names.values()).count(name) > 1]
    sets = []
    for (layout, folder), slides in sorted(groups.items(), key=lambda item: (item[0][1], item[0][0])):
        name = names[layout, folder]
        if name in repeated:  # the same encoder at two magnifications: the folders above tell them apart
            name = str(folder.relative_to(root)) if folder != root else folder.name
        sets.append(FeatureSet(layout, name, folder, slides))
    return sets


def _folders(root: Path) -> Iterator[list[Path]]:
    """The feature files of each folder, by suffix, sorted by name."""
    known = {suffix for name in LAYOUTS for suffix in LAYOUTS.get(name).suffixes}
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        by_suffix: dict[str, list[Path]] = {}
        for name in sorted(names):
            suffix = Path(name).suffix.lower()
            if suffix in known and not name.startswith("."):
                by_suffix.setdefault(suffix, []).append(Path(folder) / name)
        yield from by_suffix.values()


def _recognise(files: Sequence[Path]) -> Layout | None:
    asked = files[:_ASKED]
    for path in asked:
        for name in LAYOUTS:
            layout = LAYOUTS.get(name)
            if path.suffix.lower() in layout.suffixes and layout.matches(path):
                return layout
    if all(path.suffix == ".h5" and head(path) is None for path in asked):
        return LAYOUTS.get(_UNTOLD)  # damaged files are named when they are read
    return None


def matrix_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, int]:
    """``shape`` as ``(N, D)``; an ``InputError`` where it is not of two axes."""
    if len(shape) != 2:
        raise InputError(f"{path}: features must be [patches, dimensions], not {list(shape)}; extract the slide again")
    return shape[0], shape[1]


def make_bag(
    path: Path,
    slide_id: str,
    layout: str,
    features: npt.NDArray[np.float32],
    coords: npt.NDArray[Any] | None = None,
    patch_size: float | None = None,
    geometry: str = "",
    unit: Literal["px", "um", "tile"] = "px",
    **more: Any,
) -> Bag:
    """A bag from the arrays of a file, once their axes fit each other.

    Raises:
        InputError: axes are swapped or rows missing, or see :class:`Bag`.
    """
    count = None if coords is None else len(coords)
    matrix_shape(path, features.shape)
    if coords is not None and coords.shape != (len(features), 2):
        if coords.shape == (2, len(features)):
            raise InputError(f"{path}: coords are [2, N] with their axes swapped; write them as [N, 2]")
        if coords.shape == (features.shape[1], 2):
            raise InputError(
                f"{path}: features are {list(features.shape)} for {count} coordinates: their axes are swapped; "
                "write them as [patches, dimensions]"
            )
        raise InputError(
            f"{path}: coords are {list(coords.shape)} for {len(features)} feature rows; they must be [N, 2]"
        )
    return Bag(
        features=torch.from_numpy(features),
        coords=None if coords is None else torch.from_numpy(coords),
        patch_size=patch_size,
        slide_id=slide_id,
        unit=unit,
        layout=layout,
        geometry=geometry,
        **more,
    )
