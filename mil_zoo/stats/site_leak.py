"""How well the site that a slide comes from can be told from what a model made of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mil_zoo.noted import undefined
from mil_zoo.stats.resampling import Floats, all_equal

FEWEST = 10  # patients of a site that is told apart


@dataclass(frozen=True)
class SiteLeak:
    """Result of :func:`site_probe`.

    Attributes:
        accuracy: balanced accuracy of telling the site; NaN, with its reason, where it cannot be told.
        chance: 1 over the number of sites.
        low, high: 95 % interval of the accuracy over the choice of patients; NaN where all draws give the same.
        sites: that were told apart.
        patients: of these sites.
    """

    accuracy: float
    chance: float
    low: float
    high: float
    sites: int
    patients: int


def site_probe(
    features: npt.ArrayLike,
    sites: npt.ArrayLike,
    patients: npt.ArrayLike,
    folds: int = 5,
    replicates: int = 1000,
    seed: int = 0,
) -> SiteLeak:
    """Balanced accuracy of a multinomial probe that tells the site from features, on patients it was not fitted to.

    A logistic regression (C = 1, balanced, features standardised on the fitted part) is fitted to ``folds - 1`` of the
    folds, in which sites are stratified and patients grouped. Sites below ``FEWEST`` patients are left out.

    Args:
        features: ``[n, E]``, of slides: their embeddings, or predictions and labels.
        sites: ``[n]``; "" is unknown and left out.
        patients: ``[n]``.
        folds: of the cross-validation.
        replicates: draws of patients, within sites, for the interval.
        seed: of folds and draws.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, names, owners = np.asarray(features, dtype=np.float64), np.asarray(sites, str), np.asarray(patients, str)
    sizes = {site: len(np.unique(owners[names == site])) for site in np.unique(names) if site != ""}
    kept = np.isin(names, [site for site, size in sizes.items() if size >= FEWEST])
    x, names, owners = x[kept], names[kept], owners[kept]
    k = len(np.unique(names))
    if k < 2:
        gone = undefined(f"{k} of {len(sizes)} sites have {FEWEST} patients or more; telling sites apart needs two")
        return SiteLeak(gone, np.nan, gone, gone, k, len(np.unique(owners)))
    said = np.empty(len(names), dtype=names.dtype)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for train, test in splitter.split(x, names, owners):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, class_weight="balanced", max_iter=2000))
        said[test] = probe.fit(x[train], names[train]).predict(x[test])
    right = (said == names).astype(np.float64)
    rng = np.random.default_rng(seed)
    recalls, drawn = [], []
    for site in np.unique(names):
        own = names == site
        who, place = np.unique(owners[own], return_inverse=True)
        hits, slides = np.bincount(place, right[own]), np.bincount(place)
        counts = rng.multinomial(len(who), np.full(len(who), 1 / len(who)), replicates)
        recalls.append(right[own].mean())
        drawn.append((counts @ hits) / (counts @ slides))
    means = np.mean(drawn, axis=0)
    low, high = np.quantile(means, [0.025, 0.975]) if not all_equal(means) else (np.nan, np.nan)
    return SiteLeak(float(np.mean(recalls)), 1 / k, float(low), float(high), k, len(np.unique(owners)))


def with_labels(predictions: npt.ArrayLike, labels: npt.ArrayLike) -> Floats:
    """Features ``[n, P + K + P K]`` of predictions given the label: both, and the predictions within each label."""
    values = np.asarray(predictions, dtype=np.float64)
    known = np.unique(np.asarray(labels))
    member = (np.asarray(labels)[:, None] == known).astype(np.float64)
    products = (values[:, :, None] * member[:, None, :]).reshape(len(values), -1)
    return np.concatenate([values, member, products], axis=1)
