"""How well the site that a slide comes from can be told from what a model made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mil_zoo.noted import undefined
from mil_zoo.stats.drawn import Draws

FEWEST = 10  # patients of a site that is told apart


@dataclass(frozen=True, eq=False)
class SiteLeak:
    """Result of :func:`site_probe`.

    Attributes:
        accuracy: balanced accuracy of telling the site, and that in each draw of the patients; NaN, with its reason,
            where it cannot be told.
        chance: 1 over the number of sites.
        sites: that were told apart.
        patients: of these sites.
    """

    accuracy: Draws
    chance: float
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
    folds, in which sites are stratified and patients grouped. Sites below ``FEWEST`` patients are left out. Sites,
    folds and draws depend on ``sites``, ``patients`` and ``seed`` alone: probes of other features of the same patients
    can be set against each other.

    Args:
        features: ``[n, E]``, of slides: their embeddings, or targets and predictions.
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
        return untold(gone, replicates, k, len(np.unique(owners)))
    if not np.isfinite(x).all():
        return untold(undefined("a slide's numbers are not finite"), replicates, k, len(np.unique(owners)))
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
    return SiteLeak(Draws(float(np.mean(recalls)), np.mean(drawn, axis=0)), 1 / k, k, len(np.unique(owners)))


def untold(reason: float, replicates: int = 1000, sites: int = 0, patients: int = 0) -> SiteLeak:
    """Where sites cannot be told: NaN with its ``reason``."""
    return SiteLeak(Draws(reason, np.full(replicates, np.nan)), np.nan, sites, patients)


def mean_leak(probes: Sequence[SiteLeak]) -> SiteLeak:
    """Their mean, of probes of different patients drawn by different seeds: the patients of each are drawn for itself.

    Args:
        probes: one a test set; those that cannot tell sites are left out, but where none can.
    """
    known = [probe for probe in probes if not np.isnan(probe.accuracy.value)]
    if not known:
        return probes[0]
    draws = Draws(
        float(np.mean([probe.accuracy.value for probe in known])),
        np.mean([probe.accuracy.drawn for probe in known], axis=0),
    )
    sites, patients = max(probe.sites for probe in known), sum(probe.patients for probe in known)
    return SiteLeak(draws, float(np.mean([probe.chance for probe in known])), sites, patients)
