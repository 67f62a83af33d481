"""Probes of the mean of a slide's features as protocols of the benchmark: nothing is trained on single instances."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import as_bags
from mil_zoo.errors import InputError
from mil_zoo.ssl.probe import LinearProbe
from mil_zoo.tasks import Classification
from mil_zoo.train.protocols import TrialContext, TrialResult, register_protocol

Floats = npt.NDArray[np.float64]
_LEAST = 1e-9  # spread below which a feature is constant


class _Fitted(Protocol):
    def predict(self, embeddings: Floats) -> Floats:
        """Class probabilities ``[n, C]``."""
        ...

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What was fitted."""
        ...


@register_protocol("linear_probe", family="classification", reads=())
def linear_probe(context: TrialContext, C: float = 1.0) -> TrialResult:
    """Linear probe: a logistic regression on the mean features of a slide, standardised by the training slides.

    A slide that is one vector already (an embedding of a slide encoder) is taken as it is. Validation slides choose
    nothing, and of the training settings none counts.

    Args:
        context: slides and settings of the trial.
        C: inverse strength of the L2 penalty; classes weigh alike.

    Raises:
        InputError: ``C`` is not positive, or training slides are of one class.
    """
    if not C > 0:
        raise InputError(f"linear_probe: C must be positive, not {C:g}")

    def fit(embeddings: Floats, labels: npt.NDArray[np.int64], classes: int) -> _Fitted:
        probe = LinearProbe(classes)
        probe.regression.C = C
        return probe.fit(embeddings, labels)

    return _probed(context, fit)


@register_protocol("knn_probe", family="classification", reads=())
def knn_probe(context: TrialContext, k: int = 20, temperature: float = 0.07) -> TrialResult:
    """kNN probe: a slide is of the class of the training slides whose mean features are nearest to its own.

    The k of highest cosine similarity s (of features standardised by the training slides) vote with weight
    ``exp(s / temperature)``; a class's probability is its share of the votes. Nothing is trained or chosen.

    Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018.

    Args:
        context: slides and settings of the trial.
        k: neighbours; all training slides where there are fewer.
        temperature: of the votes.

    Raises:
        InputError: ``k`` or ``temperature`` is not positive.
    """
    if k < 1 or not temperature > 0:
        raise InputError(f"knn_probe: k and temperature must be positive, not {k} and {temperature:g}")
    return _probed(
        context, lambda embeddings, labels, classes: _Neighbours(embeddings, labels, classes, k, temperature)
    )


class _Neighbours:
    def __init__(
        self, embeddings: Floats, labels: npt.NDArray[np.int64], classes: int, k: int, temperature: float
    ) -> None:
        self.rows, self.labels = _unit(embeddings), labels
        self.classes, self.k, self.temperature = classes, min(k, len(labels)), temperature

    def predict(self, embeddings: Floats) -> Floats:
        similar = _unit(embeddings) @ self.rows.T
        nearest = np.argsort(-similar, axis=1, kind="stable")[:, : self.k]
        of_nearest = np.take_along_axis(similar, nearest, axis=1)
        votes = np.exp((of_nearest - of_nearest.max(1, keepdims=True)) / self.temperature)
        shares = votes[:, :, None] * (self.labels[nearest][:, :, None] == np.arange(self.classes))
        summed = shares.sum(1)
        return np.asarray(summed / summed.sum(1, keepdims=True))

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {"rows": self.rows, "labels": self.labels}


def _unit(embeddings: Floats) -> Floats:
    return np.asarray(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(min=_LEAST))


def _probed(context: TrialContext, fit: Any) -> TrialResult:
    task = context.task
    if not isinstance(task, Classification):
        raise InputError(f"{context.name} tells classes apart; it cannot do the task {task.name}")
    start = time.perf_counter()
    means = {part: _means(context.bags[part]) for part in ("train", "val", "test") if part in context.bags}
    centre, spread = means["train"].mean(0), means["train"].std(0)
    spread = np.where(spread > _LEAST, spread, 1.0)
    scaled = {part: (values - centre) / spread for part, values in means.items()}
    labels = np.array(as_bags(context.bags["train"]).labels)
    fitted = fit(scaled["train"], labels, len(task.prediction_columns))
    of_train = fitted.predict(scaled["train"])
    row = {
        "epoch": 1,
        "loss": float(-np.log(of_train[np.arange(len(labels)), labels].clip(min=1e-12)).mean()),
        "seconds": time.perf_counter() - start,
        "selected": 1,
    }
    context.on_epoch(row)
    arrays = fitted.arrays() | {"centre": centre, "spread": spread}
    return TrialResult(
        task=task,
        predictions={part: torch.from_numpy(fitted.predict(rows)) for part, rows in scaled.items() if part != "train"},
        epochs=[row],
        weights={name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()},
        parameters=sum(int(arrays[name].size) for name in ("coefficients", "intercepts") if name in arrays),
    )


def _means(bags: Sequence[Bag]) -> Floats:
    """The mean features of every slide ``[n, D]``."""
    return np.stack([bag.features.double().mean(0).numpy() for bag in bags])
