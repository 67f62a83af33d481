"""Patients of high and of low predicted risk, over the folds of a cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mil_zoo.errors import InputError
from mil_zoo.noted import note_of
from mil_zoo.stats.resampling import Floats, Ints
from mil_zoo.survival import HazardRatio, KaplanMeier, LogRank, hazard_ratio, kaplan_meier, logrank

SHOWN = 10  # patients at risk, below which curves are cut


@dataclass(frozen=True)
class RiskGroups:
    """Result of :func:`risk_groups`.

    Attributes:
        low, high: the curve of each group; None where it is empty.
        test: log-rank between them, stratified by fold.
        ratio: hazard of the high-risk group over that of the other, from a Cox regression stratified by fold.
        until: the last time at which 10 patients are at risk: curves are shown to here.
        patients: in the low-risk and in the high-risk group.
        collapsed: folds whose test patients all fell on one side.
        note: why test or ratio are undefined; "".
    """

    low: KaplanMeier | None
    high: KaplanMeier | None
    test: LogRank
    ratio: HazardRatio
    until: float
    patients: tuple[int, int]
    collapsed: tuple[int, ...]
    note: str


def risk_groups(
    time: Sequence[Floats], event: Sequence[Floats], risk: Sequence[Floats], thresholds: Sequence[float]
) -> RiskGroups:
    """Splits each fold's test patients at a threshold of that fold and joins the groups.

    The threshold is the median risk of the fold's *training* patients, known before any test patient was seen; a cut
    chosen by the test patients' survival (an optimal cut-point) finds a difference where there is none.

    Args:
        time, event, risk: of the test patients, one array a fold.
        thresholds: one a fold; above it is high risk.

    Raises:
        InputError: other numbers of folds.
    """
    if not len(time) == len(event) == len(risk) == len(thresholds) > 0:
        raise InputError(
            f"risk groups need times, events, risks and a threshold of every fold, not {len(time)}, {len(event)}, "
            f"{len(risk)} and {len(thresholds)}"
        )
    above = [np.asarray(one) > threshold for one, threshold in zip(risk, thresholds, strict=True)]
    fold: Ints = np.repeat(np.arange(len(time)), [len(one) for one in time])
    times, events, high = (np.concatenate([np.asarray(one) for one in parts]) for parts in (time, event, above))
    curves = [kaplan_meier(times[own], events[own]) if own.any() else None for own in (~high, high)]
    test, ratio = logrank(times, events, high, fold), hazard_ratio(times, events, high, fold)
    longest = np.sort(times)[::-1]
    return RiskGroups(
        curves[0],
        curves[1],
        test,
        ratio,
        float(longest[SHOWN - 1]) if len(longest) >= SHOWN else float(longest[-1]),
        (int((~high).sum()), int(high.sum())),
        tuple(number for number, one in enumerate(above) if one.all() or not one.any()),
        note_of(test.p) or note_of(ratio.value),
    )
