"""Slides made of other slides: several sets of features side by side, and features that are scaled or projected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import Bags, MemorySlide, Slide
from mil_zoo.data.labelled import Standardiser
from mil_zoo.data.labels.annotations import InstanceLabeller
from mil_zoo.errors import InputError


@dataclass(frozen=True)
class _Derived(Slide):
    """All that another slide is but for its features."""

    slide: Slide

    @property
    def slide_id(self) -> str:  # type: ignore[override]
        return self.slide.slide_id

    @property
    def label(self) -> int | None:  # type: ignore[override]
        return self.slide.label

    @property
    def patient_id(self) -> str | None:  # type: ignore[override]
        return self.slide.patient_id

    @property
    def target(self) -> tuple[float, ...] | None:  # type: ignore[override]
        return self.slide.target

    def names(self) -> tuple[str, ...]:
        return self.slide.names()

    def coords(self) -> Tensor | None:
        return self.slide.coords()

    def instance_labels(self, bag: Bag) -> Tensor | None:
        return self.slide.instance_labels(bag)

    def changed(self, **fields: Any) -> Slide:
        return replace(self, slide=self.slide.changed(**fields))

    def annotated(self, labeller: InstanceLabeller) -> Slide:
        return replace(self, slide=self.slide.annotated(labeller))


@dataclass(frozen=True)
class _SideBySide(_Derived):
    """The features of ``slide`` with those that other encoders have of the same patches beside them."""

    others: tuple[Slide, ...]

    def read(self) -> Bag:
        bag = self.slide.read()
        more = [other.read() for other in self.others]
        for other in more:
            if len(other) != len(bag):
                raise InputError(
                    f"slide {self.slide_id!r} has {len(bag)} patches in one set of features and {len(other)} in "
                    "another; extract both at the same patches"
                )
            self._check_places(bag.coords, other.coords)
        return bag.with_features(torch.cat([bag.features, *(other.features.to(bag.features) for other in more)], 1))

    def coords(self) -> Tensor | None:
        first, *more = (slide.coords() for slide in (self.slide, *self.others))
        for other in more:
            self._check_places(first, other)
        return first

    def _check_places(self, one: Tensor | None, other: Tensor | None) -> None:
        if one is not None and other is not None and not torch.equal(one, other):
            raise InputError(
                f"slide {self.slide_id!r} has patches at other coordinates, or in another order, in one set of "
                "features than in another; extract both at the same patches"
            )

    def shape(self) -> tuple[int, int]:
        shapes = [slide.shape() for slide in (self.slide, *self.others)]
        if len({rows for rows, _ in shapes}) > 1:
            numbers = " and ".join(str(rows) for rows, _ in shapes)
            raise InputError(
                f"slide {self.slide_id!r} has {numbers} patches in the sets of features that are joined; extract them "
                "at the same patches"
            )
        return shapes[0][0], sum(width for _, width in shapes)

    def rows(self, places: Sequence[int]) -> npt.NDArray[np.float32]:
        return np.concatenate([slide.rows(places) for slide in (self.slide, *self.others)], axis=1)


@dataclass(frozen=True, eq=False)
class _Scaled(_Derived):
    """The features of ``slide`` as a standardiser makes them."""

    standardiser: Standardiser

    def read(self) -> Bag:
        return self.standardiser(self.slide.read())

    def shape(self) -> tuple[int, int]:
        return self.slide.shape()[0], self.standardiser.width

    def rows(self, places: Sequence[int]) -> npt.NDArray[np.float32]:
        return self.standardiser.scaled(torch.from_numpy(self.slide.rows(places))).numpy()


def side_by_side(sets: Sequence[Bags], names: Sequence[str], partial: bool = False) -> Bags:
    """The slides with the features of several sets beside each other, ``[N, D1 + D2 + ...]``.

    Args:
        sets: the bags of each set of features.
        names: of the sets.
        partial: take the slides that are in all sets, where some are in one of them alone.

    Raises:
        InputError: a slide that is in one set and not in another, or no slide is in all. Sets whose patches differ are
            told where a slide's shape or its coordinates are asked for, or it is read.
    """
    first, *others = sets
    ids = set(first.slide_ids).intersection(*(bags.slide_ids for bags in others))
    if partial and not ids:
        raise InputError(f"no slide has the features of all of {', '.join(names)}; extract them of the same slides")
    found = [{slide.slide_id: slide for slide in bags.slides} for bags in others]
    for name, known in zip(names[1:], found, strict=True):
        odd = sorted(set(first.slide_ids).symmetric_difference(known))
        if odd and not partial:
            raise InputError(
                f"the features {names[0]!r} and {name!r} are of different slides: {', '.join(odd[:5])} "
                f"({len(odd)} in all) is in one of them alone; extract the missing ones, or use the "
                "slides that are in both (--allow-missing)"
            )
    joined = [
        _SideBySide(slide, tuple(known[slide.slide_id] for known in found))
        for slide in first.slides
        if slide.slide_id in ids
    ]
    return Bags([slide if slide.slide.on_disk else MemorySlide(slide.read()) for slide in joined])


def standardised(bags: Bags, standardiser: Standardiser) -> Bags:
    """The bags with scaled features. Those on disk are scaled whenever they are read."""
    return Bags(
        [
            replace(slide, bag=standardiser(slide.bag))
            if isinstance(slide, MemorySlide)
            else _Scaled(slide, standardiser)
            for slide in bags.slides
        ]
    )
