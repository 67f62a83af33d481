"""Patients of several slides: how their prediction comes about, and their slides packed as one bag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import Bags, MemorySlide, Slide, as_bags
from mil_zoo.data.source import PatientRule
from mil_zoo.data.splits.split import Split, patient_key
from mil_zoo.errors import InputError

_GAP = 1000  # patches between two slides of a packed bag: no graph over neighbours reaches across


@dataclass(frozen=True)
class PatientSlides(Slide):
    """The slides of a patient, some of them on disk, as one labelled bag."""

    slide_id: str
    label: int | None
    patient_id: str | None
    target: tuple[float, ...] | None
    members: tuple[Slide, ...]

    def names(self) -> tuple[str, ...]:
        """See :class:`Slide`."""
        return tuple(slide.slide_id for slide in self.members)

    def read(self) -> Bag:
        """All slides in one bag, with their instance labels."""
        return merged(list(Bags(self.members)), self.slide_id, self.label)

    def shape(self) -> tuple[int, int]:
        """``(N, D)`` without reading the features."""
        shapes = [slide.shape() for slide in self.members]
        return sum(n for n, _ in shapes), shapes[0][1]

    def coords(self) -> Tensor | None:
        """None: where the slides of a patient lie beside each other is settled when they are packed."""
        for slide in self.members:
            slide.coords()  # which says what is wrong with them
        return None

    def rows(self, places: Sequence[int]) -> npt.NDArray[np.float32]:
        """See :class:`Slide`."""
        ends = np.cumsum([slide.shape()[0] for slide in self.members])
        member = np.searchsorted(ends, places, side="right")
        starts = np.append(0, ends)[member]
        parts = [
            slide.rows((np.asarray(places) - starts)[member == i].tolist())
            for i, slide in enumerate(self.members)
            if (member == i).any()
        ]
        return np.concatenate(parts)


def settle_rule(bags: Sequence[Bag], wanted: PatientRule | None) -> PatientRule | None:
    """The rule by which patients are scored; None where there is nothing to do: no patient has several slides.

    Args:
        bags: labelled bags.
        wanted: the rule asked for; None for "mean" where every patient has one label.

    Raises:
        InputError: a rule was asked for, and a patient has slides of different labels.
    """
    labels: dict[str, set[str]] = {}
    for slide in as_bags(bags).slides:  # as text: an unknown entry, NaN, differs from itself
        labels.setdefault(patient_key(slide), set()).add(repr(slide.target or (slide.label,)))
    torn = sorted(patient for patient, found in labels.items() if len(found) > 1)
    if torn and wanted is not None:
        raise InputError(
            f"patients with slides of different labels have none of their own: {', '.join(torn[:10])} ({len(torn)} in "
            "all); correct the label table or leave out the patient level"
        )
    if torn or len(labels) == len(as_bags(bags).slides):
        return None
    return wanted or "mean"


def pack_patients(bags: Sequence[Bag]) -> Bags:
    """One bag a patient, called by the patient's name, in the order of their first slides; labels must agree."""
    members: dict[str, list[Slide]] = {}
    for slide in as_bags(bags).slides:
        members.setdefault(patient_key(slide), []).append(slide)
    return Bags([_packed(patient, slides) for patient, slides in members.items()])


def _packed(patient: str, slides: Sequence[Slide]) -> Slide:
    if any(slide.on_disk for slide in slides):
        return PatientSlides(patient, slides[0].label, patient, slides[0].target, tuple(slides))
    bag = merged([slide.read() for slide in slides], patient, slides[0].label)
    return MemorySlide(bag, tuple(slide.slide_id for slide in slides))


def pack_splits(splits: Sequence[Split], bags: Sequence[Bag]) -> list[Split]:
    """The same divisions by patient instead of slide id."""
    patient_of = {slide.slide_id: patient_key(slide) for slide in as_bags(bags).slides}

    def patients(part: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(patient_of[slide] for slide in part))

    return [
        Split(split.repeat, split.fold, patients(split.train), patients(split.val), patients(split.test))
        for split in splits
    ]


def merged(bags: Sequence[Bag], slide_id: str, label: int | None) -> Bag:
    """The instances of several bags as one bag. Slides lie side by side, in patches of the first one's size.

    Args:
        bags: of one feature dimension.
        slide_id: name of the merged bag, and its patient.
        label: its label.
    """
    known = [bag.instance_labels for bag in bags if bag.instance_labels is not None]
    return replace(
        bags[0],
        features=torch.cat([bag.features for bag in bags]),
        coords=_side_by_side(bags),
        label=label,
        instance_labels=torch.cat(known) if len(known) == len(bags) else None,
        slide_id=slide_id,
        patient_id=slide_id,
    )


def _side_by_side(bags: Sequence[Bag]) -> Tensor | None:
    """Coordinates of all bags, float ``[ΣN, 2]``; None where a bag has none, or no patch size to scale them by."""
    step, placed, begin = bags[0].patch_size, [], 0.0
    for bag in bags:
        if bag.coords is None or bag.patch_size is None or step is None:
            return None
        coords = (bag.coords - bag.coords.amin(0)) * (step / bag.patch_size)
        placed.append(coords + torch.tensor([begin, 0.0]))
        begin = float(placed[-1][:, 0].max()) + _GAP * step
    return torch.cat(placed)
