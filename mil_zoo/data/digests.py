"""Digests of data: they tell that slides are identical, and that the data of a run changed since it began."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import Bags, Slide

_SAMPLED = 16  # rows of a slide


def of_bag(bag: Bag) -> str:
    """16 hexadecimal digits of all features of a bag."""
    return _digest(len(bag), bag.features.shape[1], bag.features.detach().cpu().float().numpy())


def of_sample(slide: Slide) -> str:
    """16 hexadecimal digits of the shape of a slide's features and of a few rows spread evenly over it.

    Raises:
        InputError: its file cannot be read.
    """
    count, dim = slide.shape()
    places = np.unique(np.linspace(0, max(0, count - 1), _SAMPLED).round().astype(np.int64)).tolist()
    return _digest(count, dim, slide.rows(places) if count else np.empty((0, dim), np.float32))


def samples_of(bags: Bags) -> dict[str, str]:
    """:func:`of_sample` of every slide by its id."""
    return {slide.slide_id: of_sample(slide) for slide in bags.slides}


def identical(bags: Bags, samples: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Groups of slides whose features are the same in every row. Those are read whole whose samples agree.

    Args:
        bags: the slides.
        samples: from :func:`samples_of`.

    Raises:
        InputError: a file cannot be read.
    """
    alike: dict[str, list[Slide]] = defaultdict(list)
    for slide in bags.slides:
        alike[samples[slide.slide_id]].append(slide)
    same: dict[str, list[str]] = defaultdict(list)
    for slides in alike.values():
        for slide in slides if len(slides) > 1 else ():
            same[of_bag(slide.read())].append(slide.slide_id)
    return [tuple(group) for group in same.values() if len(group) > 1]


def of_labels(bags: Bags) -> str:
    """One digest of label, target and patient of all slides, whatever their order."""
    return together(f"{slide.slide_id}\t{slide.label}\t{slide.target}\t{slide.patient_id}" for slide in bags.slides)


def together(lines: Iterable[str]) -> str:
    """One digest of several lines, whatever their order."""
    return hashlib.blake2b("\n".join(sorted(lines)).encode(), digest_size=8).hexdigest()


def _digest(count: int, dim: int, rows: npt.NDArray[np.float32]) -> str:
    digest = hashlib.blake2b(f"{count} x {dim}".encode(), digest_size=8)
    digest.update(np.ascontiguousarray(rows, dtype="<f4").data)
    return digest.hexdigest()
