"""How well the site that a slide comes from can be told from what a model made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mil_zoo.noted import undefined
from mil_zoo.stats.resampling import Floats, all_equal

FEWEST = 10  # patients of a site that is told apart


@dataclass(frozen=True, eq=False)
class SiteLeak:
    """Result of :func:`site_probe`.

    Attributes:
        accuracy: balanced accuracy of telling the site; NaN, with its reason, where it cannot be told.
        chance: 1 over the number of sites.
        drawn: ``[R]``, the accuracy in each draw of the patients; empty where it cannot be told.
        sites: that were told apart.
        patients: of these sites.
    """

    accuracy: float
    chance: float
    drawn: Floats
    sites: int
    patients: int

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval over the choice of patients; NaN where all draws give the same."""
        return self._quantile(0.025)

    @property
    def high(self) -> float:
        """Its upper end."""
        return self._quantile(0.975)

    def _quantile(self, share: float) -> float:
        return float("nan") if all_equal(self.drawn) else float(np.quantile(self.drawn, share))


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
        return SiteLeak(gone, np.nan, np.empty(0), k, len(np.unique(owners)))
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
    return SiteLeak(float(np.mean(recalls)), 1 / k, np.mean(drawn, axis=0), k, len(np.unique(owners)))


def mean_leak(probes: Sequence[SiteLeak]) -> SiteLeak:
    """Their mean, of probes of different patients drawn by different seeds: the patients of each are drawn for itself.

    Args:
        probes: one a test set; those that cannot tell sites are left out, but where none can.
    """
    known = [probe for probe in probes if not np.isnan(probe.accuracy)]
    if not known:
        return probes[0]
    accuracy, chance = (float(np.mean([getattr(probe, name) for probe in known])) for name in ("accuracy", "chance"))
    sites, patients = max(probe.sites for probe in known), sum(probe.patients for probe in known)
    return SiteLeak(accuracy, chance, np.mean([probe.drawn for probe in known], axis=0), sites, patients)


def with_labels(predictions: npt.ArrayLike, labels: npt.ArrayLike) -> Floats:
    """Features ``[n, P + K + P K]`` of predictions given the label: both, and the predictions within each label."""
    values = np.asarray(predictions, dtype=np.float64)
    known = np.unique(np.asarray(labels))
    member = (np.asarray(labels)[:, None] == known).astype(np.float64)
    products = (values[:, :, None] * member[:, None, :]).reshape(len(values), -1)
    return np.concatenate([values, member, products], axis=1)
