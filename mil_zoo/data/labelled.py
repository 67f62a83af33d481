"""A dataset in hand: its card, its labelled bags, and what splitting needs to know about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor

from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import Bags, as_bags
from mil_zoo.data.card import DataCard
from mil_zoo.data.layouts.base import FeatureSet
from mil_zoo.data.source import PatientRule
from mil_zoo.data.splits.split import Split
from mil_zoo.tasks import Task


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
    """Scales features to mean 0 and standard deviation 1, both taken from training instances only.

    Attributes:
        mean: ``[D]``.
        scale: ``[D]``; 1 where a feature is constant.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, bags: Sequence[Bag]) -> Standardiser:
        """Mean and standard deviation over all instances of ``bags``."""
        features = torch.cat([bag.features for bag in bags]).double()
        scale = features.std(0, correction=0)
        return cls(features.mean(0), torch.where(scale > 1e-8 * features.abs().amax(0), scale, 1.0))

    def __call__(self, bag: Bag) -> Bag:
        """The bag with scaled features."""
        return bag.with_features(((bag.features - self.mean) / self.scale).float())
