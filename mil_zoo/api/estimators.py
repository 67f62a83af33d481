"""Aggregators as scikit-learn estimators over lists of bags."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.utils.validation import check_is_fitted

from mil_zoo.api.training import check_seed, fit
from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import Bags, as_bags
from mil_zoo.data.splits.split import patient_key
from mil_zoo.errors import InputError
from mil_zoo.fitted import Fitted
from mil_zoo.tasks import Classification


class MILClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classifies bags with an aggregator of the zoo; works with ``cross_val_score``, ``GridSearchCV`` and pipelines.

    Each fit holds some of the bags it is given out as validation bags, by patient, on which the epoch is chosen. Where
    patients have several bags, pass scikit-learn their ids as ``groups`` with a splitter that keeps groups together.

    Attributes:
        classes_: the labels, ascending, ``[C]``.
        fitted_: the trained aggregator, see :class:`mil_zoo.fitted.Fitted`.

    Args:
        aggregator: name, see ``mil_zoo.list_aggregators()``.
        epochs: of the training; None for the recipe's.
        learning_rate: None for the recipe's.
        training: further settings of the training, or None.
        options: of the aggregator, ``{"embed_dim": 64}``, or None.
        graph: graph spec in place of the aggregator's own, or None.
        validation_fraction: share of the bags on which the epoch is chosen, in (0, 0.5].
        seed: of weights, order, dropout and of the choice of validation bags.
        device: where to compute; None for a GPU where there is one.

    Example:
        >>> classifier = mil_zoo.MILClassifier("abmil", epochs=20)
        >>> cross_val_score(classifier, bags, [bag.label for bag in bags], scoring="roc_auc")
        >>> GridSearchCV(classifier, {"learning_rate": [1e-4, 1e-3]}).fit(bags, labels).best_params_
    """

    def __init__(
        self,
        aggregator: str = "abmil",
        *,
        epochs: int | None = None,
        learning_rate: float | None = None,
        training: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
        graph: str | None = None,
        validation_fraction: float = 0.15,
        seed: int = 0,
        device: str | None = None,
    ) -> None:
        self.aggregator = aggregator
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.training = training
        self.options = options
        self.graph = graph
        self.validation_fraction = validation_fraction
        self.seed = seed
        self.device = device

    def fit(self, X: Sequence[Bag], y: Sequence[Any] | None = None) -> MILClassifier:
        """Trains on bags.

        Args:
            X: bags, n of them.
            y: labels ``[n]``, of any type; None for the labels of the bags.

        Raises:
            InputError: labels of another number, fewer than two classes, or too few bags of a class to hold one out.
        """
        for name in ("options", "training"):
            if not isinstance(value := getattr(self, name), dict | None):
                raise InputError(f"{name} is a dict of names and values, or None, not {value!r:.60}")
        bags = as_bags(X)
        labels = np.asarray(bags.labels if y is None else y)
        if not len(bags) or labels.ndim != 1:
            raise InputError(f"a label is needed for each bag, [n]; there are {len(bags)} bags, labels {labels.shape}")
        if pd.isna(labels).any():
            raise InputError(f"bag {int(pd.isna(labels).argmax())} has no label; leave out the bags without one")
        if len(labels) != len(bags):
            raise InputError(f"{len(labels)} labels are given for {len(bags)} bags; give each bag one")
        self.classes_, indices = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(f"all {len(bags)} bags have the label {str(labels[0])!r}; a classifier needs two classes")
        bags = _named(bags.relabelled(indices.tolist()))
        train, val = self._parts(bags, indices)
        settings = {"epochs": self.epochs, "learning_rate": self.learning_rate}
        given = {key: value for key, value in settings.items() if value is not None}
        self.fitted_: Fitted = fit(
            self.aggregator,
            bags.select(train),
            bags.select(val),
            task=Classification(len(self.classes_), tuple(map(str, self.classes_))),
            graph=self.graph,
            seed=self.seed,
            device=self.device,
            progress=False,
            **(given | (self.training or {}) | (self.options or {})),
        )
        return self

    def predict_proba(self, X: Sequence[Bag]) -> NDArray[np.float64]:
        """Probabilities ``[n, C]`` of the classes, in the order of ``classes_``."""
        check_is_fitted(self, "fitted_")
        probabilities = [prediction.probabilities for prediction in self.fitted_.predict(X)]
        return np.stack(probabilities) if probabilities else np.empty((0, len(self.classes_)))

    def predict(self, X: Sequence[Bag]) -> NDArray[Any]:
        """The most probable label of each bag, ``[n]``."""
        probabilities = self.predict_proba(X)
        return np.asarray(self.classes_[probabilities.argmax(1)])

    def _parts(self, bags: Bags, labels: NDArray[np.int64]) -> tuple[list[str], list[str]]:
        """Slide ids of the training and of the validation bags."""
        share = self.validation_fraction
        if not isinstance(share, numbers.Real) or not 0 < share <= 0.5:
            raise InputError(f"validation_fraction must be above 0 and at most 0.5, not {share!r:.60}")
        check_seed(self.seed)
        patients = [patient_key(slide) for slide in bags.slides]
        parts = max(2, min(round(1 / float(share)), int(np.bincount(labels).min())))
        if np.bincount(labels).min() < 2:
            raise InputError("a class has one bag: none can be held out to choose the epoch on; give it more")
        folds = StratifiedGroupKFold(parts, shuffle=True, random_state=self.seed)
        train, val = next(iter(folds.split(patients, labels, patients)))
        names = bags.slide_ids
        return [names[i] for i in train], [names[i] for i in val]


def _named(bags: Bags) -> Bags:
    """The bags with names of their own where they have none, or where scikit-learn drew one twice."""
    names = bags.slide_ids
    if "" not in names and len(set(names)) == len(names):
        return bags
    renamed = [
        bag.changed(slide_id=f"{i}:{bag.slide_id}", patient_id=bag.patient_id or bag.slide_id or None)
        for i, bag in enumerate(bags)
    ]
    return as_bags(renamed)
