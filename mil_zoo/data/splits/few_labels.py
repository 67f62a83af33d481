"""Which slides keep their labels where only a few may be used."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mil_zoo.data.splits.balance import raw, shuffled
from mil_zoo.errors import InputError


def parse_labelled(text: str) -> float:
    """How many slides "50" or "25%" asks for, as :func:`choose_labelled` takes it: a number above 1, or a share.

    Raises:
        ValueError: neither; "1" is none either, because it would be read as a share.
    """
    share = float(text[:-1]) / 100 if text.endswith("%") else float(int(text))
    if not share > 0 or (text.endswith("%") and share > 1) or text.strip() == "1":
        raise ValueError(text)
    return share


def choose_labelled(labels: Sequence[int | None], labelled: float, seed: Sequence[int] | int) -> list[int]:
    """A random part of the slides, stratified by class, with at least one slide of each class.

    The parts of one seed are nested: fewer labels are a part of more labels.

    Args:
        labels: class of each slide.
        labelled: a share of the slides, in (0, 1], or a number of slides, above 1.
        seed: of the choice.

    Returns:
        their places, ascending.

    Raises:
        InputError: ``labelled`` is not positive, or a number beyond that of the slides.
    """
    if not labelled > 0 or labelled > max(1, len(labels)):
        raise InputError(
            f"labelled must be a share in (0, 1] or a number of at most {len(labels)} training slides, not {labelled}"
        )
    classes = np.array(labels)
    number = math.ceil(labelled * len(classes) - 1e-9) if labelled <= 1 else int(labelled)
    numbers = list(seed) if isinstance(seed, Sequence) else [seed]
    place = np.empty(len(classes))
    _, firsts, class_of = np.unique(classes, return_index=True, return_inverse=True)
    for turn, label in enumerate(np.argsort(firsts)):  # every class spread evenly, its first slide before all others
        members = np.flatnonzero(class_of == label)
        members = members[shuffled(len(members), *numbers, turn)]
        offset = float(raw(1, *numbers, turn, 1)[0]) / 2**64
        place[members] = (np.arange(len(members)) + offset) / len(members)
        place[members[0]] = -1
    number = max(number, len(np.unique(classes)))
    return sorted(np.argsort(place, kind="stable")[:number].tolist())
