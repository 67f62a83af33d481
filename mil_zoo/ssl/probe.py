"""What slide embeddings know: a logistic regression on the frozen embeddings, and votes of nearest neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.linear_model import LogisticRegression

from mil_zoo.data.splits.split import find_leaks
from mil_zoo.errors import InputError
from mil_zoo.metrics import score

PROBE_C = 10.0  # the authors'; fixed, so that nothing is chosen on test slides


class LinearProbe:
    """Logistic regression with C = 10 and balanced class weights, as Giga-SSL is evaluated.

    Args:
        num_classes: C; a class without a training slide gets probability 0.

    Source: github trislaz/gigassl, ``linear_evaluation.py``.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.regression = LogisticRegression(C=PROBE_C, class_weight="balanced", max_iter=10_000)

    def fit(self, embeddings: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> LinearProbe:
        """Fits float ``[n, E]`` and class indices ``[n]``; an ``InputError`` where there is one class only."""
        if len(np.unique(labels)) < 2:
            raise InputError("a linear probe needs training slides of two classes; take more labelled slides")
        self.regression.fit(np.asarray(embeddings, np.float64), labels)
        return self

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What was fitted: "coefficients" ``[C', E]``, "intercepts" ``[C']``, and the "classes" they are of."""
        fitted = self.regression
        return {"coefficients": fitted.coef_, "intercepts": fitted.intercept_, "classes": fitted.classes_}

    def predict(self, embeddings: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Class probabilities ``[n, C]``."""
        probabilities = np.zeros((len(embeddings), self.num_classes))
        probabilities[:, self.regression.classes_] = self.regression.predict_proba(np.asarray(embeddings, np.float64))
        return probabilities


@dataclass(frozen=True)
class ProbeSplit:
    """Training and test slides of one split of a regime.

    Attributes:
        regime: "full", "25p", "100", "50", ...
        number: of the split within the regime, from 0.
        train: slide ids.
        test: slide ids.
    """

    regime: str
    number: int
    train: tuple[str, ...]
    test: tuple[str, ...]


def probe(
    embeddings: npt.NDArray[Any],
    slide_ids: Sequence[str],
    labels: Mapping[str, int],
    patients: Mapping[str, str | None],
    splits: Sequence[ProbeSplit],
    on_split: Callable[[int], None] = lambda done: None,
) -> pd.DataFrame:
    """Probes embeddings over splits. Slides without an embedding or a label are left out and counted.

    Args:
        embeddings: ``[n, E]``.
        slide_ids: of the embeddings.
        labels: class index by slide.
        patients: patient by slide, where known.
        splits: which slides train and test.
        on_split: called after each split with how many are done.

    Returns:
        one row a split: "regime", "split", "n_train", "n_test", "missing" (slides left out), "leaked_patients" (on both
        sides of the split as published), and the test metrics.

    Raises:
        InputError: a split without a test slide, or without training slides of two classes.
    """
    place = {slide_id: i for i, slide_id in enumerate(slide_ids) if slide_id in labels}
    num_classes = 1 + max(labels.values())
    rows = []
    for split in splits:
        train, test = ([slide for slide in side if slide in place] for side in (split.train, split.test))
        if not test:
            raise InputError(f"regime {split.regime}, split {split.number}: no test slide has an embedding and a label")
        fitted = LinearProbe(num_classes).fit(*_columns(embeddings, train, place, labels))
        x, y = _columns(embeddings, test, place, labels)
        rows.append(
            {
                "regime": split.regime,
                "split": split.number,
                "n_train": len(train),
                "n_test": len(test),
                "missing": len(split.train) + len(split.test) - len(train) - len(test),
                "leaked_patients": len(find_leaks(split.train, split.test, patients)),
                **score(y, fitted.predict(x)),
            }
        )
        on_split(len(rows))
    return pd.DataFrame(rows)


def _columns(
    embeddings: npt.NDArray[Any], slides: Sequence[str], place: Mapping[str, int], labels: Mapping[str, int]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    return embeddings[[place[slide] for slide in slides]], np.array([labels[slide] for slide in slides])


def knn_accuracy(
    embeddings: npt.NDArray[Any], labels: Sequence[int], patients: Sequence[str], neighbours: int = 20
) -> float:
    """Share of slides whose nearest other slides (by cosine) vote for their class, slides of one patient not voting.

    Args:
        embeddings: ``[n, E]``.
        labels: class index; slides below 0 neither count nor vote.
        patients: of each slide.
        neighbours: number of voters, weighted by exp(cosine / 0.07); fewer where the set is smaller.

    Source: the weighted vote of Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination,
    CVPR 2018.
    """
    classes, groups = np.asarray(labels), np.unique(np.asarray(patients), return_inverse=True)[1]
    known = classes >= 0
    x, classes, groups = embeddings[known].astype(np.float64), classes[known], groups[known]
    x = x / np.linalg.norm(x, axis=1, keepdims=True).clip(min=1e-12)
    right = []
    for i in range(len(x)):
        cosine = x @ x[i]
        others = np.flatnonzero(groups != groups[i])
        nearest = others[np.argsort(-cosine[others], kind="stable")[:neighbours]]
        votes = np.bincount(classes[nearest], np.exp(cosine[nearest] / 0.07), minlength=classes.max() + 1)
        right.append(votes.argmax() == classes[i])
    return float(np.mean(right)) if right else float("nan")
