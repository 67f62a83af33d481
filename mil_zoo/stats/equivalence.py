"""Whether two aggregators are practically equal: how probable it is that one is better by more than matters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mil_zoo.errors import InputError
from mil_zoo.stats.paired import corrected_t_test

ROPE = 0.01  # region of practical equivalence: differences of a metric in [0, 1] below it do not matter


@dataclass(frozen=True)
class Equivalence:
    """Probabilities of what the true difference a - b is; NaN where there is no spread to tell by.

    Attributes:
        above: it is above the region: ``d > rope``.
        equal: it is within: ``|d| <= rope``.
        below: ``d < -rope``.
    """

    above: float
    equal: float
    below: float


def posterior_of_difference(difference: float, se: float, df: float, rope: float = ROPE) -> Equivalence:
    """Probabilities by the posterior of a difference, ``difference + se t_df`` (normal for infinite ``df``).

    That is the posterior under a flat prior. Results without any spread leave it undefined: a few equal differences do
    not make the next one certain.

    Args:
        difference: a - b, observed.
        se: its standard error, corrected where splits overlap.
        df: degrees of freedom; of test sets their number less one.
        rope: half the width of the region of practical equivalence.

    Raises:
        InputError: ``rope`` is negative.
    """
    if rope < 0:
        raise InputError(f"a region of practical equivalence has a width, not {rope:g}")
    if np.isnan(difference) or not se > 0 or not df >= 1:
        return Equivalence(np.nan, np.nan, np.nan)
    spread = stats.norm if np.isinf(df) else stats.t(df)
    above, below = spread.sf((rope - difference) / se), spread.cdf((-rope - difference) / se)
    return Equivalence(float(above), float(max(0.0, 1 - above - below)), float(below))


def correlated_t(differences: Sequence[float | None], n_train: float, n_test: float, rope: float = ROPE) -> Equivalence:
    """Bayesian correlated t-test of the differences between two aggregators on the same splits.

    The posterior of the mean difference is Student's t with n - 1 degrees of freedom at the mean of the differences and
    of scale ``sqrt((1 / n + rho / (1 - rho)) s^2)``, with ``rho = n_test / (n_train + n_test)`` for the correlation
    that overlapping training sets cause: the scale is the standard error of the corrected resampled t.

    ::

        correlated_t([0.02, 0.03, 0.01, 0.02, 0.03], n_train=80, n_test=20)  # above .01: .89, equal: .11

    Args:
        differences: a - b, one a test set; None and NaN are left out.
        n_train: slides in a training set.
        n_test: slides in a test set.
        rope: as in :func:`posterior_of_difference`.

    Source: Corani & Benavoli, Machine Learning 100 (2015); Benavoli, Corani, Demšar & Zaffalon, JMLR 18 (2017).
    """
    found = corrected_t_test(differences, n_train, n_test)
    return posterior_of_difference(found.difference.mean, found.se, found.difference.n - 1, rope)
