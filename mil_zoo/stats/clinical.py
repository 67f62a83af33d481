"""What is known without any slide: a Cox regression on age, sex, stage and the like, and what a model adds to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from mil_zoo.errors import InputError
from mil_zoo.stats.resampling import Floats
from mil_zoo.survival import Cox, LikelihoodRatio, cox, likelihood_ratio

RIDGE = 1e-4
_WORDS = 5  # different ones that a column of few patients may hold
_STAGE = r"^(?:STAGE\s*)?(IV|I{1,3})"  # the sub-stages (IIIA, IB2) count as their stage
_SEX = {"F": 0.0, "FEMALE": 0.0, "M": 1.0, "MALE": 1.0}


@dataclass(frozen=True)
class Covariates:
    """Numbers of patients.

    Attributes:
        names: of the columns, ``[p]``.
        matrix: ``[n, p]``; NaN where unknown.
    """

    names: tuple[str, ...]
    matrix: Floats


@dataclass(frozen=True)
class Clinical:
    """A Cox regression on covariates, with what it takes to read others as those of the training patients were.

    Attributes:
        names: of the terms: covariates that vary, and "<name> unknown".
        fit: see :class:`mil_zoo.survival.Cox`; of standardised terms.
        fill: of each covariate the median of the training patients, in the place of unknown values, ``[p]``.
        unknown: covariates that have an indicator of being unknown.
        kept: terms that vary among the training patients.
        mean, sd: of each kept term.
    """

    names: tuple[str, ...]
    fit: Cox
    fill: Floats
    unknown: tuple[int, ...]
    kept: tuple[int, ...]
    mean: Floats
    sd: Floats

    def risk(self, covariates: Covariates) -> Floats:
        """Log hazards ``[n]`` of other patients, up to a constant."""
        return self.fit.risk(self.terms(covariates))

    def terms(self, covariates: Covariates) -> Floats:
        """The standardised terms ``[n, q]`` of patients."""
        terms = _terms(covariates.matrix, self.fill, self.unknown)
        return (terms[:, list(self.kept)] - self.mean) / self.sd


def read_covariates(table: pd.DataFrame, columns: list[str]) -> Covariates:
    """Numbers of the columns of a table of patients, by what they hold; empty cells are unknown.

    A column whose values are F and M (or female, male) is 0 and 1; one of stages I to IV, with or without letters, 1 to
    4, other words in it unknown; one of numbers is itself; any other has an indicator of each value but the most
    frequent.

    Raises:
        InputError: a column is missing, all of it is empty, or hardly two patients have the same word in it.
    """
    names: list[str] = []
    values: list[Floats] = []
    for column in columns:
        if column not in table:
            raise InputError(f"the clinical covariate {column!r} is no column of the table: {', '.join(table.columns)}")
        text = table[column].fillna("").astype(str).str.strip()
        given = text[text != ""]
        if given.empty:
            raise InputError(f"the clinical covariate {column!r} is empty for every patient; leave it out")
        numbers = pd.to_numeric(given, errors="coerce")
        stages = given.str.upper().str.extract(_STAGE)[0]
        if numbers.notna().all():
            names.append(column)
            values.append(pd.to_numeric(text, errors="coerce").to_numpy(dtype=np.float64))
        elif given.str.upper().isin(list(_SEX)).all():
            names.append(column)
            values.append(text.str.upper().map(_SEX).to_numpy(dtype=np.float64))
        elif stages.notna().mean() > 0.5:
            names.append(column)
            order = {"I": 1.0, "II": 2.0, "III": 3.0, "IV": 4.0}
            values.append(stages.reindex(text.index).map(order).to_numpy(dtype=np.float64))
        else:
            if given.nunique() > max(_WORDS, len(given) / 2):
                raise InputError(
                    f"the clinical covariate {column!r} holds {given.nunique()} different words for {len(given)} "
                    f"patients ({', '.join(map(repr, given.unique()[:3]))} ...), as an id or a date does; leave it out "
                    "or group its values"
                )
            for value in given.value_counts().index[1:]:
                names.append(f"{column}={value}")
                values.append(np.where(text == "", np.nan, (text == value).to_numpy(dtype=np.float64)))
    matrix = np.stack(values, axis=1) if values else np.empty((len(table), 0))  # a word that all have tells nothing
    return Covariates(tuple(names), matrix)


def fit_clinical(time: ArrayLike, event: ArrayLike, covariates: Covariates, ridge: float = RIDGE) -> Clinical:
    """Cox regression (Efron) on the covariates of training patients, standardised, with a small ridge.

    Unknown values are the median of the training patients, with an indicator beside them. A term that does not vary is
    left out; one that separates those with the event is held by the ridge.

    Args:
        time, event: ``[n]``.
        covariates: of the same patients.
        ridge: see :func:`mil_zoo.survival.cox`.

    Raises:
        InputError: no event, or no covariate varies.
    """
    gone = np.isnan(covariates.matrix)
    known = np.where(gone.all(0), 0.0, 1.0).astype(np.bool_)
    fill = np.zeros(len(covariates.names))
    fill[known] = np.nanmedian(covariates.matrix[:, known], axis=0)
    unknown = tuple(int(i) for i in np.flatnonzero(gone.any(0) & known))
    terms = _terms(covariates.matrix, fill, unknown)
    names = [*covariates.names, *(f"{covariates.names[i]} unknown" for i in unknown)]
    kept = tuple(int(i) for i in np.flatnonzero(np.ptp(terms, axis=0) > 0))
    if not kept:
        of = f" ({', '.join(names)})" if names else ""
        raise InputError(f"none of the clinical covariates{of} varies among the training patients")
    mean, sd = terms[:, list(kept)].mean(0), terms[:, list(kept)].std(0)
    fit = cox(time, event, (terms[:, list(kept)] - mean) / sd, ridge=ridge)
    return Clinical(tuple(names[i] for i in kept), fit, fill, unknown, kept, mean, sd)


def adds_to_clinical(
    time: ArrayLike, event: ArrayLike, covariates: Covariates, risk: ArrayLike, fold: ArrayLike
) -> LikelihoodRatio:
    """Whether a model's risk tells what the covariates do not: likelihood-ratio test of the risk beside them.

    Of test patients of all folds, each with the risk of the model that did not see it; stratified by fold. The risks
    are standardised within each fold, as their scales differ.

    Args:
        time, event, risk: ``[n]``.
        covariates: of the same patients.
        fold: ``[n]``, any values.
    """
    number = np.unique(np.asarray(fold), return_inverse=True)[1]
    scaled = np.array(risk, dtype=np.float64)
    for one in np.unique(number):
        own = number == one
        spread = scaled[own].std()
        scaled[own] = (scaled[own] - scaled[own].mean()) / (spread if spread > 0 else 1)
    terms = fit_clinical(time, event, covariates).terms(covariates)
    alone = cox(time, event, terms, ridge=RIDGE, strata=number)
    return likelihood_ratio(
        cox(time, event, np.column_stack([terms, scaled]), ridge=RIDGE, strata=number),
        alone,
    )


def _terms(values: Floats, fill: Floats, unknown: tuple[int, ...]) -> Floats:
    gone = np.isnan(values)
    return np.concatenate([np.where(gone, fill, values), gone[:, list(unknown)].astype(np.float64)], axis=1)
