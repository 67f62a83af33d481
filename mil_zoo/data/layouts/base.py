"""What a layout is: how one of the tools in use leaves features on disk. One file a layout registers it."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from mil_zoo.data.bag import Bag
from mil_zoo.errors import InputError, did_you_mean
from mil_zoo.registry import Registry

# Suffixes of slide images, which some tools keep in a slide's name and others drop.
SLIDE_SUFFIXES = re.compile(
    r"\.(svs|tiff?|ndpi|mrxs|scn|vms|vmu|bif|czi|isyntax|sdpc|kfb|dcm|qptiff|svslide)$", re.IGNORECASE
)


class Sure(IntEnum):
    """How sure a layout is that a file is one of its own; the surest has it."""

    SUFFIX = 1  # it has the suffix, and nothing speaks against it
    CONTENT = 2  # what is in it is named or shaped as the tool does it, and maybe as others do
    NAMES = 3  # the folders or the file are called what the tool calls them
    STATED = 4  # the file, or one beside it, holds what only this tool writes


class Claim(NamedTuple):
    """What a layout says of a file.

    Attributes:
        sure: how sure it is that the file is its own.
        why: the evidence, in words.
        bags: False for a file that it knows and that holds no bags (coordinates of patches).
    """

    sure: Sure
    why: str
    bags: bool = True


class Places(NamedTuple):
    """Where the patches of a slide lie.

    Attributes:
        coords: ``[N, 2]``, as a bag has them.
        step: of their grid, the patch size; None where nothing tells it.
        why: where the step comes from, in words.
        unit: of both.
    """

    coords: npt.NDArray[Any]
    step: float | None
    why: str
    unit: Literal["px", "um", "tile"] = "px"


class Layout(ABC):
    """One way in which features lie on disk: telling it, listing its slides, reading one of them.

    A subclass is registered with ``@register_layout(name)``, which also makes its ``name``.
    """

    name: ClassVar[str]
    about: ClassVar[str]  # what lies where, one line
    suffixes: ClassVar[tuple[str, ...]]  # of its feature files
    uniform: ClassVar[bool] = True  # every file of a folder with these suffixes is one of them
    of_slides: ClassVar[bool] = False  # one vector a slide, the output of a slide encoder: no patches
    folders: ClassVar[tuple[str, ...]] = ()  # those of its suffixes that are of folders and not of files

    @abstractmethod
    def claim(self, path: Path) -> Claim | None:
        """How sure it is that a file with one of its suffixes is in this layout, and why; None where it is not."""

    @abstractmethod
    def read(self, path: Path) -> Bag:
        """The bag of the slide in a feature file, without label unless the layout holds it."""

    @abstractmethod
    def shape(self, path: Path) -> tuple[int, int]:
        """Number of patches N and feature dimension D, without reading the features."""

    def rows(self, path: Path, places: Sequence[int]) -> npt.NDArray[np.float32]:
        """These feature rows (ascending), float32 ``[len(places), D]``; here the whole slide is read."""
        features: npt.NDArray[np.float32] = self.read(path).features[list(places)].float().numpy()
        return features

    def parts(self, path: Path) -> list[Path]:
        """What is read of a feature file: itself, or the place in it of the features of each encoder."""
        return [path]

    def slide_id(self, path: Path) -> str:
        """The slide that a feature file belongs to."""
        return slide_name(path.stem)

    def group(self, path: Path) -> Path:
        """The folder that a feature file shares with those of other slides of the same encoder."""
        return path.parent

    def encoder(self, path: Path) -> str:
        """A name for the features in a feature file, the same for all slides of a group."""
        return self.group(path).name

    def source(self, path: Path) -> str | None:
        """What the place of a feature file says of encoder and patches; "" for nothing.

        Groups that say the same and share no slide hold the features of one encoder, a folder a class for instance.
        None where each group stands alone.
        """
        return ""

    def coordinates(self, path: Path) -> Places | None:
        """Where the patches of a feature file lie, without reading its features; None where nothing says it."""
        return None

    def labels(self, features: FeatureSet) -> pd.DataFrame | None:
        """The labels that lie with the features: text columns slide_id, label and maybe split; None without any."""
        return None


class TableLayout(Layout):
    """A layout that keeps the bags of several slides in one file, which is read as a whole."""

    uniform = False

    def source(self, path: Path) -> str | None:
        """Nothing: its slides are known when it is read."""
        return None

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
