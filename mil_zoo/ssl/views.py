"""Views of a slide: a few instances drawn at random, their coordinates transformed at random."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import as_bags
from mil_zoo.data.formats.boundary import boundary
from mil_zoo.data.formats.npy import load_npy
from mil_zoo.errors import InputError, did_you_mean

SCALE = (0.7, 1.3)


class ViewSource(Protocol):
    """Slides that views are drawn from: bags, or a store of augmentations."""

    @property
    def slide_ids(self) -> Sequence[str]:
        """One a slide."""
        ...

    def draw(self, slide: int, instances: int, generators: Sequence[np.random.Generator]) -> list[Bag]:
        """One bag of random instances (with replacement) of a slide for each generator."""
        ...


class BagSource:
    """Slides with one feature set each.

    Args:
        bags: one a slide, in memory or on disk; a slide is read once for all of its views.
    """

    def __init__(self, bags: Sequence[Bag]) -> None:
        self._bags = bags

    @property
    def slide_ids(self) -> Sequence[str]:
        """One a slide."""
        return as_bags(self._bags).slide_ids

    def draw(self, slide: int, instances: int, generators: Sequence[np.random.Generator]) -> list[Bag]:
        """See :class:`ViewSource`."""
        bag = self._bags[slide]
        return [draw_view(bag, instances, generator) for generator in generators]


def draw_view(bag: Bag, instances: int, generator: np.random.Generator) -> Bag:
    """A bag of ``instances`` random rows of ``bag``, drawn with replacement."""
    rows = torch.from_numpy(generator.integers(len(bag), size=instances))
    return Bag(
        features=bag.features[rows],
        coords=None if bag.coords is None else bag.coords[rows],
        patch_size=bag.patch_size,
        slide_id=bag.slide_id,
        unit=bag.unit,
    )


def draw_views(source: ViewSource, slide: int, instances: int, seed: Sequence[int], number: int = 2) -> list[Bag]:
    """Augmented views of a slide: the same for the same seed, whichever process draws them.

    Args:
        source: the slides.
        slide: number of the slide.
        instances: T, instances of a view.
        seed: of these views, for instance seed and epoch.
        number: how many views.
    """
    generators = [generator_of(source.slide_ids[slide], *seed, view) for view in range(number)]
    bags = source.draw(slide, instances, generators)
    return [
        bag if bag.coords is None else replace(bag, coords=augment_locations(bag.coords, generator))
        for bag, generator in zip(bags, generators, strict=True)
    ]


def augment_locations(coords: Tensor, generator: np.random.Generator) -> Tensor:
    """Random translation, rotation, flips and scales of one view's coordinates, then floor.

    ``floor((coords - t) R F S)``: t uniform over the extent of the view, R a rotation by [-180, 180) degrees, F flips
    each axis with probability 1/2, S scales each axis by [0.7, 1.3].

    Args:
        coords: ``[T, 2]``.
        generator: draws the six numbers.

    Source: Lazard et al., Giga-SSL (github trislaz/gigassl); there the angle is drawn in degrees and used in radians,
    which is as uniform.
    """
    points = coords.double().numpy()
    shift = generator.uniform(0, np.maximum(np.ptp(points, axis=0), 1))
    angle = np.deg2rad(generator.uniform(-180, 180))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.diag(generator.choice([-1.0, 1.0], 2) * generator.uniform(*SCALE, 2))
    return torch.from_numpy(np.floor((points - shift) @ rotation @ stretch)).float()


def generator_of(slide_id: str, *seed: int) -> np.random.Generator:
    """A generator that belongs to a slide, whatever its place among others."""
    return np.random.default_rng([*seed, zlib.crc32(slide_id.encode())])


class AugmentationStore:
    """Slides with several pre-computed feature sets each, one an augmentation of the patches (shared augmentation).

    Layout, as the official code reads it: ``tiles/<slide>/<a>.npy`` float ``[M, D]`` and
    ``coordinates/<slide>/<a>.npy`` ``[M, 2]`` for augmentations a = 0, 1, ...; all of a view's instances come from one
    of them. Besides, ``patch_size.txt`` may state the step of the patch grid in the unit of the coordinates. Files are
    mapped, never read whole.

    Args:
        folder: holds ``tiles`` and ``coordinates``.
        slides: names of the slides to use; None for all.

    Raises:
        InputError: no slides, an unknown one, or a slide without coordinates.
    """

    def __init__(self, folder: Path | str, slides: Sequence[str] | None = None) -> None:
        self.folder = Path(folder)
        tiles = self.folder / "tiles"
        found = sorted(path.name for path in tiles.iterdir() if path.is_dir()) if tiles.is_dir() else []
        if not found:
            raise InputError(f"{folder} is no store of augmentations; it needs tiles/<slide>/0.npy, 1.npy, ...")
        for slide in slides or ():
            if slide not in found:
                raise InputError(f"{folder} holds no slide {slide!r}{did_you_mean(slide, found)}")
        self._slides = found if slides is None else list(slides)
        self._sets = {slide: self._count(slide) for slide in self._slides}
        step = self.folder / "patch_size.txt"
        with boundary(step, "one number", "write the step of the patch grid in it"):
            self.patch_size = float(step.read_text()) if step.exists() else None

    def _count(self, slide: str) -> int:
        """Augmentations of a slide."""
        tiles, coordinates = (
            {path.stem for path in (self.folder / part / slide).glob("*.npy")} for part in ("tiles", "coordinates")
        )
        if not tiles or tiles != coordinates or tiles != {str(a) for a in range(len(tiles))}:
            raise InputError(
                f"{self.folder}: slide {slide!r} has augmentations {_listed(tiles)} in tiles and "
                f"{_listed(coordinates)} in coordinates; both need 0.npy, 1.npy, ..."
            )
        return len(tiles)

    @property
    def slide_ids(self) -> Sequence[str]:
        """One a slide: the names of the folders."""
        return self._slides

    @property
    def in_dim(self) -> int:
        """Feature dimension D."""
        return int(self._load("tiles", self._slides[0], 0).shape[1])

    def draw(self, slide: int, instances: int, generators: Sequence[np.random.Generator]) -> list[Bag]:
        """See :class:`ViewSource`; each view from one random augmentation."""
        name, bags = self._slides[slide], []
        for generator in generators:
            augmentation = int(generator.integers(self._sets[name]))
            tiles, coordinates = (self._load(part, name, augmentation) for part in ("tiles", "coordinates"))
            if tiles.ndim != 2 or coordinates.shape != (len(tiles), 2):
                raise InputError(
                    f"{self.folder}: augmentation {augmentation} of slide {name!r} has tiles {tiles.shape} and "
                    f"coordinates {coordinates.shape}; they must be [M, D] and [M, 2]"
                )
            rows = np.sort(generator.integers(len(tiles), size=instances))
            bags.append(
                Bag(
                    features=torch.from_numpy(tiles[rows].astype(np.float32)),
                    coords=torch.from_numpy(coordinates[rows].astype(np.float32)),
                    patch_size=self.patch_size,
                    slide_id=name,
                )
            )
        return bags

    def _load(self, part: str, slide: str, augmentation: int) -> np.ndarray:
        return load_npy(self.folder / part / slide / f"{augmentation}.npy")


def write_augmentations(folder: Path | str, slide_id: str, sets: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Adds a slide to a store of augmentations.

    Args:
        folder: of the store.
        slide_id: names the slide's folders.
        sets: features ``[M, D]`` and coordinates ``[M, 2]`` of each augmentation.

    Raises:
        InputError: ``slide_id`` cannot name a folder.
    """
    if slide_id in ("", ".", "..") or Path(slide_id).name != slide_id:
        raise InputError(f"slide {slide_id!r} cannot name a folder; take its separators out")
    for part, number in (("tiles", 0), ("coordinates", 1)):
        place = Path(folder) / part / slide_id
        place.mkdir(parents=True, exist_ok=True)
        for a, arrays in enumerate(sets):
            np.save(place / f"{a}.npy", np.asarray(arrays[number]))


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)[:5]) or "none"
