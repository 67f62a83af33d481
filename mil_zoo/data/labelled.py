"""A dataset in hand: its card, its labelled bags, and what splitting needs to know about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import Bags, as_bags
from mil_zoo.data.card import DataCard
from mil_zoo.data.layouts.base import FeatureSet
from mil_zoo.data.source import PatientRule
from mil_zoo.data.splits.split import Split
from mil_zoo.errors import InputError
from mil_zoo.tasks import Task

ROWS = 1000  # of a slide from which principal axes are taken


@dataclass(frozen=True, eq=False)
class Dataset:
    """The labelled bags of one dataset.

    Attributes:
        card: what it is.
        bags: one a slide, in the dataset's order; a list of bags becomes :class:`Bags`.
        published_splits: the splits that come with it, without validation parts where none are published; or empty.
        site_of: the site that each slide comes from; empty where unknown.
        test_ids: slides of another dataset, on all of which training on the others is tested; or empty.
        patient_rule: how a patient of several slides is scored; None where patients are not.
        features: the files that the bags are read from; None for bags in memory.
        excluded: slide, patient and reason of each slide that is left out because it states no target.
        covariates: a row a patient, "patient_id" and the columns that the card names, as text; None where it names
            none.
        partial: whether the labels named slides without features, which were left out on request; splits may name them.
    """

    card: DataCard
    bags: Bags
    published_splits: Sequence[Split] = ()
    site_of: Mapping[str, str] = field(default_factory=dict)
    test_ids: Sequence[str] = ()
    patient_rule: PatientRule | None = None
    features: FeatureSet | None = None
    excluded: Sequence[tuple[str, str, str]] = ()
    covariates: pd.DataFrame | None = None
    partial: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "bags", as_bags(self.bags))

    @property
    def in_dim(self) -> int:
        """Feature dimension D."""
        return self.bags.dim

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.card.classes)

    @property
    def task(self) -> Task:
        """What is predicted, as the card states it."""
        return self.card.create_task()


@dataclass(frozen=True, eq=False)
class Standardiser:
    """Scales features to mean 0 and standard deviation 1, or projects them on their principal axes, or both.

    ``x`` becomes ``((x - mean) / scale) axes``. All three come from training instances only.

    Attributes:
        mean: ``[D]``.
        scale: ``[D]``; 1 where a feature is constant, or is not scaled.
        axes: ``[D, K]``, orthonormal columns, those of the largest variance first; None for no projection.
    """

    mean: Tensor
    scale: Tensor
    axes: Tensor | None = None

    @classmethod
    def fit(cls, bags: Sequence[Bag]) -> Standardiser:
        """Mean and standard deviation over all instances of ``bags``."""
        features = torch.cat([bag.features for bag in bags]).double()
        scale = features.std(0, correction=0)
        return cls(features.mean(0), torch.where(scale > 1e-8 * features.abs().amax(0), scale, 1.0))

    @classmethod
    def projecting(cls, bags: Bags, width: int, scaled: bool = False) -> Standardiser:
        """The ``width`` principal axes of at most ``ROWS`` instances of each bag, evenly spread over it.

        Args:
            bags: of training slides.
            width: K.
            scaled: divide by standard deviations first, so that every feature counts the same.

        Raises:
            InputError: there are fewer features or instances than axes are asked for, or a slide has features that are
                no numbers.
        """
        count, dim, origin = 0, bags.dim, torch.zeros(bags.dim, dtype=torch.float64)
        total, products = torch.zeros_like(origin), torch.zeros(dim, dim, dtype=torch.float64)
        for slide in bags.slides:
            size = slide.shape()[0]
            places = np.linspace(0, size - 1, min(size, ROWS)).round().astype(int).tolist()
            rows = torch.from_numpy(slide.rows(places)).double()
            if not rows.isfinite().all():
                slide.read()  # which names the patches
                raise InputError(f"slide {slide.slide_id!r}: features are NaN or infinite; extract them again")
            if not count:  # sums around a mean lose no digits to it
                origin = rows.mean(0)
            rows -= origin
            count += len(rows)
            total += rows.sum(0)
            products += rows.T @ rows
        if not 1 <= width <= min(dim, count - 1):
            raise InputError(
                f"--project must be from 1 to {min(dim, count - 1)}, not {width}: the training slides have {dim} "
                f"features a patch, of {count} patches"
            )
        mean = total / count
        covariance = products / count - torch.outer(mean, mean)
        scale = torch.ones_like(mean)
        if scaled:
            deviations = covariance.diagonal().clamp(min=0).sqrt()
            scale = torch.where(deviations > 1e-8 * deviations.amax(), deviations, 1.0)
        axes = torch.linalg.eigh(covariance / torch.outer(scale, scale)).eigenvectors.flip(1)[:, :width]
        largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
        return cls(mean + origin, scale, (axes * largest.sign()).contiguous())  # which would be of either sign

    @property
    def width(self) -> int:
        """Numbers that an instance has afterwards."""
        return len(self.mean) if self.axes is None else self.axes.shape[1]

    def scaled(self, features: Tensor) -> Tensor:
        """``[N, D]`` to float32 ``[N, width]``."""
        scaled = (features - self.mean) / self.scale
        return (scaled if self.axes is None else scaled @ self.axes).float()

    def __call__(self, bag: Bag) -> Bag:
        """The bag with scaled features."""
        return bag.with_features(self.scaled(bag.features))

    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps of it, by attribute."""
        return {name: value for name, value in vars(self).items() if value is not None}
